"""Boxes that are refused: with a real SuperNode, and a line that says why on both sides.

What Flower's SuperNode prints of it is often obscure; the box's own clear line is that of
`fedspeech doctor --server`, and `fedspeech box` says the same (`test_box_says_why.py`).
"""

import re
import shutil
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import certificates
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from fleet import PROXY, SUPERLINK, Fleet, free_port, make_keys

from fedspeech import connection, node_key
from fedspeech.connection import Address

DAY = timedelta(days=1)
EXPIRED, ELSEWHERE = "expired", "elsewhere"
"""Two more doors: one with an expired certificate, one by an address that it does not have."""


class Since:
    """What a part says from now on."""

    def __init__(self, fleet: Fleet, part: str = PROXY) -> None:
        self._fleet, self._part, self._begin = fleet, part, len(fleet.log(part))

    def says(self, text: str) -> bool:
        """Wait until it says this."""
        log = self._fleet.log
        return bool(self._fleet.wait(self._part, lambda: text in log(self._part)[self._begin :]))


@pytest.fixture(scope="module")
def doors(fleet: Fleet, tmp_path_factory) -> Iterator[Mapping[str, Address]]:
    """By the name of the proxy behind each."""
    yesterdays = expired_keys(fleet, tmp_path_factory.mktemp("expired"))
    doors = {PROXY: fleet.door}
    for part, host, listen, keys in (
        (EXPIRED, "localhost", "127.0.0.1", yesterdays),
        (ELSEWHERE, "127.0.0.2", "127.0.0.2", fleet.keys),
    ):
        doors[part] = Address(host, free_port())
        health = f"127.0.0.1:{free_port()}"
        fleet.start_proxy(
            part, LISTEN=f"{listen}:{doors[part].port}", KEYS=str(keys), HEALTH=health
        )
    yield doors
    fleet.stop(EXPIRED)
    fleet.stop(ELSEWHERE)


