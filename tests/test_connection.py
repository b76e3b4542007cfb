"""`fedspeech doctor --server` against real TLS servers on loopback, each wrong in its own way."""

import os
import socket
import ssl
import sys
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from errno import EACCES
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from flwr.common.constant import (
    HEARTBEAT_MIN_INTERVAL,
    SYSTEM_TIME_TOLERANCE,
    TIMESTAMP_HEADER,
    TIMESTAMP_TOLERANCE,
)
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.error import ApiErrorCode
from flwr.supercore.primitives.asymmetric import (
    bytes_to_public_key,
    public_key_to_bytes,
    verify_signature,
)

from fedspeech import cli, connection, node_key
from fedspeech.connection import Address
from fedspeech.errors import ConfigError

NOW, DAY = datetime.now(UTC), timedelta(days=1)
KEY = ec.generate_private_key(ec.SECP256R1())


class Authority(NamedTuple):
    """A CA, and the file with its certificate."""

    certificate: x509.Certificate
    file: Path


def signed(name: str, issuer: x509.Name | None, begin: datetime, end: datetime, *names):
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(KEY.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(issuer is None, None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(KEY.public_key()), False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(KEY, hashes.SHA256())


@pytest.fixture
def authority(tmp_path) -> Callable[[str], Authority]:
    def make(name: str = "our CA") -> Authority:
        found = signed(name, None, NOW - 30 * DAY, NOW + 30 * DAY)
        path = tmp_path / f"{name}.crt"
        path.write_bytes(found.public_bytes(serialization.Encoding.PEM))
        return Authority(found, path)

    return make


@pytest.fixture
def serve(tmp_path, authority) -> Iterator[Callable[..., tuple[Address, Path]]]:
    """Start an HTTPS server; its address, and the file of the CA that signed its certificate."""
    servers: list[ThreadingHTTPServer] = []

    def start(
        begin: timedelta = -DAY,
        end: timedelta = 20 * DAY,
        name: x509.GeneralName = x509.DNSName("localhost"),  # noqa: B008
        clock: timedelta = timedelta(),
        answer: tuple[int, bytes] = (404, b"{}"),
    ) -> tuple[Address, Path]:
        ca = authority()
        certificate = signed("a server", ca.certificate.subject, NOW + begin, NOW + end, name)
        both = tmp_path / "server.pem"
        private = KEY.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        both.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler(clock, answer))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(both)
        server.socket = context.wrap_socket(server.socket, True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return Address("localhost", server.server_address[1]), ca.file

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def handler(clock: timedelta, answer: tuple[int, bytes]) -> type[BaseHTTPRequestHandler]:
    """What answers all alike, and tells the time of a clock of its own."""

    class Answers(BaseHTTPRequestHandler):
        def date_time_string(self, timestamp=None) -> str:
            return (datetime.now(UTC) + clock).strftime("%a, %d %b %Y %H:%M:%S GMT")

        def do_GET(self) -> None:
            self.send_response(answer[0])
            self.send_header("Content-Length", str(len(answer[1])))
            self.end_headers()
            self.wfile.write(answer[1])

        do_POST = do_GET

        def log_message(self, *_) -> None:
            pass

    return Answers


@contextmanager
def listening(say: bytes | None) -> Iterator[Address]:
    """A server without TLS: it says something to everybody, or hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    other, _ = server.accept()
                except OSError:
                    return
                with other, suppress(ConnectionError):
                    if say:
                        other.sendall(say)
                        other.recv(4096)

        threading.Thread(target=answer, daemon=True).start()
        yield Address("localhost", server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)


def looked_at(to: Address, ca: Path | None, key: Path | None = None) -> dict[str, tuple[str, str]]:
    """Status and all that was said, by name."""
    found = connection.findings(to, ca, key)
    return {one.name: (one.status, f"{one.found}; {one.todo}") for one in found}


def test_a_server_as_it_should_be(serve):
    to, ca = serve()
    found = looked_at(to, ca)
    assert [(name, status) for name, (status, _) in found.items()] == [
        (name, "ok") for name in ("name", "port", "TLS", "certificate", "clock")
    ]
    assert "127.0.0.1" in found["name"][1]
    assert f"until {NOW + 20 * DAY:%Y-%m-%d %H:%M} UTC" in found["certificate"][1]


def test_a_certificate_that_will_expire_soon_still_works(serve):
    found = looked_at(*serve(end=9.5 * DAY))
    assert found["certificate"][0] == "optional"
    assert found["certificate"][1].endswith("renew it within 9 days")
    assert found["clock"][0] == "ok"


def test_an_expired_certificate(serve):
    found = looked_at(*serve(begin=-9 * DAY, end=-DAY))
    status, said = found["TLS"]
    assert status == "missing" and "the certificate has expired: it is " in said
    assert "the server needs a new certificate" in said
    assert found["certificate"][0] == "missing"
    assert found["clock"][0] == "ok"  # so it is not this box's clock


def test_a_certificate_from_the_future_shows_a_clock_that_is_behind(serve):
    """The server's clock is nine days ahead of this one, and its certificate a day old."""
    found = looked_at(*serve(begin=8 * DAY, end=20 * DAY, clock=9 * DAY))
    status, said = found["TLS"]
    assert status == "missing" and "counts from a later time than " in said
    assert "set this box's clock" in said
    assert found["certificate"][0] == "missing"
    status, said = found["clock"]
    assert status == "missing" and said.startswith(f"{9 * 24 * 3600} s behind the server's; set it")


@pytest.mark.parametrize(
    ("clock", "status"), [(-3, "ok"), (-8, "missing"), (290, "ok"), (310, "missing")]
)
def test_a_clock_may_differ_by_what_flower_takes(serve, clock, status):
    """A server 8 s behind has a box that is 8 s ahead."""
    found = looked_at(*serve(clock=timedelta(seconds=clock)))
    assert found["TLS"][0] == "ok" and found["clock"][0] == status
    assert ("ahead of" if clock < 0 else "behind") in found["clock"][1]


def test_a_certificate_for_another_name(serve):
    for name in (x509.DNSName("example.org"), x509.IPAddress(ip_address("127.0.0.1"))):
        to, ca = serve(name=name)
        status, said = looked_at(to, ca)["TLS"]
        assert status == "missing" and "the certificate is not that of localhost; use the " in said
    assert looked_at(Address("127.0.0.1", to.port), ca)["TLS"][0] == "ok"
    status, said = looked_at(Address("127.0.0.2", to.port), ca)["port"]
    assert status == "missing"


def test_a_ca_that_nobody_knows(serve, authority):
    to, _ = serve()
    for ca in (authority("another CA").file, None):
        status, said = looked_at(to, ca)["TLS"]
        assert status == "missing" and "not signed by a CA that counts here" in said
        assert "--ca" in said


def test_a_ca_that_is_no_file_or_no_certificate(serve, tmp_path):
    to, _ = serve()
    (tmp_path / "text").write_text("no certificate")
    for path in (tmp_path / "none", tmp_path / "text"):
        status, said = looked_at(to, path)["CA"]
        assert status == "missing" and said.startswith(f"{path}: ")


@pytest.mark.parametrize("say", [b"HTTP/1.0 400 Bad Request\r\n\r\n", b"220 mail\r\n", None])
def test_a_server_without_tls(say, authority):
    with listening(say) as to:
        found = looked_at(to, authority().file)
    assert list(found) == ["name", "port", "TLS"]
    status, said = found["TLS"]
    assert status == "missing" and said.endswith(
        "check that this is the server's TLS port, and no other program's"
    )
    assert "speaks no TLS" in said or "broke off" in said


def test_a_server_that_says_nothing(authority, monkeypatch):
    monkeypatch.setattr(connection, "SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = looked_at(Address("localhost", server.getsockname()[1]), authority().file)
    assert found["TLS"][0] == "missing" and "no answer within 0.2 s" in found["TLS"][1]


def test_a_port_where_nobody_listens(authority):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    found = looked_at(Address("127.0.0.1", port), authority().file)
    assert list(found) == ["name", "port"]
    status, said = found["port"]
    assert status == "missing" and "Connection refused; check the port, and whether" in said


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 300])
def test_a_name_that_is_not_found(authority, host):
    found = looked_at(Address(host, 443), authority().file)
    assert list(found) == ["name"] and found["name"][0] == "missing"
    assert found["name"][1].startswith(f"{host}: ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a.b:443", ("a.b", 443)), ("[::1]:1", ("::1", 1)), ("1.2.3.4:65535", ("1.2.3.4", 65535))],
)
def test_an_address(text, expected):
    assert connection.address(text) == expected


