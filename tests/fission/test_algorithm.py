"""Snapshots of worlds live as long as the instances they belong to."""

from collections import Counter

import pytest

pytest.importorskip("trl")

from buffer_support import instance

from fission_grpo import FissionGRPOConfig
from fission_grpo.fission.algorithm import Fission
from fission_grpo.fission.event_log import Journal


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
    fission = Fission(args, (), Journal(None))

    def push(names, step):
        for name in names:
            fission.states[name] = f"world of {name}"
        fission.push([[(instance(name, step), None)] for name in names], Counter(), step)
        return sorted(fission.states)

    assert push("abcde", step=0) == ["b", "c", "d", "e"]  # a had to go for e
    fission.explored({"succeeded": 0, "judged": 4}, [False])
    assert [item.task.id for item in fission.begin_cycle(0)] == ["e", "d"]
    assert sorted(fission.states) == ["b", "c", "d", "e"]
    assert push("e", step=1) == ["b", "c", "d", "e"]  # the recovery failed as before
    fission.begin_cycle(3)
    assert sorted(fission.states) == ["e"]  # d was used, b and c were too old
