"""From a box to its server, step by step: name, port, TLS, certificate, clock, key.

Flower's own SuperNode says of most of these faults that it cannot connect. Nothing is changed on
the server.
"""

import contextlib
import http.client
import socket
import ssl
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import NamedTuple

from cryptography import x509

from fedspeech import node_key
from fedspeech.errors import ConfigError
from fedspeech.finding import Finding

SECONDS = 10.0
"""That a server may take for one step."""
SOON = timedelta(days=14)
AHEAD, BEHIND = timedelta(seconds=5), timedelta(seconds=305)
"""How far a box's clock may differ from the server's: Flower refuses what is signed beyond."""
MOST_BYTES = 2**16
"""Of an answer that are read."""
NOT_YET, EXPIRED, OTHER_NAME = 9, 10, (62, 64)
UNKNOWN = (2, 18, 19, 20, 21)
"""OpenSSL's numbers for what is wrong with a certificate (X509_V_ERR_...)."""


class Address(NamedTuple):
    """Where a server is."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Reply(NamedTuple):
    """An answer, the server's clock where it tells it, and its certificate (DER)."""

    status: int
    date: datetime | None
    body: bytes
    certificate: bytes


def address(text: str) -> Address:
    """HOST:PORT, as Flower has it. Raises ConfigError for anything else."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError(f"--server: expected HOST:PORT, found {text!r}")
    return Address(host, int(port))


def trusting(ca: Path | None) -> ssl.SSLContext:
    """TLS that trusts this CA, or those of the system. Raises ConfigError where it is none."""
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{ca}: not a CA's certificate as a PEM file: {error}") from None


def free_port() -> int:
    """A TCP port of the loopback interface that nobody has now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def findings(to: Address, ca: Path | None, key: Path | None) -> Iterator[Finding]:
    """Each step, until one does not work and no other can follow."""
    for step in (_name, _port):
        yield (found := step(to))
        if found.todo:
            return
    try:
        context = trusting(ca)
    except ConfigError as error:
        yield Finding("CA", str(error), "give the CA's certificate as a PEM file (--ca)")
        return
    begin = datetime.now(UTC)
    try:
        reply = ask(to, context, "GET", "/")
    except (OSError, http.client.HTTPException) as error:
        yield _refused(to, error)
        if isinstance(error, ssl.SSLCertVerificationError):
            yield from _unverified_clock(to)
        return
    yield Finding("TLS", f"the chain is trusted, and the certificate is that of {to.host}")
    yield _validity(reply.certificate)
    yield _clock(reply.date, begin)
    if key is not None:
        yield _key(to, context, key)


