"""What the training logs tell, by quarters of each run's generated tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.intervals import Estimate, estimate
from analysis.raw import Suite, TrainingRun
from analysis.results import ordered

QUARTERS = 4
EXPLORE, RECOVER = 0, 1
KIND = "fission/kind/"

Row = tuple[str, str, int]
LOGGED: tuple[Row, ...] = (
    ("fission/success", "success of explore rollouts", EXPLORE),
    ("fission/error_recovery_rate", "error recovery rate of explore rollouts", EXPLORE),
    ("fission/frac_zero_std", "explore groups without variance", EXPLORE),
    ("recovery/frac_zero_std", "recovery groups without variance", RECOVER),
    ("recovery/rate", "success of recovery rollouts", RECOVER),
    ("fission/age", "age of contexts when used, steps", RECOVER),
)
"""Numbers whose means over the cycles of a quarter are taken: key of the log, words, phase of the cycles."""


@dataclass(frozen=True)
class Training:
    """An arm's training, over its finished runs.

    Args:
        quarters: by key of the log, the mean over cycles in each quarter of the run's tokens, over seeds.
        whole: the same over all cycles.
        kinds: by error kind, failed rollouts per explore cycle in each quarter, mean over seeds; None in a quarter
            without explore cycles.
        totals: per run: `explore_cycles`, `recover_cycles`, `rescued_groups`, `pushed`; shares of sums over a run:
            `rescued_of_recovery_groups`, `rescued_of_flat_groups` (explore groups without variance), `leaks`
            (pushed instances of which a text had leaked) and `fallbacks`, both per pushed instance.
        seconds: of training.
    """

    quarters: Mapping[str, Sequence[Estimate]]
    whole: Mapping[str, Estimate]
    kinds: Mapping[str, Sequence[float | None]]
    totals: Mapping[str, Estimate]
    seconds: Estimate

    @property
    def recovers(self) -> bool:
        """Whether it had any recover cycle."""
        return bool(self.totals["recover_cycles"].mean)


def trainings(suite: Suite) -> dict[str, Training]:
    """Every arm with a finished run that logged cycles, in the order of tables."""
    by_arm: dict[str, list[TrainingRun]] = {}
    for run in suite.runs:
        if run.cycles:
            by_arm.setdefault(run.arm, []).append(run)
    return {arm: _training(sorted(by_arm[arm], key=lambda run: run.seed)) for arm in ordered(by_arm)}


def _training(runs: Sequence[TrainingRun]) -> Training:
    quartered = {run.seed: quarters(run.cycles) for run in runs}
    kinds = sorted({key for run in runs for cycle in run.cycles for key in cycle if key.startswith(KIND)})

    def over(pick: Callable[[TrainingRun], float | None]) -> Estimate:
        return estimate({run.seed: pick(run) for run in runs})

    return Training(
        quarters={
            key: [
                estimate({s: mean_of(parts[q], key, phase) for s, parts in quartered.items()}) for q in range(QUARTERS)
            ]
            for key, _, phase in LOGGED
        },
        whole={
            key: over(lambda run, key=key, phase=phase: mean_of(run.cycles, key, phase)) for key, _, phase in LOGGED
        },
        kinds={
            kind.removeprefix(KIND): [
                estimate({s: _per_cycle(parts[q], kind) for s, parts in quartered.items()}).mean
                for q in range(QUARTERS)
            ]
            for kind in kinds
        },
        totals={
            "explore_cycles": over(lambda run: len(_cycles(run.cycles, EXPLORE))),
            "recover_cycles": over(lambda run: len(_cycles(run.cycles, RECOVER))),
            "pushed": over(lambda run: _sum(run, "fission/pushed")),
            "rescued_groups": over(lambda run: _sum(run, "fission/rescued_groups")),
            "rescued_of_recovery_groups": over(_rescued_of_recovery_groups),
            "rescued_of_flat_groups": over(_rescued_of_flat_groups),
            "leaks": over(lambda run: _share(_sum(run, "feedback/leaks"), _sum(run, "fission/pushed"))),
            "fallbacks": over(lambda run: _share(_sum(run, "feedback/fallbacks"), _sum(run, "fission/pushed"))),
        },
        seconds=over(lambda run: run.seconds),
    )


def quarters(cycles: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Cycles by the quarter of the run's tokens in which they began.

    Example:
        Cycles that end at 10, 20, 40 and 80 tokens began at 0, 10, 20 and 40: quarters 0, 0, 1 and 2 of 80.
    """
    parts: list[list[Mapping[str, Any]]] = [[] for _ in range(QUARTERS)]
    last, began = cycles[-1]["tokens"], 0
    for cycle in cycles:
        parts[min(QUARTERS - 1, int(QUARTERS * began / last)) if last else 0].append(cycle)
        began = cycle["tokens"]
    return parts


def mean_of(cycles: Sequence[Mapping[str, Any]], key: str, phase: int) -> float | None:
    """The mean of a logged number over the cycles of a phase that logged it; None if none did."""
    values = [cycle[key] for cycle in _cycles(cycles, phase) if key in cycle]
    return _mean(values) if values else None


def groups(options: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Explore and recovery groups of a cycle, from a run's options; None where they do not tell.

    Example:
        `groups({"per_device_train_batch_size": 32, "gradient_accumulation_steps": 2, "num_generations": 8,
        "num_recovery_generations": 4})` is (8, 16)
    """
    steps = options.get("steps_per_generation") or options.get("gradient_accumulation_steps") or 0
    size = options.get("generation_batch_size") or steps * (options.get("per_device_train_batch_size") or 0)
    explored = options.get("num_generations")
    recovered = options.get("num_recovery_generations") or explored
    return size // explored if size and explored else None, size // recovered if size and recovered else None


def _is_mixed(run: TrainingRun) -> bool:
    """Whether explored and recovery groups share batches, so that a cycle's number of either is not known."""
    return run.options.get("recovery_batches") == "mixed"


def _rescued_of_recovery_groups(run: TrainingRun) -> float | None:
    per_cycle = None if _is_mixed(run) else groups(run.options)[1]
    return _share(_sum(run, "fission/rescued_groups"), (per_cycle or 0) * len(_cycles(run.cycles, RECOVER)))


def _rescued_of_flat_groups(run: TrainingRun) -> float | None:
    flat = sum(cycle.get("fission/frac_zero_std", 0.0) for cycle in _cycles(run.cycles, EXPLORE))
    rescued = _sum(run, "fission/rescued_groups") if _cycles(run.cycles, RECOVER) and not _is_mixed(run) else None
    return None if rescued is None else _share(rescued, flat * (groups(run.options)[0] or 0))


def _cycles(cycles: Sequence[Mapping[str, Any]], phase: int) -> list[Mapping[str, Any]]:
    """The cycles that explore or recover; one that does both in one batch has phase 0, and is of both."""
    return [
        cycle
        for cycle in cycles
        if cycle["phase"] == phase or (phase == RECOVER and "recovery/frac_zero_std" in cycle)
    ]


def _per_cycle(cycles: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """A count per explore cycle; a kind that no rollout had is not logged and counts 0."""
    explored = _cycles(cycles, EXPLORE)
    return sum(cycle.get(key, 0.0) for cycle in explored) / len(explored) if explored else None


def _sum(run: TrainingRun, key: str) -> float:
    return float(sum(cycle.get(key, 0.0) for cycle in run.cycles))


def _share(above: float, below: float) -> float | None:
    return above / below if below else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