def expired_keys(fleet: Fleet, folder: Path) -> Path:
    """The fleet's, with a certificate that counted until yesterday."""
    ca_key, key = (
        serialization.load_pem_private_key((fleet.keys / name).read_bytes(), None)
        for name in ("ca.key", "server.key")
    )
    ca, now = x509.load_pem_x509_certificate(fleet.ca.read_bytes()), datetime.now(UTC)
    names = ["localhost"]
    made = certificates.of_server(key.public_key(), names, ca, ca_key, now - 9 * DAY, now - DAY)
    (folder / "server.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    for name in ("ca.crt", "server.key"):
        shutil.copy(fleet.keys / name, folder)
    return folder


@pytest.fixture(scope="module")
def refused(fleet: Fleet, doors) -> Mapping[str, Since]:
    """SuperNodes that ended by themselves, all at once; what SuperLink and proxies said then."""
    since = {part: Since(fleet, part) for part in (SUPERLINK, *doors)}
    trusting, own = ["--root-certificates", fleet.ca], ["--auth-supernode-private-key"]
    ben = [*own, fleet.key("ben")]
    cases = {
        "unregistered": (PROXY, [*trusting, *own, fleet.key("mallory")]),
        "keyless": (PROXY, trusting),
        "odd-key": (PROXY, [*trusting, *own, fleet.keys / "server.key"]),
        "plain": (PROXY, ["--insecure"]),
        "unknown-ca": (PROXY, ben),
        "expired-certificate": (EXPIRED, [*trusting, *ben]),
        "wrong-name": (ELSEWHERE, [*trusting, *ben]),
    }
    for part, (door, options) in cases.items():
        fleet.start_supernode(part, options=options, door=doors[door])
    assert 0 not in {fleet.wait_for_end(part) for part in cases}
    return since


def doctor(fleet: Fleet, to: Address, box: str) -> list[str]:
    """What is wrong, as `fedspeech doctor --server` says it on the box."""
    found = connection.findings(to, fleet.ca, fleet.key(box))
    return [f"{one.name}: {one.found}; {one.todo}" for one in found if one.status == "missing"]


def test_an_unregistered_box(fleet: Fleet, refused):
    assert "[code: 2004] Failed to activate SuperNode" in fleet.log("unregistered")
    assert doctor(fleet, fleet.door, "mallory") == [
        "key: not registered, or revoked; let the operator register its public key"
    ]
    assert refused[SUPERLINK].says("No SuperNode found with the given public key")
    assert refused[PROXY].says(': 412 POST "/v1/fleet/activate-node" its key is not registered, or')


def test_a_box_with_another_key_than_it_was_registered_with(fleet: Fleet):
    """One that signs with its own key in the name of ben's."""
    ours, bens = (node_key.question(node_key.read(fleet.key(box))) for box in ("mallory", "ben"))
    proxy = Since(fleet)
    for forged in (
        {**bens.headers, "flwr-signature": ours.headers["flwr-signature"]},
        {**ours.headers, "flwr-public-key": bens.headers["flwr-public-key"]},
        ours.headers,
        {name: value for name, value in bens.headers.items() if name != "flwr-signature"},
    ):
        reply = connection.ask(fleet.door, fleet.trust(), "POST", node_key.PATH, bens.body, forged)
        assert (reply.status, b"Invalid SuperNode authentication" in reply.body) == (401, True)
        assert node_key.answer(reply.status, reply.body)[0] == (
            "the server does not take its signature"
        )
    assert proxy.says(': 401 POST "/v1/fleet/activate-node" its signature does not count')
    assert fleet.nodes()["ben"][1] == "registered"


def test_a_box_whose_clock_is_wrong(fleet: Fleet, monkeypatch):
    """What it signs was signed six minutes ago."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) - timedelta(minutes=6)

    monkeypatch.setattr(node_key, "datetime", Clock)
    proxy = Since(fleet)
    assert doctor(fleet, fleet.door, "ben") == [
        "key: the server does not take its signature; see this box's clock"
    ]
    told = "its signature does not count: its clock says "
    assert proxy.says(told)
    said = re.search(told + "(.{19})\n", fleet.log(PROXY).rpartition(" refused ")[2])[1]
    behind = datetime.now(UTC) - datetime.fromisoformat(said).replace(tzinfo=UTC)
    assert timedelta(minutes=6) <= behind < timedelta(minutes=7)


def test_a_box_without_a_key(fleet: Fleet, refused):
    said = "[code: 2001] This server takes registered keys only: give the SuperNode its key"
    assert said in fleet.log("keyless")
    assert refused[PROXY].says(': 412 POST "/v1/fleet/register-node" it has no key')
    assert doctor(fleet, fleet.door, "nobody") == [
        f"key: {fleet.key('nobody')}: No such file or directory; give the box's private key, an "
        "OpenSSH file (--key)"
    ]


def test_a_key_of_another_kind(fleet: Fleet, refused):
    """The server's: in PEM, where SuperNodes read OpenSSH's form."""
    assert "Unable to parse the private key file" in fleet.log("odd-key")


def test_a_box_that_speaks_no_tls(fleet: Fleet, refused):
    assert "400 Bad Request" in fleet.log("plain")
    assert refused[PROXY].says("client sent plain HTTP request to HTTPS port")
    assert refused[PROXY].says(': 400 POST "/v1/fleet/register-node" it speaks no TLS')


def test_a_box_that_does_not_know_the_ca(fleet: Fleet, refused):
    assert "CERTIFICATE_VERIFY_FAILED" in fleet.log("unknown-ca")
    assert refused[PROXY].says("alert unknown ca")


def test_an_expired_certificate(fleet: Fleet, refused, doors):
    assert "certificate has expired" in fleet.log("expired-certificate")
    found = doctor(fleet, doors[EXPIRED], "ben")
    assert found[0].startswith("TLS: the certificate has expired: it is ")
    assert found[0].endswith("if it is right, the server needs a new certificate")
    assert refused[EXPIRED].says("alert certificate expired")


def test_a_wrong_name(fleet: Fleet, refused, doors):
    assert "certificate is not valid for '127.0.0.2'" in fleet.log("wrong-name")
    assert doctor(fleet, doors[ELSEWHERE], "ben") == [
        "TLS: the certificate is not that of 127.0.0.2; use the name that it was made for, or "
        "make one for this name"
    ]
    assert refused[ELSEWHERE].says("alert bad certificate")


def test_a_key_that_is_revoked_while_its_box_is_there(fleet: Fleet):
    proxy = Since(fleet)
    fleet.start_supernode("anna")
    fleet.wait_until_online("anna")
    assert doctor(fleet, fleet.door, "anna") == []
    fleet.revoke("anna")
    fleet.wait_for_end("anna")
    assert proxy.says(
        "its signature does not count: its key was revoked, or its clock, which says 2"
    )
    assert doctor(fleet, fleet.door, "anna") == [
        "key: not registered, or revoked; let the operator register its public key"
    ]
    assert fleet.nodes()["anna"][1] == "unregistered"


def command(fleet: Fleet, capsys, *arguments: str) -> tuple[int, str]:
    """`make-keys`: its status, and all that it prints."""
    where = ["--keys", str(fleet.keys), "--superlink", str(fleet.superlink)]
    status = make_keys().main([arguments[0], *where, *arguments[1:]])
    return status, "".join(capsys.readouterr())


def test_a_revoked_key_is_never_registered_again(fleet: Fleet, capsys):
    """Whoever revokes it does so for good; `make-keys` makes another one."""
    node = fleet.nodes()["carla"][0]
    assert command(fleet, capsys, "revoke", "carla") == (0, f"carla: revoked, node {node}\n")
    before = fleet.nodes()
    status, said = command(fleet, capsys, "register", "mallory", "carla")
    assert status == 1
    assert said.endswith("carla.pub: was revoked, and never counts again: make another key\n")
    assert fleet.nodes() == before  # not even mallory, whose key could be
    for box, why in (("carla", "was revoked already"), ("mallory", "is not registered")):
        assert command(fleet, capsys, "revoke", box) == (1, f"make-keys: {box}: {why}\n")


def test_registering_again_changes_nothing(fleet: Fleet, capsys):
    before = fleet.nodes()
    assert command(fleet, capsys, "register", "ben") == (0, "ben: is registered already\n")
    assert fleet.nodes() == before


def test_an_operator_who_comes_to_the_proxy(fleet: Fleet, capsys):
    where = ["--keys", str(fleet.keys), "--superlink", str(fleet.door)]
    assert make_keys().main(["register", *where, "ben"]) == 1
    assert capsys.readouterr().err == (
        f"make-keys: {fleet.door}: no SuperLink; the proxy before it is for boxes, give the "
        "SuperLink's own address\n"
    )


def test_an_operator_with_another_ca(fleet: Fleet, capsys, tmp_path):
    keys = str(tmp_path / "keys")
    assert make_keys().main(["make", "--keys", keys, "--server", "localhost", "ben"]) == 0
    where = ["--keys", keys, "--superlink", str(fleet.superlink)]
    assert make_keys().main(["register", *where, "ben"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(
        f"make-keys: {fleet.superlink}: its certificate is not one that {keys}/ca.crt vouches for"
    )
    assert "no SuperLink answers" not in said and len(said.splitlines()) == 1
