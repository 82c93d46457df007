"""The shuffled control: another failure's diagnosis of the same kind, never one's own, and never a leak."""

import json
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from fission_grpo.core.types import (
    ErrorKind,
    Failure,
    Task,
    ToolCall,
    Turn,
)
from fission_grpo.feedback.request import FeedbackRequest
from fission_grpo.feedback.shuffled import NO_OTHER, ShuffledFeedback
from fission_grpo.feedback.sources import (
    FIXED_TEXT,
    Diagnosis,
    FunctionSource,
    completed,
    none,
)

WRONG, RAISED, NO_CALL = ErrorKind.WRONG_CALL, ErrorKind.RAISED, ErrorKind.NO_CALL


def failure(name: str, kind: ErrorKind = WRONG, root: str = "", value: str = "Rome") -> Failure:
    call = ToolCall("go", {"to": "Paris"})
    task = Task(name, f"prompt of {root or name}", reference=(ToolCall("go", {"to": value}),), root=root)
    return Failure(task, (Turn("x", calls=(call,)),), kind)


def about(failure: Failure) -> str:
    return f"about {failure.task.id}"


def texts(source: ShuffledFeedback, failures) -> list[str | None]:
    return [future.result(timeout=5).text for future in source.start(failures)]


def test_each_gets_the_diagnosis_of_another_failure_of_its_kind_and_each_diagnosis_is_given_once():
    failures = [failure(f"w{i}") for i in range(20)] + [failure(f"r{i}", RAISED) for i in range(20)]
    said = texts(ShuffledFeedback(FunctionSource("f", about)), failures)
    for one, text in zip(failures, said, strict=True):
        assert text is not None
        assert text != about(one)
        assert text.startswith(f"about {one.task.id[0]}")
    assert max(Counter(said).values()) == 1


def test_the_seed_decides_the_order():
    failures = [failure(f"w{i}") for i in range(20)]
    first, again, other = (texts(ShuffledFeedback(FunctionSource("f", about), seed), failures) for seed in (3, 3, 4))
    assert first == again != other


def test_a_failure_alone_of_its_kind_gets_nothing_and_the_reason_says_so():
    alone, a, b = failure("n", NO_CALL), failure("a"), failure("b")
    answers = [future.result() for future in ShuffledFeedback(FunctionSource("f", about)).start([alone, a, b])]
    assert answers == [Diagnosis(None, NO_OTHER), Diagnosis("about b"), Diagnosis("about a")]


def test_failures_of_the_same_root_task_or_the_same_dialogue_give_each_other_nothing():
    a, b, c = failure("a", root="t"), failure("b", root="t"), failure("c", root="u")
    assert texts(ShuffledFeedback(FunctionSource("f", about)), [a, b]) == [None, None]
    said = texts(ShuffledFeedback(FunctionSource("f", about)), [a, b, c])
    assert said[:2] == ["about c", "about c"]
    assert said[2] in ("about a", "about b")
    same_dialogue = Failure(Task("z", a.task.prompt), a.turns, WRONG)
    assert texts(ShuffledFeedback(FunctionSource("f", about)), [a, same_dialogue]) == [None, None]


def test_earlier_batches_give_to_later_ones_as_many_as_are_remembered():
    source = ShuffledFeedback(FunctionSource("f", about), remembered=2)
    assert texts(source, [failure("a")]) == [None]
    assert texts(source, [failure("b")]) == ["about a"]
    assert texts(source, [failure("c"), failure("d", RAISED)]) != [None, None]
    given = {text for i in range(20) for text in texts(source, [failure(f"e{i}")])}
    assert "about a" not in given  # forgotten: two others came since
    assert texts(ShuffledFeedback(FunctionSource("f", about), remembered=0), [failure("a")]) == [None]


def test_donors_without_a_diagnosis_are_passed_over_and_what_a_source_leaves_to_the_next_is_left():
    silent = FunctionSource("f", lambda one: None if one.task.id in ("b", "c") else about(one))
    said = texts(ShuffledFeedback(silent), [failure(name) for name in "abcd"])
    assert (said[0], said[3]) == ("about d", "about a")
    assert set(said[1:3]) <= {"about a", "about d"}

    class Leaving(FunctionSource):
        def start(self, failures):
            return [completed(Diagnosis(None)) for _ in failures]

    answers = [future.result() for future in ShuffledFeedback(Leaving("l", about)).start([failure("a"), failure("b")])]
    assert answers == [Diagnosis(None, None)] * 2


