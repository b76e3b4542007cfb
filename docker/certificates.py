"""X.509 certificates (RFC 5280) of a CA and of the servers that it signs."""

import contextlib
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Names of every server's certificate: the proxy and the operator's commands ask for them."""
CA_LIFE, SERVER_LIFE = timedelta(days=3650), timedelta(days=397)
BEFORE = timedelta(days=1)
"""That certificates count from before they are made: a box's clock may be behind."""
LABEL = "(?!-)[a-z0-9-]{1,63}(?<!-)"
HOST = re.compile(rf"(?=.{{1,253}}$)(?![\d.]+$)(\*\.)?{LABEL}(\.{LABEL})*")
USES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
    *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)


class Mistake(Exception):
    """What the user can put right, in one line."""


def of_ca(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """A CA's own certificate, for ten years; it signs servers, and no other CA."""
    name, now, public = _name("fedspeech CA"), datetime.now(UTC), key.public_key()
    builder = _builder(name, name, public, public, now - BEFORE, now + CA_LIFE)
    builder = builder.add_extension(x509.BasicConstraints(True, path_length=0), critical=True)
    builder = builder.add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
    return builder.sign(key, hashes.SHA384())


def of_server(
    public: ec.EllipticCurvePublicKey,
    names: Sequence[str],
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    begin: datetime | None = None,
    end: datetime | None = None,
) -> x509.Certificate:
    """A server's certificate for these names and loopback, for 397 days at most.

    Raises Mistake for what is no name.
    """
    begin = begin or datetime.now(UTC) - BEFORE
    end = end or min(datetime.now(UTC) + SERVER_LIFE, end_of(ca))
    every = [general_name(name) for name in dict.fromkeys([*names, *LOOPBACK])]
    signer = ca_key.public_key()
    builder = _builder(_name("fedspeech server"), ca.subject, public, signer, begin, end)
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(False, path_length=None), True),
        (_usage("digital_signature"), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (x509.SubjectAlternativeName(every), False),
    ]
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(ca_key, hashes.SHA384())


def end_of(certificate: x509.Certificate) -> datetime:
    """Until when it counts. The cryptography of Debian 12 does not know of time zones yet."""
    if hasattr(certificate, "not_valid_after_utc"):
        return certificate.not_valid_after_utc
    return certificate.not_valid_after.replace(tzinfo=UTC)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePublicKey,
    begin: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder(issuer, subject, public, x509.random_serial_number(), begin, end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _usage(*uses: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{use: use in uses for use in USES})


def general_name(name: str) -> x509.GeneralName:
    """A host's name or address as certificates have it. Raises Mistake where it is neither."""
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ip_address(name))
    if HOST.fullmatch(name):
        return x509.DNSName(name)
    raise Mistake(f"--server: expected a host's name in lower case or an address, found {name!r}")


def names_of(certificate: x509.Certificate) -> list[str]:
    """All that a server's certificate is good for."""
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return [str(name.value) for name in found.value]
