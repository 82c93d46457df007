"""The chat format: what is a call, what is an error, and that rendering and parsing agree."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fission_grpo.core.chat import (
    parse,
    read_result,
    render,
    render_call,
    tools_text,
)
from fission_grpo.core.json_io import (
    MAX_DEPTH,
    NotJson,
    quoted,
    read_json,
)
from fission_grpo.core.types import ToolCall

LS = ToolCall("ls", {"path": "/"})
LS_TEXT = '<tool_call>\n{"name": "ls", "arguments": {"path": "/"}}\n</tool_call>'
TOOLS = ({"name": "ls", "description": "List a folder.", "parameters": {"type": "object", "properties": {}}},)

NOT_JSON = "tool call is not valid JSON: "

# SmolLM2's template: no branch for tools, any role verbatim.
PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "x": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()

    def with_template(template: str, adds_bos: bool):
        single = "<s> $A" if adds_bos else "$A"
        words.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 1)])
        made = transformers.PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", unk_token="<unk>")
        made.chat_template = template
        return made

    return with_template


def qwen_template() -> str:
    trl = pytest.importorskip("importlib.util").find_spec("trl")
    if trl is None:
        pytest.skip("trl, whose copy of Qwen's template this uses, is not installed")
    return (Path(trl.origin).parent / "chat_templates" / "qwen2_5.jinja").read_text()


def test_text_and_calls_are_told_apart():
    turn = parse(f"Looking. {LS_TEXT} Then {LS_TEXT}")
    assert turn.calls == (LS, LS)
    assert turn.content == "Looking.  Then"
    assert turn.error is None


def test_one_block_may_hold_several_calls_one_a_line_as_toolrl_writes():
    calls = '{"name": "a", "parameters": {"x": 1}}\n{"name": "b", "parameters": {}}'
    text = f"<think> a </think>\n<tool_call>\n{calls}\n</tool_call>"
    assert parse(text).calls == (ToolCall("a", {"x": 1}), ToolCall("b"))


def test_arguments_written_as_a_json_string_are_decoded():
    assert parse('<tool_call>{"name": "ls", "arguments": "{\\"path\\": \\"/\\"}"}</tool_call>').calls == (LS,)


def test_a_call_that_is_only_thought_of_is_no_call():
    turn = parse(f"<think>maybe {LS_TEXT}</think>No need.")
    assert (turn.calls, turn.content, turn.error) == ((), "No need.", None)


def test_a_thought_that_the_prompt_began_ends_at_its_closing_tag():
    turn = parse(f"maybe {LS_TEXT}\n</think>\n{LS_TEXT}")
    assert (turn.calls, turn.content) == ((LS,), "")


def test_tags_within_a_calls_strings_are_just_text():
    call = ToolCall("write", {"text": "</think> </tool_call> <tool_call>"})
    assert parse(render_call(call)).calls == (call,)


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        ('{"name": "ls" "arguments": {}}', NOT_JSON + "expecting ',' delimiter at character 15"),
        ('{"name": "ls", "arguments": {}} x', NOT_JSON + "expecting value at character 33"),
        ('{"arguments": {}}', 'tool call has no "name"'),
        ('{"name": 3, "arguments": {}}', 'tool call\'s "name" is not a string'),
        ('{"name": "ls"}', 'tool call has no "arguments"'),
        ('{"name": "ls", "arguments": {}, "parameters": {}}', 'tool call has both "arguments" and "parameters"'),
        ('{"name": "ls", "arguments": [1]}', 'tool call\'s "arguments" is not a JSON object'),
        ('{"name": "ls", "arguments": "{"}', 'tool call\'s "arguments" is a string that is not valid JSON: expecting'),
        ('["ls"]', "tool call is not a JSON object"),
        ("", "empty <tool_call>"),
        ('{"name": "ls", "arguments": {"a": NaN}}', NOT_JSON + "NaN is not a JSON value"),
        (
            '{"name": "ls", "arguments": {"a": -Infinity}}',
            NOT_JSON + "-Infinity is not a JSON value",
        ),
        ('{"name": "ls", "arguments": {"a": 1e999}}', NOT_JSON + "a number is too large"),
        (
            '{"name": "ls", "arguments": {"a": ' + "9" * 5000 + "}}",
            NOT_JSON + "a number is too large",
        ),
        ('{"name": "ls", "arguments": {"a": 1, "a": 2}}', NOT_JSON + "duplicate key 'a'"),
        (
            '{"name": "ls", "arguments": {"a": "\\ud800"}}',
            NOT_JSON + "unpaired surrogate in a string",
        ),
        ('{"a":' * 2000 + "1" + "}" * 2000, NOT_JSON + "nested deeper than 64 levels"),
    ],
)
def test_the_message_says_what_is_wrong_with_a_call(inside, message):
    turn = parse(f"Hi <tool_call>\n{inside}\n</tool_call>")
    assert turn.error.startswith(message)
    assert (turn.calls, turn.content) == ((), "Hi")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<tool_call>", "unclosed <tool_call>"),
        ('<tool_call>{"name": "ls", "argum', "unclosed <tool_call>"),
        ("<think> hmm", "unclosed <think>"),
        ("</tool_call>", "</tool_call> without <tool_call> before it"),
        ("a</think>b</think>", "</think> without <think> before it"),
    ],
)
def test_tags_must_pair(text, message):
    assert parse(text).error == message


def test_one_invalid_call_voids_the_turn():
    turn = parse(f"{LS_TEXT}<tool_call>oops</tool_call>")
    assert turn.calls == ()
    assert turn.error is not None


def test_a_turn_cut_off_within_a_call_is_truncated_not_malformed():
    turn = parse(f'{LS_TEXT}<tool_call>{{"name": "l', truncated=True)
    assert (turn.error, turn.truncated, turn.calls) == (None, True, (LS,))
    assert parse("<tool_call>oops</tool_call> and so", truncated=True).error is not None


def test_nesting_counts_to_the_limit_and_no_further():
    # the call is level 1, its arguments level 2, so 62 more arrays make 64
    deepest = "[" * (MAX_DEPTH - 2) + "]" * (MAX_DEPTH - 2)
    before, after = '<tool_call>{"name": "a", "arguments": {"x": ', "}}</tool_call>"
    assert parse(before + deepest + after).error is None
    assert parse(before + "[" + deepest + "]" + after).error is not None


TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(
    TEXT.filter(bool),
    st.dictionaries(
        TEXT,
        st.recursive(
            st.none() | st.booleans() | st.integers(-(10**9), 10**9) | TEXT,
            lambda inner: st.lists(inner, max_size=3),
            max_leaves=5,
        ),
        max_size=4,
    ),
)
def test_a_rendered_call_reads_back_as_itself(name, arguments):
    call = ToolCall(name, arguments)
    assert parse(f"So: {render_call(call)}").calls == (call,)


def test_arguments_that_are_no_json_cannot_be_rendered():
    with pytest.raises(ValueError, match="call to 'ls' has arguments that are not JSON values"):
        render_call(ToolCall("ls", {"a": float("nan")}))


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("{'error': 'no such file'}", "no such file"),
        ('{"error": "no such file"}', "no such file"),
        ("{'error': ''}", None),  # a guarded tool never raises an empty message
        ("{'error': ' '}", None),
        ("{'error': 0}", None),
        ("{'error': []}", None),
        ("{'error': {}}", None),
        ('{"error": 0.0, "value": 3}', None),
        ("{'error': '0'}", "0"),  # what TRL writes for `raise KeyError(0)`
        ("{'error': 404}", "404"),
        ('{"error": {"code": 3}}', '{"code": 3}'),
        ('{"error": null, "value": 1}', None),
        ('{"error": false}', None),
        ('{"result": {"error": "deep"}}', None),
        ('{"isError": true, "content": [{"type": "text", "text": "no such file"}]}', "no such file"),
        ("{'meta': None, 'content': [{'type': 'text', 'text': 'no'}], 'isError': True}", "no"),
        ('{"isError": true, "content": []}', '{"isError": true, "content": []}'),
        ('{"is_error": true, "content": "no such file"}', "no such file"),
        ('{"isError": true, "error": "no such file"}', "no such file"),
        ('{"isError": false, "content": [{"type": "text", "text": "fine"}]}', None),
        ('{"isError": null}', None),
        ('{"jsonrpc": "2.0", "id": 1, "result": {"isError": true, "content": [{"text": "no"}]}}', "no"),
        ('{"jsonrpc": "2.0", "id": 1, "result": {"isError": false, "content": [{"text": "fine"}]}}', None),
        ('{"jsonrpc": "2.0", "id": 1, "error": {"code": 3}}', '{"code": 3}'),
        ('{"jsonrpc": "2.0", "id": 1, "result": null, "error": "no"}', "no"),
        ('{"isError": "true"}', None),
        ('["error"]', None),
        ("Error: it is all wrong", None),  # wording decides nothing
        ("{'error': " * 3000, None),
        ("{" * 200_000, None),
    ],
)
def test_a_result_is_an_error_by_its_structure(content, error):
    result = read_result(LS, content)
    assert (result.error, result.content, result.call) == (error, content, LS)


def test_templates_that_take_tools_are_given_them(tokenizer):
    text = render([{"role": "user", "content": "x"}], TOOLS, tokenizer(qwen_template(), adds_bos=False))
    assert text.count('{"type": "function", "function": {"name": "ls"') == 1
    assert text.endswith("<|im_start|>assistant\n")


def test_templates_that_ignore_tools_are_told_of_them_in_the_system_message(tokenizer):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "x"},
        {
            "role": "assistant",
            "content": "Well.",
            "tool_calls": [{"function": {"name": "ls", "arguments": {"path": "/"}}}],
        },
        {"role": "tool", "name": "ls", "content": "a.txt"},
        {"role": "tool", "name": "ls", "content": "b.txt"},
    ]
    text = render(messages, TOOLS, tokenizer(PLAIN_TEMPLATE, adds_bos=False))
    assert text == (
        f"<s><|im_start|>system\nBe brief.\n\n{tools_text(TOOLS)}<|im_end|>\n"
        "<|im_start|>user\nx<|im_end|>\n"
        f"<|im_start|>assistant\nWell.\n{LS_TEXT}<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\na.txt\n</tool_response>\n<tool_response>\nb.txt\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert messages[0]["content"] == "Be brief."  # the caller's messages are left alone


def test_a_beginning_of_sequence_token_is_not_written_twice(tokenizer):
    text = render([{"role": "user", "content": "x"}], (), tokenizer(PLAIN_TEMPLATE, adds_bos=True))
    assert text.startswith("<|im_start|>user")


def test_a_string_prompt_is_rendered_as_it_is():
    assert render("2 + 2 =", (), tokenizer=None) == "2 + 2 ="


def test_tools_are_listed_one_json_signature_a_line():
    listed = tools_text(TOOLS).split("<tools>\n")[1].split("\n</tools>")[0]
    assert json.loads(listed) == {"type": "function", "function": TOOLS[0]}


def test_strict_json_says_where_it_stopped():
    assert read_json('{"a": 1} x') == ({"a": 1}, 8)
    with pytest.raises(NotJson, match="expecting value at character 7"):
        read_json('{"a": }')


def test_quotations_are_short_and_printable():
    assert quoted("kelvin") == "'kelvin'"
    assert quoted(True) == "true"
    assert quoted("\ud800\n") == "'\\ud800\\n'"
    assert quoted("x" * 99) == "'" + "x" * 59 + "..."
    assert quoted({1, 2}) == "a set"
