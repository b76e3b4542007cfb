"""Outsiders who begin many large messages and finish none: what they take is the door's alone."""

import http.client
import socket
import ssl
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
from fleet import PROXY, SIGNED, SUPERLINK, Fleet

from fedspeech import connection, node_key

LARGE, PIECE = 6_000_000, 280_000
"""Bytes of bodies that the door takes."""
GROWTH = 16_000_000
"""Bytes that a SuperLink's memory may differ by from one moment to another."""


def memory(fleet: Fleet, part: str) -> int:
    """Bytes of RAM that a part's processes have."""
    found = [Path(f"/proc/{number}/status").read_text() for number in fleet.processes(part)]
    lines = [line for text in found for line in text.splitlines() if line.startswith("VmRSS")]
    return sum(1024 * int(line.split()[1]) for line in lines)


def begin(fleet: Fleet, size: int) -> ssl.SSLSocket:
    """All of a signed message but for its last bytes."""
    plain = socket.create_connection(fleet.door, 20)
    secure = fleet.trust().wrap_socket(plain, server_hostname=fleet.door.host)
    headers = {"Content-Type": "application/protobuf", "Content-Length": size, **SIGNED}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    secure.sendall(f"POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode())
    with suppress(ConnectionError, ssl.SSLError):  # it may be refused meanwhile
        secure.sendall(bytes(size - 100))
    return secure


def refused(one: ssl.SSLSocket) -> int | None:
    """The status that was answered to what has not ended; None where it is waited for."""
    one.settimeout(0.1)
    answer = http.client.HTTPResponse(one)
    try:
        answer.begin()
    except TimeoutError:
        return None
    return answer.status


@pytest.mark.parametrize(("size", "count", "let_in"), [(LARGE, 40, 8), (PIECE, 100, 64)])
def test_what_is_not_finished_does_not_get_to_the_superlink(fleet, size, count, let_in):
    before, since = memory(fleet, SUPERLINK), len(fleet.log(PROXY))
    question = node_key.question(node_key.read(fleet.key("carla")))
    with ExitStack() as open_ones:
        begun = [open_ones.enter_context(closing(begin(fleet, size))) for _ in range(count)]
        many = "too many messages come in at once"
        fleet.wait(PROXY, lambda: fleet.log(PROXY)[since:].count(many) == count - let_in)
        answers = [refused(one) for one in begun]
        assert memory(fleet, SUPERLINK) - before < GROWTH
        assert memory(fleet, PROXY) < 150_000_000
        assert (answers.count(None), answers.count(503)) == (let_in, count - let_in)
        asked = question.body, question.headers
        reply = connection.ask(fleet.door, fleet.trust(), "POST", node_key.PATH, *asked)
        assert reply.status == 400, "a box comes through all the same"
