"""Training on single turns against references: rewards, advantages, failures, instances and events, worked by hand.

Every rollout of four cycles is scripted: explore, recover, explore, recover, at progress 0, 1/4, 1/2 and 3/4. By the
paper's formula, three rewards are w_fmt R_fmt + w_corr R_corr + R_len, where

    progress   0     1/4     1/2    3/4
    w_fmt      2     1.75    1.5    1.25
    w_corr     1     1.125   1.25   1.375

so that a right call of a good length (1, 2, 1) earns 5/3 at any time.
"""

import math
from dataclasses import dataclass

import pytest
from step_support import (
    FIND,
    LIST,
    LOOK,
    MOVE,
    PUT_AWAY,
    TO_DESK,
    TO_TRASH,
    TOOLS,
    Script,
    Written,
    call,
    check_group,
    step_trainer,
)
from trainer_support import events, history

from fission_grpo.core.chat import render
from fission_grpo.core.types import ToolCall
from fission_grpo.fission.event_log import LOG, read_events

SECRET = MOVE.arguments["folder"]  # no question says it
BROKEN = '<tool_call>\n{"name": "move", "arguments": }\n</tool_call>'
TEXT = Written("You are welcome.", length=16)


@dataclass(frozen=True)
class Case:
    """A task whose first rollout fails in every explore cycle, and what must come of that."""

    reference: tuple[ToolCall, ...]
    right: str | Written
    failing: str | Written
    explored: tuple[float, float]  # three times the failing rollout's reward, at progress 0 and 1/2
    other: str | Written  # another wrong answer
    recovered: tuple[float, float]  # three times its reward in the recovery group, at progress 1/4 and 3/4
    kind: str
    feedback: str
    said_by: str  # the role of the message after the failing turn
    content: str = ""  # of that message; by default the feedback

    def script(self):
        right, failing, other = (
            Written(one) if isinstance(one, str) else one for one in (self.right, self.failing, self.other)
        )
        return Script(self.reference, ((failing, right, right), (right, failing, other, right)))


