"""Rewording requests at a real local endpoint that speaks OpenAI's API."""

import pytest

WHY = "pip install --no-deps bfcl-eval==2026.3.23 mpmath==1.3.0 filelock"
pytest.importorskip("bfcl_eval", reason=WHY)
pytest.importorskip("openai", reason="pip install openai")

from openai_server import OpenAIServer  # noqa: E402

from fission_grpo.bfcl.rewrite import Rewriter, lost_values  # noqa: E402
from fission_grpo.bfcl.tasks import Case, UserTurn  # noqa: E402
from fission_grpo.trajectory import ToolCall  # noqa: E402

CLOSE = UserTurn("Close ticket 7.", (ToolCall("close_ticket", {"ticket_id": 7}),))


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with OpenAIServer() as server:
        yield server


def rewriter(server):
    return Rewriter("small", server.url)


def test_requests_are_reworded_and_the_reference_stays(endpoint):
    endpoint.answer = lambda body: "Would you close number 7?"
    ours = rewriter(endpoint)
    case = ours.case(Case("a", ("TicketAPI",), {}, (CLOSE,)))
    assert case.turns == (UserTurn("Would you close number 7?", CLOSE.reference),)
    assert ours.summary() == "reworded 1"
    assert endpoint.asked[0]["model"] == "small"


@pytest.mark.parametrize("answer", ["Close the ticket.", "Close ticket 17.", ""])
def test_a_rewording_that_loses_a_value_is_not_taken(endpoint, answer):
    endpoint.answer = lambda body: answer
    ours = rewriter(endpoint)
    assert ours.turn(CLOSE) == CLOSE
    assert ours.summary() == "reworded 0, a value was lost 1 (template kept)"


def test_an_endpoint_that_fails_costs_nothing_but_the_rewording(endpoint):
    endpoint.answer = lambda body: 500
    ours = rewriter(endpoint)
    assert ours.turn(CLOSE) == CLOSE
    assert ours.summary() == "reworded 0, endpoint failed 1 (template kept)"


def test_values_of_requests_that_call_nothing_yet_have_to_survive_too():
    vague = UserTurn("Send 'all done' to USR012.", ())
    assert lost_values(vague, "Tell USR012 'all done'.") == []
    assert lost_values(vague, "Tell them 'all done'.") == ["USR012"]
    assert lost_values(vague, "Tell USR012 it is done.") == ["all done"]
