"""What stands between a proxy and its SuperLink and writes down every byte, as it is inside TLS."""

import socket
import ssl
import threading
from pathlib import Path

from fedspeech.connection import Address

CHUNK = 2**16


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
        for way, one, other in (("up", near, far), ("down", far, near)):
            file = self._folder / f"{number:06}.{way}"
            threading.Thread(target=_copy, args=(one, other, file), daemon=True).start()


def _copy(one: ssl.SSLSocket, other: ssl.SSLSocket, file: Path) -> None:
    with file.open("ab", buffering=0) as record:
        try:
            while data := one.recv(CHUNK):
                record.write(data)
                other.sendall(data)
        except OSError:
            pass
        finally:
            for each in (one, other):
                each.close()
