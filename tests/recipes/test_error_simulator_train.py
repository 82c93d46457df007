"""`fission-grpo simulator data`, `train` and `check` on a tiny model, and the trained model as a feedback source."""

import json
import os
import random
import signal
from dataclasses import replace

import pytest

pytest.importorskip("trl")

import torch
from transformers import TrainerCallback

from fission_grpo.cli.simulator import simulator_command
from fission_grpo.core.chat import parse, render_call
from fission_grpo.core.types import (
    ErrorKind,
    Failure,
    Task,
    ToolCall,
)
from fission_grpo.feedback.dataset import load_examples, make_example, write_examples
from fission_grpo.feedback.local_model import LocalModelFeedback
from fission_grpo.feedback.prompt import SHORT_SYSTEM, SYSTEM, PromptSettings, read_settings, write_settings
from fission_grpo.feedback.request import FeedbackRequest
from fission_grpo.feedback.rules import rules
from fission_grpo.feedback.sources import Diagnosis
from fission_grpo.feedback.spec import make_chain
from fission_grpo.recipes.error_simulator.train import make_trainer, read_rows, train_command
from fission_grpo.recipes.error_simulator.train import parse as parse_options
from fission_grpo.training.callbacks import StopAndSave

SMALL = [
    "--characters",
    "300",
    "--brief",
    "true",
    "--system",
    "short",
    "--per_device_train_batch_size",
    "2",
    "--evaluate_rows",
    "0",
]
MACHINE = ["--use_cpu", "true", "--seed", "3"]
NAMES = {"travel": ("book", "to", "seats"), "notes": ("save", "title", "page")}


def labelled(count, api, seed=0):
    """Failures of one tool: a wrong value, a missing argument or a wrong type in turn, labelled by the rules."""
    draw = random.Random(seed)
    name, word, number = NAMES[api]
    properties = {word: {"type": "string"}, number: {"type": "integer"}}
    tool = {"name": name, "parameters": {"type": "object", "properties": properties, "required": [word, number]}}
    made = []
    for i in range(count):
        right = {word: draw.choice(["Rome", "Oslo", "Lima", "Kyiv"]), number: draw.randint(1, 99)}
        wrong = [{**right, word: f"Nowhere{i}"}, {word: right[word]}, {**right, number: "many"}][i % 3]
        kind = ErrorKind.WRONG_CALL if i % 3 == 0 else ErrorKind.BAD_ARGUMENTS
        detail = ["", f"missing required argument `{number}`", f"`{number}` must be an integer, got 'many'"][i % 3]
        task = Task(f"{api}-{i}", ({"role": "user", "content": "Do it."},), (tool,), (ToolCall(name, right),))
        turn = parse(render_call(ToolCall(name, wrong)))
        failure = Failure(task, (turn,), kind, detail, None if i % 3 == 0 else 0)
        made.append(replace(make_example(failure, api, "corruption"), diagnosis=rules(failure) or "", teacher="rules"))
    return made


