"""Layouts as data sets really hold them: ToolACE's strings, Hermes' forms, files of mixed rows."""

import json

import pytest
from convert_support import ASK, MARK, WEATHER, convert, openai, references, says, tool, write

from fission_grpo.cli.main import main
from fission_grpo.core.errors import TaskFileError
from fission_grpo.data.convert.dialogues import RowDropped, read_literal
from fission_grpo.data.convert.formats import convert_file, guess_layout, read_toolace_calls
from fission_grpo.data.convert.tools import tools_of

LOOK = says("weather", {"city": "Oslo"})

# ToolACE


@pytest.mark.parametrize(
    "text",
    [
        "find(x)",
        "call [find(x), find(y)] now",
        "a, find(",
        ", find(x)",
        "[find(x)",
        'say "hi", find(x)',
        "it's [find(x)]",
        "_tool_0(x), find(x)",
        "\\ [find(x)]",
    ],
)
@pytest.mark.parametrize("quote", [repr, json.dumps])
def test_text_in_arguments_of_toolace_is_never_changed(text, quote):
    body = f"[find(q={quote(text)}, r=[{quote(text)}, {quote(text)}]), find(q={quote(text)})]"
    arguments = {"q": text, "r": [text, text]}
    assert read_toolace_calls(body, ["find"]) == [
        {"name": "find", "arguments": arguments},
        {"name": "find", "arguments": {"q": text}},
    ]


def test_names_of_toolace_may_be_anything():
    names = ["Get User's Info", "_tool_1", "a.b"]
    calls = read_toolace_calls("[Get User's Info(x='y'), _tool_1(x=[true, {'k': null}]), _tool_7(x=1)]", names)
    assert [call["name"] for call in calls] == ["Get User's Info", "_tool_1", "_tool_7"]
    assert calls[1]["arguments"] == {"x": [True, {"k": None}]}


@pytest.mark.parametrize(
    "name", ["from", "class", "lambda", "start-date", "start date", "a.b", "$top", "größe", "2nd", "x"]
)
def test_an_argument_of_toolace_may_have_any_name(name):
    text = f'[find(q="(from=1, x=2)", {name}="a", other={{"from": [1]}}), find({name} = 2)]'
    arguments = {"q": "(from=1, x=2)", name: "a", "other": {"from": [1]}}
    calls = [{"name": "find", "arguments": arguments}, {"name": "find", "arguments": {name: 2}}]
    assert read_toolace_calls(text, ["find"]) == calls


@pytest.mark.parametrize("written", ["a\nb", "a\r\nb", 'a\\\\\nb \\" c', "a\\nb\nc"])
def test_a_string_of_toolace_may_hold_a_line_break(written):
    meant = written.replace('\\"', '"').replace("\\\\", "\0").replace("\\n", "\n").replace("\0", "\\")
    assert read_toolace_calls(f'[find(q="{written}")]', ["find"]) == [{"name": "find", "arguments": {"q": meant}}]


def toolace(*values):
    speakers = ("user", "assistant", "tool", "assistant")
    entries = [{"from": speaker, "value": value} for speaker, value in zip(speakers, values, strict=False)]
    return {"system": f"Tools: {json.dumps([WEATHER])}", "conversations": entries}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[other(city="y"), weather(city="x")]', "the reference calls a tool that is not listed"),
        ('[weather(city="x"), other(city="y")]', "the reference calls a tool that is not listed"),
        ('[other(city="y")]', "the reference calls a tool that is not listed"),
        ("[other()]", "the reference calls a tool that is not listed"),
        ('[Other Tool(city="y")]', "a tool call cannot be read"),
        ('[weather(city="x")].', "a call in a form that is not read"),
        ('[weather(city="x")] Done', "a call in a form that is not read"),
        ('Sure. [weather(city="x")]', "a call in a form that is not read"),
        ('Sure. [other(city="x")]', "a call in a form that is not read"),
        ('```\n[weather(city="x")]\n```', "a call in a form that is not read"),
        ('weather(city="x")', "a call in a form that is not read"),
        ('[weather(city="x"]', "a call in a form that is not read"),
        ('{"name": "weather", "arguments": {"city": "x"}}', "a call in a form that is not read"),
    ],
)
def test_a_call_of_toolace_that_is_not_read_is_no_abstention(tmp_path, text, reason):
    converted = convert(tmp_path, toolace("Go.", text), toolace("Go.", "No."), layout="toolace", abstentions=True)
    assert (references(converted), converted.dropped) == ([[]], {reason: 1})


