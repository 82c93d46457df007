"""The official judge of BFCL's single-turn categories, on calls that were read in a reply."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from threading import Lock
from types import ModuleType, SimpleNamespace
from typing import Any

from fission_grpo.envs.bfcl.official import SingleTurnCase

_CONFIG = "bfcl_eval.constants.model_config"


_CHECKER = "bfcl_eval.eval_checker.ast_eval.ast_checker"


_importing = Lock()


def judge_single(case: SingleTurnCase, calls: Sequence[Mapping[str, Any]] | None) -> str | None:
    """The official verdict: None if right, else the `error_type`.

    Args:
        case: with its possible answers.
        calls: `[{name: arguments}]` as decoded from the reply; None where it could not be decoded.

    Example:
        For an "irrelevance" case None and [] are right, and any call is "irrelevance_error:decoder_success".
    """
    if case.answer is None:
        called = calls is not None and _well_formed(calls) and len(calls) > 0
        if "irrelevance" in case.category:
            return "irrelevance_error:decoder_success" if called else None
        return None if called else "relevance_error:decoder_failed"
    if calls is None:
        return "ast_decoder:decoder_failed"
    if not _well_formed(calls):
        return "ast_decoder:decoder_wrong_output_format"
    from bfcl_eval.constants.enums import Language

    verdict = _checker().ast_checker(
        [dict(doc) for doc in case.functions],
        copy.deepcopy(list(calls)),
        list(case.answer),
        Language.PYTHON,
        case.category,
        "fission",
    )
    return None if verdict["valid"] else str(verdict["error_type"])


def _well_formed(calls: Sequence[Mapping[str, Any]]) -> bool:
    return all(len(call) == 1 and isinstance(next(iter(call.values())), dict) for call in calls)


@cache
def _checker() -> ModuleType:
    """The official `ast_checker` module.

    It imports the table of all models, and with it the client libraries of a dozen vendors, only to ask whether a
    model writes "_" for "." in function names. While it is imported, a table stands in that says no for every model.
    """
    from collections import defaultdict

    stand_in: Any = ModuleType(_CONFIG)
    stand_in.MODEL_CONFIG_MAPPING = defaultdict(lambda: SimpleNamespace(underscore_to_dot=False))
    with _importing:
        before = {name: sys.modules.pop(name, None) for name in (_CONFIG, _CHECKER)}
        sys.modules[_CONFIG] = stand_in
        try:
            return importlib.import_module(_CHECKER)
        finally:
            for name, module in before.items():
                sys.modules.pop(name, None)
                if module is not None:
                    sys.modules[name] = module
