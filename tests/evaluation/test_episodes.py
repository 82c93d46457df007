"""Fission in live episodes, on the real trainer and the shipped starter policy."""

import pytest
import torch
from trainer_support import Spy, desk_trainer, events, history

from fission_grpo.core.errors import InfrastructureError
from fission_grpo.envs.desk.env import Desk

MALFORMED = '<tool_call>\n{"name": "move_file", "arguments": {"name": }\n</tool_call>'


class Recorder(Spy):
    """Keeps the ids the policy sampled, and puts `script` (texts by row) in place of first turns."""

    script = ()

    def _generate_and_score_completions(self, inputs):
        self.sampled, self.first = [], True
        output = super()._generate_and_score_completions(inputs)
        self.cycles = [*getattr(self, "cycles", []), (self.sampled, output)]
        return output

    def _generate_single_turn(self, *args, **kwargs):
        ids, logprobs = super()._generate_single_turn(*args, **kwargs)
        if self.first:
            for row, text in enumerate(self.script):
                ids[row] = self._tokenizer(text + "<|im_end|>")["input_ids"]
        self.first = False
        self.sampled.append([list(one) for one in ids])
        return ids, logprobs


def trained_ids(output):
    """Per rollout, the ids the loss counts."""
    mask = output["completion_mask"] * output["tool_mask"]
    return [ids[on.bool()].tolist() for ids, on in zip(output["completion_ids"], mask, strict=True)]


def test_mask_audit_only_tokens_sampled_in_this_rollout_are_trained(tmp_path):
    trainer = desk_trainer(tmp_path, Recorder, max_steps=6, shared_prefix=False)  # positions as TRL lays them out
    positions = []
    original = trainer._compute_loss

    def audited(model, inputs):
        """The gradient that reaches the last hidden state of every position, which only its own logits use."""

        def keep(_module, _inputs, hidden):
            hidden.register_hook(lambda grad: positions.append((inputs, grad.abs().sum(-1))))

        hook = model.model.norm.register_forward_hook(keep)
        loss = original(model, inputs)
        hook.remove()
        return loss

    trainer._compute_loss = audited
    trainer.train()
    phases = history(trainer, "fission/phase")
    assert 1.0 in phases
    with_results = 0
    for (sampled, output), phase in zip(trainer.cycles, phases, strict=True):
        for trained in trained_ids(output):  # every rollout's trained ids are its sampled turns, one after another
            rest = trained
            for turn in sampled:
                fit = [ids for ids in turn if rest and rest[: len(ids)] == ids[: len(rest)]]  # perhaps cut short
                rest = rest[len(max(fit, key=len, default=[])) :]
            assert rest == []
        with_results += phase and (output["tool_mask"] == 0).any().item()
    assert with_results  # a recover cycle with tool results in it was audited
    assert any(grad.any() for _, grad in positions)
    for inputs, grad in positions:  # the logits of position i predict token i + 1
        trained = inputs["completion_mask"] * inputs["tool_mask"]
        whole = torch.cat([torch.zeros_like(inputs["prompt_mask"]), trained], dim=1)
        assert not grad[:, :-1][whole[:, 1:] == 0].any()
        assert not grad[:, -1].any()


def test_unreadable_call_is_told_within_the_episode_and_fissioned(tmp_path):
    trainer = desk_trainer(tmp_path, Recorder, max_steps=1)
    trainer.script = [MALFORMED] * 16
    trainer.train()
    assert history(trainer, "fission/kind/unparsed") == [16.0]
    assert len(trainer.cycles[0][0]) > 1  # a second turn was sampled
    for line in events(tmp_path, "pushed"):
        assert line["failed"] == MALFORMED
        assistant, told = line["prompt"][-2:]
        assert assistant["content"] == MALFORMED
        assert (told["role"], told["content"]) == ("tool", str({"error": line["feedback"]}))


def test_with_watch_off_an_unreadable_call_ends_the_episode_as_in_trl(tmp_path):
    trainer = desk_trainer(tmp_path, Recorder, max_steps=1, fission=False)
    trainer.script = [MALFORMED] * 16
    trainer.train()
    assert len(trainer.cycles[0][0]) == 1


