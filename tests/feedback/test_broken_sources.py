"""Whatever a user's feedback source does, training goes on: a fault costs one answer or one count, and is logged."""

import json
from concurrent.futures import Future
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from endpoint_source_support import SAID, answers_of, failure_of, source_of
from openai_server import OpenAIServer
from trainer_support import desk_trainer, history

from fission_grpo.core.errors import UsageError
from fission_grpo.core.types import Task
from fission_grpo.feedback.endpoint import FeedbackModelOptions
from fission_grpo.feedback.request import FeedbackRequest, feedback_for
from fission_grpo.feedback.sources import FIXED_TEXT, Diagnosis, FunctionSource, completed
from fission_grpo.feedback.spec import closing, make_chain, usage_reports
from fission_grpo.fission.algorithm import Fission

HUGE = 10**400
ODD = {"feedback/x": HUGE, "feedback/y": float("nan"), "feedback/z": "7", 3: 4, "feedback/u": None, "feedback/ok": 2}


class Source:
    """A source that answers rightly, but for what is given."""

    name, asynchronous = "mine", False

    def __init__(self, **methods):
        for name, method in methods.items():
            setattr(self, name, method)

    def start(self, failures):
        return [completed(Diagnosis(SAID)) for _ in failures]

    def check(self): ...


def raising(error):
    def method(*_):
        raise error

    return method


def failed(value):
    future = Future()
    future.set_exception(value) if isinstance(value, BaseException) else future.set_result(value)
    return future


def cancelled():
    future = Future()
    future.cancel()
    return future


ERRORS = [
    RuntimeError("gone"),
    OverflowError("int too large"),
    KeyError("x"),
    RecursionError(),
    SystemExit(0),
    GeneratorExit(),
]


@pytest.mark.parametrize("error", ERRORS)
def test_a_start_that_raises_costs_its_answers(error, caplog):
    chain = (Source(start=raising(error)), *make_chain("fixed"))
    feedback = FeedbackRequest([failure_of(0), failure_of(1)], chain).feedback()
    assert [f.rejected for f in feedback] == [(("mine", f"raised {type(error).__name__}"),)] * 2
    assert "start() failed" in caplog.text
    later = FeedbackRequest([failure_of()], (FunctionSource("first", lambda _: None), chain[0])).feedback()
    assert later[0].rejected[-1] == ("mine", f"raised {type(error).__name__}")


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        ([], "wrong number of answers"),
        (None, "raised TypeError"),
        ([1, 2], "answers are no futures"),
        ([SAID, SAID], "answers are no futures"),
        ([completed(Diagnosis(SAID))] * 3, "wrong number of answers"),
    ],
)
def test_a_start_that_returns_no_future_for_each_failure_costs_its_answers(returned, reason):
    feedback = FeedbackRequest([failure_of(0), failure_of(1)], (Source(start=lambda _: returned),)).feedback()
    assert [(f.text, f.rejected) for f in feedback] == [(FIXED_TEXT, (("mine", reason),))] * 2


@pytest.mark.parametrize(
    ("future", "reason"),
    [
        (failed(ValueError("x")), "raised ValueError"),
        (failed(SystemExit(1)), "raised SystemExit"),
        (cancelled(), "raised CancelledError"),
        (failed("text"), "returned str"),
        (failed(None), "returned NoneType"),
        (failed(Diagnosis(7)), "returned int"),  # pyright: ignore
        (failed(Diagnosis(None, "r" * 500)), "r" * 60),
        (failed(Diagnosis(None, 7)), "7"),  # pyright: ignore
    ],
)
def test_a_future_of_any_outcome_is_an_answer_or_a_reason(future, reason):
    feedback = FeedbackRequest([failure_of()], (Source(start=lambda _: [future]),)).feedback(1e300)
    assert (feedback[0].text, feedback[0].rejected) == (FIXED_TEXT, (("mine", reason),))


@pytest.mark.parametrize("error", ERRORS)
def test_a_function_that_raises_costs_its_answer(error):
    assert feedback_for(failure_of(), [FunctionSource("mine", raising(error))]).fallback == (
        f"mine: raised {type(error).__name__}"
    )


def fission_of(source):
    settings = {"buffer_capacity": 8, "max_age_steps": 10, "buffer_order": "lifo", "seed": 0, "max_depth": 1}
    settings |= {"recovery_ratio": 1.0, "feedback_timeout": 5.0}
    fission = Fission(SimpleNamespace(**settings), [source], SimpleNamespace())  # pyright: ignore
    fission.submit([], 0)
    return fission


