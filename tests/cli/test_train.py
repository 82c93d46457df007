"""`fission-grpo train`: what other libraries would refuse in the middle of training is one line before it."""

import json
import os
import re
import shutil
import signal
import sys
from importlib.metadata import version

import pytest
from huggingface_hub.errors import HfHubHTTPError

pytest.importorskip("trl")

from fission_grpo import FissionGRPOTrainer, StopAndSave
from fission_grpo.cli.train import train_command
from fission_grpo.inference.pretrained import load_model, starter_path

BASE = "tasks: desk\nmodel_name_or_path: starter\nuse_cpu: true\nbf16: false\nmax_steps: 1\nreport_to: none\n"
SMALL = "num_generations: 2\nper_device_train_batch_size: 2\nmax_completion_length: 8\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr_scheduler_kwargs: {foo: 1}", "lr_scheduler_kwargs do not fit lr_scheduler_type: .*foo"),
        ("lr_scheduler_kwargs: {num_warmup_steps: 1}", "lr_scheduler_kwargs do not fit .*num_warmup_steps"),
        ("lr_scheduler_kwargs: {min_lr: 1}\nlr_scheduler_type: polynomial", "lr_scheduler_kwargs do not fit .*min_lr"),
        (
            "gradient_checkpointing: true\ngradient_checkpointing_kwargs: {foo: 2}",
            "gradient_checkpointing_kwargs do not .*foo",
        ),
        (
            "gradient_checkpointing: true\ngradient_checkpointing_kwargs: {use_reentrant: true, foo: 2}",
            "gradient_checkpointing_kwargs do not .*foo",
        ),
        ("chat_template_kwargs: {tools: []}", "chat_template_kwargs.tools: this argument is set in training"),
        ("chat_template_kwargs: {tokenize: false}", "chat_template_kwargs.tokenize: this argument is set"),
        ("model_init_kwargs: {foo: 1}", "model_init_kwargs.foo: the model does not know it"),
    ],
)
def test_arguments_that_a_library_does_not_take_are_one_line_with_the_option(tmp_path, capsys, text, said):
    path = tmp_path / "c.yaml"
    path.write_text(f"{BASE}{SMALL}output_dir: {tmp_path / 'run'}\n{text}\n")
    assert train_command(["--config", str(path)]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.match(f"error: {said}", line)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("temperature: 0", "temperature is 0.0, but must be above 0"),
        ("learning_rate: -1", "learning_rate is -1.0, but must be at least 0"),
        ("adam_beta1: 1", "optim, optim_args, learning_rate or adam_.*: Invalid beta"),
        ("optim_args: foo", "optim, optim_args, learning_rate or adam_"),
        ("optim: adamw_bnb_8bit", "optim, optim_args, .*bitsandbytes"),
        ("lr_scheduler_type: cosine_with_min_lr", "lr_scheduler_kwargs do not fit lr_scheduler_type"),
        ("num_tasks: 1000000000000", "num_tasks is 1000000000000, but of 'desk' at most 100000"),
        (
            "num_tasks: 1\nper_device_train_batch_size: 4",
            "train_dataset has 1 rows, but a generation batch .* takes 2 ",
        ),
        ("max_steps: -1\nnum_train_epochs: 0", "training ended without a step"),
    ],
)
def test_numbers_that_a_library_would_refuse_later_are_one_line(tmp_path, capsys, text, said):
    path = tmp_path / "c.yaml"
    keys = {line.split(":")[0] for line in text.splitlines()}
    common = "".join(line + "\n" for line in (BASE + SMALL).splitlines() if line.split(":")[0] not in keys)
    path.write_text(f"{common}output_dir: {tmp_path / 'run'}\n{text}\n")
    assert train_command(["--config", str(path)]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.match(f"error: ({path}: )?{said}", line)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def spoil(folder, name):
    """Damage a file of a model folder."""
    path = folder / name
    if name == "config.json: size":
        config = json.loads((folder / "config.json").read_text()) | {"hidden_size": "wide"}
        (folder / "config.json").write_text(json.dumps(config))
    elif name == "header":
        path = folder / "model.safetensors"
        path.write_bytes(b"\xff" * 64 + path.read_bytes()[64:])
    elif name == "cut":
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1000])
    else:
        path.write_text("[3]" if name == "tokenizer_config.json" else '{"a"')


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("config.json", r"config\.json"),
        ("config.json: size", "cannot be loaded"),
        ("tokenizer.json", r"tokenizer\.json is damaged"),
        ("tokenizer_config.json", r"tokenizer_config\.json is damaged"),
        ("header", r"model\.safetensors is damaged"),
        ("cut", r"model\.safetensors is damaged"),
    ],
)
def test_a_damaged_file_of_a_model_is_one_line_that_names_it(tmp_path, capsys, name, said):
    model = shutil.copytree(starter_path(), tmp_path / "model")
    spoil(model, name)
    path = tmp_path / "c.yaml"
    text = (BASE + SMALL).replace("model_name_or_path: starter", f"model_name_or_path: {model}")
    path.write_text(f"{text}output_dir: {tmp_path / 'run'}\n")
    assert train_command(["--config", str(path)]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.match(f"error: model: .*{said}", line)
    with pytest.raises(ValueError, match=said):
        load_model(str(model))


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("kernel", ["evil/kernel", "kernels-community/flash-attn@v1:f", {"": "evil/kernel"}])
def test_a_model_that_names_a_kernel_of_the_hub_is_refused(tmp_path, capsys, key, kernel):
    model = shutil.copytree(starter_path(), tmp_path / "model")
    config = json.loads((model / "config.json").read_text()) | {key: kernel}
    (model / "config.json").write_text(json.dumps(config))
    said = rf"config\.json, field '{key}' names '.*/.*', an attention kernel of the hub"
    with pytest.raises(ValueError, match=said):
        load_model(str(model))
    path = tmp_path / "c.yaml"
    text = (BASE + SMALL).replace("model_name_or_path: starter", f"model_name_or_path: {model}")
    path.write_text(f"{text}output_dir: {tmp_path / 'run'}\n")
    assert train_command(["--config", str(path)]) == 2
    assert re.search(said, capsys.readouterr().err)


def test_a_finished_run_is_saved_again_and_said_so_and_a_token_is_written_nowhere(tmp_path, capsys, monkeypatch):
    path = tmp_path / "c.yaml"
    path.write_text(
        f"{BASE}{SMALL}num_tasks: 4\nsave_steps: 1\nsave_strategy: steps\noutput_dir: {tmp_path / 'run'}\n"
    )
    assert train_command(["--config", str(path), "--hub_token", "hf_secretive"]) == 0
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    (tmp_path / "run" / "model.safetensors").unlink()
    again = ["--config", str(path), "--hub_token", "hf_secretive", "--resume_from_checkpoint", "true"]
    monkeypatch.setattr(sys, "argv", ["/bin/fission-grpo", "train", *again])
    assert train_command(again) == 0
    assert "the run was at its end, step 1: no training, the model is saved again" in capsys.readouterr().out
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert {"training_args.bin", "fission_state.json"} <= {file.name for file in files}
    assert [file.name for file in files if b"hf_secretive" in file.read_bytes()] == []
    described = json.loads((tmp_path / "run" / "fission_run.json").read_text())
    command = f"fission-grpo train --config {path} --hub_token '***' --resume_from_checkpoint true"
    assert (described["command"], described["tasks"], described["parameters"]) == (command, "desk", 1099712)
    assert described["settings"]["num_generations"] == 2
    assert described["versions"]["trl"] == version("trl")


@pytest.mark.parametrize("place", ["init_hf_repo", "push_to_hub"])
def test_a_hub_that_cannot_be_reached_is_one_line_and_what_was_trained_is_saved(tmp_path, capsys, monkeypatch, place):
    def refuse(*_, **__):
        raise HfHubHTTPError.__bases__[0]("[Errno -2] Name or service not known")

    for name in ("init_hf_repo", "push_to_hub"):
        monkeypatch.setattr(FissionGRPOTrainer, name, refuse if name == place else lambda *_, **__: None)
    path = tmp_path / "c.yaml"
    path.write_text(
        f"{BASE}{SMALL}num_tasks: 4\nsave_strategy: 'no'\npush_to_hub: true\noutput_dir: {tmp_path / 'r'}\n"
    )
    assert train_command(["--config", str(path)]) == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: the hub cannot be used ([Errno -2] Name or service not known)")
    saved = {"model.safetensors", "trainer_state.json"} & {file.name for file in (tmp_path / "r").iterdir()}
    assert len(saved) == (2 if place == "push_to_hub" else 0)


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1", "SIGTERM", "SIGINT"])
def test_a_signal_asks_for_a_save_and_handlers_come_back(name):
    number, before = getattr(signal, name), signal.getsignal(getattr(signal, name))
    with StopAndSave() as stop:
        os.kill(os.getpid(), number)
        assert stop.signal == number
        if number not in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)  # shells and terminals both send SIGHUP: the save goes on
    assert signal.getsignal(number) == before


def test_a_signal_that_is_ignored_or_handled_by_others_is_left_alone():
    mine = [signal.SIG_IGN, lambda *_: None]
    for handler in mine:
        before = {number: signal.signal(number, handler) for number in (signal.SIGHUP, signal.SIGUSR1)}
        try:
            with StopAndSave():
                assert [signal.getsignal(number) for number in before] == [handler] * 2
        finally:
            for number, old in before.items():
                signal.signal(number, old)