def test_judged_by_the_turn_nothing_is_sampled_after_the_corrective_turn(tmp_path):
    trainer = desk_trainer(tmp_path, Recorder, max_steps=6, recovery_scope="turn")
    trainer.train()
    seen = 0
    for (sampled, _), (contexts, _, rewards) in zip(trainer.cycles, trainer.seen, strict=True):
        if contexts:
            seen += 1
            assert len(sampled) == 1
            assert set(rewards) <= {0.0, 1.0}
    assert seen
    recovered = events(tmp_path, "recovered")
    assert any("[" in text for line in recovered for text in line["completions"])  # the calls were made, and answered


def test_a_corrective_turn_that_does_the_right_thing_is_resolved_and_one_that_repeats_the_error_is_not(tmp_path):
    trainer = desk_trainer(tmp_path, Recorder, max_steps=2, recovery_scope="turn", min_buffered=2)
    call = '<tool_call>\n{"name": "%s", "arguments": %s}\n</tool_call>'
    trainer.script = [call % ("move_file", '{"name": "nothing.txt", "folder": "work"}')] * 16
    trainer.train()
    contexts, _, rewards = trainer.seen[1]
    assert len(contexts) == 2
    assert rewards == [0.0] * 16  # the script repeats the failing call
    assert history(trainer, "recovery/rate") == [0.0]


@pytest.mark.parametrize(("failure_turn", "most"), [("first", 1), ("every", 3)])
def test_every_failing_turn_can_be_branched_from(tmp_path, failure_turn, most):
    trainer = desk_trainer(tmp_path, max_steps=1, failure_turn=failure_turn)
    trainer.train()
    per_root = {}
    for item in trainer.fission.buffer:
        per_root.setdefault(item.task.root, []).append(len(item.task.history))
    assert all(len(lengths) <= most and lengths == sorted(set(lengths)) for lengths in per_root.values())
    assert (max(map(len, per_root.values())) > 1) == (failure_turn == "every")


def test_recoveries_of_recoveries_are_counted(tmp_path):
    trainer = desk_trainer(tmp_path, max_steps=6, max_depth=2)
    trainer.train()
    pushed = [line["depth"] for line in events(tmp_path, "pushed")]
    assert pushed.count(2) == sum(history(trainer, "fission/pushed_depth_2")) > 0
    assert max(pushed) == 2


def test_worlds_come_back_by_snapshot_where_there_is_one_and_the_replay_agrees(tmp_path):
    class Blind(Desk):
        _snapshot = _restore = None

    runs = {}
    for name, factory in (("snapshot", Desk), ("replay", Blind)):
        trainer = desk_trainer(tmp_path / name, factory=factory, max_steps=4)
        trainer.train()
        runs[name] = trainer
    assert history(runs["snapshot"], "env/restored")
    assert not history(runs["snapshot"], "env/replayed")
    assert history(runs["replay"], "env/replayed")
    assert sum(history(runs["replay"], "env/replay_mismatches")) == 0
    assert history(runs["snapshot"], "loss") == history(runs["replay"], "loss")


def test_a_snapshot_that_cannot_be_restored_is_counted_and_replay_does_instead(tmp_path):
    class Rusty(Desk):
        def _restore(self, state):
            raise RuntimeError("rust")

    trainer = desk_trainer(tmp_path / "rusty", factory=Rusty, max_steps=4)
    trainer.train()
    failed = history(trainer, "env/restore_failed")
    assert failed == history(trainer, "env/replayed")
    assert sum(failed) > 0


def test_a_broken_world_costs_its_own_rollout_only(tmp_path):
    class Flaky(Desk):
        made = 0

        def reset(self, **row):
            super().reset(**row)
            Flaky.made += 1
            if Flaky.made % 8 == 1:
                raise InfrastructureError("no connection")

    trainer = desk_trainer(tmp_path, factory=Flaky, max_steps=1)
    trainer.train()
    assert history(trainer, "fission/infrastructure") == [2.0]
    assert history(trainer, "env/broken") == [2.0]
    assert None not in [line["reward"] for line in events(tmp_path, "pushed")]


def test_checkpoint_keeps_share_and_odds(tmp_path):
    fields = {"save_strategy": "steps", "save_steps": 2, "buffer_order": "random"}
    straight = desk_trainer(tmp_path / "a", max_steps=4, **fields)
    straight.train()
    resumed = desk_trainer(tmp_path / "b", max_steps=4, **fields)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert resumed.fission.state() == straight.fission.state()
