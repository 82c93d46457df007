"""Recoveries of single turns under other options, and through checkpoints, worked by hand.

The weights (w_fmt, w_corr) are (2, 1), (1.75, 1.125), (1.5, 1.25) and (1.25, 1.375) at progress 0, 1/4, 1/2 and 3/4.
"""

import math

import pytest
from resume_support import as_it_was, differences
from step_support import (
    FIND,
    LIST,
    LOOK,
    MOVE,
    PUT_AWAY,
    TO_DESK,
    TO_TRASH,
    Script,
    Written,
    call,
    check_group,
    step_trainer,
)
from trainer_support import events, history

from fission_grpo.core.rewards import RewardConfig
from fission_grpo.core.types import ToolCall

TO_SHELF, TEXT = call("move", name="plan.txt", folder="shelf"), "It is done."
NO_FOLDER = call("move", name="plan.txt")
TRASH, DESK = (ToolCall("move", {"name": "plan.txt", "folder": name}) for name in ("trash", "desk"))


def script(*groups, reference=(MOVE,)):
    """A script whose groups are texts, or completions."""
    completions = (tuple(Written(one) if isinstance(one, str) else one for one in group) for group in groups)
    return Script(reference, tuple(completions))


def trained(folder, scripts, reward=None, more=None, **options):
    trainer = step_trainer(folder, scripts, reward, more, **options)
    trainer.train()
    return trainer


# -- the reward's options ------------------------------------------------------------------------------------------


def test_with_a_lower_correctness_threshold_a_nearly_right_call_has_not_failed(tmp_path):
    scripts = {
        "graded": script((PUT_AWAY, TO_TRASH, LOOK, TEXT), (PUT_AWAY, LOOK, TO_TRASH, TO_DESK, TEXT, LIST)),
        "close": script((TO_TRASH, NO_FOLDER, PUT_AWAY, PUT_AWAY)),
        "twice": script(
            (f"{PUT_AWAY}\n{LOOK}", *[PUT_AWAY] * 3),
            (PUT_AWAY, f"{PUT_AWAY}\n{LOOK}", f"{PUT_AWAY}\n{LIST}", f"{TO_TRASH}\n{LOOK}", TO_TRASH, LOOK),
        ),
    }
    run = trained(
        tmp_path, scripts, RewardConfig(correctness_threshold=1.5), max_steps=2, failure_threshold=1.6,
        per_device_train_batch_size=12, num_generations=4, num_recovery_generations=6,
    )  # fmt: skip
    # At progress 0. A wrong folder: F1 1/2, score 3/4, R_corr 3/2, which is the threshold (and earns less than the
    # other threshold, of rewards, which does not count). A wrong tool: R_corr 0. A text: R_fmt 0.
    check_group(run.group(0, "graded"), [5, 4.5, 3, 0], [False, False, True, True])
    # Mean 25/24, deviations 5/8, 11/24, -1/24, -25/24, standard deviation sqrt((225 + 121 + 1 + 625) / 576 / 3) = 3/4.
    advantages = [0.625 / 0.7501, 11 / 24 / 0.7501, -1 / 24 / 0.7501, -25 / 24 / 0.7501]
    assert [one.advantage for one in run.group(0, "graded")] == pytest.approx(advantages, abs=1e-5)
    # No folder: F1 2/3, score 5/6, R_corr 5/3.
    check_group(run.group(0, "close"), [4.5, 2 + 5 / 3 + 1, 5, 5], [False] * 4)
    check_group(run.group(0, "twice"), [4, 5, 5, 5], [True, False, False, False])  # R_corr 1
    assert history(run, "fission/success") == [9 / 12]

    # At progress 1/2. The first failed rollout is recovered from, another tool; with a wrong folder no recovery fails.
    assert run.instance(1, "graded").task.failed == ((FIND,),)
    check_group(run.group(1, "graded"), [5, 0, 4.375, 4.375, 0, 2.5], [False, True, False, False, True, True])
    # After the right call and one too many (R_corr 1 < 1.5, so it was wrong): the same again; another one too many
    # (R_corr 1, so 1.5 + 1.25 + 1); with the one too many and a wrong folder (R_corr 2 * 3/4 / 2, 1.5 + 1.25 * 3/4 +
    # 1); a wrong folder alone; the one too many alone, which is a part of the failed turn.
    check_group(run.group(1, "twice"), [5, 0, 3.75, 3.4375, 4.375, 0], [False, True, True, True, False, True])
    assert history(run, "recovery/rate") == [5 / 12]


def test_a_repeated_wrong_call_earns_no_part_among_other_calls(tmp_path):
    scripts = {
        "padded": script(
            (TO_TRASH, PUT_AWAY, PUT_AWAY, PUT_AWAY),
            (f"{TO_TRASH}\n{LOOK}", f"{TO_TRASH}\n{PUT_AWAY}", f"{TO_DESK}\n{LOOK}", TO_TRASH),
        )
    }
    run = trained(
        tmp_path, scripts, max_steps=2, per_device_train_batch_size=4, num_generations=4, num_recovery_generations=4
    )
    # R_corr at progress 1/2: 0, as the folder is that of the failed turn; 2 * 1 / 2 for the right call beside it;
    # 2 * 3/4 / 2 for another folder. Alone it is the same again.
    check_group(run.group(1, "padded"), [2.5, 3.75, 3.4375, 0], [True] * 4)


