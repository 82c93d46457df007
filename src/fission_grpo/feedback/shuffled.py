"""Feedback control: gives each failure the feedback of another failure of the same kind.

If training gains as much from it as from real feedback, the content of feedback does not matter.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from fission_grpo.core.serialization import generator_state, set_generator
from fission_grpo.core.types import ErrorKind, Failure
from fission_grpo.feedback.sources import Diagnosis, FeedbackSource, completed, state_of

REMEMBERED = 64  # earlier failures of each kind whose feedback may be given to later ones [ours]
NO_OTHER = "no other failure of the kind"


@dataclass(frozen=True, eq=False)
class _Donor:
    """A failure whose feedback may be given to others."""

    root: str  # id of its root task
    prompt: str  # a hash of its prompt
    answer: Future[Diagnosis]


class ShuffledFeedback:
    """Gives every failure a source's feedback on another failure of the same `ErrorKind` and another root task.

    The failures of a batch and at most `remembered` earlier ones of each kind are put in a random order. Each failure
    gets the text of the next one in this cycle, or of a later one if the next has none, so that every text is used
    about once, whenever the source's answers arrive. If no other failure has a text, the reason is `NO_OTHER`, or none
    if the source itself leaves the failure to the next source.

    Example:
        Of the failures A, B (wrong_call) and C (no_call), A gets the feedback on B, B that on A, and C none.
    """

    def __init__(self, source: FeedbackSource, seed: int = 0, remembered: int = REMEMBERED):
        self.source, self.name, self.asynchronous = source, f"shuffled:{source.name}", source.asynchronous
        self._random = random.Random(seed)
        self._earlier: dict[ErrorKind, deque[_Donor]] = defaultdict(lambda: deque(maxlen=remembered))

    def start(self, failures: Sequence[Failure]) -> list[Future[Diagnosis]]:
        answers = self.source.start(failures)
        donors = [_make_donor(failure, answer) for failure, answer in zip(failures, answers, strict=True)]
        results: dict[_Donor, Future[Diagnosis]] = {}
        for kind in dict.fromkeys(failure.kind for failure in failures):
            batch = [donor for donor, failure in zip(donors, failures, strict=True) if failure.kind == kind]
            order = [*batch, *self._earlier[kind]]
            self._random.shuffle(order)
            for donor in batch:
                at = order.index(donor)
                cycle = [*order[at + 1 :], *order[:at]]
                # one dialogue may stand under several task ids
                others = [d.answer for d in cycle if d.root != donor.root and d.prompt != donor.prompt]
                results[donor] = _first_text(others, donor.answer)
            self._earlier[kind].extend(batch)

        def cancel_unused(_: Future[Diagnosis]) -> None:
            if all(result.done() for result in results.values()):
                for answer in answers:
                    answer.cancel()

        for result in results.values():
            result.add_done_callback(cancel_unused)
        return [results[donor] for donor in donors]

    def check(self) -> None:
        self.source.check()

    def counts(self) -> Mapping[str, float]:
        return self.source.counts()

    def state(self) -> dict[str, Any]:
        earlier: dict[str, list[Any]] = {}
        for kind, donors in self._earlier.items():
            results = [(d, _result(d.answer)) for d in donors]
            earlier[str(kind)] = [[d.root, d.prompt, result.text, result.reason] for d, result in results]
        return {"random": generator_state(self._random), "earlier": earlier, "source": state_of(self.source)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        set_generator(self._random, state["random"])
        self._earlier.clear()
        for kind, donors in state["earlier"].items():
            for root, prompt, text, reason in donors:
                self._earlier[ErrorKind(kind)].append(_Donor(root, prompt, completed(Diagnosis(text, reason))))
        if state["source"] is not None:
            self.source.load_state(state["source"])  # pyright: ignore


def _make_donor(failure: Failure, answer: Future[Diagnosis]) -> _Donor:
    prompt = failure.task.prompt
    text = prompt if isinstance(prompt, str) else json.dumps([dict(m) for m in prompt], sort_keys=True, default=str)
    return _Donor(failure.task.root, sha256(text.encode("utf-8", "surrogatepass")).hexdigest(), answer)


def _result(answer: Future[Diagnosis]) -> Diagnosis:
    return answer.result() if answer.done() and not answer.cancelled() else Diagnosis(None, NO_OTHER)


def _first_text(others: Sequence[Future[Diagnosis]], own: Future[Diagnosis]) -> Future[Diagnosis]:
    """The first of the others' answers that has a text, waiting for each in turn; without one, why there is none."""
    outer: Future[Diagnosis] = Future()

    def advance(_: Future[Diagnosis] | None = None) -> None:
        answer = Diagnosis(None)
        for future in (*others, own):
            if not future.done():
                future.add_done_callback(advance)
                return
            answer = _result(future)
            if future is not own and answer.text is not None:
                break
        else:
            is_left = answer == Diagnosis(None)  # to the next source
            answer = Diagnosis(None, None if is_left else NO_OTHER)
        with suppress(InvalidStateError):  # it was cancelled
            # whatever an environment said about another call, it did not say it about this one
            outer.set_result(replace(answer, from_environment=False))

    advance()
    return outer
