"""Another failure's diagnosis, as a control: what it gains is due to there being a text, not to what the text says."""

from __future__ import annotations

import json
import random
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from fission_grpo.core.serialization import generator_state, set_generator
from fission_grpo.core.types import ErrorKind, Failure
from fission_grpo.feedback.sources import Answer, Source, answered

REMEMBERED = 64
"""Earlier failures of each kind whose diagnoses may be given to later ones. [ours]"""


NO_OTHER = "no other failure of the kind"


@dataclass(frozen=True)
class _Donor:
    """A failure whose diagnosis may be given to another one: root task, hash of its prompt, what is said of it."""

    root: str
    prompt: str
    answer: Future[Answer]

    def suits(self, other: _Donor) -> bool:
        """Whether it failed at something else. Several failures of one dialogue can be tasks of different names."""
        return self.root != other.root and self.prompt != other.prompt


class Shuffled:
    """Every failure gets what a source says of another failure of the same `ErrorKind` and of another root task.

    The failures of a batch, and at most `remembered` earlier ones of each kind, are put in a random order, and each
    gets the diagnosis of the next one in it, around the end; of further ones where that one has none. So every
    diagnosis is given about once. It may happen to be worded as the failure's own would be. Where nobody can give
    one the reason is `NO_OTHER`, or none if the source itself leaves the failure to the next source.

    Args:
        source: whose diagnoses are shuffled.
        seed: of the order. Sources that answer later are asked in the same order, and give the same result, whenever
            their answers come.
        remembered: earlier failures of each kind; 0: none.

    Example:
        Of the failures A, B (wrong_call) and C (no_call), A gets what is said of B, B of A, and C nothing.
    """

    def __init__(self, source: Source, seed: int = 0, remembered: int = REMEMBERED):
        self.source, self.name, self.later = source, f"shuffled:{source.name}", source.later
        self._random = random.Random(seed)
        self._earlier: dict[ErrorKind, deque[_Donor]] = defaultdict(lambda: deque(maxlen=remembered))

    def start(self, failures: Sequence[Failure]) -> list[Future[Answer]]:
        answers = self.source.start(failures)
        donors = [_donor(failure, answer) for failure, answer in zip(failures, answers, strict=True)]
        by_kind: dict[ErrorKind, list[_Donor]] = defaultdict(list)
        for failure, donor in zip(failures, donors, strict=True):
            by_kind[failure.kind].append(donor)
        given: dict[int, Future[Answer]] = {}
        for kind, here in by_kind.items():
            order = [*here, *self._earlier[kind]]
            self._random.shuffle(order)
            place = {id(donor): at for at, donor in enumerate(order)}
            for donor in here:
                after = place[id(donor)] + 1
                given[id(donor)] = _first_of(_others(donor, order, after), donor.answer)
            self._earlier[kind].extend(here)
        found = [given[id(donor)] for donor in donors]
        _cancel_with(found, [donor.answer for donor in donors])
        return found

    def check(self) -> None:
        self.source.check()

    def counts(self) -> Mapping[str, float]:
        return self.source.counts()

    def state(self) -> dict[str, Any]:
        """The random generator, the earlier failures with what was said of them, and the source's own state."""
        earlier = {str(kind): [_saved(donor) for donor in donors] for kind, donors in self._earlier.items()}
        inner = self.source.state() if callable(getattr(self.source, "state", None)) else None  # pyright: ignore
        return {"random": generator_state(self._random), "earlier": earlier, "source": inner}

    def load_state(self, state: Mapping[str, Any]) -> None:
        set_generator(self._random, state["random"])
        self._earlier.clear()
        for kind, donors in state["earlier"].items():
            self._earlier[ErrorKind(kind)].extend(
                _Donor(root, prompt, answered(Answer(text, reason))) for root, prompt, text, reason in donors
            )
        if state["source"] is not None:
            self.source.load_state(state["source"])  # pyright: ignore


def _donor(failure: Failure, answer: Future[Answer]) -> _Donor:
    prompt = failure.task.prompt
    text = prompt if isinstance(prompt, str) else json.dumps([dict(m) for m in prompt], sort_keys=True, default=str)
    return _Donor(failure.task.root, sha256(text.encode("utf-8", "surrogatepass")).hexdigest(), answer)


def _saved(donor: _Donor) -> list[str | None]:
    """A donor as JSON. What was given up, or is still under way, is no diagnosis."""
    given = donor.answer.done() and not donor.answer.cancelled()
    answer = donor.answer.result() if given else Answer(None, NO_OTHER)
    return [donor.root, donor.prompt, answer.text, answer.reason]


def _others(donor: _Donor, order: Sequence[_Donor], after: int) -> Iterator[Future[Answer]]:
    """The answers that suit a failure, in their order, from place `after` on and around."""
    places = (at % len(order) for at in range(after, after + len(order)))
    return (order[at].answer for at in places if order[at].suits(donor))


def _first_of(others: Iterator[Future[Answer]], own: Future[Answer]) -> Future[Answer]:
    """The first of others' answers that has a text, each waited for in turn."""
    outer: Future[Answer] = Future()

    def ask(future: Future[Answer]) -> None:
        while not outer.done():
            if not future.done():
                future.add_done_callback(ask)
                return
            answer = Answer(None) if future.cancelled() else future.result()
            if future is own:
                left_to_the_next = not future.cancelled() and answer.text is None and answer.reason is None
                _set(outer, Answer(None, None if left_to_the_next else NO_OTHER))
            elif answer.text is not None:
                _set(outer, Answer(answer.text))
            else:
                future = next(others, own)

    ask(next(others, own))
    return outer


def _set(future: Future[Answer], answer: Answer) -> None:
    try:
        future.set_result(answer)
    except InvalidStateError:  # given up meanwhile
        return


def _cancel_with(outer: Sequence[Future[Answer]], inner: Sequence[Future[Answer]]) -> None:
    """Cancel what the source has not answered once all that was made of it is done or given up."""
    waiting = set(outer)

    def ended(future: Future[Answer]) -> None:
        waiting.discard(future)
        if not waiting:
            for one in inner:
                one.cancel()

    for future in outer:
        future.add_done_callback(ended)
