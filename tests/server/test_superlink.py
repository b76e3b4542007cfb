"""What is asked again of a SuperLink, and what not."""

import httpx
import pytest

from server import superlink


def answers(*statuses):
    """A question that is answered so, one after the other; and how often it was asked."""
    left, asked = list(statuses), []
    request = httpx.Request("POST", "https://here/v1/runtime/pull-messages")

    def ask():
        asked.append(None)
        if (status := left.pop(0)) is None:
            raise httpx.ConnectError("nobody there", request=request)
        response = httpx.Response(status, request=request)
        response.raise_for_status()
        return response

    return ask, asked


@pytest.fixture
def patience():
    found = superlink._patience()
    found.wait_function = lambda seconds: None
    return found


def test_a_superlink_that_is_away_or_busy_is_asked_again(patience):
    ask, asked = answers(None, 500, 503, 200)
    assert patience.invoke(ask).status_code == 200
    assert len(asked) == 4


@pytest.mark.parametrize("status", [401, 403, 412])
def test_what_it_refuses_is_refused(patience, status):
    ask, asked = answers(status, 200)
    with pytest.raises(httpx.HTTPStatusError):
        patience.invoke(ask)
    assert len(asked) == 1
