"""The shipped policy: it loads, TRL can use it, and it is as good and as bad as documented."""

import hashlib
import json
import subprocess
import sys

import pytest

pytest.importorskip("trl")

from fission_grpo.core.chat import parse, render_call
from fission_grpo.core.types import ToolCall
from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.desk.tasks import make_rows
from fission_grpo.envs.wrapper import tool_methods
from fission_grpo.evaluation.episodes import ToolSchemas
from fission_grpo.evaluation.evaluate import evaluate
from fission_grpo.inference.base import Request
from fission_grpo.inference.local import LocalPolicy, continued_text
from fission_grpo.inference.pretrained import load_starter, starter_path
from fission_grpo.recipes.starter_policy.desk_demos import MIXED, demonstrations
from fission_grpo.recipes.starter_policy.train import TrainConfig, desk_demonstrations, make_starter, train_starter
from fission_grpo.training.trl_compat import parser_knows_tools

TOOLS = list(tool_methods(Desk()).values())
SCHEMAS = ToolSchemas(tool_methods(Desk()))


@pytest.fixture(scope="module")
def starter():
    return load_starter()


def test_the_folder_is_small_and_holds_safetensors():
    files = list(starter_path().iterdir())
    assert sum(file.stat().st_size for file in files) <= 10 * 2**20
    assert {"model.safetensors", "config.json", "tokenizer.json", "training.json"} <= {file.name for file in files}


def test_it_is_a_qwen3_of_one_to_five_million_parameters_with_tied_embeddings(starter):
    model, tokenizer = starter
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert 1_000_000 <= sum(weight.numel() for weight in model.parameters()) <= 5_000_000
    assert model.config.tie_word_embeddings
    assert len(tokenizer) <= model.config.vocab_size <= 1000


def test_trl_takes_the_tokenizer_as_it_was_saved(starter):
    from trl.chat_template_utils import (
        has_generation_markers,
        is_chat_template_prefix_preserving,
        is_chat_template_stop_token_trained,
        parse_response,
        qwen3_template,
        supports_tool_calling,
    )

    _, tokenizer = starter
    assert tokenizer.response_template == qwen3_template
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert supports_tool_calling(tokenizer)
    assert is_chat_template_prefix_preserving(tokenizer)
    assert has_generation_markers(tokenizer.chat_template)
    assert is_chat_template_stop_token_trained(tokenizer)
    call = ToolCall("move_file", {"name": "plan_7.txt", "folder": "home"})
    ids = tokenizer(render_call(call) + "<|im_end|>")["input_ids"]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tools=TOOLS, add_generation_prompt=True, tokenize=False
    )
    given = {"tools": TOOLS} if parser_knows_tools() else {}
    parsed = parse_response(tokenizer, ids, prefix=tokenizer(prompt)["input_ids"], **given)
    assert parsed["tool_calls"][0]["function"] == {"name": call.name, "arguments": call.arguments}
    assert parse(tokenizer.decode(ids, skip_special_tokens=True)).calls == (call,)


def test_any_text_survives_the_tokenizer(starter):
    _, tokenizer = starter
    for text in [
        "é 漢字 \U0001f600\n\t",
        "Move  plan_7.txt to home.",
        "<tool_call>\n{}\n</tool_call>",
        "a\x00b",
        "'\"}}",
    ]:
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_a_prompt_shows_the_tools_as_signatures_and_is_short(starter):
    _, tokenizer = starter
    for row in make_rows(16, 0, "held_out"):
        text = continued_text(tokenizer, row["prompt"], SCHEMAS)
        assert "Tools: add_event(title, date, time) cancel_event(event_id) delete_file(name)" in text
        assert len(tokenizer(text)["input_ids"]) <= 130


