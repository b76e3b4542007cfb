"""What stands between a proxy and its SuperLink and writes down every byte, as it is inside TLS."""

import select
import socket
import ssl
import threading
from collections.abc import Mapping
from pathlib import Path

from fedspeech.connection import Address

CHUNK = 2**16
Ways = Mapping[ssl.SSLSocket, tuple[ssl.SSLSocket, str]]
"""From where, to where, and the name of the file."""


class Recorder:
    """Listens on loopback with the server's own certificate, until the process ends.

    `up` and `down` are files of what boxes and what the SuperLink said, connection by connection.
    """

    def __init__(self, keys: Path, to: Address, folder: Path) -> None:
        self._to, self._folder = to, folder
        folder.mkdir()
        self._inward = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._inward.load_cert_chain(keys / "server.crt", keys / "server.key")
        self._onward = ssl.create_default_context(cafile=keys / "ca.crt")
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = Address("127.0.0.1", self._server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def heard(self, way: str) -> bytes:
        """All that went `up` or `down` so far."""
        return b"\n".join(path.read_bytes() for path in sorted(self._folder.glob(f"*.{way}")))

    def _accept(self) -> None:
        for number in range(2**31):
            peer, _ = self._server.accept()
            threading.Thread(target=self._serve, args=(number, peer), daemon=True).start()

    def _serve(self, number: int, peer: socket.socket) -> None:
        try:
            near = self._inward.wrap_socket(peer, server_side=True)
            plain = socket.create_connection(self._to)
            far = self._onward.wrap_socket(plain, server_hostname="localhost")
        except OSError:
            peer.close()
            return
        ways = {near: (far, f"{number:06}.up"), far: (near, f"{number:06}.down")}
        try:
            while self._pass_on(ways):
                pass
        except OSError:
            pass
        finally:
            near.close()
            far.close()

    def _pass_on(self, ways: Ways) -> bool:
        """What has come by now, each way; False where one side has ended. One thread does both:
        of a TLS connection no two may at once."""
        for one in [end for end in ways if end.pending()] or select.select(ways, [], [])[0]:
            other, name = ways[one]
            one.setblocking(False)
            try:
                data = one.recv(CHUNK)
            except ssl.SSLWantReadError:  # nothing but TLS's own
                continue
            finally:
                one.setblocking(True)
            if not data:
                return False
            with (self._folder / name).open("ab") as record:
                record.write(data)
            other.sendall(data)
        return True
