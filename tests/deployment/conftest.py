import pytest
from fleet import NGINX, NO_NGINX, opened


@pytest.fixture(scope="package")
def fleet(tmp_path_factory):
    """A SuperLink behind its proxy; anna, ben and carla are registered, mallory has a key only."""
    if NGINX is None:
        pytest.skip(NO_NGINX)
    registered = ["anna", "ben", "carla"]
    yield from opened(tmp_path_factory.mktemp("fleet"), registered, others=["mallory"])
