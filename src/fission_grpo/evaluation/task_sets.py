"""The task sets that `fission-grpo eval --tasks` accepts: the Desk, AgentDojo, task files, and BFCL's own cases."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fission_grpo.core.errors import UsageError
from fission_grpo.core.json_io import quoted
from fission_grpo.core.result_errors import error_rule
from fission_grpo.envs.agentdojo.suites import VERSION, environment_name, suites_of
from fission_grpo.envs.bfcl.official import MULTI_TURN, SINGLE_TURN, MultiTurnCase, multi_turn_cases, single_turn_cases
from fission_grpo.envs.desk.tasks import make_rows, requests_of
from fission_grpo.envs.episode_reward import EpisodeReward, name_of
from fission_grpo.envs.faults import Fault, inject_faults
from fission_grpo.envs.worker import isolated
from fission_grpo.envs.wrapper import ToolLimits
from fission_grpo.evaluation.episodes import EpisodeConfig, Factory, run_episode, run_step
from fission_grpo.evaluation.runner import StartCase

DESK_TASKS = 256  # held-out Desk tasks where no number is given [ours]
GROUPS = {"multi_turn": MULTI_TURN, "ast": SINGLE_TURN[:4], "single_turn": SINGLE_TURN}  # of BFCL's categories


@dataclass(frozen=True)
class TaskSet:
    """Cases to evaluate on."""

    cases: Mapping[str, StartCase]  # functions that start each case, by case id
    kind: str  # "desk", "desk:2", "agentdojo", ..., "rows", "cases", "steps", or BFCL's categories joined by commas
    sha256: str  # of the contents of all cases
    official: Sequence[Any] = ()  # BFCL's own cases, for its result files
    settings: Mapping[str, Any] = field(default_factory=dict)  # more that comparable evaluations share, for manifests


@dataclass(frozen=True)
class TaskSpec:
    """Which tasks to evaluate on, and how they are run."""

    # or "desk:2"; "agentdojo", "agentdojo:banking"; a case or step-task file; BFCL's categories, `GROUPS`, with commas
    tasks: str = "desk"
    count: int = 0  # cases taken (of each BFCL category or AgentDojo suite); 0: all (256 of the desk)
    skip: int = 0  # cases left out before them (of each category or suite)
    seed: int = 0  # of the desk's tasks, and of faults
    max_turns: int = 4  # assistant turns per episode (BFCL's own cases have their official limit)
    format: str = "chat"  # how BFCL's own cases are rendered: see `bfcl.formats`
    mode: str = "strict"  # as officially, or "feedback": see `bfcl.run_case`
    ids: tuple[str, ...] = ()  # only these cases of BFCL's categories; empty: all
    bare_json_calls: bool = False  # calls without tags are read, too: see `bare_json`
    tool_timeout: float = ToolLimits.timeout  # seconds of one call; a case that exceeds it has failed; 0: no limit
    isolate_environments: bool = False  # each in a process of its own, see `envs.worker` (not BFCL's own cases)
    faults: tuple[Fault, ...] = ()  # injected into environments (not into BFCL's own cases)
    error_if: str | Callable[[str], bool] | None = None  # which results are errors, too (not in BFCL's own cases)
    environment: str = ""  # an own environment, module:Class, in place of `tasks`
    rows: str = ""  # the file of its rows
    rewards: tuple[str, ...] = ()  # its reward functions, module:function; none if it has `get_reward`
    reward_weights: tuple[float, ...] | None = None  # of these functions
    success_at: float = 1.0  # lowest reward of a successful episode in it
    attack: str = ""  # AgentDojo's injection cases with this official attack, in place of its tasks

    @property
    def prompt(self) -> dict[str, Any]:
        """The fields that decide how cases are rendered for a policy, for manifests."""
        if self.official:
            bare = {"bare_json_calls": True} if self.bare_json_calls else {}
            return {"format": self.format, "mode": self.mode, **bare}
        rule = error_rule(self.error_if)
        options = {"faults": [asdict(fault) for fault in self.faults], "error_if": rule and rule.name}
        options["bare_json_calls"] = self.bare_json_calls
        given = {name: value for name, value in options.items() if value}
        return {"format": "chat", "max_turns": self.max_turns, **given}

    @property
    def official(self) -> tuple[str, ...]:
        """BFCL's categories among the tasks; empty if the tasks are something else."""
        names = [name for part in self.tasks.split(",") for name in GROUPS.get(part, (part,))]
        if self.environment:
            return ()
        return tuple(dict.fromkeys(names)) if set(names) <= {*MULTI_TURN, *SINGLE_TURN} else ()


