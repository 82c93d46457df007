"""Driving many cases side by side: how many are open, who waits for whom, what a lost reply costs."""

import threading
import time
from concurrent.futures import Future

import pytest
from openai_server import OpenAIServer

from fission_grpo.evaluation.records import CaseRecord
from fission_grpo.evaluation.runner import run_cases
from fission_grpo.inference.base import Reply, Request


def play(name, turns):
    """A case of so many turns, which succeeds unless a reply is lost."""
    for turn in range(turns):
        reply = yield Request([{"role": "user", "content": f"{name} {turn}"}])
        if reply.lost is not None:
            return CaseRecord(name, "", (), None, missing=reply.lost)
    return CaseRecord(name, "", (), True)


def plays(turns, begun=None):
    """Cases "0", "1", ... of the given numbers of turns; those begun are noted."""
    for number, count in enumerate(turns):
        if begun is not None:
            begun.append(str(number))
        yield lambda number=number, count=count: play(str(number), count)


class Batches:
    """Answers at once and notes what every batch asked."""

    def __init__(self, lose=()):
        self.asked, self.lose = [], lose

    def reply(self, requests):
        names = [request.messages[0]["content"] for request in requests]
        self.asked.append(names)
        return [Reply("", lost="gone") if name in self.lose else Reply("x") for name in names]


class Threads:
    """Answers every request in a thread of its own after `seconds(question)`."""

    def __init__(self, seconds=lambda question: 0.0):
        self.seconds, self.open, self.most, self._lock = seconds, 0, 0, threading.Lock()

    def submit(self, request):
        with self._lock:
            self.open += 1
            self.most = max(self.most, self.open)
        future = Future()

        def answer():
            time.sleep(self.seconds(request.messages[0]["content"]))
            with self._lock:
                self.open -= 1
            future.set_result(Reply("x"))

        threading.Thread(target=answer).start()
        return future


def test_batches_are_full_as_long_as_there_are_cases():
    policy, records = Batches(), []
    run_cases(policy, plays([2, 1, 3, 1, 1]), in_flight=2, done=records.append)
    assert policy.asked == [["0 0", "1 0"], ["0 1", "2 0"], ["2 1", "3 0"], ["2 2", "4 0"]]
    assert [record.id for record in records] == ["1", "0", "3", "2", "4"]


def test_cases_are_begun_only_when_there_is_room_and_records_arrive_as_cases_end():
    begun, seen = [], []
    run_cases(Batches(), plays([1] * 5, begun), 2, lambda record: seen.append((record.id, len(begun))))
    assert seen == [("0", 2), ("1", 2), ("2", 4), ("3", 4), ("4", 5)]


def test_cases_that_ask_for_nothing_end_without_the_policy():
    policy, records = Batches(), []
    run_cases(policy, plays([0, 0, 1, 0]), in_flight=2, done=records.append)
    assert policy.asked == [["2 0"]]
    assert {record.id for record in records} == {"0", "1", "2", "3"}


def test_a_lost_reply_only_loses_its_case():
    records = []
    run_cases(Batches(lose=("1 1",)), plays([2, 3, 2]), in_flight=3, done=records.append)
    assert {record.id: (record.success, record.missing) for record in records} == {
        "0": (True, None),
        "1": (None, "gone"),
        "2": (True, None),
    }


def test_an_asynchronous_policy_has_at_most_so_many_requests_open():
    policy, begun, seen = Threads(lambda question: 0.01), [], []
    run_cases(policy, plays([2] * 12, begun), 3, lambda record: seen.append(len(begun) - len(seen)))
    assert len(seen) == 12
    assert policy.most == 3
    assert max(seen) == 3


def test_one_slow_reply_holds_nobody_back():
    release, order = threading.Event(), []
    policy = Threads(lambda question: release.wait(10) * 0.0 if question == "0 0" else 0.0)

    def done(record):
        order.append(record.id)
        if len(order) == 19:  # all others have ended while the first reply was still open
            release.set()

    run_cases(policy, plays([2] * 20), in_flight=4, done=done)
    assert order[-1] == "0"
    assert len(order) == 20


def test_a_slow_and_a_lost_reply_of_a_real_endpoint_cost_only_their_cases():
    pytest.importorskip("openai", reason="needs the openai package")
    from fission_grpo.inference.endpoint import EndpointOptions, EndpointPolicy

    def answer(body):
        question = body["messages"][0]["content"]
        if question == "0 0":
            time.sleep(0.6)
        return 403 if question == "5 1" else "x"

    records = []
    with OpenAIServer(answer) as server, EndpointPolicy("small", server.url, EndpointOptions(max_retries=0)) as policy:
        run_cases(policy, plays([1, *[2] * 9]), in_flight=4, done=records.append)
    assert records[-1].id == "0"
    assert [record.id for record in records if record.missing] == ["5"]
    assert sum(record.success is True for record in records) == 9


def test_when_a_case_breaks_the_open_replies_are_given_up():
    futures = []

    class Never:
        def submit(self, request):
            futures.append(Future())
            if len(futures) == 1:
                futures[0].set_result(Reply("x"))
            return futures[-1]

    def broken():
        yield Request([])
        raise KeyboardInterrupt

    def cases():
        yield broken
        yield from plays([1, 1])

    with pytest.raises(KeyboardInterrupt):
        run_cases(Never(), cases(), in_flight=3)
    assert [future.cancelled() for future in futures] == [False, True, True]


def test_there_must_be_room_for_a_case():
    with pytest.raises(ValueError, match="in_flight must be at least 1, got 0"):
        run_cases(Batches(), plays([1]), in_flight=0)
