"""What every feedback source promises, tested on each: answers or reasons, never an exception, and a JSON state."""

import json
from concurrent.futures import Future

import pytest
from endpoint_source_support import failure_of, source_of
from openai_server import OpenAIServer

from fission_grpo.core.types import ErrorKind
from fission_grpo.feedback.local_model import LocalModelFeedback
from fission_grpo.feedback.request import FeedbackRequest
from fission_grpo.feedback.shuffled import ShuffledFeedback
from fission_grpo.feedback.sources import FIXED_TEXT, SOURCES, Diagnosis, FunctionSource
from fission_grpo.feedback.spec import make_chain
from fission_grpo.inference.pretrained import load_starter

FAILURES = [failure_of(number) for number in range(4)] + [failure_of(9, kind) for kind in ErrorKind]
NAMES = (
    *SOURCES,
    "function",
    "raising function",
    "endpoint",
    "lost endpoint",
    "local",
    "shuffled",
    "shuffled endpoint",
)


def numbered(failure):
    """Feedback that differs from task to task."""
    return f"error: `to` of {failure.task.id} is not right."


def raising(failure):
    raise RuntimeError("broken")


@pytest.fixture(scope="module")
def starter():
    return load_starter()


@pytest.fixture
def make_source(starter):
    """Makes sources by name; all that are made in one test share a server, which answers with the prompt's length."""
    servers, sources = [], []

    def endpoint(fault=None):
        pytest.importorskip("openai", reason="needs the openai package (pip install 'fission-grpo[endpoint]')")
        servers.append(OpenAIServer(lambda body: f"error: `to` is wrong in {len(str(body))} characters."))
        servers[-1].faults = lambda number: fault
        sources.append(source_of(servers[-1], max_retries=0))
        return sources[-1]

    def make(name):
        if name in SOURCES:
            return make_chain(name)[0]
        return {
            "function": lambda: FunctionSource("function", numbered),
            "raising function": lambda: FunctionSource("raising", raising),
            "endpoint": endpoint,
            "lost endpoint": lambda: endpoint("500"),
            "local": lambda: LocalModelFeedback(*starter, max_new_tokens=4),
            "shuffled": lambda: ShuffledFeedback(FunctionSource("function", numbered), seed=3),
            "shuffled endpoint": lambda: ShuffledFeedback(endpoint(), seed=3),
        }[name]()

    yield make
    for source in sources:
        source.close()
    for server in servers:
        server.close()


def answers(source, failures):
    return [future.result(timeout=30) for future in source.start(failures)]


@pytest.mark.parametrize("name", NAMES)
def test_one_future_per_failure_with_a_text_or_a_reason(make_source, name):
    source = make_source(name)
    futures = source.start(FAILURES)
    assert len(futures) == len(FAILURES)
    assert all(isinstance(future, Future) for future in futures)
    for future in futures:
        answer = future.result(timeout=30)
        assert isinstance(answer, Diagnosis)
        assert answer.text is None or (isinstance(answer.text, str) and answer.reason is None)
        assert answer.reason is None or isinstance(answer.reason, str)
    assert source.start([]) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_source_that_is_not_asynchronous_answers_at_once(make_source, name):
    source = make_source(name)
    assert isinstance(source.name, str)
    assert source.asynchronous is ("endpoint" in name)
    if not source.asynchronous:
        assert all(future.done() for future in source.start(FAILURES))


@pytest.mark.parametrize("name", NAMES)
def test_check_passes_for_a_usable_source_and_raises_value_error_for_another(make_source, name):
    source = make_source(name)
    if name == "lost endpoint":
        with pytest.raises(ValueError, match="HTTP 500"):
            source.check()
    else:
        source.check()
    assert source.counts() == {}  # a check is no request for feedback


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_numbers_since_the_last_call(make_source, name):
    source = make_source(name)
    answers(source, FAILURES)
    first = source.counts()
    assert all(isinstance(key, str) and key.startswith("feedback/model/") for key in first)
    assert all(isinstance(value, int | float) and value >= 0 for value in first.values())
    assert bool(first) is ("endpoint" in name or name == "local")
    assert source.counts() == {}


@pytest.mark.parametrize("name", NAMES)
def test_a_state_in_json_continues_where_it_was_saved(make_source, name):
    straight, resumed = make_source(name), make_source(name)
    answers(straight, FAILURES[:3])
    resumed.load_state(json.loads(json.dumps(straight.state())))
    assert resumed.state() == straight.state()
    assert answers(resumed, FAILURES[:4]) == answers(straight, FAILURES[:4])


@pytest.mark.parametrize("name", NAMES)
def test_in_a_chain_every_failure_gets_feedback_and_unused_texts_a_reason(make_source, name):
    chain = (make_source(name), *make_chain("fixed"))
    for feedback in FeedbackRequest(FAILURES, chain).feedback(30):
        assert feedback.source in (chain[0].name, "fixed")
        assert feedback.source != "fixed" or feedback.text == FIXED_TEXT
        assert all(source == chain[0].name and reason for source, reason in feedback.rejected)


@pytest.mark.parametrize("name", [name for name in NAMES if "endpoint" in name])
def test_a_cancelled_future_stays_cancelled_and_the_others_are_answered(make_source, name):
    source = make_source(name)
    first, *others = source.start(FAILURES[:4])
    first.cancel()
    assert all(isinstance(future.result(timeout=30), Diagnosis) for future in others)
