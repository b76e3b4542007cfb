import pytest
from by_seconds import BySeconds

from fedspeech.testing import DummyFederation, check_rule


@pytest.mark.parametrize("least", [0.0, 150.0, 1e9])
def test_it_keeps_what_every_rule_promises(least):
    check_rule(BySeconds, least=least)


def test_weights_are_shares_of_the_seconds():
    federation = DummyFederation(speakers=4)
    federation.seconds = {"s00": 500.0, "s01": 30.0, "s02": 10.0, "s03": 5.0}
    assert federation.peers(BySeconds(least=6))["s00"] == {"s01": 0.75, "s02": 0.25}


def test_negative_seconds_are_refused():
    with pytest.raises(ValueError, match="at least 0 seconds, found -1"):
        BySeconds(least=-1)
