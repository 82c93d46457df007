"""Configuration files and command lines of `train`: what is taken, and the one line about what is not."""

import math
import os

import pytest

pytest.importorskip("trl")

from fission_grpo.cli.train import make_parser, parse
from fission_grpo.core.errors import UsageError
from fission_grpo.feedback.spec import endpoint_options, make_chain
from fission_grpo.training.arguments import parse_options
from fission_grpo.training.config import FissionGRPOConfig

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


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("seed: 010", "seed", 10),
        ("seed: 1_000", "seed", 1000),
        ("seed: +7", "seed", 7),
        ("seed: 007", "seed", 7),
        ("pad_to_multiple_of: 010", "pad_to_multiple_of", 10),
        ("warmup_steps: 010", "warmup_steps", 10.0),
        ("reward_weights: [010, 1]", "reward_weights", [10.0, 1.0]),
        ("max_grad_norm: .inf", "max_grad_norm", math.inf),
        ("epsilon_high: .inf", "epsilon_high", math.inf),
    ],
)
def test_a_number_is_read_as_on_the_command_line(read, text, name, expected):
    assert getattr(read(text + "\n")[1], name) == expected


@pytest.mark.parametrize(
    "text",
    ["seed: 12:30", "seed: 0x10", "seed: 0b11", "max_steps: 1e3", "max_steps: 1.0", "max_steps: 1:30:00:00",
     "learning_rate: 1:30.5", "warmup_steps: 12:30", "reward_weights: [1:30]", "num_generations: 0o17",
     "max_steps: 1e400"],
)  # fmt: skip
def test_a_number_that_the_command_line_refuses_is_one_line(read, text):
    name = text.split(":")[0]
    with pytest.raises(UsageError, match=rf"c\.yaml: {name} is '.*'; give a (whole )?number"):
        read(text + "\n")


@pytest.mark.parametrize("number", [".inf", "-.inf", "1e400", ".nan", "'inf'"])
@pytest.mark.parametrize("name", ["learning_rate", "temperature", "tool_timeout", "feedback_timeout", "save_steps"])
def test_infinity_is_refused_where_it_makes_no_sense(read, name, number):
    with pytest.raises(ValueError, match=rf"c\.yaml: {name} is -?(inf|nan); give a number"):
        read(f"{name}: {number}\n")


def test_no_item_of_a_list_is_infinite_and_no_number_exceeds_64_bits(read):
    with pytest.raises(ValueError, match="reward_weights is inf; give a number"):
        read("reward_weights: [1, .inf]\n")
    with pytest.raises(ValueError, match="max_steps is too large"):
        read(f"max_steps: 1{'0' * 400}\n")


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("reward_weights: 1", "reward_weights", [1.0]),
        ("reward_weights: 0.5", "reward_weights", [0.5]),
        ("label_names: labels", "label_names", ["labels"]),
        ("include_for_metrics: loss", "include_for_metrics", ["loss"]),
    ],
)
def test_one_value_for_a_list_is_a_list_of_one(read, text, name, expected):
    assert getattr(read(text + "\n")[1], name) == expected


@pytest.mark.parametrize("key", ["on", "no", "~", "1.5", "2026-01-01", "'1'"])
def test_keys_of_mappings_are_words_as_the_file_has_them(read, key):
    _, args, _, _ = read(f"chat_template_kwargs: {{{key}: 2, b: {{{key}: 3}}}}\n")
    word = key.strip("'")
    assert args.chat_template_kwargs == {word: 2, "b": {word: 3}}


@pytest.mark.parametrize("name", ["model_init_kwargs", "chat_template_kwargs", "generation_kwargs"])
def test_a_number_names_no_argument(read, name):
    with pytest.raises(UsageError, match=rf"c\.yaml: {name} has the key 1; keys are the names of arguments"):
        read(f"{name}: {{a: 1, 1: 2}}\n")


def test_numbers_may_be_keys_further_inside(read):
    _, args, _, _ = read("model_init_kwargs: {max_memory: {0: 10GB, cpu: 1GB}}\n")
    assert args.model_init_kwargs == {"max_memory": {0: "10GB", "cpu": "1GB"}}


