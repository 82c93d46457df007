"""Run BFCL's single-turn cases, and judge them with the official checker. Their calls are never executed."""

from __future__ import annotations

import copy
import importlib
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from threading import Lock
from types import ModuleType, SimpleNamespace
from typing import Any

from fission_grpo.envs.bfcl.official import SingleTurnCase
from fission_grpo.evaluation.bfcl.decoding import Undecodable, clean
from fission_grpo.evaluation.bfcl.formats import new_conversation
from fission_grpo.evaluation.records import CallRecord, CaseRecord, StepRecord, TurnRecord, request_text
from fission_grpo.evaluation.runner import RunningCase

_CONFIG = "bfcl_eval.constants.model_config"
_CHECKER = "bfcl_eval.eval_checker.ast_eval.ast_checker"
_import_lock = Lock()


def run_single_turn(case: SingleTurnCase, format: str = "qwen-fc") -> RunningCase:
    """Run a case of `official.single_turn_cases` in a format of `formats.FORMATS`, and judge its one reply."""
    started = time.monotonic()
    conversation = new_conversation(format, case.functions)
    conversation.add_user_turn(case.messages)
    reply = yield conversation.request()
    if reply.lost is not None:
        return CaseRecord(case.id, case.category, missing=reply.lost, seconds=time.monotonic() - started)
    unread = conversation.add_reply(reply).unread
    try:
        calls = conversation.decode_single(reply)
    except Undecodable:
        calls = None
    step = StepRecord(reply.text, call_records(calls or ()), unread, reply.tokens, reply.truncated)
    verdict = judge_single(case, calls)
    turns = (TurnRecord((step,), verdict is None, request_text(case.messages)),)
    return CaseRecord(case.id, case.category, turns, verdict is None, verdict, seconds=time.monotonic() - started)


def call_records(calls: Sequence[Mapping[str, Any]]) -> tuple[CallRecord, ...]:
    """Records of decoded calls `[{name: arguments}]`, without results."""
    return tuple(CallRecord(clean(str(name)), clean(arguments)) for call in calls for name, arguments in call.items())


def judge_single(case: SingleTurnCase, calls: Sequence[Mapping[str, Any]] | None) -> str | None:
    """The official verdict on calls `[{name: arguments}]`: None if right, else the `error_type`.

    `calls` is None if the reply could not be decoded.

    Example:
        For an "irrelevance" case None and [] are right, and any call is "irrelevance_error:decoder_success".
    """
    if case.answer is None:
        has_called = calls is not None and _is_well_formed(calls) and len(calls) > 0
        if "irrelevance" in case.category:
            return "irrelevance_error:decoder_success" if has_called else None
        return None if has_called else "relevance_error:decoder_failed"
    if calls is None:
        return "ast_decoder:decoder_failed"
    if not _is_well_formed(calls):
        return "ast_decoder:decoder_wrong_output_format"
    from bfcl_eval.constants.enums import Language

    functions, answer = [dict(doc) for doc in case.functions], list(case.answer)
    calls = copy.deepcopy(list(calls))
    verdict = _checker().ast_checker(functions, calls, answer, Language.PYTHON, case.category, "fission")
    return None if verdict["valid"] else str(verdict["error_type"])


def _is_well_formed(calls: Sequence[Mapping[str, Any]]) -> bool:
    return all(len(call) == 1 and isinstance(next(iter(call.values())), dict) for call in calls)


@cache
def _checker() -> ModuleType:
    """The official `ast_checker` module.

    It imports the table of all models, and with it the client libraries of a dozen vendors, only to look up whether a
    model writes "_" for "." in function names. During the import a substitute table says no for every model.
    """
    substitute: Any = ModuleType(_CONFIG)
    substitute.MODEL_CONFIG_MAPPING = defaultdict(lambda: SimpleNamespace(underscore_to_dot=False))
    with _import_lock:
        before = {name: sys.modules.pop(name, None) for name in (_CONFIG, _CHECKER)}
        sys.modules[_CONFIG] = substitute
        try:
            return importlib.import_module(_CHECKER)
        finally:
            for name, module in before.items():
                sys.modules.pop(name, None)
                if module is not None:
                    sys.modules[name] = module