@pytest.mark.parametrize(
    ("counts", "kept", "faults"),
    [
        *((raising(error), {}, 1) for error in ERRORS),
        (lambda: None, {}, 1),
        (lambda: [("a", 1)], {}, 1),
        (lambda: ODD, {"feedback/ok": 2}, 5),
        (lambda: {"a": True, "b": [1], "c": -HUGE, "d": float("inf"), "e": 1e16, "f": 1 + 2j}, {}, 6),
        (lambda: {"a": np.int64(3), "b": np.float32(0.5), "c": Fraction(1, 2)}, {"a": 3, "b": 0.5, "c": 0.5}, 0),
    ],
)
def test_counts_of_any_kind_are_kept_or_counted_as_faults(counts, kept, faults):
    collected = fission_of(Source(counts=counts)).collect()
    assert collected.source_counts == kept | ({"feedback/source_faults": faults} if faults else {})


def test_a_source_without_counts_has_none():
    assert fission_of(Source()).collect().source_counts == {}


@pytest.mark.parametrize("error", ERRORS)
def test_a_report_and_a_close_that_raise_are_logged(error, caplog):
    chain = (Source(report=raising(error), close=raising(error)), Source(report=lambda: "fine"))
    assert usage_reports(chain) == ["fine"]
    with closing(chain):
        pass
    assert "report() failed" in caplog.text
    assert "close() failed" in caplog.text


def test_training_goes_on_with_a_source_of_which_only_the_answers_are_right(tmp_path):
    class Broken(Source):
        counts = staticmethod(lambda: ODD)

        def state(self):
            raise RuntimeError("no state")

        def load_state(self, state):
            raise RuntimeError("no state")

    settings = {"save_strategy": "steps", "save_steps": 1}
    trainer = desk_trainer(tmp_path, more={"feedback": Broken()}, max_steps=2, **settings)
    trainer.train()
    assert trainer.state.global_step == 2
    assert sum(history(trainer, "feedback/source_faults")) >= 5
    resumed = desk_trainer(tmp_path, more={"feedback": Broken()}, max_steps=3, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 3


def test_an_endpoints_huge_prices_are_refused_and_its_counts_stay_finite():
    pytest.importorskip("openai", reason="needs the openai package (pip install 'fission-grpo[endpoint]')")
    for name in ("prompt_price", "completion_price", "max_requests", "max_tokens_total", "circuit_seconds"):
        for value in (HUGE, float("inf"), float("nan"), -1, True, 1e13):
            with pytest.raises(ValueError, match=f"{name} must be"):
                FeedbackModelOptions(**{name: value})
    usage = {"prompt_tokens": 10**9, "completion_tokens": 10**9}
    answer = json.dumps({"choices": [{"message": {"content": SAID}}], "usage": usage}).encode()
    prices = {"prompt_price": 1e12, "completion_price": 1e12}
    with OpenAIServer(lambda body: answer) as server, source_of(server, **prices) as source:
        answers_of(source, *[failure_of(number) for number in range(3)])
        assert source.counts()["feedback/model/cost"] == 6e15
        assert "cost 6e+15" in source.report()


def test_failures_whose_tasks_are_odd_cost_one_answer():
    failure = failure_of()
    odd = Task("t", ({"role": "user", 3: "x", "content": None},), failure.task.tools)
    chain = make_chain("shuffled:rules")
    feedback = FeedbackRequest([type(failure)(odd, failure.turns, failure.kind)], chain).feedback()
    assert feedback[0].text == FIXED_TEXT


def counting(answers):
    """A function that gives these answers, one after another; an exception is raised."""
    given = iter(answers)

    def function(failure):
        answer = next(given)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return function


@pytest.mark.parametrize("function", [lambda: "x", lambda failure, more: "x"])
def test_a_function_that_cannot_take_a_failure_is_refused_before_the_run(tmp_path, function):
    with pytest.raises(UsageError, match="feedback function <lambda> cannot be called with the failure alone"):
        desk_trainer(tmp_path, more={"feedback": function})


@pytest.mark.parametrize(
    ("answer", "says"),
    [(3, "returned int at its first call"), (TypeError("no len()"), r"raised TypeError at its first call \(no len")],
)
def test_a_function_that_is_wrong_at_its_first_call_stops_the_run_before_an_update(tmp_path, answer, says):
    trainer = desk_trainer(tmp_path, more={"feedback": counting([answer])})
    with pytest.raises(UsageError, match=f"feedback function function {says}"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_later_faults_of_a_function_are_logged_once_for_each_reason(caplog):
    [source] = make_chain(counting([SAID, 3, ValueError("a"), 3, ValueError("b"), TypeError("c")]))
    reasons = [feedback_for(failure_of(), [source]).fallback for _ in range(6)]
    assert reasons[0] is None
    assert reasons[1:3] == ["function: returned int", "function: raised ValueError"]
    said = [record.message for record in caplog.records if record.name.endswith("sources")]
    assert [("returned int" in one, "more of this kind" in one) for one in said] == [
        (True, False), (False, True), (False, True),
    ]  # fmt: skip


def test_any_other_exception_at_the_first_call_costs_one_answer():
    [source] = make_chain(counting([ValueError("a"), SAID]))
    assert feedback_for(failure_of(), [source]).fallback == "function: raised ValueError"
    assert feedback_for(failure_of(), [source]).text == SAID