def write_tasks(path):
    """Step tasks of two tools: 12 about `book` to train on, 4 about `save` to test on."""
    rows = []
    for one in (*labelled(12, "travel"), *labelled(4, "notes")):
        task = one.failure.task
        reference = [{"name": call.name, "arguments": call.arguments} for call in task.reference]
        rows.append({"id": one.id, "messages": task.prompt, "tools": task.tools, "reference": reference})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """What `simulator data` writes: 60 failures of `book`, 6 of `save`."""
    folder = tmp_path_factory.mktemp("data")
    write_tasks(folder / "tasks.jsonl")
    options = "--count 66 --test_share 0.091 --test_apis save --each 8"
    assert (
        simulator_command(["data", "--tasks", str(folder / "tasks.jsonl"), "--output", str(folder), *options.split()])
        == 0
    )
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A run of 12 steps, 8 an epoch, with a checkpoint after 10."""
    folder = tmp_path_factory.mktemp("run") / "simulator"
    options = "--max_steps 12 --save_steps 10 --logging_steps 1 --per_device_train_batch_size 4 --evaluate_rows 3"
    options += " --max_rows 30"
    given = ["--data", str(data), "--model", "tiny", "--output", str(folder), *MACHINE, *options.split()]
    assert train_command(given) == 0
    return folder, given


def test_the_trained_model_is_checked_on_the_data_and_with_a_policy(trained, data, tmp_path, capsys):
    argv = ["--data", str(data), "--source", f"local:{trained[0]},rules", "--output", str(tmp_path), "--count", "2"]
    useful = ["--usefulness", str(data / "test.jsonl"), "--policy", "starter", "--samples", "1", "--limit", "1"]
    assert simulator_command(["check", *argv, *useful, "--max_new_tokens", "2"]) == 0
    shown = capsys.readouterr().out
    assert "unseen APIs" in shown
    groups = json.loads((tmp_path / "check.json").read_text())["groups"]
    assert [(group["name"], group["answered"]["hits"]) for group in groups] == [("seen APIs", 2), ("unseen APIs", 2)]
    sources = json.loads((tmp_path / "usefulness.json").read_text())["sources"]
    assert [(row["source"], row["success"]["of"]) for row in sources] == [
        (name, 1) for name in ("none", "fixed", "rules", "environment", f"local:{trained[0]},rules", "shuffled")
    ]
    assert "over shuffled" in shown


def failures(count=3):
    return [one.failure for one in labelled(count, "notes", seed=5)]


def test_the_loss_falls_and_the_record_says_what_was_done(trained):
    record = json.loads((trained[0] / "training.json").read_text())
    losses = [one["loss"] for one in record["losses"]]
    assert len(losses) == record["steps"] == 12
    assert losses[-1] < 0.7 * losses[0]
    assert record["rows"] == {"train": 30, "seen": 3, "unseen": 3}
    assert record["evaluation_loss"].keys() == record["trial"].keys() == {"seen", "unseen"}
    assert record["trial"]["unseen"]["rows"] == 3


def test_a_resumed_run_ends_with_the_same_weights(trained, tmp_path):
    folder, given = trained
    others = [str(tmp_path) if word == str(folder) else word for word in given]
    assert train_command([*others, "--resume_from_checkpoint", str(folder / "checkpoint-10")]) == 0
    again, once = (LocalModelFeedback(str(path)) for path in (tmp_path, folder))
    for source in (again, once):
        source.check()
    one, two = (source._policy.model.state_dict() for source in (again, once))  # pyright: ignore
    assert all(torch.equal(one[name], two[name]) for name in two)


def test_ctrl_c_ends_training_with_a_checkpoint(trained, data, tmp_path):
    class Press(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 1:
                os.kill(os.getpid(), signal.SIGINT)

    given = ["--data", str(data), "--model", str(trained[0]), "--output", str(tmp_path), *MACHINE, *SMALL]
    trainer, *_ = make_trainer(*parse_options([*given, "--max_steps", "5", "--save_strategy", "no"]))
    trainer.add_callback(Press())
    with StopAndSave() as stop:
        trainer.add_callback(stop)
        trainer.train()
    assert (stop.signal, trainer.state.global_step) == (signal.SIGINT, 2)
    assert (tmp_path / "checkpoint-2" / "simulator.json").is_file()


def test_only_the_diagnosis_carries_loss(trained, data, tmp_path):
    script, args, model = parse_options(
        ["--data", str(data), "--model", str(trained[0]), "--output", str(tmp_path), *MACHINE]
    )
    trainer, rows, _ = make_trainer(script, args, model)
    row = trainer.train_dataset[0]
    tokenizer = trainer.processing_class
    own = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    assert tokenizer.decode(own) == rows.train[0].diagnosis + "<|im_end|>\n"
    batch = {key: torch.tensor([row[key]]) for key in ("input_ids", "labels")}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    trainer.model.train()
    with torch.no_grad():
        logits = trainer.model(input_ids=batch["input_ids"]).logits[0, :-1].log_softmax(-1)
        said = [(i, label) for i, label in enumerate(row["labels"][1:]) if label != -100]
        by_hand = -sum(logits[i, label].item() for i, label in said) / len(said)
        assert trainer.compute_loss(trainer.model, dict(batch)).item() == pytest.approx(by_hand, rel=1e-4)


def test_an_adapter_is_trained_and_its_folder_is_a_source(trained, data, tmp_path):
    pytest.importorskip("peft")
    options = "--use_peft true --lora_target_modules q_proj v_proj --max_steps 1 --evaluate_rows 0 --characters 300"
    options += " --per_device_train_batch_size 2"
    given = ["--data", str(data), "--model", str(trained[0]), "--output", str(tmp_path), *MACHINE, *options.split()]
    assert train_command(given) == 0
    assert (tmp_path / "adapter_config.json").is_file()
    assert not (tmp_path / "model.safetensors").exists()
    source = LocalModelFeedback(str(tmp_path))
    source.check()
    assert replace(read_settings(tmp_path), templates={}) == PromptSettings(SYSTEM, 300, False)
    assert len(FeedbackRequest(failures(), [source]).feedback()) == 3


def test_the_saved_folder_answers_in_a_chain_with_its_own_prompt_settings(trained):
    settings = read_settings(trained[0])
    assert replace(settings, templates={}) == PromptSettings(SHORT_SYSTEM, 400, True)
    assert settings.templates == {name: [] for name in settings.templates}  # schemas give no value away
    assert "missing required argument `seats`" in settings.templates
    source = LocalModelFeedback(str(trained[0]), max_new_tokens=8)
    unreadable = Failure(failures()[0].task, (parse("<tool_call>{"),), ErrorKind.UNPARSED, "unclosed <tool_call>")
    asked = [*failures(), failures()[0], unreadable]
    feedback = FeedbackRequest(asked, [source, *make_chain("rules")]).feedback()
    assert source._settings == settings
    assert all(told.source in ("local", "rules") for told in feedback)
    assert (feedback[4].source, feedback[4].rejected) == ("rules", ())  # left to the rules, counted nowhere
    assert feedback[0] == feedback[3]
    counts = source.counts()
    assert (counts["feedback/model/requests"], counts["feedback/model/cache_hits"]) == (3, 1)
    source.start(asked)
    assert (source.counts()["feedback/model/requests"], source.counts()) == (0, {})


def test_a_failure_that_breaks_the_prompt_costs_one_diagnosis(trained):
    source = LocalModelFeedback(str(trained[0]), max_new_tokens=4)
    source.check()
    template = source._policy.tokenizer.chat_template  # pyright: ignore
    source._policy.tokenizer.chat_template = (  # pyright: ignore
        "{% for m in messages %}{% if 'Nowhere' in m.content %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
        + template
    )
    answers = [future.result() for future in source.start(failures())]
    assert answers[0] == Diagnosis(None, "raised ValueError")
    assert not any((answer.reason or "").startswith("raised") for answer in answers[1:])


def test_a_prompt_beyond_the_context_is_no_diagnosis(trained):
    source = LocalModelFeedback(str(trained[0]), settings=PromptSettings(SHORT_SYSTEM, 9000))
    long = replace(failures()[0].task, prompt=({"role": "user", "content": "a b " * 4000},))
    assert source.start([replace(failures()[0], task=long)])[0].result() == Diagnosis(None, "prompt too long")


def test_a_folder_without_a_model_is_refused_before_the_run(tmp_path, trained):
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        LocalModelFeedback(str(tmp_path)).check()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be loaded"):
        LocalModelFeedback(str(tmp_path)).check()
    assert LocalModelFeedback(str(tmp_path)).start(failures(1))[0].result() == Diagnosis(None, "raised ValueError")
    source = LocalModelFeedback(str(trained[0]))
    source._load().tokenizer.chat_template = None
    with pytest.raises(ValueError, match="has no chat template"):
        source.check()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "simulator.json: not JSON"),
        ('{"system": "x"}', "must be an object with system, characters, brief"),
        ('{"system": "x", "characters": "9", "brief": true}', "field 'characters' must be int, got '9'"),
        (
            '{"system": "x", "characters": 9, "brief": true, "templates": {"no _": "all"}}',
            "'templates': 'no _' must have a list of texts, got 'all'",
        ),
    ],
)
def test_broken_prompt_settings_are_named(text, expected, tmp_path):
    (tmp_path / "simulator.json").write_text(text)
    with pytest.raises(ValueError, match=expected):
        read_settings(tmp_path)


def test_prompt_settings_are_read_back(tmp_path):
    settings = PromptSettings("Say why.", 77, True, {"no file _": ["the value of `name`"]})
    write_settings(tmp_path / "new", settings)
    assert read_settings(tmp_path / "new") == settings
    assert read_settings(tmp_path) == PromptSettings()


def test_rows_of_kinds_left_to_rules_are_not_trained_on(tmp_path):
    some = labelled(20, "travel")
    some[0] = replace(some[0], failure=replace(some[0].failure, kind=ErrorKind.UNPARSED))
    write_examples(tmp_path / "train.jsonl", some)
    rows = read_rows(str(tmp_path), seed=0, max_rows=5, evaluate_rows=10)
    assert (len(rows.train), len(rows.seen), rows.unseen, rows.left_to_rules) == (5, 1, [], 1)  # a tenth of 19 is 1
    assert not {one.id for one in rows.train} & {one.id for one in rows.seen}
    assert len(load_examples(tmp_path / "train.jsonl")) == 20


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "model is missing"),
        (["--model", "starter-size", "--data", "DATA"], "model 'starter-size' is now called 'tiny'"),
        (["--model", "tiny"], "data is missing"),
        (["--model", "tiny", "--data", "nowhere"], "train.jsonl: cannot be read"),
        (["--model", "tiny", "--data", "EMPTY"], "train.jsonl: no examples in it"),
        (["--model", "tiny", "--data", "BAD"], "train.jsonl, row 2, field 'kind': must be one of"),
        (["--model", "tiny", "--data", "BARE"], "field 'diagnosis': is empty; label it first"),
        (["--model", "./nowhere", "--data", "DATA"], "the folder ./nowhere does not exist"),
        (["--model", "tiny", "--data", "DATA", "--max_length", "20"], "every row is longer than 20 tokens"),
        (["--model", "tiny", "--data", "DATA", "--max_rows", "-1"], "max_rows, evaluate_rows"),
        (["--model", "tiny", "--datta", "DATA"], "unknown option '--datta' (did you mean data"),
        (["--model=tiny", "--data", "DATA", "--resume_from_checkpoint", "true"], "no checkpoint-* in"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_found_before_training(options, expected, data, tmp_path, capsys):
    lines = (data / "train.jsonl").read_text().splitlines()
    second = json.loads(lines[1])
    broken = {"EMPTY": "", "BAD": {**second, "kind": "odd"}, "BARE": {**second, "diagnosis": ""}}
    for name, row in broken.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "tools.json").write_text((data / "tools.json").read_text())
        (tmp_path / name / "train.jsonl").write_text(f"{lines[0]}\n{json.dumps(row)}\n" if row else "")
    places = {name: str(tmp_path / name) for name in broken} | {"DATA": str(data)}
    output = ["--output", str(tmp_path / "out"), *MACHINE]
    assert train_command([*output, *(places.get(word, word) for word in options)]) == 2
    assert expected in capsys.readouterr().err.splitlines()[-1]
