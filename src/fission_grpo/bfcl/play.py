"""BFCL cases as plays, with the loop of the official runner (`bfcl_eval.model_handler.base_handler`).

A user turn ends with the first reply in which no call is read; the 21st reply with calls in one turn ends the case
(`MAXIMUM_STEP_LIMIT` is 20, and officially the limit is noticed one step late). Modes:

- "strict": as officially. A call that cannot be read is as good as no call.
- "told": a call that cannot be read is answered with `{"error": ...}`, and the turn goes on. To be reported apart.

Verdicts are official in both, and for the files that `results.write_result_files` makes of the records.
"""

from __future__ import annotations

import time
from collections.abc import Generator

from fission_grpo.bfcl.cases import MultiTurnCase, SingleTurnCase
from fission_grpo.bfcl.decoding import Undecodable, clean
from fission_grpo.bfcl.formats import Dialogue, new_dialogue
from fission_grpo.bfcl.qwen_prompts import Unrenderable
from fission_grpo.bfcl.single import judge_single
from fission_grpo.bfcl.trial import FORCED, INFERENCE_ERROR, Trial
from fission_grpo.evaluation.play import Play, Reply, Request
from fission_grpo.evaluation.records import CallRecord, CaseRecord, StepRecord, TurnRecord
from fission_grpo.trajectory import ToolCall

MODES = ("strict", "told")


class _Lost(Exception):
    """There is no reply; the message says why."""


class _ForcedToQuit(Exception):
    """The turn reached the limit of steps."""


def play_case(case: MultiTurnCase, format: str = "qwen-fc", mode: str = "strict") -> Play:
    """Play a multi-turn case to its end and judge it.

    Args:
        case: of `cases.multi_turn_cases`.
        format: of `formats.FORMATS`.
        mode: "strict" or "told".

    Raises:
        ValueError: no such format or mode (when the play begins).
    """
    if mode not in MODES:
        raise ValueError(f"no mode {mode!r}; there are {', '.join(MODES)}")
    began = time.monotonic()
    dialogue, trial = new_dialogue(format, case.functions), Trial(case)
    turns: list[TurnRecord] = []
    verdict = missing = None
    for number, messages in enumerate(case.turns):
        dialogue.say(messages, case.added.get(number, ()))
        steps: list[StepRecord] = []
        try:
            yield from _turn(dialogue, trial, told=mode == "told", steps=steps)
        except _Lost as lost:
            missing = str(lost)
        except Unrenderable:
            verdict = INFERENCE_ERROR
        except _ForcedToQuit:
            verdict = FORCED if number < len(case.turns) - 1 else None
        else:
            turns.append(TurnRecord(tuple(steps), trial.end_turn()))
            continue
        turns.append(TurnRecord(tuple(steps), None if missing else trial.end_turn()))
        if verdict or missing:
            break
    verdict = verdict or trial.verdict
    seconds = time.monotonic() - began
    if missing is not None:
        return CaseRecord(case.id, case.category, tuple(turns), missing=missing, seconds=seconds)
    return CaseRecord(case.id, case.category, tuple(turns), verdict is None, verdict, seconds=seconds)


def play_single(case: SingleTurnCase, format: str = "qwen-fc") -> Play:
    """Ask a single-turn case and judge the one reply. Its calls are not executed, so they have no results."""
    began = time.monotonic()
    dialogue = new_dialogue(format, case.functions)
    dialogue.say(case.messages)
    try:
        reply = yield from _ask(dialogue)
    except _Lost as lost:
        return CaseRecord(case.id, case.category, missing=str(lost), seconds=time.monotonic() - began)
    unread = dialogue.hear(reply).unread
    try:
        calls = dialogue.single(reply)
        verdict = judge_single(case, calls)
    except Undecodable:
        calls, verdict = [], judge_single(case, None)
    made = tuple(CallRecord(clean(str(name)), clean(arguments)) for call in calls for name, arguments in call.items())
    step = StepRecord(reply.text, made, unread, reply.tokens, reply.truncated)
    turn = TurnRecord((step,), verdict is None)
    return CaseRecord(case.id, case.category, (turn,), verdict is None, verdict, seconds=time.monotonic() - began)


def scripted_calls(calls: tuple[ToolCall, ...]) -> str:
    """A reply in the format "qwen-fc" that makes these calls: what a policy that knows the answer writes."""
    from fission_grpo.chat import render_call

    return "\n".join(render_call(call) for call in calls)


def _turn(dialogue: Dialogue, trial: Trial, told: bool, steps: list[StepRecord]) -> Generator[Request, Reply, None]:
    """Play one user turn, adding to `steps`.

    Raises:
        _Lost: there was no reply.
        _ForcedToQuit: too many steps.
        Unrenderable: as `Dialogue.request`.
    """
    from bfcl_eval.constants.default_prompts import MAXIMUM_STEP_LIMIT

    for _ in range(MAXIMUM_STEP_LIMIT + 1):
        reply = yield from _ask(dialogue)
        decoded = dialogue.hear(reply)
        made = trial.make(decoded.calls)
        steps.append(StepRecord(reply.text, made, decoded.unread, reply.tokens, reply.truncated))
        tell = decoded.unread if told else None
        if not made and tell is None:
            return
        if made:
            dialogue.answer(decoded, [call.result for call in made])
        if tell is not None:
            dialogue.tell(tell)
    raise _ForcedToQuit


def _ask(dialogue: Dialogue) -> Generator[Request, Reply, Reply]:
    reply = yield dialogue.request()
    if reply.lost is not None:
        raise _Lost(reply.lost)
    return reply
