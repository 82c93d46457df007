"""Names of options and metrics that were renamed. Raw results here have the old names, programs the new ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OPTIONS = {
    "diagnose": "feedback",
    "diagnose_seconds": "feedback_timeout",
    "num_recoveries": "num_recovery_generations",
    "recover_share": "recovery_ratio",
    "adaptive_share": "adaptive_recovery_ratio",
    "recover_trigger": "min_buffered",
    "branch": "failure_turn",
    "judge_recovery": "recovery_scope",
    "watch_tools": "guard_tools",
    "tool_seconds": "tool_timeout",
    "tool_characters": "max_tool_result_chars",
    "journal": "log_instances",
}
NEWER = (("skip_zero_signal", False), ("paper_formula", True))  # options that old results lack, as they were then
METRICS = {
    "fission/world/out_of_order": "env/broken",
    "fission/world/cut": "env/truncated_results",
    "fission/world/unserialisable": "env/not_json",
    "fission/passed_over": "fission/skipped_batches",
    "fission/zero_variance": "fission/frac_zero_std",
    "recovery/zero_variance": "recovery/frac_zero_std",
    "fission/diagnosis_seconds": "feedback/seconds",
    "fission/fallbacks": "feedback/fallbacks",
    "fission/leaks": "feedback/leaks",
    "fission/recover_rate": "fission/recoveries_per_explore",
    "fission/control_tokens": "fission/special_tokens",
    "simulator/asked": "feedback/model/requested",
}
PREFIXES = {  # of metrics that are not in the table above
    "fission/world/": "env/",
    "fission/fallback/": "feedback/fallback/",
    "simulator/": "feedback/model/",
}


def new_names(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of metrics, or of options, under the new names. New and other names stay as they are."""
    return {_new(name): value for name, value in record.items()}


def old_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options under their old names, without those that say what the code of then did anyway."""
    old = {new: name for name, new in OPTIONS.items()}
    kept = {name: value for name, value in options.items() if (name, value) not in NEWER}
    return {old.get(name, name): value for name, value in kept.items()}


def _new(name: str) -> str:
    if name in OPTIONS or name in METRICS:
        return OPTIONS.get(name) or METRICS[name]
    prefix = next((one for one in PREFIXES if name.startswith(one)), "")
    return PREFIXES.get(prefix, "") + name.removeprefix(prefix)