def task_set(spec: TaskSpec) -> TaskSet:
    """Load the cases of a specification. Raises ValueError if there are none, TaskFileError for a broken file."""
    if spec.environment:
        from fission_grpo.data.rows import load_own_task

        own = load_own_task(spec.environment, spec.rows, spec.rewards)
        tasks = rows_task_set(own.environment, own.rows, EpisodeReward(own.rewards, spec.reward_weights), spec)
    elif spec.official:
        tasks = _bfcl(spec)
    elif requests := requests_of(spec.tasks):
        tasks = _desk(spec, requests)
    elif suites := suites_of(spec.tasks):
        tasks = _agentdojo(spec, suites)
    elif not Path(spec.tasks).is_file():
        raise ValueError(
            f"--tasks {spec.tasks!r} is no file; give desk, desk:2, agentdojo, a case or step-task file (.jsonl), "
            f"or categories of BFCL: {', '.join((*GROUPS, *MULTI_TURN, *SINGLE_TURN))}"
        )
    else:
        tasks = _file(spec)
    if not tasks.cases:
        raise ValueError(f"no case of {spec.rows or spec.tasks} is left; lower skip_tasks")
    return tasks


def rows_task_set(
    environment: Factory | Mapping[str, Factory],
    rows: Sequence[Mapping[str, Any]],
    reward: EpisodeReward,
    spec: TaskSpec,
) -> TaskSet:
    """Cases of an own environment, one for each row. Raises UsageError if nothing judges an episode."""
    environments = environment if isinstance(environment, Mapping) else {"": environment}
    for make in environments.values():
        reward.check(make if isinstance(make, type) else make())
    chosen = rows[spec.skip :][: spec.count or None]
    settings: dict[str, Any] = {"environment": ", ".join(map(name_of, environments.values()))}
    settings |= {"reward": reward.names, "success_at": spec.success_at}
    settings["code"] = _digest_of_source([*environments.values(), *reward.functions])
    if reward.weights is not None:
        settings["reward_weights"] = list(reward.weights)
    return TaskSet(_episodes(chosen, environment, spec, reward), "rows", sha256_of(chosen), (), settings)


def _digest_of_source(objects: Sequence[Any]) -> str | None:
    """A digest of the modules, or of what can be read of them, in which classes and functions are written."""
    sources = set()
    for one in objects:
        module: Any = inspect.getmodule(one)
        for place in (module if getattr(module, "__file__", None) else one, one):
            with suppress(OSError, TypeError):  # made by `exec`, in C, or a partial
                sources.add(inspect.getsource(place))
                break
    return hashlib.sha256("\n".join(sorted(sources)).encode()).hexdigest()[:16] if sources else None


def _desk(spec: TaskSpec, requests: int) -> TaskSet:
    from fission_grpo.envs.desk.env import Desk

    rows = make_rows(spec.skip + (spec.count or DESK_TASKS), spec.seed, "held_out", requests)[spec.skip :]
    return TaskSet(_episodes(rows, Desk, spec), "desk" if requests == 1 else f"desk:{requests}", sha256_of(rows))


def _agentdojo(spec: TaskSpec, suites: Sequence[str]) -> TaskSet:
    from fission_grpo.envs.agentdojo.env import ENVIRONMENTS, injection, utility
    from fission_grpo.envs.agentdojo.tasks import injection_rows, task_rows

    chosen = slice(spec.skip, spec.skip + spec.count if spec.count else None)
    cases = [injection_rows(suite, spec.attack) if spec.attack else task_rows(suite) for suite in suites]
    rows = [row for of_suite in cases for row in of_suite[chosen]]
    environments = {environment_name(suite): ENVIRONMENTS[suite] for suite in suites}
    attack = EpisodeReward((injection,)) if spec.attack else None
    limits = ToolLimits(spec.tool_timeout, 0)  # as officially, no result is cut
    settings = {"benchmark_version": VERSION, **({"attack": spec.attack} if spec.attack else {})}
    starts = _episodes(rows, environments, spec, EpisodeReward((utility,)), limits, attack)
    return TaskSet(starts, spec.tasks, sha256_of(rows), (), settings)


