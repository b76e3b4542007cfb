"""`fedspeech box` that the server does not let in says why in its own log, and what to do."""

from pathlib import Path

import pytest
from fleet import NGINX, NO_NGINX, SUPERLINK, free_port, opened
from owners import hand, rows

from clients.box import TWICE

pytestmark = pytest.mark.skipif(NGINX is None, reason=NO_NGINX)
UNKNOWN = "missing  key: not registered, or revoked; let the operator register its public key"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    yield from opened(tmp_path_factory.mktemp("fleet"), ["anna", "ben"], others=["mallory"])


@pytest.fixture(scope="module")
def speech(tone_corpus, tmp_path_factory) -> Path:
    corpus = tone_corpus(tmp_path_factory.mktemp("tones"), 1, per_round=1)
    return hand(corpus / "own", rows(corpus))


def says(fleet, box: str, line: str) -> bool:
    """Wait until a box says a line as a whole."""
    return bool(fleet.wait(box, lambda: line in fleet.log(box).splitlines()))


def test_a_box_that_is_refused_says_which_of_all_reasons_it_is(fleet, speech):
    nowhere = f"localhost:{free_port()}"
    fleet.start_box("anna", speech)
    fleet.start_box("ben", speech)
    fleet.start_box("mallory", speech)
    fleet.start_box("lost", speech, "--server", nowhere, "--key", str(fleet.key("ben")))
    fleet.wait_until_online("anna", "ben")
    fleet.start_box("double", speech, "--key", str(fleet.key("ben")))
    assert says(fleet, "mallory", UNKNOWN)
    assert says(fleet, "double", TWICE)
    fleet.revoke("anna")
    assert says(fleet, "anna", UNKNOWN)
    todo = "check the port, and whether the server runs"
    assert says(fleet, "lost", f"missing  port: {nowhere}: Connection refused; {todo}")
    logs = {box: fleet.log(box) for box in ("anna", "ben", "mallory", "lost", "double")}
    assert not [box for box, log in logs.items() if "Traceback" in log]
    assert TWICE not in logs["mallory"] + logs["anna"] and UNKNOWN not in logs["double"]
    assert "missing" not in logs["ben"] and "refused" not in logs["ben"]
    assert "could not be activated" in fleet.log(SUPERLINK), "as docker/README.md has it"
    for box in logs:
        fleet.stop(box)
