"""`evaluate` of whatever a user has, in memory and in a folder, and the same by command."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from fission_grpo import evaluate
from fission_grpo.cli.main import main
from fission_grpo.core.chat import render_call
from fission_grpo.core.errors import RunFileError, UsageError
from fission_grpo.core.types import ToolCall
from fission_grpo.evaluation.compare import compare, read_run
from fission_grpo.evaluation.records import read_records
from fission_grpo.inference.base import Reply

SOURCE = '''
class Lamp:
    def reset(self, on: bool, **_):
        self.on = on

    def switch(self, hard: bool) -> str:
        """Switch it.

        Args:
            hard: Whether to press hard.
        """
        if not hard:
            raise ValueError("nothing happens; press hard")
        self.on = not self.on
        return "ok"


def is_on(environments, **_):
    return [float(one.on) for one in environments]


def words(completions, **_):
    return [float(len(completion)) for completion in completions]
'''
ROWS = [{"prompt": "Light, please.", "on": on} for on in (False, True, False)]
names: dict = {}
exec(SOURCE, names)
Lamp, is_on = names["Lamp"], names["is_on"]


class Presses:
    """Presses softly, then hard, then says "Done."; or presses softly only."""

    def __init__(self, recovers=True):
        self.recovers = recovers

    def reply(self, requests):
        def one(request):
            turns = sum(message["role"] == "assistant" for message in request.messages)
            if turns == 2 or (turns and not self.recovers):
                return Reply("Done.", 1)
            return Reply(render_call(ToolCall("switch", {"hard": turns == 1})), 9)

        return [one(request) for request in requests]


def rows(count=3):
    return [{**ROWS[k % 3], "prompt": [{"role": "user", "content": ROWS[k % 3]["prompt"]}]} for k in range(count)]


def test_a_policy_is_evaluated_with_reward_functions_alone():
    result = evaluate(Presses(), Lamp, rows(), is_on)
    assert [record.success for record in result.records] == [True, False, True]
    assert (result.metrics.recovery.hits, result.metrics.recovery.of) == (2, 3)
    assert "2 of 3 cases with an error of their own" in str(result)
    assert result.directory is None


def test_nothing_is_played_where_nothing_judges():
    class Untouched:
        def reply(self, requests):
            raise AssertionError("an episode began")

    with pytest.raises(UsageError, match="nothing judges Lamp"):
        evaluate(Untouched(), Lamp, rows())


def test_success_begins_at_the_reward_that_is_asked_for():
    def partly(environments, **_):
        return [0.4 + 0.5 * one.on for one in environments]

    assert evaluate(Presses(), Lamp, rows(), partly).metrics.success.hits == 0
    assert evaluate(Presses(), Lamp, rows(), partly, success_at=0.9).metrics.success.hits == 2


def test_completions_have_the_form_of_trl():
    seen = []

    def read(completions, **_):
        seen.extend(completions)
        return [1.0]

    evaluate(Presses(), Lamp, rows(1), read)
    (messages,) = seen
    assert [message["role"] for message in messages] == ["assistant", "tool", "assistant", "tool", "assistant"]
    (call,) = messages[0]["tool_calls"]
    assert call == {"type": "function", "function": {"name": "switch", "arguments": {"hard": False}}}
    assert messages[1]["name"] == "switch"
    assert "press hard" in messages[1]["content"]
    assert messages[-1] == {"role": "assistant", "content": "Done."}


def test_a_folder_is_written_that_compare_reads(tmp_path):
    good = evaluate(Presses(), Lamp, rows(), is_on, output_dir=tmp_path, name="good")
    bad = evaluate(Presses(recovers=False), Lamp, rows(), is_on, output_dir=tmp_path, name="bad")
    assert read_records(good.directory / "cases.jsonl") == list(good.records)
    result = compare(read_run(bad.directory, []), read_run(good.directory, []))
    assert (result.pairs, result.only_b, result.only_a) == (3, 2, 1)
    assert [json.loads(line)["name"] for line in (tmp_path / "eval.jsonl").read_text().splitlines()] == ["good", "bad"]


def test_evaluations_by_other_rewards_or_limits_are_not_compared(tmp_path):
    def is_on_too(environments, **_):
        return [float(one.on) for one in environments]

    first = evaluate(Presses(), Lamp, rows(), is_on, output_dir=tmp_path, name="a")
    for other in ({"reward_funcs": is_on_too}, {"success_at": 0.5}, {"max_turns": 7}):
        options = {"reward_funcs": is_on, "output_dir": tmp_path / str(other), "name": "b", **other}
        second = evaluate(Presses(), Lamp, rows(), **options)
        with pytest.raises(ValueError, match=r"reward|success_at|max_turns"):
            compare(read_run(first.directory, []), read_run(second.directory, []))


def test_a_folder_is_not_taken_for_another_evaluation(tmp_path):
    evaluate(Presses(), Lamp, rows(), is_on, output_dir=tmp_path, name="a")
    with pytest.raises(RunFileError, match="holds another evaluation"):
        evaluate(Presses(), Lamp, rows(2), is_on, output_dir=tmp_path, name="a")


def test_cases_that_end_at_their_last_turn_are_noted():
    result = evaluate(Presses(), Lamp, rows(), is_on, max_turns=2)
    assert result.notes == ("2 of 3 cases failed at their last turn (max_turns 2)",)
    assert "note: 2 of 3 cases" in str(result)


def test_a_model_is_known_by_its_weights(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from fission_grpo.inference.pretrained import load_starter, starter_path

    model, _ = load_starter()
    options = {"reward_funcs": is_on, "output_dir": tmp_path, "name": "a", "max_new_tokens": 8, "max_turns": 2}
    evaluate(model, Lamp, rows(1), **options)
    again = evaluate(model, Lamp, rows(1), **options)
    assert again.records == tuple(read_records(tmp_path / "eval-a" / "cases.jsonl"))
    by_path = evaluate(starter_path(), Lamp, rows(1), **{**options, "name": "path"})
    replies = [[step.text for step in result.records[0].steps] for result in (again, by_path)]
    assert replies[0] == replies[1]
    with torch.no_grad():
        next(model.parameters()).add_(0.01)
    with pytest.raises(RunFileError, match="holds another evaluation"):
        evaluate(model, Lamp, rows(1), **options)


def test_a_thing_that_is_no_model_is_refused():
    with pytest.raises(UsageError, match="a dict is no folder"):
        evaluate({}, Lamp, rows(), is_on)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_light.py").write_text(SOURCE)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def test_the_command_evaluates_an_own_environment_and_compares(folder, capsys):
    pytest.importorskip("transformers")
    own = ["--environment", "own_light.py:Lamp", "--rows", "rows.jsonl", "--reward", "own_light.py:is_on"]
    short = ["--model", "starter", "--max_new_tokens", "8", "--max_turns", "2"]
    for name in ("a", "b"):
        assert main(["eval", *own, *short, "--output", "runs", "--name", name]) == 0
    assert "3 judged" in capsys.readouterr().out
    tasks = json.loads((folder / "runs" / "eval-a" / "manifest.json").read_text())["tasks"]
    assert (tasks["environment"], tasks["reward"], tasks["success_at"]) == ("Lamp", ["is_on"], 1.0)
    assert main(["compare", "runs/eval-a", "runs/eval-b"]) == 0
    assert "3 cases judged in both" in capsys.readouterr().out
    assert main(["eval", *own, *short, "--reward_weights", "1", "2", "--output", "other"]) == 2
    assert "2 reward_weights for 1 reward_funcs" in capsys.readouterr().err


def test_without_an_output_the_table_is_printed_and_nothing_written(folder, capsys):
    pytest.importorskip("transformers")
    own = ["--environment", "own_light.py:Lamp", "--rows", "rows.jsonl", "--reward", "own_light.py:is_on"]
    before = sorted(folder.iterdir())
    assert main(["eval", *own, "--model", "starter", "--max_new_tokens", "8", "--max_turns", "2"]) == 0
    assert "keep it, for compare: --output RUN_DIR" in capsys.readouterr().out
    assert [path for path in sorted(folder.iterdir()) if path.name != "__pycache__"] == before


@pytest.mark.slow
def test_a_trainer_is_evaluated_as_it_is_and_as_the_folder_that_it_saves(tmp_path):
    pytest.importorskip("trl")
    from trainer_support import desk_trainer

    trainer = desk_trainer(tmp_path / "run", max_steps=1)
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    options = {"reward_funcs": is_on, "output_dir": tmp_path, "max_new_tokens": 8, "max_turns": 2}
    live = evaluate(trainer, Lamp, rows(2), name="live", **options)
    saved = evaluate(tmp_path / "run", Lamp, rows(2), name="saved", **options)
    texts = [[step.text for record in result.records for step in record.steps] for result in (live, saved)]
    assert texts[0] == texts[1]
    lines = [json.loads(line) for line in (tmp_path / "eval.jsonl").read_text().splitlines()]
    assert [(line["name"], line["step"]) for line in lines] == [("live", 1), ("saved", 1)]
    assert lines[0]["generated_tokens"] == lines[1]["generated_tokens"] == trainer.generated_tokens > 0
    compare(read_run(live.directory, []), read_run(saved.directory, []))


def test_the_manifest_says_how_a_policy_of_ones_own_samples(tmp_path):
    policy = Presses()
    policy.temperature, policy.model = 0.3, "pressing-8b"
    evaluate(policy, Lamp, rows(1), is_on, output_dir=tmp_path, temperature=1.0)
    manifest = json.loads((tmp_path / "eval-pressing-8b" / "manifest.json").read_text())
    assert manifest["decoding"] == {"temperature": 0.3, "seed": 0}
    assert manifest["policy"] == {"kind": "Presses", "model": "pressing-8b"}


def test_rows_are_checked_before_the_model_is_loaded_and_claim_no_folder(tmp_path):
    options = {"reward_funcs": is_on, "output_dir": tmp_path, "name": "a"}
    for bad, words in (
        ([], "no rows"),
        ([{"prompt": "Go."}], "row 1: Lamp.reset needs on"),
        ([{"on": 1}], "'prompt'"),
    ):
        with pytest.raises(ValueError, match=words):
            evaluate("/no/such/model", Lamp, bad, **options)
    with pytest.raises(ValueError, match="success_at must be a number"):
        evaluate(Presses(), Lamp, rows(), is_on, success_at=float("nan"))
    assert not list(tmp_path.iterdir())
    assert evaluate(Presses(), Lamp, ROWS, **options).metrics.success.hits == 2


def test_faults_differ_between_rows_without_an_id():
    from fission_grpo import Fault

    many = [{**row, "number": number} for number, row in enumerate(rows(20))]
    hit = evaluate(Presses(), Lamp, many, is_on, faults=[Fault("timeout", 0.4)]).metrics.injected_errors
    assert 3 < hit < 30


def test_an_environment_that_was_edited_is_not_taken_for_the_old_one(folder, capsys):
    pytest.importorskip("transformers")
    own = ["--environment", "own_light.py:Lamp", "--rows", "rows.jsonl", "--reward", "own_light.py:is_on"]
    command = ["eval", *own, "--model", "starter", "--max_new_tokens", "8", "--max_turns", "2", "--output", "runs"]
    light = [sys.executable, "-m", "fission_grpo.cli", *command]
    assert subprocess.run(light, capture_output=True, check=False).returncode == 0
    (folder / "own_light.py").write_text(SOURCE.replace("float(one.on)", "1.0"))
    done = subprocess.run(light, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "the environment or a reward function was edited" in done.stderr


def test_transcripts_replace_no_other_evaluation(tmp_path, capsys):
    evaluate(Presses(), Lamp, rows(), is_on, output_dir=tmp_path, name="a")
    (tmp_path / "t.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "x"}], "success": True}))
    before = (tmp_path / "eval-a" / "cases.jsonl").read_text()
    traces = ["eval", "--traces", str(tmp_path / "t.jsonl"), "--output", str(tmp_path)]
    assert main([*traces, "--name", "a"]) == 2
    assert "holds another evaluation" in capsys.readouterr().err
    assert (tmp_path / "eval-a" / "cases.jsonl").read_text() == before
    assert main([*traces, "--name", "t"]) == 0
    assert json.loads((tmp_path / "eval.jsonl").read_text().splitlines()[-1])["name"] == "t"
    assert main([*traces, "--samples", "2"]) == 2
    assert "leave out --samples" in capsys.readouterr().err


def test_a_folder_named_by_a_dot_has_its_own_name(tmp_path, monkeypatch):
    from fission_grpo.evaluation.evaluate import name_of_model

    monkeypatch.chdir(tmp_path)
    assert name_of_model(".") == tmp_path.name
    assert name_of_model("a/b") == "b"
    assert name_of_model({"kind": "Presses"}) == "policy"


def test_evaluations_by_edited_code_are_compared_with_a_note(tmp_path, folder, capsys):
    from fission_grpo.evaluation.run import read_manifest, write_manifest

    for name in ("a", "b"):
        evaluate(Presses(), Lamp, rows(), is_on, output_dir=folder, name=name)
    manifest = read_manifest(folder / "eval-b")
    assert main(["compare", "eval-a", "eval-b"]) == 0
    assert "was edited" not in capsys.readouterr().out
    write_manifest(folder / "eval-b", replace(manifest, tasks={**manifest.tasks, "code": "0" * 16}))
    assert main(["compare", "eval-a", "eval-b"]) == 0
    assert "reward function was edited between the two" in capsys.readouterr().out
