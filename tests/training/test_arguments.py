"""Configuration files and command lines of `train`: what is taken, and the one line about what is not."""

import os

import pytest

pytest.importorskip("trl")

from fission_grpo.cli.train import make_parser, parse
from fission_grpo.core.errors import UsageError
from fission_grpo.feedback.spec import endpoint_options, make_chain
from fission_grpo.training.arguments import parse_options

BASE = "tasks: desk\nmodel_name_or_path: starter\noutput_dir: out\nuse_cpu: true\nbf16: false\n"


@pytest.fixture
def read(tmp_path):
    """Parse the lines of a YAML file; gives the four dataclasses."""

    def read(text, *more):
        path = tmp_path / "c.yaml"
        path.write_text(BASE + text)
        return parse(["--config", str(path), *more])

    return read


MAPPINGS = [
    ("model_init_kwargs", "{attn_implementation: sdpa}", {"attn_implementation": "sdpa"}),
    ("gradient_checkpointing_kwargs", "{use_reentrant: false}", {"use_reentrant": False}),
    ("chat_template_kwargs", "{enable_thinking: false}", {"enable_thinking": False}),
    ("generation_kwargs", "{min_p: 0.1, stop_strings: [a, b]}", {"min_p": 0.1, "stop_strings": ["a", "b"]}),
    ("lr_scheduler_kwargs", "\n  min_lr: 1e-7\n  num_cycles: 2", {"min_lr": 1e-7, "num_cycles": 2}),
    ("transformers_continuous_batching_config", "{}", {}),
    ("liger_kernel_config", "{rope: true}", {"rope": True}),
    ("fsdp_config", "{min_num_params: 0}", {"min_num_params": 0}),
]


@pytest.mark.parametrize(("name", "text", "expected"), MAPPINGS, ids=[name for name, *_ in MAPPINGS])
def test_a_mapping_in_the_file_is_taken(read, name, text, expected):
    _, args, _, _ = read(f"{name}: {text}\n")
    given = getattr(args, name, None) or getattr(
        args, "activation_checkpointing_kwargs", None
    )  # renamed in transformers
    assert {key: given[key] for key in expected} == expected


def test_the_accelerators_settings_are_taken(read):
    _, args, _, _ = read("accelerator_config: {split_batches: false, use_seedable_sampler: false}\n")
    assert args.accelerator_config.use_seedable_sampler is False


def test_a_feedback_models_settings_are_taken_as_a_mapping_and_as_text(read):
    expected = ("http://localhost:8000/v1", 4)
    for text in (
        "feedback_model:\n  url: http://localhost:8000/v1\n  concurrency: 4",
        'feedback_model: \'{"url": "http://localhost:8000/v1", "concurrency": 4}\'',
    ):
        url, options = endpoint_options(read(text + "\n")[0].feedback_model)
        assert (url, options.concurrency) == expected


@pytest.mark.parametrize("name", ["generation_kwargs", "lr_scheduler_kwargs", "model_init_kwargs"])
@pytest.mark.parametrize("value", ["fast", "[1, 2]", "3", "yes", "'{a: 1'"])
def test_what_is_no_mapping_is_one_line(read, name, value):
    with pytest.raises(UsageError, match=rf"c\.yaml: {name} ") as error:
        read(f"{name}: {value}\n")
    assert len(str(error.value).splitlines()) == 1


def test_a_mapping_on_the_command_line_is_json(read, capsys):
    _, args, _, _ = read("", "--generation_kwargs", '{"min_p": 0.1}')
    assert args.generation_kwargs == {"min_p": 0.1}
    with pytest.raises(SystemExit):
        read("", "--generation_kwargs", "min_p")
    assert "--generation_kwargs" in capsys.readouterr().err.splitlines()[-1]


