"""A SuperLink behind its proxy, and a SuperNode that comes in by the door."""

import pytest
from fleet import NGINX, NO_NGINX, PROXY, SUPERLINK, Fleet, opened

pytestmark = pytest.mark.skipif(NGINX is None, reason=NO_NGINX)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    yield from opened(tmp_path_factory.mktemp("fleet"), ["anna", "ben"])


def test_a_supernode_comes_in_by_the_door(fleet: Fleet):
    fleet.start_supernode("anna", 'speech="somewhere" threads=1')
    fleet.wait_until_online("anna")
    assert fleet.nodes()["ben"][1] == "registered"
    fleet.stop("anna")
    fleet.wait("anna", lambda: fleet.nodes()["anna"][1] == "offline")
