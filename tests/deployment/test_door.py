"""What comes through the proxy from outside: ten paths of SuperNodes, and nothing else."""

import http.client
import re
import socket
import ssl
from contextlib import closing
from itertools import product

import pytest
from fastapi.routing import iter_route_contexts
from fleet import SIGNED, SUPERLINK, Fleet
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.superlink.main import create_app

from fedspeech import node_key

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
OPEN = [
    f"/v1/fleet/{name}"
    for name in (
        *("activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages"),
        *("push-messages", "confirm-message-received", "pull-object", "push-object"),
        *("get-run", "get-fab"),
    )
]
STATIC = "/v1/fleet/register-node"
"""What the proxy answers by itself."""
LINE = re.compile(r'uvicorn\.access\].* "(\S+) (\S+) HTTP/\S+" \d+')


@pytest.fixture(scope="module")
def routes() -> list[str]:
    """Every path that a SuperLink knows, by its own application."""
    found = {context.route.path for context in iter_route_contexts(create_app().routes)}
    assert {"/docs", "/openapi.json", "/health", "/v1/control/start-run"} <= found
    assert {path for _, path in PROTOBUF_REQUEST_TYPES} <= found
    assert len([path for path in found if path.startswith("/v1/control/")]) > 30
    return sorted(found)


def requests(fleet: Fleet, since: int) -> set[tuple[str, str]]:
    """Method and path of what the SuperLink has answered since; what went well on the routine
    paths of SuperNodes and server apps is not told."""
    return set(LINE.findall(fleet.log(SUPERLINK)[since:]))


def status(fleet: Fleet, method: str, path: str, body: bytes = b"", **headers: str) -> int:
    found = http.client.HTTPSConnection(*fleet.door, timeout=20, context=fleet.trust())
    with closing(found):
        found.request(method, path, body, headers)
        return found.getresponse().status


def raw(fleet: Fleet, data: bytes) -> bytes:
    """Everything that is answered to these bytes; the other side ends it."""
    with (
        socket.create_connection(fleet.door, 20) as plain,
        fleet.trust().wrap_socket(plain, server_hostname=fleet.door.host) as secure,
    ):
        secure.sendall(data)
        answer = b""
        try:
            while part := secure.recv(65536):
                answer += part
        except (ConnectionError, ssl.SSLError):
            pass
        return answer


def test_only_the_paths_of_supernodes_answer(fleet, routes):
    """Every path that there is, with every method."""
    since = len(fleet.log(SUPERLINK))
    connection = http.client.HTTPSConnection(*fleet.door, timeout=20, context=fleet.trust())
    found = {}
    with closing(connection):
        for method, path in product(METHODS, routes):
            connection.request(method, path, headers=SIGNED)
            answer = connection.getresponse()
            answer.read()
            found[method, path] = answer.status
    through = {key: status for key, status in found.items() if status not in (404, 405)}
    static = {(method, STATIC) for method in METHODS if method != "TRACE"}
    assert set(through) - static == {("POST", path) for path in OPEN}
    assert {through[key] for key in static} == {412}
    # Without a true signature the SuperLink refuses them all, or asks for protobuf first.
    assert {through["POST", path] for path in OPEN} <= {401, 415}
    assert requests(fleet, since) == {("POST", path) for path in OPEN}


def test_who_signs_nothing_does_not_get_to_the_superlink(fleet):
    since = len(fleet.log(SUPERLINK))
    for path in OPEN:
        for missing in SIGNED:
            some = {name: value for name, value in SIGNED.items() if name != missing}
            assert status(fleet, "POST", path, **some) == 401
        assert status(fleet, "POST", path) == 401
    assert requests(fleet, since) == set()
    assert '/v1/fleet/get-fab" it signs nothing: no SuperNode' in fleet.log("proxy")


CONTROL = "/v1/control/list-nodes"
TRICKS = [
    *("/" + CONTROL, "//v1//control//list-nodes", "/." + CONTROL, "/v1/./control/list-nodes"),
    *("/v1/fleet/../control/list-nodes", "/v1/fleet/%2e%2e/control/list-nodes"),
    *("/v1/fleet/..%2fcontrol/list-nodes", "/v1/fleet/%2e%2e%2fcontrol%2flist-nodes"),
    *("/v1/fleet/%252e%252e/control/list-nodes", "/v1/fleet/..;/control/list-nodes"),
    *("/v1/fleet/activate-node/../../control/list-nodes", "/v1/fleet/..\\control\\list-nodes"),
    *("/v1/control/list-nodes/../../fleet/activate-node", CONTROL + "%2f..%2f..%2ffleet"),
    *(CONTROL + "/..%2f..%2ffleet%2factivate-node", CONTROL + "%2f..%2f..%2ffleet%2factivate-node"),
    *(CONTROL + "#/../../fleet/activate-node", CONTROL + "?/../../fleet/activate-node"),
    *(CONTROL + "%23/v1/fleet/activate-node", CONTROL + "%3f/v1/fleet/activate-node"),
    *("/v1/%63ontrol/list-nodes", "/%76%31/control/list-nodes", "/V1/CONTROL/LIST-NODES"),
    *(CONTROL + "/", CONTROL + "%00", CONTROL + "%20", CONTROL + ";x=1", CONTROL + "?x=1"),
    *("https://localhost" + CONTROL, "http://127.0.0.1" + CONTROL, "localhost" + CONTROL, "*"),
    *("/v1/fleet", "/v1/fleet/", "/v1/fleet/activate-node/", "/v1/fleet/activate-node?x=1"),
    *("/v1/fleet/Activate-Node", "/v1/fleet/activate%2dnode", "/v1/fleet//activate-node"),
    *("/v1/fleet/./activate-node", "/v1/control/../fleet/activate-node", "/v1/fleet/activate-nod"),
    *("/v1/fleet/activate-node%0a", "/v1/fleet/activate-node%00", "/v1/fleet/activate-node2"),
    *("/v1/fleet/unregister-node", "/v1/fleet/activate-node#", "/", "/../..", "/%2e%2e/docs"),
    *("/docs", "/docs/", "//docs", "/openapi.json", "/health", "/HEALTH", "/v1/runtime/get-nodes"),
]