def test_silence_on_purpose_is_given_as_silence():
    assert texts(ShuffledFeedback(FunctionSource("none", none)), [failure("a"), failure("b")]) == ["", ""]


def test_another_failures_diagnosis_is_checked_against_the_answer_of_the_one_it_is_given_to():
    """Of a the source says "not Oslo", which is b's answer: b is told the fixed text instead, and it is counted."""
    said = {"a": "error: not Oslo", "b": "error: `to` is not right"}
    pair = [failure("a", value="Rome"), failure("b", value="Oslo")]
    chain = (ShuffledFeedback(FunctionSource("f", lambda one: said[one.task.id])),)
    of_a, of_b = FeedbackRequest(pair, chain).feedback()
    assert (of_a.text, of_a.source) == ("error: `to` is not right", "shuffled:f")
    assert (of_b.text, of_b.leaked, of_b.rejected) == (FIXED_TEXT, True, (("shuffled:f", "leak"),))


class Later:
    """A source whose answers are set by hand."""

    name, asynchronous = "later", True

    def __init__(self):
        self.futures: list[Future[Diagnosis]] = []

    def start(self, failures):
        self.futures = [Future() for _ in failures]
        return list(self.futures)

    def check(self):
        raise ValueError("not set up")

    def counts(self):
        return {"requests": 3.0}


def test_answers_that_come_later_are_passed_on_when_they_come():
    inner = Later()
    source = ShuffledFeedback(inner)
    a, b, c = source.start([failure("a"), failure("b"), failure("n", NO_CALL)])
    assert source.asynchronous
    assert [one.done() for one in (a, b, c)] == [False] * 3
    inner.futures[1].set_result(Diagnosis("about b"))
    assert a.result(timeout=1) == Diagnosis("about b")
    assert not b.done()
    inner.futures[0].set_result(Diagnosis(None, "HTTP 500"))
    assert b.result(timeout=1) == Diagnosis(None, NO_OTHER)
    inner.futures[2].set_result(Diagnosis("about n"))
    assert c.result(timeout=1) == Diagnosis(None, NO_OTHER)


def test_the_order_of_arrival_changes_nothing():
    def threaded(order) -> list[str | None]:
        inner = Later()
        futures = ShuffledFeedback(inner, seed=1).start([failure(f"w{i}") for i in range(30)])
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda i: inner.futures[i].set_result(Diagnosis(f"about w{i}")), order))
        return [future.result(timeout=5).text for future in futures]

    assert threaded(range(30)) == threaded(reversed(range(30)))


def test_what_is_given_up_by_all_is_given_up_at_the_source_too():
    inner = Later()
    pair = [failure("a"), failure("b")]
    enquiry = FeedbackRequest(pair, (ShuffledFeedback(inner),))
    assert [one.fallback for one in enquiry.feedback(timeout=0.01)] == ["shuffled:later: late"] * 2
    assert all(future.cancelled() for future in inner.futures)


def test_a_batch_after_one_that_was_given_up_does_not_wait_for_it():
    inner = Later()
    source = ShuffledFeedback(inner)
    FeedbackRequest([failure("a")], (source,)).feedback(timeout=0.01)
    (only,) = source.start([failure("b")])
    inner.futures[0].set_result(Diagnosis("about b"))
    assert only.result(timeout=1) == Diagnosis(None, NO_OTHER)


def test_a_state_taken_between_batches_gives_what_would_have_been_given():
    def batch(number):
        return [failure(f"w{number}{i}") for i in range(4)] + [failure(f"r{number}{i}", RAISED) for i in range(4)]

    silent = FunctionSource("f", lambda one: None if one.task.id.endswith("1") else about(one))
    straight, resumed = ShuffledFeedback(silent, seed=3, remembered=5), ShuffledFeedback(silent, seed=9, remembered=5)
    texts(straight, batch(0)), texts(straight, batch(1)), texts(resumed, batch(7))
    resumed.load_state(json.loads(json.dumps(straight.state())))
    assert texts(resumed, batch(2)) == texts(straight, batch(2))
    lone = [failure("w3")]
    assert texts(resumed, lone) == texts(straight, lone) != [None]  # it has only what is remembered


def test_checks_and_counts_are_those_of_the_source():
    source = ShuffledFeedback(Later())
    assert source.counts() == {"requests": 3.0}
    with pytest.raises(ValueError, match="not set up"):
        source.check()
