"""A simulator behind an endpoint, over real sockets: what is asked, what is kept secret, what it counts."""

import logging
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from endpoint_source_support import SAID, answers_of, failure_of, source_of
from openai_server import OpenAIServer

pytest.importorskip("openai", reason="needs the openai package (pip install 'fission-grpo[endpoint]')")

from fission_grpo.core.types import ErrorKind
from fission_grpo.feedback.dataset import make_example, write_examples
from fission_grpo.feedback.endpoint import EndpointFeedback, FeedbackModelOptions
from fission_grpo.feedback.prompt import SYSTEM, failure_text
from fission_grpo.feedback.request import FeedbackRequest
from fission_grpo.feedback.sources import Diagnosis
from fission_grpo.feedback.spec import make_chain
from fission_grpo.inference.endpoint import EndpointError

KEY = "sk-x7very-secret-0123456789"


@pytest.fixture
def server():
    with OpenAIServer(lambda body: SAID) as running:
        yield running


def test_a_diagnosis_comes_from_the_simulators_prompt_and_its_cost_is_counted(server):
    with source_of(server, prompt_price=10.0, completion_price=100.0) as source:
        assert answers_of(source) == [Diagnosis(SAID)]
        seconds = dict(source.totals())["feedback/model/seconds"]
        assert source.counts() == {
            "feedback/model/requested": 1,
            "feedback/model/answers": 1,
            "feedback/model/requests": 1,
            "feedback/model/prompt_tokens": 11,
            "feedback/model/completion_tokens": 3,
            "feedback/model/cost": pytest.approx((11 * 10 + 3 * 100) / 1e6),
            "feedback/model/seconds": seconds,
        }
        assert source.counts() == {}
        assert "answers 1, completion_tokens 3, cost 0.00041, prompt_tokens 11, requested 1," in source.report()
    (body,) = server.asked
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": failure_text(failure_of())}]
    assert body == {"model": "small", "messages": messages, "temperature": 0.0, "max_tokens": 200}


def test_failures_of_form_are_left_to_the_next_source_and_never_sent(server):
    kinds = (ErrorKind.UNPARSED, ErrorKind.TRUNCATED, ErrorKind.OUT_OF_TURNS)
    with source_of(server) as source:
        assert answers_of(source, *(failure_of(kind=kind) for kind in kinds)) == [Diagnosis(None)] * 3
        assert source.counts() == {}
        told = FeedbackRequest([failure_of(kind=ErrorKind.TRUNCATED)], (source, *make_chain("rules"))).feedback()
    assert (told[0].source, told[0].rejected) == ("rules", ())
    assert server.asked == []


def test_a_wrong_key_or_model_fails_at_the_start_with_what_to_mend(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ValueError, match="OPENAI_API_KEY is not set"):
        EndpointFeedback("small")
    with pytest.raises(ValueError, match="write it like http://localhost:8000/v1"):
        EndpointFeedback("small", "localhost:8000")
    for status, said in (
        (401, "set the right key in the environment variable OPENAI_API_KEY"),
        (404, "no such model"),
    ):
        server.answer = lambda body, status=status: status
        with source_of(server) as source, pytest.raises(EndpointError, match=said):
            source.check()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"concurrency": 0}, "concurrency must be a whole number of at least 1, got 0"),
        ({"max_retries": 1.5}, "max_retries must be a whole number"),
        ({"timeout": float("nan")}, "timeout must be a number"),
        ({"timeout": "30"}, "timeout must be a number of at least 0.001, got '30'"),
        ({"max_tokens": 0}, "max_tokens must be"),
        ({"max_requests": -1}, "max_requests must be"),
        ({"extra_body": {"stream": True}}, "must not hold stream"),
        ({"extra_body": {"a": {1, 2}}}, "must hold JSON values"),
    ],
)
def test_options_that_cannot_be_fail_at_once(options, said):
    with pytest.raises(ValueError, match=said):
        FeedbackModelOptions(**options)


def test_a_key_given_as_the_variables_name_is_refused_and_not_shown():
    for key in (KEY, "hf_abcdefghijkl"):
        with pytest.raises(ValueError, match="put the key itself into that variable") as error:
            FeedbackModelOptions(key_variable=key)
        assert key not in str(error.value)


def test_the_key_is_sent_and_stands_nowhere_else(server, monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("MY_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    server.faults = ["tell key", None]
    with source_of(server, key_variable="MY_KEY", cache=str(tmp_path)) as source:
        feedback = FeedbackRequest([failure_of(1), failure_of(2)], (source,)).feedback(20)
        seen = [repr(feedback), repr(source), repr(source.options), source.report(), repr(source.counts())]
    assert {one["authorization"] for one in server.headers} == {f"Bearer {KEY}"}
    assert sorted(one.source for one in feedback) == ["endpoint", "fixed"]
    files = [path.read_text() for path in tmp_path.iterdir()]
    assert len(files) == 1
    assert KEY[:8] not in "\n".join([*seen, *files, caplog.text])


def test_no_more_requests_are_under_way_than_allowed_and_equal_ones_are_sent_once(server):
    server.faults = lambda number: "slow"
    with source_of(server, concurrency=4) as source:
        said = answers_of(source, *(failure_of(number % 6) for number in range(18)))
        assert said == [Diagnosis(SAID)] * 18
        found = source.counts()
        numbers = [found[f"feedback/model/{name}"] for name in ("requests", "shared", "answers")]
        assert numbers == [6, 12, 18]
    assert (len(server.asked), server.most) == (6, 4)


def test_examples_from_a_file_of_instances_are_shown(server, tmp_path):
    made = [
        replace(make_example(failure_of(number), "fly", "trace"), diagnosis=f"error: {number}", teacher="rules")
        for number in (7, 8, 9)
    ]
    write_examples(tmp_path / "train.jsonl", made)
    with source_of(server, shots=str(tmp_path / "train.jsonl"), shots_used=2) as source:
        answers_of(source)
    roles = [message["role"] for message in server.asked[0]["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
    assert server.asked[0]["messages"][4]["content"] == "error: 8"
    with pytest.raises(ValueError, match=r"nowhere\.jsonl"):
        source_of(server, shots=str(tmp_path / "nowhere.jsonl"))


def test_close_ends_what_is_under_way_and_whoever_asks_later_is_told(server):
    before = set(threading.enumerate())
    server.faults = lambda number: "hang"
    source = source_of(server)
    futures = source.start([failure_of(1), failure_of(2)])
    while len(server.asked) < 2:
        time.sleep(0.01)
    source.close()
    source.close()
    assert [future.result(timeout=5) for future in futures] == [Diagnosis(None, "closed")] * 2
    assert answers_of(source) == [Diagnosis(None, "closed")]
    assert source.counts()["feedback/model/no/closed"] == 3
    assert "endpoint" not in [thread.name for thread in set(threading.enumerate()) - before]


def test_the_interpreter_ends_at_once_with_requests_under_way(server):
    server.faults = lambda number: "hang"
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[2])\n"
        "from endpoint_source_support import *\n"
        "source = EndpointFeedback('small', sys.argv[1])\n"
        "futures = source.start([failure_of(1), failure_of(2)])\n"
        "time.sleep(0.3); print('end', time.time())"
    )
    command = [sys.executable, "-c", code, server.url, str(Path(__file__).parents[1] / "support")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert time.time() - float(done.stdout.split()[1]) < 5.0
    assert done.stderr == ""