@pytest.mark.parametrize(("word", "meant"), [("no", "false"), ("Yes", "true"), ("off", "false"), ("010", "8")])
@pytest.mark.parametrize("place", ["{stop: %s}", "{a: {b: %s}}", "{stop: [x, %s]}", "\n  stop: %s"])
def test_a_word_inside_a_mapping_that_yaml_reads_otherwise_is_one_line(read, word, meant, place):
    said = rf"c\.yaml: generation_kwargs\.[\w.\[\]]+ is {word}, which YAML reads as {meant}; .* quote it: '{word}'$"
    with pytest.raises(UsageError, match=said):
        read(f"generation_kwargs: {place % word}\n")
    _, args, _, _ = read(f"generation_kwargs: {place % repr(word)}\n")
    assert word in str(args.generation_kwargs)


def test_a_time_inside_a_mapping_is_refused_and_a_date_is_text(read):
    with pytest.raises(UsageError, match=r"at is 12:30, which YAML reads as 750"):
        read("chat_template_kwargs: {at: 12:30}\n")
    _, args, _, _ = read("chat_template_kwargs: {date: 2026-01-01, bad: 2026-13-45, t: true, n: -1.5, z: 0}\n")
    assert args.chat_template_kwargs == {"date": "2026-01-01", "bad": "2026-13-45", "t": True, "n": -1.5, "z": 0}


@pytest.mark.parametrize("env", ["{'': x}", "{'A=B': x}", '{"A\\0": x}', '{A: "\\0"}'])
def test_a_variable_that_no_system_takes_is_one_line(read, env, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(UsageError, match=r"c\.yaml: env\.'.*' cannot be set"):
        read(f"env: {env}\n")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("{split_batches: true, foo: 1}", "foo"),
        ("{foo: 1}", "foo"),
        ("/x.json", "/x.json"),
        ("'{foo'", "Expecting"),
        ("'[1]'", ""),
    ],
)
def test_wrong_settings_of_the_accelerator_are_one_line_with_the_name(read, value, said):
    with pytest.raises(ValueError, match=r"c\.yaml: accelerator_config is no mapping or JSON file") as error:
        read(f"accelerator_config: {value}\n")
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_no_reports_are_named_none(read):
    for null in ("null", "~", ""):
        with pytest.raises(ValueError, match=r"c\.yaml: report_to is None; set it to none"):
            read(f"report_to: {null}\n")


@pytest.mark.parametrize("option", [["--learning_rate", "inf"], ["--learning_rate=inf"], ["--learning-rate", "inf"]])
def test_the_file_is_not_named_for_a_value_of_the_command_line(read, option):
    with pytest.raises(ValueError, match=r"^learning_rate is inf"):
        read("learning_rate: 1e-6\n", *option)
    with pytest.raises(ValueError, match=r"^learning_rate is inf"):
        read("", *option)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("temperature", 0.0, "above 0"),
        ("temperature", -1.0, "above 0"),
        ("learning_rate", -1.0, "at least 0"),
        ("weight_decay", -0.1, "at least 0"),
        ("top_p", 1.5, "at least 0 and at most 1"),
        ("top_k", -1, "at least 0"),
        ("min_p", 2.0, "at least 0 and at most 1"),
        ("repetition_penalty", 0.0, "above 0"),
        ("beta", -1.0, "at least 0"),
        ("epsilon", -0.2, "at least 0"),
        ("adam_beta1", -1.0, "at least 0 and at most 1"),
        ("adam_epsilon", -1.0, "at least 0"),
        ("max_grad_norm", -1.0, "at least 0"),
        ("num_iterations", 0, "at least 1"),
        ("steps_per_generation", 0, "at least 1"),
        ("top_entropy_quantile", 2.0, "at least 0 and at most 1"),
        ("ref_model_sync_steps", 0, "at least 1"),
        ("max_generated_tokens", -5, "at least 0"),
        ("dataloader_num_workers", -1, "at least 0"),
        ("scale_rewards", "foo", "batch, group, none"),
        ("loss_type", "foo", "one of grpo"),
        ("importance_sampling_level", "foo", "token, sequence"),
    ],
)
def test_a_value_that_no_library_takes_is_refused_before_anything_is_loaded(field, value, said):
    with pytest.raises(ValueError, match=rf"{field} is {value!r}.*{said}"):
        FissionGRPOConfig("x", use_cpu=True, bf16=False, report_to="none", **{field: value})
