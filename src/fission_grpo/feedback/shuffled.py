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
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from fission_grpo.core.serialization import generator_state, set_generator
from fission_grpo.core.types import ErrorKind, Failure
from fission_grpo.feedback.sources import Diagnosis, FeedbackSource, completed

REMEMBERED = 64
"""Earlier failures of each kind whose feedback may be given to later ones. [ours]"""

NO_OTHER = "no other failure of the kind"


@dataclass(frozen=True, eq=False)
class _Donor:
    """A failure whose feedback may be given to others: root task, hash of its prompt, the source's answer."""

    root: str
    prompt: str
    answer: Future[Diagnosis]

    def differs(self, other: _Donor) -> bool:
        """Whether the two failed at different tasks. One dialogue may stand under several task ids."""
        return self.root != other.root and self.prompt != other.prompt


class ShuffledFeedback:
    """Gives every failure a source's feedback on another failure of the same `ErrorKind` and another root task.

    The failures of a batch and at most `remembered` earlier ones of each kind are put in a random order. Each failure
    gets the text of the next one in this cycle, or of a later one if the next has none, so that every text is used
    about once. A text may happen to equal the failure's own. If no other failure has a text, the reason is `NO_OTHER`,
    or none if the source itself leaves the failure to the next source.

    Args:
        source: whose feedback is shuffled.
        seed: of the order. The result does not depend on when the source's answers arrive.
        remembered: number of earlier failures of each kind.

    Example:
        Of the failures A, B (wrong_call) and C (no_call), A gets the feedback on B, B that on A, and C none.
    """

    def __init__(self, source: FeedbackSource, seed: int = 0, remembered: int = REMEMBERED):
        self.source, self.name, self.asynchronous = source, f"shuffled:{source.name}", source.asynchronous
        self._random = random.Random(seed)
        self._earlier: dict[ErrorKind, deque[_Donor]] = defaultdict(lambda: deque(maxlen=remembered))

    def start(self, failures: Sequence[Failure]) -> list[Future[Diagnosis]]:
        answers = self.source.start(failures)
        donors = [_donor(failure, answer) for failure, answer in zip(failures, answers, strict=True)]
        by_kind: dict[ErrorKind, list[_Donor]] = defaultdict(list)
        for failure, donor in zip(failures, donors, strict=True):
            by_kind[failure.kind].append(donor)
        results: dict[_Donor, Future[Diagnosis]] = {}
        for kind, batch in by_kind.items():
            order = [*batch, *self._earlier[kind]]
            self._random.shuffle(order)
            place = {donor: at for at, donor in enumerate(order)}
            for donor in batch:
                at = place[donor]
                cycle = [*order[at + 1 :], *order[: at + 1]]
                results[donor] = _first_text([one.answer for one in cycle if one.differs(donor)], donor.answer)
            self._earlier[kind].extend(batch)
        _cancel_together([results[donor] for donor in donors], answers)
        return [results[donor] for donor in donors]

    def check(self) -> None:
        self.source.check()

    def counts(self) -> Mapping[str, float]:
        return self.source.counts()

    def state(self) -> dict[str, Any]:
        """The random generator, the earlier failures with their answers, and the source's state."""
        earlier = {str(kind): [_donor_to_json(donor) for donor in donors] for kind, donors in self._earlier.items()}
        state: Any = getattr(self.source, "state", None)
        return {
            "random": generator_state(self._random),
            "earlier": earlier,
            "source": state() if callable(state) else None,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        set_generator(self._random, state["random"])
        self._earlier.clear()
        for kind, donors in state["earlier"].items():
            self._earlier[ErrorKind(kind)].extend(
                _Donor(root, prompt, completed(Diagnosis(text, reason))) for root, prompt, text, reason in donors
            )
        if state["source"] is not None:
            self.source.load_state(state["source"])  # pyright: ignore


def _donor(failure: Failure, answer: Future[Diagnosis]) -> _Donor:
    prompt = failure.task.prompt
    text = prompt if isinstance(prompt, str) else json.dumps([dict(m) for m in prompt], sort_keys=True, default=str)
    return _Donor(failure.task.root, sha256(text.encode("utf-8", "surrogatepass")).hexdigest(), answer)


def _donor_to_json(donor: _Donor) -> list[str | None]:
    has_answer = donor.answer.done() and not donor.answer.cancelled()
    answer = donor.answer.result() if has_answer else Diagnosis(None, NO_OTHER)
    return [donor.root, donor.prompt, answer.text, answer.reason]


def _first_text(others: Sequence[Future[Diagnosis]], own: Future[Diagnosis]) -> Future[Diagnosis]:
    """The first of the others' answers that has a text, waiting for each in turn; without one, why there is none."""
    outer: Future[Diagnosis] = Future()

    def advance(_: Future[Diagnosis] | None = None) -> None:
        for future in (*others, own):
            if not future.done():
                return
            answer = Diagnosis(None, NO_OTHER) if future.cancelled() else future.result()
            if future is own:
                answer = Diagnosis(None, NO_OTHER if answer.text is not None or answer.reason is not None else None)
            elif answer.text is None:
                continue
            with suppress(InvalidStateError):  # set or cancelled already
                outer.set_result(Diagnosis(answer.text, answer.reason))
            return

    for future in {*others, own}:
        if not future.done():
            future.add_done_callback(advance)
    advance()
    return outer


def _cancel_together(outer: Sequence[Future[Diagnosis]], inner: Sequence[Future[Diagnosis]]) -> None:
    """Cancel the source's pending answers once every future made from them is done or cancelled."""
    pending = set(outer)

    def on_done(future: Future[Diagnosis]) -> None:
        pending.discard(future)
        if not pending:
            for answer in inner:
                answer.cancel()

    for future in outer:
        future.add_done_callback(on_done)