@pytest.mark.parametrize("text", ["", "a.b", ":443", "a:", "a:0", "a:65536", "https://a:1", "a:²"])
def test_what_is_no_address(text):
    with pytest.raises(ConfigError, match="--server: expected HOST:PORT, found "):
        connection.address(text)


# Keys, against servers that answer as a SuperLink does; tests of the deployment ask a real one.


@pytest.fixture
def key(tmp_path) -> Path:
    path = tmp_path / "box.key"
    path.write_bytes(
        KEY.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
    )
    return path


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        ((400, b'{"code": 2003, "detail": "Invalid heartbeat interval."}'), "ok", "registered"),
        ((412, b'{"code": 2004, "detail": "Failed"}'), "missing", "not registered, or revoked; "),
        ((401, b'{"detail": "Invalid SuperNode auth"}'), "missing", "the server does not take its"),
        ((403, b"<html>"), "missing", "no SuperLink answers at /v1/fleet/activate-node (HTTP 403)"),
        ((200, b""), "missing", "no SuperLink answers at /v1/fleet/activate-node (HTTP 200)"),
        ((500, b"[1]"), "missing", "no SuperLink answers at"),
        ((502, b"<html>"), "missing", "the proxy answers, and no SuperLink behind it (HTTP 502); "),
        ((503, b""), "missing", "the proxy answers, and no SuperLink behind it (HTTP 503); wait: "),
        ((504, b""), "missing", "the proxy answers, and no SuperLink behind it (HTTP 504); wait: "),
    ],
)
def test_what_a_server_says_of_a_key(serve, key, answer, status, said):
    found = looked_at(*serve(answer=answer), key)["key"]
    assert found[0] == status and found[1].startswith(said)


