"""The seam to TRL, on the real trainer and the shipped starter policy."""

import math
from itertools import pairwise

import pytest
from datasets import Dataset
from trainer_support import COMMON, Spy, desk_trainer, history, journal
from trl import GRPOConfig, GRPOTrainer

from fission_grpo import FissionGRPOConfig, FissionGRPOTrainer
from fission_grpo.envs.desk.env import Desk
from fission_grpo.inference.pretrained import load_starter


def test_fission_off_is_trls_grpo_exactly(tmp_path):
    ours = desk_trainer(tmp_path / "ours", fission=False, shared_prefix=False)
    ours.train()
    theirs = desk_trainer(tmp_path / "theirs", GRPOTrainer, GRPOConfig)  # made here, as making it seeds everything
    theirs.train()
    for key in ("loss", "grad_norm", "reward", "entropy", "completions/mean_length"):
        assert history(ours, key) == history(theirs, key)
    assert all(a.equal(b) for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True))
    assert not (tmp_path / "ours" / "fission.jsonl").exists()


def test_explore_and_recover_cycles_alternate_and_report(tmp_path):
    trainer = desk_trainer(tmp_path, max_steps=5, max_age_steps=0)
    trainer.train()
    phases = history(trainer, "fission/phase")
    assert 1.0 in phases
    assert all(not (a and b) for a, b in pairwise(phases))
    for entry in trainer.state.log_history[:-1]:
        assert ("recovery/rate" in entry) == (entry["fission/phase"] == 1)
        assert ("fission/success" in entry) == (entry["fission/phase"] == 0)
    pushed = {line["id"]: line for line in journal(tmp_path, "pushed")}
    recovered = journal(tmp_path, "recovered")
    assert len(recovered) == 2 * phases.count(1.0)  # 16 rollouts / G' = 8
    for line in recovered:
        assert len(line["rewards"]) == len(line["completions"]) == 8
        assert pushed[line["id"]]["step"] + line["age"] == line["step"]


def test_recovery_starts_in_the_world_the_failed_calls_left(tmp_path):
    made = {}

    class Watched(Desk):
        """A user's environment that knows nothing of us, and notes which calls it got since its reset."""

        _snapshot = _restore = None

        def reset(self, **row):
            super().reset(**row)
            self.calls = []

        def move_file(self, name: str, folder: str) -> str:
            self.calls.append("move_file")
            return super().move_file(name, folder)

        move_file.__doc__ = Desk.move_file.__doc__

        def delete_file(self, name: str) -> str:
            self.calls.append("delete_file")
            return super().delete_file(name)

        delete_file.__doc__ = Desk.delete_file.__doc__

    def watch(prompts, environments, **_):
        for prompt, environment in zip(prompts, environments, strict=True):
            made.setdefault(str(prompt), []).append(list(environment.calls))
        return [None] * len(prompts)

    trainer = desk_trainer(tmp_path, Spy, factory=Watched, more={"reward_funcs": watch}, max_steps=6)
    trainer.train()
    checked = 0
    for contexts, *_ in trainer.seen:
        for item in contexts:
            replayed = [past.call.name for past in item.task.history if past.call.name in ("move_file", "delete_file")]
            starts = [calls[: len(replayed)] for calls in made[str([dict(m) for m in item.task.prompt])]]
            assert starts == [replayed] * 8
            checked += bool(replayed)
    assert checked


def test_recovery_prompt_begins_with_the_very_tokens_of_the_failed_rollout(tmp_path):
    trainer = desk_trainer(tmp_path, Spy, max_steps=4)
    trainer.train()

    def texts(output, name):
        pairs = zip(output[f"{name}_ids"], output[f"{name}_mask"], strict=True)
        return [trainer.processing_class.decode(ids[mask.bool()]) for ids, mask in pairs]

    explored, checked = [], 0
    for contexts, output, _ in trainer.seen:
        if not contexts:
            pairs = zip(texts(output, "prompt"), texts(output, "completion"), strict=True)
            explored += [prompt + completion for prompt, completion in pairs]
            continue
        for prompt in set(texts(output, "prompt")):
            failing_turn_ends = prompt.rindex("<|im_end|>", 0, prompt.rindex("<|im_start|>user"))
            assert max(len(_common(prompt, rollout)) for rollout in explored) >= failing_turn_ends
            checked += 1
    assert checked


def _common(a, b):
    end = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[:end]


def test_recovery_groups_are_normalised_among_themselves(tmp_path):
    trainer = desk_trainer(tmp_path, Spy, max_steps=6)
    trainer.train()
    sizes = set()
    for contexts, output, rewards in trainer.seen:
        size = 8 if contexts else 4
        for start in range(0, 16, size):
            group = rewards[start : start + size]
            mean = sum(group) / size
            std = math.sqrt(sum((r - mean) ** 2 for r in group) / (size - 1))
            expected = [(r - mean) / (std + 1e-4) for r in group]
            assert output["advantages"][start : start + size].tolist() == pytest.approx(expected, abs=1e-4)
            sizes.add(size if std else 0)
    assert {4, 8} <= sizes