def _name(to: Address) -> Finding:
    try:
        found = socket.getaddrinfo(to.host, to.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        todo = "check the name, and that this box has a network and a name server"
        return Finding("name", f"{to.host}: {error}", todo)
    places = dict.fromkeys(str(place[4][0]) for place in found)
    return Finding("name", f"{to.host} is {', '.join(places)}")


def _port(to: Address) -> Finding:
    try:
        socket.create_connection(to, SECONDS).close()
    except TimeoutError:
        todo = "a firewall may drop what goes there, or the server is off"
        return Finding("port", f"{to}: no answer within {SECONDS:g} s", todo)
    except OSError as error:
        todo = "check the port, and whether the server runs"
        return Finding("port", f"{to}: {error.strerror or error}", todo)
    return Finding("port", f"{to} is open")


def ask(
    to: Address,
    context: ssl.SSLContext,
    method: str,
    path: str,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """One HTTPS request. Raises OSError (ssl.SSLError) or http.client.HTTPException."""
    connection = http.client.HTTPSConnection(*to, timeout=SECONDS, context=context)
    with contextlib.closing(connection):
        connection.connect()
        certificate = connection.sock.getpeercert(binary_form=True) or b""
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        return Reply(
            answer.status,
            _date(answer.headers.get("Date")),
            answer.read(MOST_BYTES),
            certificate,
        )


def _date(text: str | None) -> datetime | None:
    try:
        return parsedate_to_datetime(text or "").astimezone(UTC)
    except ValueError:
        return None


def _refused(to: Address, error: Exception) -> Finding:
    """What is wrong with a server that is there, and with which one cannot talk."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return Finding("TLS", *_distrusted(to, error))
    if isinstance(error, TimeoutError):
        found = f"no answer within {SECONDS:g} s"
    elif isinstance(error, ssl.SSLError):
        found = f"{to} speaks no TLS ({error.reason or error})"
    else:
        found = f"the connection broke off ({type(error).__name__}: {error})"
    return Finding("TLS", found, "check that this is the server's TLS port, and no other program's")


def _distrusted(to: Address, error: ssl.SSLCertVerificationError) -> tuple[str, str]:
    """What was found of a certificate, and what to do."""
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC here"
    if error.verify_code == NOT_YET:
        todo = "set this box's clock; if it is right, the certificate is not in force yet"
        return f"the certificate counts from a later time than {now}", todo
    if error.verify_code == EXPIRED:
        todo = "set this box's clock; if it is right, the server needs a new certificate"
        return f"the certificate has expired: it is {now}", todo
    if error.verify_code in OTHER_NAME:
        todo = "use the name that it was made for, or make one for this name"
        return f"the certificate is not that of {to.host}", todo
    if error.verify_code in UNKNOWN:
        todo = (
            "give the certificate of the server's own CA (--ca); else somebody listens in between"
        )
        return (
            f"the certificate is not signed by a CA that counts here ({error.verify_message})",
            todo,
        )
    return f"the certificate is refused: {error.verify_message}", "renew the server's certificate"


def _unverified_clock(to: Address) -> Iterator[Finding]:
    """Whether the clock explains it: read from a server that may be anybody, and only a hint."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    begin = datetime.now(UTC)
    with contextlib.suppress(OSError, http.client.HTTPException):
        reply = ask(to, context, "GET", "/")
        yield _validity(reply.certificate)
        yield _clock(reply.date, begin)


def _validity(certificate: bytes) -> Finding:
    """From when until when a certificate counts, by this box's clock."""
    found, now = x509.load_der_x509_certificate(certificate), datetime.now(UTC)
    begin, end = found.not_valid_before_utc, found.not_valid_after_utc
    said = f"valid from {begin:%Y-%m-%d %H:%M} until {end:%Y-%m-%d %H:%M} UTC"
    if not begin <= now <= end:
        return Finding("certificate", said, f"it is {now:%Y-%m-%d %H:%M} UTC here")
    todo = f"renew it within {(end - now).days} days" if end - now < SOON else ""
    return Finding("certificate", said, todo, needed=False)


def _clock(server: datetime | None, begin: datetime) -> Finding:
    """This box's clock against the server's, which tells whole seconds in what it sends."""
    if server is None:
        return Finding("clock", "the server does not tell the time", "compare it by hand", False)
    end = datetime.now(UTC)
    least, most = begin - server - timedelta(seconds=1), end - server
    middle = ((least + most) / 2).total_seconds()
    said = f"{abs(middle):.0f} s {'ahead of' if middle > 0 else 'behind'} the server's"
    if least > AHEAD or most < -BEHIND:
        todo = (
            f"set it: more than {AHEAD.seconds} s ahead or {BEHIND.seconds} s behind, and the "
            "server refuses what this box signs"
        )
        return Finding("clock", said, todo)
    return Finding("clock", said)


def _key(to: Address, context: ssl.SSLContext, path: Path) -> Finding:
    """Whether the server knows this box's key."""
    try:
        key = node_key.read(path)
    except ConfigError as error:
        return Finding("key", str(error), "give the box's private key, an OpenSSH file (--key)")
    try:
        request = node_key.question(key)
        reply = ask(to, context, "POST", node_key.PATH, request.body, request.headers)
    except (OSError, http.client.HTTPException) as error:
        return Finding("key", f"no answer ({type(error).__name__}: {error})", "try it again")
    return Finding("key", *node_key.answer(reply.status, reply.body))
