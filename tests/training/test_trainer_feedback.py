"""Diagnoses that come later, or never, in the real trainer: nothing waits for long, and nothing is lost."""

import json
import threading
from concurrent.futures import Future

import pytest
from trainer_support import desk_trainer, events, history

from fission_grpo.feedback.rules import rules
from fission_grpo.feedback.sources import Diagnosis

TEXTS = ("id", "step", "kind", "source", "feedback", "fallback", "prompt")


class Elsewhere:
    """Rules that answer from another thread, after a while; or never."""

    name, asynchronous = "elsewhere", True

    def __init__(self, seconds=0.02):
        self.seconds, self.asked, self._taken = seconds, 0, 0

    def start(self, failures):
        futures = [Future() for _ in failures]
        self.asked += len(futures)

        def answer():
            for future, failure in zip(futures, failures, strict=True):
                said = rules(failure)
                if future.set_running_or_notify_cancel():
                    future.set_result(Diagnosis(said) if said else Diagnosis(None, "no diagnosis"))

        if self.seconds is not None:
            timer = threading.Timer(self.seconds, answer)
            timer.daemon = True
            timer.start()
        return futures

    def check(self): ...

    def counts(self):
        new, self._taken = self.asked - self._taken, self.asked
        return {"feedback/model/requests": new}


def pushed(folder):
    return [tuple(line[name] for name in TEXTS if name != "source") for line in events(folder, "pushed")]


def test_answers_that_come_later_make_the_same_run_as_answers_at_once(tmp_path):
    at_once = desk_trainer(tmp_path / "at_once", max_steps=4)
    at_once.train()
    elsewhere = Elsewhere()
    later = desk_trainer(tmp_path / "later", more={"feedback": elsewhere}, max_steps=4)
    later.train()
    ours = [line.replace("elsewhere:", "rules:") for line in map(str, pushed(tmp_path / "later"))]
    assert ours == [str(line) for line in pushed(tmp_path / "at_once")]
    assert 1.0 in history(later, "fission/phase")
    assert all(a.equal(b) for a, b in zip(later.model.parameters(), at_once.model.parameters(), strict=True))
    assert later.fission.pending is None  # the last cycle's failures are in the journal, too
    assert 0 < sum(history(later, "feedback/model/requests")) <= elsewhere.asked


def test_a_source_that_never_answers_costs_its_bound_and_no_more(tmp_path):
    more = {"feedback": [Elsewhere(seconds=None), "environment"]}
    trainer = desk_trainer(tmp_path, more=more, max_steps=3, feedback_timeout=0.2)
    trainer.train()
    assert trainer.state.global_step == 3
    waits = history(trainer, "feedback/seconds")
    assert 0.19 < max(waits) < 0.6
    lines = events(tmp_path, "pushed")
    assert {line["source"] for line in lines} <= {"environment", "fixed"}
    assert all(line["fallback"].startswith("elsewhere: late") for line in lines)
    late = history(trainer, "feedback/fallback/elsewhere/late")
    assert 0 < sum(late) <= len(lines)  # those of the last cycle are collected after the last log


def test_a_checkpoint_holds_what_was_being_diagnosed(tmp_path):
    trainer = desk_trainer(tmp_path, more={"feedback": Elsewhere()}, max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    state = json.loads((tmp_path / "checkpoint-1" / "fission_state.json").read_text())
    assert len(state["fission"]["buffer"]["items"]) == len(events(tmp_path, "pushed")) > 0


def test_a_source_that_cannot_be_asked_stops_the_run_before_it_begins(tmp_path):
    class Wrong(Elsewhere):
        def check(self):
            raise ValueError("no such model; give another")

    with pytest.raises(ValueError, match="no such model; give another"):
        desk_trainer(tmp_path, more={"feedback": Wrong()})