def test_dialogues_are_continued_as_the_template_renders_them_and_as_trl_concatenates_them(starter):
    _, tokenizer = starter
    for dialogue in demonstrations(16, 1, MIXED):
        rendered = tokenizer.apply_chat_template(
            dialogue[:-1], tools=TOOLS, add_generation_prompt=True, tokenize=False
        )
        assert continued_text(tokenizer, dialogue[:-1], SCHEMAS) == rendered
        # TRL: prompt ids + completion ids (up to the end of turn) + ids of what follows it
        opening = continued_text(tokenizer, dialogue[:1], SCHEMAS)
        turn = dialogue[1]["content"] + tokenizer.eos_token
        rest = continued_text(tokenizer, dialogue[:3], SCHEMAS).removeprefix(opening + turn)
        pieces = [tokenizer(part)["input_ids"] for part in (opening, turn, rest)]
        assert [token for piece in pieces for token in piece] == tokenizer(opening + turn + rest)["input_ids"]


def test_what_the_policy_wrote_is_kept_to_the_letter(starter):
    _, tokenizer = starter
    odd = "  <tool_call>{}</tool_call>\n\n "
    dialogue = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": odd},
        {"role": "tool", "name": "x", "content": "ok"},
    ]
    assert f"<|im_start|>assistant\n{odd}<|im_end|>\n<|im_start|>user\n" in continued_text(
        tokenizer, dialogue, SCHEMAS
    )


def test_sampling_is_repeatable_and_left_padding_changes_nothing(starter):
    requests = [Request(row["prompt"], SCHEMAS) for row in make_rows(8, 3, "held_out")]
    first, second = (LocalPolicy(*starter, seed=5).reply(requests) for _ in range(2))
    assert first == second
    together = LocalPolicy(*starter, temperature=0).reply(requests)
    alone = [LocalPolicy(*starter, temperature=0, batch_size=1).reply([each])[0] for each in requests]
    assert together == alone


def test_a_reply_that_hits_the_limit_is_marked_truncated(starter):
    request = Request(make_rows(1, 3, "held_out")[0]["prompt"], SCHEMAS)
    (reply,) = LocalPolicy(*starter, max_new_tokens=3).reply([request])
    assert (reply.tokens, reply.truncated) == (3, True)


def test_base_success_and_recovery_lie_in_the_documented_range(starter):
    rates = evaluate(LocalPolicy(*starter, seed=0), Desk, make_rows(96, 11, "held_out"), max_turns=4).metrics
    assert 0.25 <= rates.success.rate <= 0.65  # documented: 0.30 to 0.60; 96 tasks have a standard error of 0.05
    assert rates.recovery.rate is not None
    assert 0.02 <= rates.recovery.rate <= 0.30  # documented: 0.05 to 0.25


def test_training_is_repeatable_to_the_bit(tmp_path):
    digests = []
    for name in ("a", "b"):
        train_starter(tmp_path / name, TrainConfig(seed=3, steps=1, start=starter_path()))
        digests.append(hashlib.sha256((tmp_path / name / "model.safetensors").read_bytes()).hexdigest())
    assert digests[0] == digests[1]
    assert digests[0] != hashlib.sha256((starter_path() / "model.safetensors").read_bytes()).hexdigest()
    assert json.loads((tmp_path / "a" / "training.json").read_text())["steps_done"] == 1
    load_starter(tmp_path / "a")


def test_an_untrained_starter_has_the_shipped_tokenizer(starter):
    model, tokenizer = make_starter(TrainConfig(seed=0), desk_demonstrations)
    assert tokenizer.get_vocab() == starter[1].get_vocab()
    assert model.config.hidden_size == starter[0].config.hidden_size


def test_the_training_command_explains_itself():
    command = [sys.executable, "-m", "fission_grpo.recipes.starter_policy.train"]
    out = subprocess.run([*command, "--help"], check=True, capture_output=True, text=True).stdout
    assert all(option in out for option in ("--output", "--seed", "--steps", "--minutes", "--start"))
    bad = subprocess.run([*command, "--output", "x", "--steps", "0"], check=False, capture_output=True, text=True)
    assert bad.returncode == 2
    assert "must be positive" in bad.stderr


def test_a_long_word_after_a_bracket_is_read_in_no_time():
    """The pattern of pieces once tried all ways to split the word, until the tokenizer gave up with a panic."""
    _, tokenizer = load_starter()
    text = "(" + "a" * 100_000
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.tokenize(" move_file(name, folder)") == ["Ġmove_file", "(name,Ġfolder)"]
