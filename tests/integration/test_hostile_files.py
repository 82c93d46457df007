"""Names and texts from models and data in what is written: they stay inside the folder, and inside the page's text."""

import json
import time
from dataclasses import asdict
from html.parser import HTMLParser

import pytest

from fission_grpo.core.errors import RunFileError
from fission_grpo.core.serialization import task_from_json
from fission_grpo.core.tool_schema import check_call
from fission_grpo.core.types import ErrorKind, Task, ToolCall
from fission_grpo.evaluation.bfcl.decoding import decode_hermes, decode_python
from fission_grpo.evaluation.bfcl.results import result_path
from fission_grpo.evaluation.episodes import run_episode
from fission_grpo.evaluation.evaluate import file_name
from fission_grpo.evaluation.records import read_records
from fission_grpo.evaluation.run import Manifest, evaluate_run
from fission_grpo.feedback.endpoint_state import ResponseCache
from fission_grpo.fission.event_log import EventLog
from fission_grpo.fission.recovery import CorrectiveInstance
from fission_grpo.inference.base import Reply
from fission_grpo.report.page import write_report
from fission_grpo.report.run import read_run

NAMES = {
    "parent": "../../outside",
    "absolute": "/tmp/outside",
    "backslashes": "..\\..\\outside",
    "dots": "..",
    "null byte": "a\x00b",
    "device": "CON",
    "line ends": "a\nb\r",
    "very long": "n" * 5_000,
    "very long, wide": "\u00e9" * 5_000,
    "markup": '"><script>alert(1)</script><a href="javascript:alert(1)" onclick=x>',
    "surrogate": "\udcff",
    "template": "{{ 7 * 7 }} {0} %s $HOME $\\frac{",
}
MARKUP = [
    "</pre></div><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)><style>@import 'http://x'</style>",
    '"><a href="javascript:alert(1)">x</a><iframe srcdoc="<script>1</script>">',
    "' onmouseover='alert(1)",
    "<!--<![CDATA[ ]]>--><base href=//x><meta http-equiv=refresh content='0;url=//x'>",
    "&lt;script&gt;&#x3C;script&#62;\u2028\u202e\x00\ud800\x1b[31m",
    "<tool_call><script></tool_call></span></script><think></think>",
]


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, attrs))


def item(text):
    task = Task(text, ({"role": "user", "content": text}, {"role": text, "content": text}), root=text, parent=text)
    return CorrectiveInstance(task, 1, ErrorKind.RAISED, text, text, text, 0.0, fallback=text)


def test_no_text_of_a_run_becomes_markup_in_its_report(tmp_path):
    pytest.importorskip("matplotlib")
    run = tmp_path / "runs" / "<img src=x onerror=alert(1)> $\\frac{"
    log = EventLog(run / "fission.jsonl")
    for number, text in enumerate([*MARKUP, *NAMES.values()]):
        one = item(f"{number}{text}")
        log.pushed(one)
        if number % 2:
            log.recovered(one, 2, [1.0, None], [text, text])
        else:
            log.dropped(one, 2, text)
    log = [
        {"step": step, "fission/phase": 0, "fission/success": 0.5, f"fission/kind/{MARKUP[1]}": 1} for step in (1, 2)
    ]
    (run / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    page = write_report(tmp_path / "runs")
    assert page == tmp_path / "runs" / "report" / "report.html"
    assert {path.parent for path in tmp_path.rglob("*.svg")} == {page.parent}
    tags = Tags(page.read_text(encoding="utf-8")).found
    assert len(tags) > 300
    forbidden = {"script", "iframe", "image", "foreignobject", "base", "object", "embed", "form", "link", "style"}
    assert [tag for tag, _ in tags if tag in forbidden] == ["style"]  # the page's own
    for tag, attributes in tags:
        for name, value in attributes:
            assert not name.startswith("on"), (tag, name)
            assert name != "srcdoc"
            assert name not in ("href", "xlink:href", "src") or value.startswith("#"), value
        assert tag != "meta" or ("http-equiv", "refresh") not in attributes


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_one_plain_part_of_a_path(tmp_path, name):
    folder = tmp_path / "results" / f"eval-{file_name(NAMES[name])}"
    folder.mkdir(parents=True)
    assert folder.resolve().parent == (tmp_path / "results").resolve()
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_two_long_names_stay_different():
    assert file_name("n" * 200 + "a") != file_name("n" * 200 + "b")
    assert file_name("Qwen/Qwen3-8B") == "Qwen_Qwen3-8B"  # as it was


@pytest.mark.parametrize("name", NAMES)
def test_bfcl_results_lie_below_their_folder_or_are_refused(tmp_path, name):
    if name in ("dots", "null byte", "backslashes", "template"):
        with pytest.raises(ValueError, match="cannot be the name of a model"):
            result_path(tmp_path, "simple", NAMES[name])
        return
    path = result_path(tmp_path, "simple", NAMES[name])
    assert path.resolve().is_relative_to(tmp_path.resolve() / "result")
    assert path.parent.parent.parent.name == "result"


@pytest.mark.parametrize("name", NAMES)
def test_task_ids_name_no_file_and_come_back_the_same(tmp_path, name):
    text = NAMES[name]
    run = tmp_path / "run"
    EventLog(run / "fission.jsonl").pushed(item(text))
    (instance,) = read_run(run).instances
    assert (instance.id, instance.root, instance.feedback, instance.failed) == (text, text, text, text)
    cache = ResponseCache(tmp_path / "cache")
    cache.put("0" * 64, text[:500])
    assert ResponseCache(tmp_path / "cache").get("0" * 64) == text[:500]
    files = sorted(str(path.relative_to(tmp_path)).split("-")[0] for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["cache/diagnoses", "run/fission.jsonl"]


class Echo:
    def reset(self, **row): ...

    def get_reward(self):
        return 0.0

    def echo(self, text: str):
        """Say it.

        Args:
            text: What to say.
        """
        return json.loads('"\\ud800"') + text


class Says:
    """A policy that calls the tool once, by a hostile name or with a hostile text, and is done."""

    def __init__(self, text):
        self.text = text

    def reply(self, requests):
        first = [request.messages[-1]["role"] == "user" for request in requests]
        calls = [{"name": "echo", "arguments": {"text": self.text}}, {"name": self.text, "arguments": {}}]
        call = f"<tool_call>{''.join(map(json.dumps, calls))}</tool_call>"
        return [Reply(call if one else "Done.", 1) for one in first]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "surrogate"])
