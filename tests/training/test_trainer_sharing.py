"""Our trainer with shared prompts takes TRL's steps, and sharing changes no cycle. Needs the `train` extra."""

import pytest
from trainer_support import Spy, desk_trainer, history
from trl import GRPOConfig, GRPOTrainer


def test_shared_prompts_take_the_steps_of_trl_up_to_rounding(tmp_path):
    ours = desk_trainer(tmp_path / "ours", fission=False)
    ours.train()
    theirs = desk_trainer(tmp_path / "theirs", GRPOTrainer, GRPOConfig)
    theirs.train()
    for key in ("loss", "grad_norm", "reward", "entropy", "completions/mean_length"):
        assert history(ours, key) == pytest.approx(history(theirs, key), rel=1e-4, abs=1e-6)
    assert len(history(ours, "loss")) == 3
    assert any(history(ours, "grad_norm"))
    assert history(ours, "shared_prefix/unshared") == [0.0] * 3
    pairs = zip(*(history(ours, f"shared_prefix/{name}_tokens") for name in ("read", "prompt")), strict=True)
    assert all(0 < read < asked / 3 for read, asked in pairs)  # groups of 4, and a tool loop


def test_sharing_prompts_changes_no_cycle_and_no_line_of_the_journal(tmp_path):
    def run(shared):
        trainer = desk_trainer(tmp_path / f"{shared}", Spy, max_steps=5, shared_prefix=shared, judge_recovery="turn")
        trainer.train()
        return trainer, (tmp_path / f"{shared}" / "fission.jsonl").read_text()

    (shared, ours), (unshared, theirs) = run(True), run(False)
    assert ours == theirs
    assert '"recovered"' in ours
    assert history(shared, "loss") == pytest.approx(history(unshared, "loss"), rel=1e-4, abs=1e-6)
    assert history(shared, "recovery/reward") == history(unshared, "recovery/reward")
    assert not history(unshared, "shared_prefix/read_tokens")
    for (contexts, mine, _), (_, other, _) in zip(shared.seen, unshared.seen, strict=True):
        assert mine["completion_ids"].equal(other["completion_ids"])
        prompts = {tuple(row) for row in mine["prompt_ids"].tolist()}
        assert len(prompts) <= (len(contexts) or 4)