TRICKS += [path + more for path in OPEN for more in ("/", "2", "?x=1", "%00", "/..", ";x", "#x")]
TRICKS += [
    spelled for path in OPEN for spelled in ("/x" + path, "/" + path, path.upper(), path[1:])
]


def test_no_other_spelling_is_read(fleet):
    since = len(fleet.log(SUPERLINK))
    found = {}
    for path in TRICKS:
        answer = raw(
            fleet, f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        )
        found[path] = int(answer.split()[1])
    assert {path: status for path, status in found.items() if status not in (400, 404)} == {}
    assert requests(fleet, since) == set()


def test_headers_lead_nowhere_else(fleet):
    since = len(fleet.log(SUPERLINK))
    for name in ("X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Path", "X-Forwarded-Prefix"):
        assert status(fleet, "POST", "/nothing", **{name: CONTROL}) == 404
        assert status(fleet, "POST", OPEN[0], **{name: CONTROL}, **SIGNED) == 415
    for name in ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"):
        assert status(fleet, "GET", OPEN[0], **{name: "POST"}) == 405
    assert requests(fleet, since) == {("POST", OPEN[0])}


HIDDEN = f"POST {CONTROL} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode()


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 4\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nContent-Length: 4",
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: xchunked\r\nContent-Length: 5",
        b"Transfer-Encoding : chunked",
        b"Content-Length: 5\r\nContent-Length: 0",
        b"Content-Length: 5",
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk",
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13",
    ],
)
def test_no_request_is_smuggled_inside_another(fleet, headers):
    """What follows an open request is judged as a request of its own, or belongs to its body."""
    since = len(fleet.log(SUPERLINK))
    signed = "".join(f"{name}: {value}\r\n" for name, value in SIGNED.items()).encode()
    begin = b"POST %s HTTP/1.1\r\nHost: x\r\n%s%s\r\n\r\n" % (OPEN[0].encode(), signed, headers)
    end = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    raw(fleet, begin + b"0\r\n\r\n" + HIDDEN + end)
    assert requests(fleet, since) <= {("POST", OPEN[0])}


def test_a_large_message_comes_through_and_no_endless_one(fleet):
    """5 MiB in one request; the SuperLink refuses it for its own reason."""
    since = len(fleet.log(SUPERLINK))
    kind = {"Content-Type": "application/protobuf", **SIGNED}
    large = PushObjectRequest(object_content=bytes(5 << 20)).SerializeToString()
    assert status(fleet, "POST", "/v1/fleet/push-object", large, **kind) == 401
    assert requests(fleet, since) == {("POST", "/v1/fleet/push-object")}
    for path, size in (("push-object", 7 << 20), ("pull-messages", 300_000), ("get-run", 1 << 20)):
        length = {"Content-Length": str(size)}
        assert status(fleet, "POST", f"/v1/fleet/{path}", **kind, **length) == 413
    fleet.wait("proxy", lambda: "413 POST" in fleet.log("proxy"))
    assert "a message larger than client_max_body_size" in fleet.log("proxy")


def test_a_box_cannot_tell_another_address_than_its_own(fleet):
    since = len(fleet.log(SUPERLINK))
    status(fleet, "POST", OPEN[0], **{"X-Forwarded-For": "192.0.2.99"}, **SIGNED)
    assert requests(fleet, since) == {("POST", OPEN[0])}
    assert "192.0.2.99" not in fleet.log(SUPERLINK)


def test_the_proxy_waits_for_a_superlink_that_is_away(fleet):
    """Without a restart of its own; and its health is the SuperLink's."""
    kind = {"Content-Type": "application/protobuf"}
    question = node_key.question(node_key.read(fleet.key("carla")))

    def asked() -> int:
        return status(fleet, "POST", node_key.PATH, question.body, **question.headers)

    def health() -> int:
        there = http.client.HTTPConnection(*fleet.health, timeout=20)
        with closing(there):
            there.request("GET", "/health", headers=kind)
            return there.getresponse().status

    assert (asked(), health()) == (400, 200)
    fleet.kill(SUPERLINK)
    assert (asked(), health()) == (502, 502)
    assert "502 POST" in fleet.log("proxy") and "the SuperLink does not answer" in fleet.log(
        "proxy"
    )
    fleet.start_superlink()
    assert (asked(), health()) == (400, 200)