def test_by_the_papers_formula_all_parts_always_count_and_the_same_again_earns_what_it_did(tmp_path):
    scripts = {
        "wrong": script(
            (TO_TRASH, TEXT, Written(PUT_AWAY, ends=False), "<tool_call>{"),
            (TO_TRASH, TO_DESK, LOOK, TEXT),
        ),
        "none": script(
            (LIST, Written("Goodbye.", 16), Written("Goodbye.", 48), LIST),
            (LIST, LOOK, TEXT, TEXT),
            reference=(),
        ),
    }
    run = trained(
        tmp_path, scripts, RewardConfig(paper_formula=True), max_steps=2, per_device_train_batch_size=8,
        num_generations=4, num_recovery_generations=4,
    )  # fmt: skip
    check_group(run.group(0, "wrong"), [4.5, 1, 1, 1], [True] * 4)  # a good length is paid for without an answer
    short = math.exp(-1 / 2)  # R_len of 16 tokens, a standard deviation below 32
    check_group(run.group(0, "none"), [1, 4 + short, 5, 1], [True, False, False, True])
    check_group(run.group(1, "wrong"), [4.375, 4.375, 2.5, 1], [True] * 4)
    check_group(run.group(1, "none"), [1, 1, 5, 5], [True, True, False, False])


# -- recoveries of recoveries, feedback ----------------------------------------------------------------------------


def test_in_the_recovery_of_a_recovery_both_failed_turns_earn_nothing_again(tmp_path):
    scripts = {
        "deep": script(
            (TO_TRASH, PUT_AWAY, PUT_AWAY, PUT_AWAY),
            (TO_DESK, TO_TRASH, PUT_AWAY, PUT_AWAY),
            (TO_TRASH, TO_DESK, TO_SHELF, PUT_AWAY),
        )
    }
    run = trained(
        tmp_path, scripts, max_depth=2, buffer_order="random", per_device_train_batch_size=4, num_generations=4,
        num_recovery_generations=4,
    )  # fmt: skip
    assert history(run, "fission/pushed") == [1.0, 1.0, 1.0, 0.0]
    assert history(run, "fission/pushed_depth_2") == [1.0]
    assert history(run, "recovery/depth") == [1.0, 2.0]
    check_group(run.group(1, "deep"), [4.4375, 0, 5, 5], [True, True, False, False])
    first, second = run.instance(1, "deep").task, run.instance(3, "deep").task
    assert (first.failed, second.failed) == (((TRASH,),), ((TRASH,), (DESK,)))
    assert (second.parent, second.root) == (first.id, first.root)
    assert second.prompt[: len(first.prompt)] == first.prompt
    assert [message["role"] for message in second.prompt[3:]] == ["assistant", "tool"]
    assert second.prompt[-1]["content"] == "error: `folder` is not right, got 'desk'"
    # At progress 3/4 another wrong folder earns 1.25 + 1.375 * 3/2 + 1, by which it has a positive advantage.
    check_group(run.group(3, "deep"), [0, 0, 4.3125, 5], [True, True, True, False])


def says_all(failure):
    return f"error: use the folder {failure.task.reference[0].arguments['folder']}"


def says_where(failure):
    return "error: look at the folder again"


@pytest.mark.parametrize(("sources", "source"), [([says_all, says_where], "says_where"), ([says_all], "fixed")])
def test_feedback_with_a_value_of_the_reference_never_reaches_the_policy(tmp_path, sources, source):
    scripts = {"secret": script((TO_TRASH, *[PUT_AWAY] * 3), (PUT_AWAY, TO_TRASH, TO_DESK, TEXT))}
    run = trained(
        tmp_path, scripts, more={"feedback": sources}, max_steps=2, per_device_train_batch_size=4,
        num_generations=4, num_recovery_generations=4,
    )  # fmt: skip
    assert history(run, "feedback/leaks") == history(run, "feedback/fallbacks") == [1.0, 0.0]
    (pushed,) = events(tmp_path, "pushed")
    assert (pushed["source"], pushed["leaked"], pushed["fallback"]) == (source, True, "says_all: leak")
    assert {"archive" in entry.prompt for entry in run.group(1, "secret")} == {False}
    if source == "says_where":
        assert pushed["prompt"][-1] == {"role": "tool", "name": "move", "content": says_where(None)}


# -- checkpoints ---------------------------------------------------------------------------------------------------


SAVED = {"per_device_train_batch_size": 8, "num_generations": 4, "num_recovery_generations": 4}
SAVED |= {"save_strategy": "steps", "save_steps": 1}
SAVED_SCRIPTS = {
    "argument": script((TO_TRASH, TO_DESK, PUT_AWAY, TEXT), (TO_TRASH, TO_DESK, PUT_AWAY, TEXT)),
    "tool": script((LOOK, PUT_AWAY, LIST, PUT_AWAY), (LOOK, PUT_AWAY, TO_DESK, LIST)),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("whole") / "run", SAVED_SCRIPTS, **SAVED)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_run_on_step_tasks_that_resumes_does_the_same_to_the_last_bit(tmp_path, whole, step):
    checkpoint = as_it_was(whole.event_log.path.parent, step, tmp_path / "resumed")
    resumed = step_trainer(tmp_path / "resumed", SAVED_SCRIPTS, **SAVED)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert history(whole, "fission/phase") == [0.0, 1.0, 0.0, 1.0]
    assert resumed.entries == whole.entries[step:]
    assert resumed.contexts == whole.contexts[step:]
    assert differences(whole.event_log.path.parent, tmp_path / "resumed", "checkpoint-4") == []


def test_a_buffer_from_a_checkpoint_still_knows_the_failed_calls(tmp_path, whole):
    checkpoint = as_it_was(whole.event_log.path.parent, 1, tmp_path / "resumed")
    resumed = step_trainer(tmp_path / "resumed", SAVED_SCRIPTS, **SAVED)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    check_group(resumed.group(0, "argument"), [0, 4.4375, 5, 0], [True, True, False, True])
    check_group(resumed.group(2, "argument"), [0, 4.3125, 5, 0], [True, True, False, True])