@pytest.mark.parametrize(
    "text", ["No.", "[1, 2]", "See [the page](url).", "[note (a)]", "weather (fair)", "f(x) = [y]"]
)
def test_text_of_toolace_without_calls_is_an_abstention(tmp_path, text):
    converted = convert(tmp_path, toolace("Go.", text), layout="toolace", abstentions=True)
    assert (references(converted), converted.dropped) == ([[]], {})


@pytest.mark.parametrize("layout", ["toolace", "hermes"])
def test_results_find_the_calls_of_their_names(tmp_path, layout):
    tools = [WEATHER, tool("now", {})]
    answers = [{"name": "now", "results": "noon"}, {"name": "weather", "results": "wet"}]
    if layout == "toolace":
        row = toolace("Go.", '[weather(city="x"), now()]', json.dumps(answers), "[now()]")
        row["system"] = json.dumps(tools)
    else:
        bodies = [{"name": "weather", "arguments": {"city": "x"}}, {"name": "now", "arguments": {}}]
        calls = [f"<tool_call>{json.dumps(body)}</tool_call>" for body in bodies]
        results = "".join(f"<tool_response>{json.dumps(answer)}</tool_response>" for answer in answers)
        values = {"human": "Go.", "gpt": "".join(calls), "tool": results}
        entries = [{"from": speaker, "value": value} for speaker, value in values.items()]
        row = {"conversations": [*entries, {"from": "gpt", "value": calls[1]}], "tools": json.dumps(tools)}
    task = convert(tmp_path, row, layout=layout).tasks[-1]
    results = [message for message in task.prompt if message["role"] == "tool"]
    assert [message["name"] for message in results] == ["now", "weather"]
    assert ["noon" in message["content"] for message in results] == [True, False]


OTHER_FORMS = [
    '<|python_tag|>{"name": "weather", "parameters": {"city": "Oslo"}}',
    '<|python_tag|>weather.call(city="Oslo")',
    '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Oslo"}}]',
    '[TOOL_CALLS]weather{"city": "Oslo"}',
    '<TOOLCALL>[{"name": "weather", "arguments": {}}]</TOOLCALL>',
    '<function=weather>{"city": "Oslo"}</function>',
    "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>",
    "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n</tool_call>",
    '{"name": "weather", "arguments": {"city": "Oslo"}}',
    '{"name": "weather", "parameters": {"city": "Oslo"}}',
    '[{"name": "weather", "arguments": "{}"}]',
    '```json\n{"name": "weather", "arguments": {}}\n```',
    '{"type": "function", "function": {"name": "weather", "arguments": {}}}',
    'I look. <function_call>{"name": "weather"}</function_call>',
    "<\uff5ctool\u2581calls\u2581begin\uff5c>",
    "<|tool_calls_section_begin|>",
    '<function_calls><invoke name="weather"></invoke></function_calls>',
    'Action: weather\nAction Input: {"city": "Oslo"}',
    '<think>I look.</think>[TOOL_CALLS] [{"name": "weather", "arguments": {}}]',
]


@pytest.mark.parametrize("text", OTHER_FORMS)
def test_a_call_in_another_form_is_no_abstention(tmp_path, text):
    said, no = {"role": "assistant", "content": text}, {"role": "assistant", "content": "No."}
    converted = convert(tmp_path, openai(ASK, said), openai(ASK, no), abstentions=True)
    assert (references(converted), converted.dropped) == ([[]], {"a call in a form that is not read": 1})
    entries = [{"from": "human", "value": "Go."}, {"from": "gpt", "value": text}]
    row = {"conversations": entries, "tools": json.dumps([WEATHER])}
    with pytest.raises(TaskFileError, match=r"cannot be read|a form that is not read"):
        convert(tmp_path, row, layout="hermes", abstentions=True)


