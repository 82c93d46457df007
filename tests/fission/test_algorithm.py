"""Snapshots of worlds live as long as the instances they belong to."""

from dataclasses import replace

import pytest

pytest.importorskip("trl")

from buffer_support import instance

from fission_grpo import FissionGRPOConfig
from fission_grpo.core.types import ErrorKind, Failure, Task, ToolCall, Turn
from fission_grpo.feedback.sources import environment
from fission_grpo.feedback.spec import make_chain
from fission_grpo.fission.algorithm import CollectedFeedback, Fission
from fission_grpo.fission.event_log import EventLog
from fission_grpo.fission.failures import FailedRollout


def test_snapshots_are_kept_for_instances_that_wait_or_are_recovered_from(tmp_path):
    args = FissionGRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        num_generations=2,
        buffer_capacity=4,
        max_age_steps=2,
        use_cpu=True,
        bf16=False,
    )
    fission = Fission(args, (), EventLog(None))

    def push(names, step):
        for name in names:
            fission.snapshots[name] = f"state of {name}"
        fission.push([CollectedFeedback([(instance(name, step), None)]) for name in names], step)
        return sorted(fission.buffered_snapshots())

    assert push("abcde", step=0) == ["b", "c", "d", "e"]  # a had to go for e
    fission.schedule.record_explore()
    assert [item.task.id for item in fission.next_contexts(0)] == ["e", "d"]
    assert sorted(fission.snapshots) == ["b", "c", "d", "e"]
    assert push("e", step=1) == ["b", "c", "e"]  # the recovery of e failed as before; d is not in the buffer
    fission.next_contexts(3)
    assert sorted(fission.snapshots) == ["e"]  # d was used, b and c were too old


def fission_of(folder, **fields):
    given = {"per_device_train_batch_size": 4, "num_generations": 2, "use_cpu": True, "bf16": False}
    return Fission(FissionGRPOConfig(output_dir=str(folder), **(given | fields)), (), EventLog(None))


def of_root(name, root, **fields):
    made = instance(name, **fields)
    return replace(made, task=replace(made.task, root=root)), None


def test_ranks_that_share_a_group_push_one_rollout_of_its_task(tmp_path):
    fission = fission_of(tmp_path)
    first = CollectedFeedback([of_root("a1", "a"), of_root("a2", "a"), of_root("b1", "b")])  # a1, a2: one rollout
    second = CollectedFeedback([of_root("a3", "a"), of_root("c1", "c")])
    metrics = fission.push([first, second], step=0)
    assert [item.task.id for item in fission.buffer] == ["a1", "a2", "b1", "c1"]
    assert metrics["fission/pushed"] == 4
    fission.push([CollectedFeedback([of_root("a4", "a")])], step=1)  # the next cycle chooses afresh
    assert [item.task.id for item in fission.buffer] == ["a1", "a2", "b1", "c1", "a4"]


def test_a_rank_whose_instance_waits_already_leaves_the_task_to_the_next_rank(tmp_path):
    fission = fission_of(tmp_path)
    fission.push([CollectedFeedback([of_root("a1", "a")])], step=0)
    fission.push([CollectedFeedback([of_root("a1", "a")]), CollectedFeedback([of_root("a2", "a")])], step=1)
    assert [item.task.id for item in fission.buffer] == ["a1", "a2"]


def test_what_only_the_environment_may_say_is_counted(tmp_path):
    secret = ToolCall("move", {"name": "plan_2.txt"})
    task = Task("t", ({"role": "user", "content": "move the plan"},), reference=(secret,))
    failure = Failure(task, (Turn("x", calls=(ToolCall("move"),)),), ErrorKind.RAISED, "did you mean 'plan_2.txt'?")
    for source, leaks, exempt in ((environment, 0, 1), (lambda failure: failure.detail, 1, 0)):
        fission = fission_of(tmp_path)
        fission.sources = make_chain(source)
        fission.submit([FailedRollout([failure], zero_std=True)], step=0)
        metrics = fission.push([fission.collect()], step=0)
        assert (metrics["feedback/leaks"], metrics["feedback/exempt"]) == (leaks, exempt)
        assert metrics["feedback/fallbacks"] == leaks