NO_TOOL_NEEDED = "error: no tool call is needed here"
CASES = {
    # No call where one is expected: R_fmt 0, so nothing is earned. The other: a wrong tool, (1, 0, 1).
    "text": Case((MOVE,), PUT_AWAY, "It is done.", (0, 0), LOOK, (2.75, 2.25), "no_call",
                 "error: a tool call is needed here, but none was made", "user"),
    # One of two arguments is wrong: F1 = 2*1 / (2+2) = 1/2, score 1/2 + 1/2 * 1/2 = 3/4, R_corr = 3/2. Three rewards:
    # 2 + 3/2 + 1, then 1.5 + 1.25 * 1.5 + 1. The other: the same sort, 1.75 + 1.125 * 1.5 + 1, 1.25 + 1.375 * 1.5 + 1.
    "argument": Case((MOVE,), PUT_AWAY, TO_TRASH, (4.5, 4.375), TO_DESK, (4.4375, 4.3125), "wrong_call",
                     "error: `folder` is not right, got 'trash'", "tool"),
    # Another tool: (1, 0, 1).
    "tool": Case((MOVE,), PUT_AWAY, LOOK, (3, 2.5), TO_DESK, (4.4375, 4.3125), "wrong_call",
                 "error: another tool than 'find' is needed", "tool"),
    # Two calls for one: R_corr = 2 * 1 / 2 = 1. The other: another call too many, again R_corr 1.
    "twice": Case((MOVE,), PUT_AWAY, f"{PUT_AWAY}\n{LOOK}", (4, 3.75), f"{PUT_AWAY}\n{LIST}", (3.875, 3.625),
                  "wrong_call", "error: a call 'find' is not needed", "tool"),
    # A call that cannot be read: R_fmt 0. Its result is what an environment would answer, so it is not repeated.
    "unreadable": Case((MOVE,), PUT_AWAY, BROKEN, (0, 0), LOOK, (2.75, 2.25), "unparsed",
                       "error: tool call is not valid JSON: expecting value at character 31", "tool",
                       "{'error': 'tool call is not valid JSON: expecting value at character 31'}"),
    # The right call and a text without an end: R_fmt 0. With an end it is right, so the calls were not wrong.
    "truncated": Case((MOVE,), PUT_AWAY, Written(f"{PUT_AWAY}\nDone.", ends=False), (0, 0), TO_DESK,
                      (4.4375, 4.3125), "truncated",
                      "error: the answer was cut off at its length limit; keep it shorter", "user"),
    # A call where none is expected: R_fmt 0, for any call.
    "uncalled": Case((), TEXT, LIST, (0, 0), LOOK, (0, 0), "wrong_call", NO_TOOL_NEEDED, "tool"),
    # Nothing at all where a text is expected: R_fmt 0.
    "empty": Case((), TEXT, Written("", length=1), (0, 0), LIST, (0, 0), "wrong_call", "error: the answer is empty",
                  "user"),
    # One of two calls: R_corr = 2 * 1 / 2 = 1. The other: the second call alone, also 1, and not of the failed turn.
    "partial": Case((MOVE, FIND), f"{PUT_AWAY}\n{LOOK}", PUT_AWAY, (4, 3.75), LOOK, (3.875, 3.625), "wrong_call",
                    "error: at least one more tool call is needed", "tool"),
    # Two calls, one with a wrong argument: R_corr = 2 * (3/4 + 1) / 2 = 7/4; 2 + 7/4 + 1, 1.5 + 1.25 * 1.75 + 1. The
    # other: the call of the two that was right alone, which keeps its R_corr of 1.
    "several": Case((MOVE, FIND), f"{LOOK}\n{PUT_AWAY}", f"{TO_TRASH}\n{LOOK}", (4.75, 4.6875), LOOK, (3.875, 3.625),
                    "wrong_call", "error: `folder` is not right, got 'trash' in the call of 'move'", "tool"),
    # A tool that is not there: (1, 0, 1).
    "unknown": Case((MOVE,), PUT_AWAY, call("store", name="plan.txt"), (3, 2.5), LOOK, (2.75, 2.25), "unknown_tool",
                    "error: unknown tool 'store'; available: move, find, list_files", "tool"),
    # An argument is missing: F1 = 2*1 / (1+2) = 2/3, score 1/2 + 1/2 * 2/3 = 5/6, R_corr = 5/3; 2 + 5/3 + 1 = 14/3,
    # 1.5 + 1.25 * 5/3 + 1 = 55/12.
    "schema": Case((MOVE,), PUT_AWAY, call("move", name="plan.txt"), (14 / 3, 55 / 12), TO_DESK, (4.4375, 4.3125),
                   "bad_arguments", "error: missing required argument `folder`", "tool"),
}  # fmt: skip
LONG = math.exp(-1 / 8)  # R_len half a standard deviation from 32 to 224: at 32 - 16/2 = 24, at 224 + 128/2 = 288
SUCCESSES = {  # scripts without a failure, and three times the rewards of their groups
    "spoken": (Script((), ((TEXT, Written("Goodbye.", length=60), Written("Done.", 3)),)), (5, 5, 5)),
    "order": (Script((MOVE, FIND), ((Written(f"{LOOK}\n{PUT_AWAY}"),) * 3,)), (5, 5, 5)),
    "thought": (Script((MOVE,), ((Written(f"<think>{LIST}</think>{PUT_AWAY}", 60),) * 3,)), (5, 5, 5)),
    "lengths": (Script((MOVE,), (tuple(Written(PUT_AWAY, n) for n in (40, 24, 288)),)), (5, 4 + LONG, 4 + LONG)),
}
SCRIPTS = {name: case.script() for name, case in CASES.items()} | {name: one for name, (one, _) in SUCCESSES.items()}
CYCLES = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 6}  # 48 rollouts: 16 groups of 3, 12 of 4
GROUPS = {"num_generations": 3, "num_recovery_generations": 4}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    trainer = step_trainer(tmp_path_factory.mktemp("run"), SCRIPTS, **CYCLES, **GROUPS)
    trainer.train()
    return trainer


# -- explore cycles ------------------------------------------------------------------------------------------------


def test_cycles_of_the_data_and_of_recoveries_follow_each_other(run):
    assert history(run, "fission/phase") == [0.0, 1.0, 0.0, 1.0]
    assert history(run, "fission/pushed") == [12.0, 0.0, 12.0, 0.0]
    assert history(run, "fission/buffer") == [12.0, 0.0, 12.0, 0.0]