@pytest.mark.parametrize(
    "text",
    ['{"name": "Ann"}', '[{"id": 1}]', "[]", "I use no <function> here.", "<think>[TOOL_CALLS]</think>No.", "{"],
)
def test_text_in_json_or_about_calls_is_no_call(tmp_path, text):
    converted = convert(tmp_path, openai(ASK, {"role": "assistant", "content": text}), abstentions=True)
    assert references(converted) == [[]]


# Hermes

LISTED = [WEATHER, tool("now", {})]
LINES = "\n".join(map(json.dumps, LISTED))
INSTRUCTION = "You are provided with function signatures within <tools></tools> XML tags."
SYSTEMS = [
    f"You call functions. <tools>\n{json.dumps(LISTED)}\n</tools>",
    f"{INSTRUCTION} Here they are: <tools> {json.dumps(LISTED)} </tools> Return calls in <tool_call></tool_call>.",
    f"{INSTRUCTION}\n<tools>\n{LINES}\n</tools>",
    f"{INSTRUCTION}\n<tools>\n{LISTED!r}\n</tools>",
    f"{INSTRUCTION}\n<tools>\n{LISTED[0]!r}\n{LISTED[1]!r}\n</tools>",
    f"within <tools> </tools> XML tags.\n<tools>\n{json.dumps(LISTED, indent=2)}\n</tools>",
    f"in <tools> and </tools>.\n<tools>{json.dumps(LISTED[0], indent=1)}\n{json.dumps(LISTED[1], indent=1)}</tools>",
    f"Start with <tools>. Here: <tools>{json.dumps(LISTED[0])}, {json.dumps(LISTED[1])}</tools>",
    f"<tools>{json.dumps(LISTED[0])}</tools>\n<tools>{json.dumps(LISTED[1])}</tools>",
    f"<tools>\n```json\n{json.dumps(LISTED)}\n```\n</tools>",
]
CALLS = [
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>',
    "<tool_call>\n{'arguments': {'city': 'Oslo'}, 'name': 'weather'}\n</tool_call>",
    '<tool_call>[{"name": "weather", "arguments": {"city": "Oslo"}}]</tool_call>',
    '<tool_call>\n{"name": "weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}\n</tool_call>',
    '<think>A <tool_call>.</think>\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>',
]


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("call", CALLS)
def test_hermes_is_read_in_all_its_forms(tmp_path, system, call):
    entries = [{"from": "system", "value": system}, {"from": "human", "value": "Go."}, {"from": "gpt", "value": call}]
    converted = convert(tmp_path, {"conversations": entries})
    assert references(converted) == [[("weather", {"city": "Oslo"})]]
    assert [one["name"] for one in converted.tasks[0].tools] == ["weather", "now"]


@pytest.mark.parametrize("tag", ["think", "scratch_pad"])
def test_thoughts_in_an_argument_of_hermes_stay(tmp_path, tag):
    city = f"a <{tag}>b</{tag}> c"
    body = json.dumps({"name": "weather", "arguments": {"city": city}})
    call = f"<{tag}>I <tool_call>.</{tag}>\n<tool_call>\n{body}\n</tool_call>"
    entries = [{"from": "human", "value": "Go."}, {"from": "gpt", "value": call}]
    converted = convert(tmp_path, {"conversations": entries, "tools": json.dumps(LISTED)})
    assert references(converted) == [[("weather", {"city": city})]]


def test_several_calls_of_hermes_may_stand_in_one_block(tmp_path):
    body = '{"name": "weather", "arguments": {"city": "Oslo"}}\n{"name": "now", "arguments": {}}'
    entries = [{"from": "human", "value": "Go."}, {"from": "gpt", "value": f"<tool_call>\n{body}\n</tool_call>"}]
    converted = convert(tmp_path, {"conversations": entries, "tools": json.dumps(LISTED)})
    assert references(converted) == [[("weather", {"city": "Oslo"}), ("now", {})]]


