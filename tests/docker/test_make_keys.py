"""`docker/make-keys`: what it writes, by OpenSSL, OpenSSH's format and cryptography's verifier."""

import importlib.machinery
import importlib.util
import socket
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace

import certificates
import pytest
import registration
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from fedspeech import node_key

SCRIPT = Path(__file__).parents[2] / "docker" / "make-keys"
SERVER = "asr.example.org"


@pytest.fixture(scope="module")
def command():
    loader = importlib.machinery.SourceFileLoader("make_keys", str(SCRIPT))
    spec = importlib.util.spec_from_loader("make_keys", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture
def run(command, tmp_path, monkeypatch, capsys):
    """Run a command beside `keys`; its status and lines, those of a mistake too."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, list[str]]:
        status = command.main(arguments)
        return status, "".join(capsys.readouterr()).splitlines()

    return call


def verified(name: str, when: datetime | None = None) -> None:
    """By cryptography's verifier, in whose eyes a certificate has to follow RFC 5280 in all."""
    ca = x509.load_pem_x509_certificate(Path("keys/ca.crt").read_bytes())
    leaf = x509.load_pem_x509_certificate(Path("keys/server.crt").read_bytes())
    try:
        subject = x509.IPAddress(ip_address(name))
    except ValueError:
        subject = x509.DNSName(name)
    policy = PolicyBuilder().store(Store([ca])).time(when or datetime.now(UTC))
    assert policy.build_server_verifier(subject).verify(leaf, []) == [leaf, ca]


def openssl(*more: str) -> str:
    arguments = ["-x509_strict", "-CAfile", "keys/ca.crt", "-purpose", "sslserver", *more]
    done = subprocess.run(
        ["openssl", "verify", *arguments, "keys/server.crt"], capture_output=True, text=True
    )
    return done.stdout + done.stderr


def test_the_server_is_who_it_says_by_every_name(run):
    assert run("make", "--server", SERVER, "--server", "192.0.2.7")[0] == 0
    for name in (SERVER, "192.0.2.7", "localhost", "127.0.0.1", "::1"):
        verified(name)
    assert openssl("-verify_hostname", SERVER) == "keys/server.crt: OK\n"
    assert openssl("-verify_ip", "192.0.2.7") == "keys/server.crt: OK\n"
    assert "hostname mismatch" in openssl("-verify_hostname", "other.example.org")
    with pytest.raises(VerificationError):
        verified("other.example.org")


def test_from_when_until_when(run):
    run("make", "--server", SERVER)
    now = datetime.now(UTC)
    verified(SERVER, now - timedelta(hours=23))
    verified(SERVER, now + timedelta(days=396))
    for when in (now - timedelta(hours=25), now + timedelta(days=398)):
        with pytest.raises(VerificationError):
            verified(SERVER, when)
    ca = x509.load_pem_x509_certificate(Path("keys/ca.crt").read_bytes())
    assert ca.not_valid_after_utc - now > timedelta(days=3649)


def test_no_certificate_outlives_its_ca(monkeypatch):
    monkeypatch.setattr(certificates, "CA_LIFE", timedelta(days=5))
    key = ec.generate_private_key(ec.SECP384R1())
    ca = certificates.of_ca(key)
    assert certificates.of_server(key.public_key(), [], ca, key).not_valid_after_utc == (
        ca.not_valid_after_utc
    )


def test_a_box_gets_a_key_that_flower_reads(run):
    run("make", "--server", SERVER, "anna", "ben")
    found = {}
    for box in ("anna", "ben"):
        key = node_key.read(Path(f"keys/boxes/{box}/box.key"))
        assert key.curve.name == "secp384r1"
        line = Path(f"keys/public/{box}.pub").read_bytes()
        assert line.startswith(b"ecdsa-sha2-nistp384 ") and line.endswith(f" {box}\n".encode())
        found[box] = load_ssh_public_key(line).public_numbers()
        assert found[box] == key.public_key().public_numbers()
        assert Path(f"keys/boxes/{box}/ca.crt").read_bytes() == Path("keys/ca.crt").read_bytes()
    assert found["anna"] != found["ben"]


def test_what_is_private_is_for_its_owner_alone(run):
    run("make", "--server", SERVER, "anna")
    modes = {str(p): stat.S_IMODE(p.stat().st_mode) for p in Path("keys").rglob("*")}
    private = [path for path in modes if path.endswith(".key")]
    assert sorted(private) == ["keys/boxes/anna/box.key", "keys/ca.key", "keys/server.key"]
    assert {modes[path] for path in private} == {0o600}
    assert {p.suffix for p in Path("keys").rglob("*") if b"PRIVATE" in read(p)} == {".key"}


def read(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def test_what_exists_stays_as_it_is(run):
    status, first = run("make", "--server", SERVER, "anna")
    assert status == 0 and len(first) == 4 + 3
    before = {path: read(path) for path in Path("keys").rglob("*")}
    assert run("make", "--server", SERVER, "anna") == (0, [])
    status, more = run("make", "ben")
    assert status == 0
    assert more == ["keys/boxes/ben/box.key", "keys/boxes/ben/ca.crt", "keys/public/ben.pub"]
    assert {path: read(path) for path in before} == before
    status, said = run("make", "--server", "new.example.org")
    assert status == 1 and "keys/server.crt: is there already, for asr.example.org, lo" in said[0]


def test_a_box_whose_key_was_handed_over_is_not_made_again(run):
    run("make", "--server", SERVER, "anna")
    Path("keys/boxes/anna/box.key").unlink()
    assert run("make", "anna") == (0, [])
    assert not Path("keys/boxes/anna/box.key").exists()


def test_what_was_broken_off_is_finished(run):
    run("make", "--server", SERVER, "anna")
    key = Path("keys/boxes/anna/box.key").read_bytes()
    Path("keys/public/anna.pub").unlink()
    Path("keys/server.crt").unlink()
    assert run("make", "--server", SERVER, "anna") == (0, ["keys/server.crt", PUBLIC])
    assert Path("keys/boxes/anna/box.key").read_bytes() == key
    verified(SERVER)


PUBLIC = "keys/public/anna.pub"


def test_a_certificate_is_renewed_for_the_same_key(run):
    run("make", "--server", SERVER)
    old, key = Path("keys/server.crt").read_bytes(), Path("keys/server.key").read_bytes()
    status, said = run("renew")
    assert status == 0 and said[0].startswith(f"keys/server.crt: for {SERVER}, localhost, ")
    assert Path("keys/server.crt").read_bytes() != old
    assert Path("keys/server.key").read_bytes() == key
    verified(SERVER)
    assert run("renew", "--server", "new.example.org")[0] == 0
    verified("new.example.org")
    verified("localhost")
    with pytest.raises(VerificationError):
        verified(SERVER)


def test_boxes_are_made_without_the_key_of_the_ca(run):
    run("make", "--server", SERVER)
    Path("keys/ca.key").unlink()
    assert run("make", "anna")[0] == 0
    assert run("renew") == (1, ["make-keys: keys/ca.key: is not there, and is needed for that"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["make"], "--server: name the server as its boxes will call it"),
        (["make", "--server", "https://a.b"], "--server: expected a host's name in lower case or"),
        (["make", "--server", "a_b"], "found 'a_b'"),
        (["make", "--server", "1.2.3"], "found '1.2.3'"),
        (["renew"], "keys/server.crt: is not there; `make-keys make` comes first"),
        (["register"], "keys/public/BOX.pub: no public key is there"),
        (["register", "anna"], "keys/public/anna.pub: No such file or directory"),
        (["revoke", "anna"], "keys/ca.crt: No such file or directory"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(run, arguments, said):
    status, lines = run(*arguments)
    assert status == 1 and len(lines) == 1
    assert lines[0].startswith("make-keys: ") and said in lines[0]
    assert not Path("keys").exists()


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "ä", "x" * 64])
def test_a_box_has_a_plain_name(run, name, capsys):
    with pytest.raises(SystemExit) as end:
        run("make", "--server", SERVER, name)
    assert end.value.code == 2
    assert "a box's name has letters, digits" in capsys.readouterr().err


def test_files_that_are_something_else(run):
    run("make", "--server", SERVER)
    for name, said in (("ca.crt", "not a certificate in PEM"), ("server.key", "not a private key")):
        kept = Path(f"keys/{name}").read_bytes()
        Path(f"keys/{name}").write_text("something else")
        status, lines = run("renew")
        assert status == 1 and lines[0].startswith(f"make-keys: keys/{name}: {said}")
        Path(f"keys/{name}").write_bytes(kept)
    Path("keys/public").mkdir()
    Path("keys/public/anna.pub").write_text("ssh-ed25519 AAAA anna")
    status, lines = run("register")
    assert status == 1 and "keys/public/anna.pub: not a public key as OpenSSH" in lines[0]


@pytest.fixture
def slept(monkeypatch):
    """Time passes only where `register` sleeps; `at` is what happens after so many sleeps."""
    now, at = [0.0], {}

    def sleep(seconds: float) -> None:
        now[0] += seconds
        at.get(now[0], lambda: None)()

    monkeypatch.setattr(registration.time, "sleep", sleep)
    monkeypatch.setattr(registration.time, "monotonic", lambda: now[0])
    return SimpleNamespace(now=now, at=at)


def test_nobody_answers(run, slept):
    """It waits for half a minute, and says so."""
    run("make", "--server", SERVER, "anna")
    status, lines = run("register", "--superlink", "127.0.0.1:9")
    assert status == 1 and slept.now == [30.0]
    waits, line = lines
    assert waits == "127.0.0.1:9: no SuperLink listens there yet; waiting for 30 s"
    assert line.startswith("make-keys: 127.0.0.1:9: no SuperLink answers there: ")
    assert line.endswith("Connection refused")


def test_a_superlink_that_starts_is_waited_for(run, slept):
    """By a server that listens after 12 s, and is none."""
    run("make", "--server", SERVER, "anna")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        superlink = f"127.0.0.1:{server.getsockname()[1]}"

        def hang_up() -> None:
            while True:
                try:
                    server.accept()[0].close()
                except OSError:
                    return

        def listen() -> None:
            server.listen()
            threading.Thread(target=hang_up, daemon=True).start()

        slept.at[12.0] = listen
        status, (waits, line) = run("register", "--superlink", superlink)
        server.shutdown(socket.SHUT_RDWR)
    assert (status, slept.now) == (1, [12.0])
    assert waits == f"{superlink}: no SuperLink listens there yet; waiting for 30 s"
    assert line.startswith(f"make-keys: {superlink}: no SuperLink answers there: ")
    assert "refused" not in line


@pytest.mark.parametrize("superlink", ["no-such-host.invalid:8000", "127.0.0.1", "a:b"])
def test_nobody_waits_for_what_is_no_address(run, slept, superlink):
    run("make", "--server", SERVER, "anna")
    status, lines = run("register", "--superlink", superlink)
    assert (status, slept.now) == (1, [0.0])
    assert len(lines) == 1 and lines[0].startswith(f"make-keys: {superlink}: no SuperLink")


def test_it_runs_as_a_program(tmp_path):
    """From anywhere, by its path."""
    done = subprocess.run(
        [sys.executable, SCRIPT, "make", "--server", SERVER, "anna"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 7, done.stderr
    assert SCRIPT.stat().st_mode & stat.S_IXUSR