@pytest.mark.parametrize("cycle", [0, 2])
@pytest.mark.parametrize("name", CASES)
def test_a_failing_answer_earns_its_parts_by_the_weights_of_the_time_and_has_failed(run, name, cycle):
    at_time = CASES[name].explored[cycle // 2]
    check_group(run.group(cycle, name), [at_time, 5, 5], [True, False, False])


@pytest.mark.parametrize("cycle", [0, 2])
@pytest.mark.parametrize("name", SUCCESSES)
def test_a_right_answer_has_not_failed_and_only_its_length_counts(run, name, cycle):
    _, thirds = SUCCESSES[name]
    check_group(run.group(cycle, name), thirds, [False] * 3)
    assert run.group(cycle + 1, name) == []  # nothing to recover from


def test_advantages_are_those_of_a_hand_calculation(run):
    # 3/2, 5/3, 5/3: mean 29/18, deviations -1/9, 1/18, 1/18, standard deviation sqrt((4 + 1 + 1) / 324 / 2) =
    # sqrt(1/108) = 0.0962250; TRL adds 1e-4: -0.1111111 / 0.0963250 and 0.0555556 / 0.0963250.
    explored = [one.advantage for one in run.group(0, "argument")]
    assert explored == pytest.approx([-1.153502, 0.576751, 0.576751], abs=2e-5)
    # 5/3, 0, 4.4375/3, 5/3 at progress 1/4: mean 14.4375/12 = 1.203125; deviations 0.463542, -1.203125, 0.276042,
    # 0.463542; standard deviation sqrt(1.953451 / 3) = 0.806939.
    recovered = [one.advantage for one in run.group(1, "argument")]
    assert recovered == pytest.approx([0.574374, -1.490790, 0.342043, 0.574374], abs=2e-5)


def test_the_updates_of_a_cycle_use_the_advantages_of_its_rollouts(run):
    for entries, used in zip(run.entries, run.used, strict=True):
        assert sorted(used) == sorted(entry.advantage for entry in entries)


def test_metrics_of_an_explore_cycle_count_what_was_right_and_what_failed(run):
    kinds = {"no_call": 1, "wrong_call": 7, "unparsed": 1, "truncated": 1, "unknown_tool": 1, "bad_arguments": 1}
    for kind, count in kinds.items():
        assert history(run, f"fission/kind/{kind}") == [count, count], kind
    assert {key for key in run.state.log_history[0] if key.startswith("fission/kind/")} == {
        f"fission/kind/{kind}" for kind in kinds
    }
    assert history(run, "fission/success") == [36 / 48] * 2
    assert history(run, "fission/frac_zero_std") == [3 / 16] * 2  # all successes but "lengths"
    assert history(run, "fission/error_cases") == [0.0] * 2  # nothing is executed


def test_metrics_of_the_rewards_parts_are_means_over_the_rollouts_of_a_cycle(run):
    # Explored, of 48: R_fmt 0 in text, unreadable, truncated, uncalled, empty. R_corr 2 in 36, else 3/2 (argument),
    # 1 (twice), 1 (partial), 7/4 (several), 5/3 (schema). R_len 0 where R_fmt is, `LONG` in 2.
    # Recovered, of 48: 24 right ones, 12 of the same again with (0, 0, 0), and the others: R_fmt 0 in uncalled and
    # empty, R_corr 3/2 in argument, tool, truncated and schema, 1 in twice, partial and several, else 0.
    explored = (43 / 48, (72 + 3 / 2 + 1 + 1 + 7 / 4 + 5 / 3) / 48, (41 + 2 * LONG) / 48)
    recovered = (34 / 48, (48 + 4 * 3 / 2 + 3) / 48, 34 / 48)
    logged = zip(*(history(run, f"reward_parts/{part}") for part in ("format", "correctness", "length")), strict=True)
    for values, expected in zip(logged, [explored, recovered] * 2, strict=True):
        assert values == pytest.approx(expected, abs=1e-6)


# -- corrective instances ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_a_failure_becomes_an_instance_that_continues_the_dialogue_with_feedback(run, name):
    case, failed = CASES[name], run.group(0, name)[0]
    instance = run.instance(1, name)
    assert (instance.kind, instance.source, instance.feedback) == (case.kind, "rules", case.feedback)
    assert (instance.step, instance.task.depth, instance.task.parent) == (0, 1, failed.rollout.trajectory.task.id)
    assert instance.reward == pytest.approx(case.explored[0] / 3, abs=1e-6)
    question, answer, said = instance.task.prompt
    assert (question["role"], question["content"]) == ("user", f"[{name}] Put plan.txt away.")
    assert answer == {"role": "assistant", "content": failed.rollout.trajectory.turns[0].text}
    calls = failed.rollout.trajectory.turns[0].calls
    named = {"name": calls[0].name if calls else "move"} if case.said_by == "tool" else {}
    assert said == {"role": case.said_by, **named, "content": case.content or case.feedback}
    assert instance.task.failed == ((calls,) if calls else ())
    assert (instance.task.reference, instance.task.tools) == (case.reference, TOOLS)
    assert not instance.zero_std


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("truncated", "twice", "partial")])
def test_the_reference_is_neither_in_the_feedback_nor_in_the_prompt_of_the_recovery(run, name):
    assert SECRET not in CASES[name].feedback
    assert {SECRET in entry.prompt for entry in run.group(1, name)} == {False}  # in those three the policy wrote it


