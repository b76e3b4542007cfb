"""Whether a key is registered, by what Flower's own SuperLink makes of the question."""

from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import HTTPException
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME
from flwr.supercore.error import FlowerError
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.routers.fleet.node_auth import authenticate_node
from flwr.superlink.servicer.fleet.fleet_handlers import activate_node

from fedspeech import node_key

KEY = ec.generate_private_key(ec.SECP384R1())


@pytest.fixture
def state():
    objects = ObjectStoreFactory()
    return LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), objects).state()


def answered(state, asked: node_key.Question) -> tuple[str, str]:
    """As a SuperLink with authentication does, from the request to its JSON."""
    message = ActivateNodeRequest.FromString(asked.body)
    request = SimpleNamespace(
        headers=asked.headers, state=SimpleNamespace(protobuf_request=message)
    )
    try:
        authenticate_node(request)
        activate_node(message, state)
    except HTTPException as error:
        return node_key.answer(error.status_code, b'{"detail": "Invalid"}')
    except FlowerError as error:
        return node_key.answer(400, f'{{"code": {int(error.code)}}}'.encode())
    raise AssertionError("the SuperNode was activated")


def test_a_key_is_registered_or_not_and_nothing_comes_of_asking(state):
    assert answered(state, node_key.question(KEY))[0] == "not registered, or revoked"
    public = public_key_to_bytes(KEY.public_key())
    node = state.create_node("aid", "name", public, 0)
    before = [info.status for info in state.get_node_info(node_ids=[node])]
    assert answered(state, node_key.question(KEY)) == ("registered", "")
    assert answered(state, node_key.question(KEY)) == ("registered", "")
    assert [info.status for info in state.get_node_info(node_ids=[node])] == before != []
    state.delete_node("aid", node)
    assert answered(state, node_key.question(KEY))[0] == "not registered, or revoked"


def test_a_signature_that_does_not_count(state):
    asked, other = node_key.question(KEY), node_key.question(KEY)
    forged = {**asked.headers, "flwr-signature": other.headers["flwr-signature"]}
    found = answered(state, node_key.Question(asked.body, forged))
    assert found == ("the server does not take its signature", "see this box's clock")