def test_a_key_that_is_none(serve, key, tmp_path):
    to, ca = serve()
    pem = tmp_path / "pem"
    pem.write_bytes(
        KEY.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    for path, told in (
        (tmp_path / "none", "No such file or directory"),
        (pem, "not a private key as OpenSSH writes it"),
    ):
        status, said = looked_at(to, ca, path)["key"]
        assert status == "missing" and said.startswith(f"{path}: {told}; give the box's private")


def test_nobody_is_shown_a_signature_whose_certificate_is_not_trusted(serve, key, authority):
    to, _ = serve(answer=(400, b'{"code": 2003}'))
    assert "key" not in looked_at(to, authority("another CA").file, key)


def test_the_question_is_what_flower_reads():
    """By Flower's own messages and functions."""
    asked = node_key.question(KEY)
    request = ActivateNodeRequest.FromString(asked.body)
    assert request.public_key == public_key_to_bytes(KEY.public_key())
    assert request.heartbeat_interval == 0 < HEARTBEAT_MIN_INTERVAL
    sent, signature = (
        b64decode(asked.headers[name])
        for name in (FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER)
    )
    time = asked.headers[TIMESTAMP_HEADER]
    assert sent == request.public_key
    assert verify_signature(bytes_to_public_key(sent), time.encode(), signature)
    assert abs(datetime.fromisoformat(time) - datetime.now(UTC)) < timedelta(minutes=1)
    assert node_key.BAD_HEARTBEAT == ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL
    assert node_key.NO_SUCH_KEY == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED
    assert connection.AHEAD.seconds == SYSTEM_TIME_TOLERANCE
    assert connection.BEHIND.seconds == SYSTEM_TIME_TOLERANCE + TIMESTAMP_TOLERANCE


# The command.


def deny(patch, key, speech):
    """Let these be unreadable, which for root nothing is."""

    def denied(path, *_):
        raise PermissionError(EACCES, os.strerror(EACCES), str(path))

    read, look = Path.read_bytes, Path.iterdir
    patch.setattr(Path, "read_bytes", lambda self: (denied if self == key else read)(self))
    patch.setattr(Path, "iterdir", lambda self: (denied if self == speech else look)(self))


def test_the_command_says_all_of_it_in_lines(serve, key, tmp_path, monkeypatch, capsys):
    to, ca = serve(answer=(400, b'{"code": 2003}'))
    speech = tmp_path / "speech"
    speech.mkdir()
    for name in ("a", "b"):
        wave = np.random.default_rng(len(name)).uniform(-0.1, 0.1, 24_000)
        soundfile.write(speech / f"{name}.wav", wave, 16_000)
    (speech / "a.txt").write_text("hello")
    common = ["--server", str(to), "--ca", ca, "--key", key, "--device", tmp_path]
    status, lines = told(monkeypatch, capsys, *common, "--speech", speech)
    assert status == 0, lines
    assert [line[9:].split(":")[0] for line in lines] == [
        *("name", "port", "TLS", "certificate", "clock", "key", "disk", "memory", "speech")
    ]
    assert lines[-1] == (
        f"optional speech: 1.5 s usable, 1 of 2 utterances; see `fedspeech corpus check {speech}`"
    )
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda *_, **__: False)
        deny(patch, key, speech)
        status, lines = told(patch, capsys, *common, "--speech", speech)
    found = {line[9:].split(":")[0]: line for line in lines}
    assert status == 1 and {"disk", "memory"} <= found.keys()
    for name, path in (("key", key), ("speech", speech)):
        assert found[name].startswith(f"missing  {name}: {path}: Permission denied; ")
    (speech / "a.txt").unlink()
    assert told(monkeypatch, capsys, *common, "--speech", speech)[0] == 1
    status, lines = told(monkeypatch, capsys, *common, "--speech", tmp_path / "none")
    assert status == 1 and "No such file or directory; record some" in lines[-1]


