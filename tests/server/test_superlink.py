"""What is asked again of a SuperLink, and what not."""

import httpx
import pytest

from fedspeech.errors import RunError
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


def refusal(error, **how):
    """What is said of it."""
    with pytest.raises(RunError) as said, superlink.told("home", **how):
        raise error
    return str(said.value)


def test_only_what_was_begun_can_be_gone_on_with():
    lost = httpx.ConnectError("nobody there")
    assert refusal(lost) == (
        "SuperLink home: no connection (nobody there); what is finished is kept, go on with "
        "--resume"
    )
    assert refusal(lost, begun=False) == "SuperLink home: no connection (nobody there)"


def test_where_nobody_answers_the_address_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    text = '[superlink.home]\naddress = "127.0.0.1:9"\ninsecure = true\n'
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(RunError) as said, superlink.joined("home"):
        pass
    assert str(said.value).startswith("SuperLink home (127.0.0.1:9): no connection (")
    assert "--resume" not in str(said.value)


def test_who_is_no_superlink_is_told():
    request = httpx.Request("POST", "https://here/v1/control/start-run")
    response = httpx.Response(404, request=request, text="<html>nginx</html>")
    error = httpx.HTTPStatusError("404", request=request, response=response)
    assert refusal(error) == (
        "SuperLink home: HTTP status 404; no SuperLink, or the proxy before it, which is for boxes "
        "alone"
    )