def _file(spec: TaskSpec) -> TaskSet:
    from fission_grpo.data.load import case_rows, is_case_file, load_tasks

    if is_case_file(spec.tasks):
        rows, environments = case_rows(spec.tasks, spec.skip, spec.count)
        return TaskSet(_episodes(rows, environments, spec), "cases", sha256_of(rows))
    tasks = load_tasks(spec.tasks)[spec.skip :][: spec.count or None]
    steps = {task.id: partial(run_step, task, bare_json_calls=spec.bare_json_calls) for task in tasks}
    return TaskSet(steps, "steps", sha256_of(tasks))


def _episodes(
    rows: Sequence[Mapping[str, Any]],
    environments: Factory | Mapping[str, Factory],
    spec: TaskSpec,
    reward: EpisodeReward | None = None,
    limits: ToolLimits | None = None,
    attack: EpisodeReward | None = None,
) -> dict[str, StartCase]:
    """The cases by id: the rows' ids, or their numbers. Raises UsageError for an id that occurs twice."""

    def wrapped(make: Factory) -> Factory:
        if spec.isolate_environments:
            make = isolated(make, spec.tool_timeout)
        return inject_faults(make, spec.faults, spec.seed) if spec.faults else make

    if isinstance(environments, Mapping):
        environments = {name: wrapped(make) for name, make in environments.items()}
    else:
        environments = wrapped(environments)
    limits = limits or ToolLimits(spec.tool_timeout)
    judge = reward or EpisodeReward()
    error_if = error_rule(spec.error_if)
    config = EpisodeConfig(spec.max_turns, spec.success_at, judge, limits, error_if, spec.bare_json_calls, attack)
    cases: dict[str, StartCase] = {}
    for number, row in enumerate(rows):
        case_id = str(row.get("id", number))
        if case_id in cases:
            raise UsageError(f"row {number + 1}: the id {quoted(case_id)} is another row's already; make it unique")
        cases[case_id] = partial(run_episode, environments, row, number, config)
    return cases


def _bfcl(spec: TaskSpec) -> TaskSet:
    from fission_grpo.evaluation.bfcl.formats import BARE_JSON
    from fission_grpo.evaluation.bfcl.run_case import run_case
    from fission_grpo.evaluation.bfcl.single_turn import run_single_turn

    if spec.faults:
        raise ValueError("faults are injected into environments of ours, not into BFCL's own cases; leave out --fault")
    if spec.isolate_environments:
        raise ValueError("BFCL's own cases have no environments of ours; leave out --isolate_environments")
    if spec.error_if is not None:
        raise ValueError("BFCL's own cases tell errors as the official command does; leave out --error_pattern")
    if spec.bare_json_calls and spec.format != "chat":
        raise ValueError(f"--format {spec.format} reads calls as the official command does; no --bare_json_calls")
    form = BARE_JSON if spec.bare_json_calls else spec.format
    starts: dict[str, StartCase] = {}
    cases: list[Any] = []
    wanted = set(spec.ids)
    chosen = slice(spec.skip, spec.skip + spec.count if spec.count else None)
    for category in spec.official:
        load = multi_turn_cases if category in MULTI_TURN else single_turn_cases
        selected = [case for case in load(category) if not spec.ids or case.id in wanted][chosen]
        for case in selected:
            if isinstance(case, MultiTurnCase):
                starts[case.id] = partial(run_case, case, form, spec.mode, spec.tool_timeout)
            else:
                starts[case.id] = partial(run_single_turn, case, form)
        cases += selected
        wanted -= {case.id for case in load(category)}
    if wanted:
        raise ValueError(f"--task_ids: no case of {spec.tasks} has the id {quoted(min(wanted))}; correct or delete it")
    return TaskSet(starts, ",".join(spec.official), sha256_of(cases), cases)


def sha256_of(cases: Iterable[Any]) -> str:
    """Digest of the contents of cases: equal for equal cases in the same order."""
    digest = hashlib.sha256()
    for case in cases:
        values = asdict(case) if is_dataclass(case) and not isinstance(case, type) else case
        digest.update(json.dumps(values, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()