@pytest.mark.parametrize("cycle", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_recoveries_are_sampled_from_the_instances_prompt_rendered_with_the_tools(run, name, cycle):
    case, instance = CASES[name], run.instance(cycle, name)
    prompts = {entry.prompt for entry in run.group(cycle, name)}
    assert prompts == {render(instance.task.prompt, TOOLS, run.processing_class)}
    (prompt,) = prompts
    said = case.content or case.feedback
    shown = f"<tool_response>\n{said}\n</tool_response>" if case.said_by == "tool" else said
    assert prompt.endswith(f"<|im_start|>user\n{shown}<|im_end|>\n<|im_start|>assistant\n")


# -- recover cycles ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cycle", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_of_recoveries_the_right_one_earns_most_and_the_same_answer_again_least(run, name, cycle):
    other = CASES[name].recovered[cycle // 2]
    check_group(run.group(cycle, name), [5, 0, other, 5], [False, True, True, False])


def test_metrics_of_a_recover_cycle_count_its_successes(run):
    assert history(run, "recovery/rate") == [0.5, 0.5]  # two of four in each group
    # Three times the mean reward: 24 right ones with 5, and the others, at 1/4 and at 3/4: three wrong tools, four
    # other folders, three with R_corr 1, two without anything.
    sums = 24 * 5 + 3 * 2.75 + 4 * 4.4375 + 3 * 3.875, 24 * 5 + 3 * 2.25 + 4 * 4.3125 + 3 * 3.625
    assert history(run, "recovery/reward") == pytest.approx([total / 3 / 48 for total in sums], abs=1e-6)
    assert history(run, "recovery/frac_zero_std") == [0.0, 0.0]
    assert history(run, "recovery/depth") == history(run, "fission/age") == [1.0, 1.0]
    assert history(run, "fission/rescued_groups") == [0.0, 0.0]  # every failed group had a right answer


# -- fission.jsonl -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_the_log_has_each_failure_its_instance_and_the_recoveries(run, name):
    case = CASES[name]
    lines = [line.record for line in read_events(run.event_log.path)]
    ids = [run.instance(cycle, name).task.id for cycle in (1, 3)]
    assert ids[0] == ids[1]  # the same failure of the same task
    own = [line for line in lines if line.get("id") == ids[0]]
    assert [(line["event"], line["step"]) for line in own] == [
        ("pushed", 0), ("failed", 0), ("recovered", 1), ("pushed", 2), ("failed", 2), ("recovered", 3)
    ]  # fmt: skip
    pushed, failed, recovered, *_ = own
    text = run.group(0, name)[0].rollout.trajectory.turns[0].text
    assert (pushed["kind"], pushed["feedback"], pushed["source"]) == (case.kind, case.feedback, "rules")
    assert (pushed["failed"], pushed["leaked"], pushed["fallback"]) == (text, False, None)
    assert pushed["prompt"] == [dict(message) for message in run.instance(1, name).task.prompt]
    assert (failed["kind"], failed["failed"], failed["truncated"]) == (case.kind, text, name == "truncated")
    assert failed["messages"] == pushed["prompt"][:1]
    assert failed["reference"] == [{"name": one.name, "arguments": one.arguments} for one in case.reference]
    thirds = [5, 0, case.recovered[0], 5]
    assert recovered["rewards"] == pytest.approx([value / 3 for value in thirds], abs=1e-6)
    assert recovered["completions"] == [entry.rollout.text for entry in run.group(1, name)]


def test_the_log_has_the_tools_once_and_nothing_of_rollouts_that_succeeded(run):
    folder = run.event_log.path.parent
    (tools,) = events(folder, "tools")
    assert tools["tools"] == list(TOOLS)
    assert {run.name_of(one["prompt"][0]["content"]) for one in events(folder, "pushed")} == set(CASES)
    assert len((folder / LOG).read_text().splitlines()) == 1 + 2 * 12 * 3
