"""`fission-grpo train`: what other libraries would refuse in the middle of training is one line before it."""

import re

import pytest

pytest.importorskip("trl")

from fission_grpo.cli.train import train_command

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
