"""Rewording requests at a real local endpoint that speaks OpenAI's API."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

WHY = "pip install --no-deps bfcl-eval==2026.3.23 mpmath==1.3.0 filelock"
pytest.importorskip("bfcl_eval", reason=WHY)
pytest.importorskip("openai", reason="pip install openai")

from fission_grpo.bfcl.rewrite import Rewriter, lost_values  # noqa: E402
from fission_grpo.bfcl.tasks import Case, UserTurn  # noqa: E402
from fission_grpo.trajectory import ToolCall  # noqa: E402

CLOSE = UserTurn("Close ticket 7.", (ToolCall("close_ticket", {"ticket_id": 7}),))


@pytest.fixture
def endpoint(monkeypatch):
    """The address of a server that answers with `server.answer(request text)`: a text, or a status."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.asked.append(asked)
            answer = server.answer(asked["messages"][-1]["content"])
            self.send_response(answer if isinstance(answer, int) else 200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            message = {"role": "assistant", "content": answer}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            self.wfile.write(json.dumps({"id": "x", "object": "chat.completion", "choices": [choice]}).encode())

        def log_message(self, *_): ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.answer = [], lambda text: text
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    yield server
    server.shutdown()


def rewriter(server):
    return Rewriter("small", f"http://127.0.0.1:{server.server_port}/v1")


def test_requests_are_reworded_and_the_reference_stays(endpoint):
    endpoint.answer = lambda text: "Would you close number 7?"
    ours = rewriter(endpoint)
    case = ours.case(Case("a", ("TicketAPI",), {}, (CLOSE,)))
    assert case.turns == (UserTurn("Would you close number 7?", CLOSE.reference),)
    assert ours.summary() == "reworded 1"
    assert endpoint.asked[0]["model"] == "small"


@pytest.mark.parametrize("answer", ["Close the ticket.", "Close ticket 17.", ""])
def test_a_rewording_that_loses_a_value_is_not_taken(endpoint, answer):
    endpoint.answer = lambda text: answer
    ours = rewriter(endpoint)
    assert ours.turn(CLOSE) == CLOSE
    assert ours.summary() == "reworded 0, a value was lost 1 (template kept)"


def test_an_endpoint_that_fails_costs_nothing_but_the_rewording(endpoint):
    endpoint.answer = lambda text: 500
    ours = rewriter(endpoint)
    assert ours.turn(CLOSE) == CLOSE
    assert ours.summary() == "reworded 0, endpoint failed 1 (template kept)"


def test_values_of_requests_that_call_nothing_yet_have_to_survive_too():
    vague = UserTurn("Send 'all done' to USR012.", ())
    assert lost_values(vague, "Tell USR012 'all done'.") == []
    assert lost_values(vague, "Tell them 'all done'.") == ["USR012"]
    assert lost_values(vague, "Tell USR012 it is done.") == ["all done"]
