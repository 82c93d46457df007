"""Snapshots of worlds live as long as the instances they belong to."""

import pytest

pytest.importorskip("trl")

from buffer_support import instance

from fission_grpo import FissionGRPOConfig
from fission_grpo.fission.algorithm import CollectedFeedback, Fission
from fission_grpo.fission.event_log import EventLog


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
    fission.record_explore({"succeeded": 0, "judged": 4}, [False])
    assert [item.task.id for item in fission.next_contexts(0)] == ["e", "d"]
    assert sorted(fission.snapshots) == ["b", "c", "d", "e"]
    assert push("e", step=1) == ["b", "c", "e"]  # the recovery of e failed as before; d is not in the buffer
    fission.next_contexts(3)
    assert sorted(fission.snapshots) == ["e"]  # d was used, b and c were too old