def test_of_a_boxs_recordings_with_several_channels_one_is_named(
    serve, key, tmp_path, monkeypatch, capsys
):
    to, ca = serve(answer=(400, b'{"code": 2003}'))
    speech = tmp_path / "speech"
    speech.mkdir()
    wave = np.random.default_rng(0).uniform(-0.1, 0.1, (24_000, 2))
    soundfile.write(speech / "a.wav", wave, 16_000)
    (speech / "a.txt").write_text("hello")
    common = ["--server", str(to), "--ca", ca, "--key", key, "--speech", speech]

    def last(*more) -> str:
        return told(monkeypatch, capsys, *common, "--device", tmp_path, *more)[1][-1]

    none = f"missing  speech: 0.0 s usable, 0 of 1 utterances; see `fedspeech corpus check {speech}"
    monkeypatch.setenv("FEDSPEECH_CHANNEL", "")  # as compose has it where nobody says any
    assert last() == f"{none}`"
    assert last("--channel", 2) == f"{none} --channel 2`"
    assert last("--channel", 1) == "ok       speech: 1.5 s usable, 1 of 1 utterances"
    monkeypatch.setenv("FEDSPEECH_CHANNEL", "1")
    assert last() == "ok       speech: 1.5 s usable, 1 of 1 utterances"


def told(monkeypatch, capsys, *arguments) -> tuple[int, list[str]]:
    monkeypatch.setattr(sys, "argv", ["fedspeech", "doctor", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0), capsys.readouterr().out.splitlines()


def test_what_goes_with_a_server_is_refused_without(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fedspeech", "doctor", "--key", "box.key"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert capsys.readouterr().err == "fedspeech: --key goes with --server\n"