@pytest.mark.parametrize("system", [INSTRUCTION, "<tools>\nnone\n</tools>", "<tools>[{]</tools>"])
def test_hermes_without_tools_that_can_be_read_is_dropped(tmp_path, system):
    entries = [
        {"from": "system", "value": system},
        {"from": "human", "value": "Go."},
        {"from": "gpt", "value": CALLS[0]},
    ]
    with pytest.raises(TaskFileError, match="the tools cannot be read"):
        convert(tmp_path, {"conversations": entries})


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("[1, 2]", [1, 2]),
        ("{'a': true, 'b': null}", [{"a": True, "b": None}]),
        ('{"a": 1}\n{"a": 2}', [{"a": 1}, {"a": 2}]),
        ('{"a": 1},\n{"a": 2}', [{"a": 1}, {"a": 2}]),
        ("{'a': 1}\n{'a': 2}", [{"a": 1}, {"a": 2}]),
        ("", []),
    ],
)
def test_values_may_stand_one_after_another(text, values):
    from fission_grpo.data.convert.formats import read_literals

    assert read_literals(text) == values


@pytest.mark.parametrize("text", ["true", "null", "False", "[None, true]"])
def test_a_literal_may_mix_the_names_of_json_and_python(text):
    assert read_literal(text) == json.loads(text.replace("None", "null").replace("False", "false"))


# files


@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path, name):
    row = openai(ASK, LOOK)
    for content in (json.dumps(row), f"[{json.dumps(row)}]"):
        if content.startswith("[") and name == "data.jsonl":
            continue
        path = tmp_path / name
        path.write_bytes(MARK + content.encode())
        assert len(convert_file(path, "auto")[1].tasks) == 1


def test_step_tasks_and_rows_of_environments_may_begin_with_a_byte_order_mark(tmp_path, capsys):
    assert main(["tasks", "convert", str(write(tmp_path, openai(ASK, LOOK))), str(tmp_path / "t.jsonl")]) == 0
    (tmp_path / "t.jsonl").write_bytes(MARK + (tmp_path / "t.jsonl").read_bytes())
    assert main(["tasks", "check", str(tmp_path / "t.jsonl")]) == 0


HUMAN = {"conversations": [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Ho."}], "tools": "[]"}
APIGEN = {"conversations": [*HUMAN["conversations"], {"from": "function_call", "value": "{}"}], "tools": "[]"}
SYSTEM = {"conversations": [{"from": "system", "value": "<tools>[]</tools>"}, *HUMAN["conversations"]]}
TOOLACE = {"system": "[]", "conversations": [{"from": "user", "value": "Hi."}]}
XLAM = {"query": "a", "answers": "[]", "tools": "[]"}


@pytest.mark.parametrize(
    ("rows", "layout"),
    [
        ([HUMAN, APIGEN], "apigen-mt"),
        ([HUMAN, HUMAN, SYSTEM], "hermes"),
        ([HUMAN], "hermes"),
        ([{"version": 1}, openai(ASK)], "openai"),
        ([{}, XLAM, {"note": "x"}], "xlam"),
        ([TOOLACE, TOOLACE], "toolace"),
    ],
)
def test_more_than_the_first_row_decides_the_layout(tmp_path, rows, layout):
    assert guess_layout(write(tmp_path, *rows)) == layout


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([openai(ASK), XLAM], "row 1 is of openai, row 2 of xlam"),
        ([{}, XLAM, XLAM, openai(ASK)], "row 2 is of xlam, row 4 of openai"),
        ([HUMAN, APIGEN, SYSTEM], "row 1 is of apigen-mt, row 3 of hermes"),
    ],
)
def test_a_file_of_two_layouts_is_refused_by_rows(tmp_path, rows, words):
    with pytest.raises(TaskFileError, match=words):
        guess_layout(write(tmp_path, *rows))


def test_a_tool_call_without_a_name_is_dropped():
    with pytest.raises(RowDropped):
        tools_of([{"name": None, "parameters": {}}])