def test_a_second_parser_reads_mappings_as_the_first_did(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(BASE + "generation_kwargs: {min_p: 0.1}\n")
    for _ in range(2):  # making a parser changes the types that the dataclasses' fields show
        make_parser()
        assert parse_options(make_parser(), ["--config", str(path)])[1].generation_kwargs == {"min_p": 0.1}


@pytest.mark.parametrize(
    "text", ["feedback: environment,rules", "feedback: [environment, rules]", "feedback:\n- environment\n- rules"]
)
def test_a_chain_of_sources_is_the_same_as_text_and_as_a_list(read, text):
    assert [source.name for source in make_chain(read(text + "\n")[0].feedback)] == ["environment", "rules"]


@pytest.mark.parametrize("words", [["environment,rules"], ["environment", "rules"]])
def test_a_chain_of_sources_on_the_command_line(read, words):
    script, *_ = read("", "--feedback", *words)
    assert [source.name for source in make_chain(script.feedback)] == ["environment", "rules"]


@pytest.mark.parametrize("word", ["no", "No", "NO", "'no'"])
@pytest.mark.parametrize("name", ["save_strategy", "eval_strategy", "logging_strategy"])
def test_the_bare_word_no_is_a_strategy(read, name, word):
    _, args, _, _ = read(f"{name}: {word}\n")
    assert getattr(args, name).value == "no"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("save_strategy: off", r"save_strategy is 'off'; give one of no, steps, epoch, best"),
        ("save_strategy: false", r"save_strategy is 'false'; give one of no, steps"),
        ("lr_scheduler_type: yes", r"lr_scheduler_type is 'yes'; give one of linear"),
        ("save_strategy: sometimes", r"save_strategy is 'sometimes'; give one of no, steps"),
        ("run_name: on", r"run_name is true, as YAML reads the word on as true; to mean the word, quote it: 'on'"),
        ("buffer_order: no", r"buffer_order is false, as YAML reads the word no as false.*quote it: 'no'"),
        ("feedback: yes", r"feedback is true, as YAML .*quote it: 'yes'"),
        ("feedback: [rules, no]", r"feedback is false, as YAML .*quote it: 'no'"),
        ("lora_target_modules: [q_proj, off]", r"lora_target_modules is false"),
        ("max_steps: yes", "max_steps is true; give a whole number"),
        ("max_steps:", "max_steps is empty; give it a value"),
        ("save_strategy: ~", "save_strategy is empty"),
        ("num_generations: {a: 1}", "num_generations is a dict"),
        ("learning_rate: [1]", "learning_rate is a list"),
        ("reward_weights: [1, x]", "reward_weights is 'x'; give a number"),
        ("report_to: [none, ~]", "report_to has an empty item"),
        ("run_name: !!set {a}", "run_name is a set"),
        ("env: [1]", "env must be a mapping"),
        ("env: {A: [1]}", r"env\.A must be one word"),
        ("run_name: &a [*a]", "not YAML"),
        ("run_name: 2026-13-45", "not YAML"),
        ("? [a]\n: b", "c.yaml"),
    ],
)
def test_a_wrong_word_is_one_line_with_the_name_and_the_fix(read, text, said):
    with pytest.raises(UsageError, match=said) as error:
        read(text + "\n")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("word", ["010", "1_000", "12:30", "2026-11-29", "1e3", "3.10", "0x1f", "~x"])
def test_text_that_looks_like_another_type_is_taken_as_it_stands(read, word):
    _, args, model, _ = read(f"run_name: {word}\nmodel_revision: {word}\n")
    assert (args.run_name, model.model_revision) == (word, word)


def test_flags_that_text_options_also_take_remain_flags(read):
    _, args, _, _ = read("scale_rewards: false\nresume_from_checkpoint: yes\n")
    assert (args.scale_rewards, args.resume_from_checkpoint) == ("none", True)


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("learning_rate: 1e-6", "learning_rate", 1e-6),
        ("learning_rate: '1e-6'", "learning_rate", 1e-6),
        ("learning_rate: 1.e-6", "learning_rate", 1e-6),
        ("max_steps: '8'", "max_steps", 8),
        ("reward_weights: [1e-1, '2']", "reward_weights", [0.1, 2.0]),
        ("report_to: [none]", "report_to", []),
        ("log_completions: 'yes'", "log_completions", True),
        ("min_buffered: null", "min_buffered", None),
    ],
)
def test_numbers_lists_and_flags_are_read_as_meant(read, text, name, expected):
    assert getattr(read(text + "\n")[1], name) == expected


def test_environment_variables_hold_the_words_of_the_file(read, monkeypatch):
    for name in ("MY_FLAG", "MY_NUMBER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    read("env: {MY_FLAG: no, MY_NUMBER: 010}\n")
    assert (os.environ["MY_FLAG"], os.environ["MY_NUMBER"]) == ("no", "010")


def test_merged_keys_can_be_overridden(read):
    _, args, _, _ = read(
        "generation_kwargs: &shared {top_k: 1, min_p: 0.1}\nlr_scheduler_kwargs: {<<: *shared, min_p: 1}\n"
    )
    assert args.lr_scheduler_kwargs == {"top_k": 1, "min_p": 1}
    _, args, _, _ = read("<<: {run_name: a, seed: 3}\nrun_name: b\n")
    assert (args.run_name, args.seed) == ("b", 3)


@pytest.mark.parametrize(
    "settings", ["{url: 3}", "{cache: on}", "{shots: 3}", "{system: no}", "{raw: 0}", "{concurrency: yes}"]
)
def test_a_feedback_models_settings_of_the_wrong_type_are_one_line(read, settings):
    with pytest.raises(ValueError, match=settings[1:].split(":")[0]) as error:
        endpoint_options(read(f"feedback_model: {settings}\n")[0].feedback_model)
    assert len(str(error.value).splitlines()) == 1