def test_rows_displaced_by_a_recover_cycle_are_explored_next(tmp_path):
    def prompts_explored(fission, steps):
        asked = []

        def watch(prompts, environments, **_):
            asked.append([prompt[-1]["content"] for prompt in prompts[::4]])
            return [None] * len(prompts)

        more = {"reward_funcs": watch}
        trainer = desk_trainer(tmp_path / f"{fission}", more=more, fission=fission, max_steps=steps)
        trainer.train()
        phases = history(trainer, "fission/phase")
        return [prompts for prompts, phase in zip(asked, phases, strict=True) if not phase], phases

    straight, _ = prompts_explored(False, 4)
    explored, phases = prompts_explored(True, 4)
    assert 1.0 in phases
    assert explored == straight[: len(explored)]


def test_plain_text_without_tools_recovers_too(tmp_path):
    model, tokenizer = load_starter()

    def likes_even_length(completions, **_):
        return [1.0 if len(text) % 2 == 0 else 0.0 for text in completions]

    prompts = Dataset.from_list([{"prompt": f"move file {i}"} for i in range(16)])
    fields = COMMON | {"max_steps": 4, "max_completion_length": 12}
    trainer = FissionGRPOTrainer(
        model,
        likes_even_length,
        FissionGRPOConfig(output_dir=str(tmp_path), **fields),
        prompts,
        processing_class=tokenizer,
    )
    trainer.train()
    assert 1.0 in history(trainer, "fission/phase")
    line = journal(tmp_path, "pushed")[0]
    assert line["kind"] in ("low_reward", "truncated")
    assert line["prompt"].startswith("move file ")
    assert line["prompt"].endswith(f"{line['feedback']}\n\n")


def test_broken_diagnosis_falls_back_is_counted_and_training_goes_on(tmp_path):
    def broken(failure):
        raise RuntimeError("endpoint down")

    trainer = desk_trainer(tmp_path, more={"diagnose": broken}, max_steps=2)
    trainer.train()
    assert history(trainer, "fission/fallbacks")[0] == history(trainer, "fission/pushed")[0] > 0
    assert {line["fallback"] for line in journal(tmp_path, "pushed")} == {"broken: raised RuntimeError"}


def test_rollouts_nobody_could_judge_are_never_fissioned(tmp_path):
    class Down(Desk):
        def get_reward(self):
            return None

    trainer = desk_trainer(tmp_path, factory=Down, max_steps=2)
    trainer.train()
    assert history(trainer, "fission/infrastructure") == [16.0, 16.0]
    assert history(trainer, "fission/pushed") == [0.0, 0.0]


def test_token_budget_stops_training_after_the_update_with_the_last_tokens(tmp_path):
    halves = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "num_generations": 16}
    trainer = desk_trainer(tmp_path, max_steps=50, max_generated_tokens=1, **halves)
    before = [weight.clone() for weight in trainer.model.parameters()]
    trainer.train()
    assert trainer.state.global_step == 1
    assert history(trainer, "fission/zero_variance") == [0.0]
    assert not all(a.equal(b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def test_token_budget_stops_training_at_the_end_of_a_cycle_of_several_updates(tmp_path):
    trainer = desk_trainer(tmp_path, max_steps=50, max_generated_tokens=1, num_iterations=2)
    trainer.train()
    assert trainer.state.global_step == 2


def test_resumed_run_has_the_buffer_and_goes_on_as_if_never_stopped(tmp_path):
    fields = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
    straight = desk_trainer(tmp_path / "straight", **fields)
    straight.train()
    resumed = desk_trainer(tmp_path / "resumed", **fields)
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-2"))
    assert list(resumed.fission.buffer) == list(straight.fission.buffer)
    assert any(history(straight, "grad_norm")[-2:])  # something was learned after the checkpoint
    assert history(resumed, "loss")[-2:] == history(straight, "loss")[-2:]
    assert all(a.equal(b) for a, b in zip(resumed.model.parameters(), straight.model.parameters(), strict=True))


def test_checkpoint_without_a_buffer_is_refused_before_training(tmp_path):
    theirs = desk_trainer(tmp_path, GRPOTrainer, GRPOConfig, max_steps=1, save_strategy="steps", save_steps=1)
    theirs.train()
    with pytest.raises(ValueError, match=r"checkpoint-1/fission_state\.json does not exist"):
        desk_trainer(tmp_path, max_steps=2).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_recoveries": 5}, r"num_recoveries \(5\) does not divide .*\[2, 4, 8, 16\]"),
        ({"num_recoveries": 1}, "at least 2"),
        ({"buffer_order": "newest"}, "'newest'"),
        ({"buffer_capacity": 1}, "buffer_capacity is 1, but must be at least 4"),
        ({"recover_trigger": 2}, "between 4"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_loaded(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        FissionGRPOConfig(output_dir=str(tmp_path), **COMMON, **fields)


def test_trls_own_config_is_refused_with_a_hint(tmp_path):
    with pytest.raises(TypeError, match="FissionGRPOConfig"):
        desk_trainer(tmp_path, config=GRPOConfig)