def test_an_evaluation_keeps_hostile_ids_and_results_in_its_files(tmp_path, name):
    text = NAMES[name]
    row = {"id": text, "prompt": [{"role": "user", "content": "go"}]}
    manifest = Manifest("x", {"kind": "desk", "sha256": "0", "count": 1}, {}, {})
    records = evaluate_run(tmp_path / "e", manifest, Says(text), {text: lambda: run_episode(Echo, row)})
    assert read_records(tmp_path / "e" / "cases.jsonl") == records
    assert records[0].id == text
    assert records[0].calls[0].result == "\ud800" + text
    assert [call.kind for call in records[0].calls] == [None, "unknown_tool"]
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["cases.jsonl", "manifest.json"]


PYTHON = {
    "large power": "[f(x=10**5000)]",
    "large hexadecimal": f"[f(x=0x{'f' * 5000})]",
    "large negative": f"[f(x=-0x{'f' * 5000})]",
    "tower": "[f(x=9**9**9**9)]",
    "long text": "[f(x='a'*9999*9999)]",
    "deep": "[f(x=" + "[" * 500 + "]" * 500 + ")]",
    "very deep": "[f(x=" + "(" * 50_000 + ")" * 50_000 + ")]",
    "dunder": "[f(x=().__class__.__bases__[0].__subclasses__())]",
    "import": "[f(x=__import__('os').system('touch hacked'))]",
    "comprehension": "[f(x=[y for y in range(10**9)])]",
    "lambda": "[(lambda: f)(x=1)]",
    "format": "[f(x='{0.__class__}'.format(1))]",
    "walrus": "[f(x=(y:=1))]",
    "null byte": "[f(x='\x00')]",
    "surrogate": "[f(x='\\ud800')]",
    "infinite": "[f(x=1e999, y=-1e999)]",
    "a megabyte": f"[f(x='{'a' * 1_000_000}')]",
}


@pytest.mark.parametrize("name", PYTHON)
def test_python_calls_are_read_without_running_anything(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    started = time.process_time()
    decoded = decode_python(PYTHON[name], ["f"])
    line = json.dumps([asdict(call) for call in decoded.calls], allow_nan=False)
    assert json.loads(line) == [asdict(call) for call in decoded.calls]
    assert decoded.calls or decoded.unread
    assert list(tmp_path.iterdir()) == []
    assert time.process_time() - started < 2


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e999", "9" * 4300, '"\\ud800"', "[" * 900 + "]" * 900])
def test_calls_in_hermes_blocks_are_kept_as_json(value):
    decoded = decode_hermes(f'<tool_call>\n{{"name": "f", "arguments": {{"x": {value}}}}}\n</tool_call>')
    json.dumps([asdict(call) for call in decoded.calls], allow_nan=False).encode()
    assert decoded.calls or decoded.unread


def test_a_pattern_that_takes_exponential_time_is_given_up():
    schema = {"type": "object", "properties": {"x": {"type": "string", "pattern": "(a|aa)+$"}}}
    tool = {"name": "f", "parameters": schema}
    started = time.monotonic()
    problem = check_call(ToolCall("f", {"x": "a" * 60 + "!"}), [tool])
    assert problem is not None
    assert problem.message == "the arguments could not be checked against the patterns of the schema"
    assert time.monotonic() - started < 20  # 2 s and a bit; the pattern alone would take longer than the universe
    assert check_call(ToolCall("f", {"x": "aaa"}), [tool]) is None


@pytest.mark.parametrize("value", ["[" * 100_000, "9" * 5_000, '"\ud800"'.encode("utf-8", "surrogatepass").hex()])
def test_a_run_file_of_hostile_json_gets_the_one_clear_error(tmp_path, value):
    (tmp_path / "fission.jsonl").write_text(f'{{"event": "pushed", "x": {value}}}\n')
    with pytest.raises(RunFileError, match=r"fission.jsonl, line 1"):
        read_run(tmp_path)
    with pytest.raises(ValueError, match="not a task"):
        task_from_json(f'{{"id": {value}}}')
