"""`simulator check`: answered, leaked and specific, counted by hand, latency, and what the command writes."""

import json
import time
from concurrent.futures import Future
from dataclasses import replace

import pytest

from fission_grpo.cli.simulator import simulator_command
from fission_grpo.core.chat import render_call
from fission_grpo.core.types import Task, ToolCall, Trajectory, Turn, Verdict
from fission_grpo.evaluation.metrics import metrics_json
from fission_grpo.feedback.dataset import TEST, TRAIN, FeedbackExample, write_examples
from fission_grpo.feedback.sources import FIXED_TEXT, FunctionSource
from fission_grpo.feedback.spec import make_chain
from fission_grpo.fission.failures import find_failure
from fission_grpo.recipes.error_simulator.check import (
    SourceAnswer,
    ask_sources,
    check_source,
    compute_metrics,
    draw_examples,
    metrics_table,
)

TOOLS = (
    {
        "name": "book",
        "parameters": {
            "type": "object",
            "properties": {"to": {"type": "string"}, "seats": {"type": "integer"}},
            "required": ["to"],
        },
    },
    {"name": "find_train", "parameters": {"type": "object", "properties": {}}},
)


def make_example(name: str, api: str, call: ToolCall | None, origin: str, text: str = "") -> FeedbackExample:
    turn = Turn(render_call(call), calls=(call,)) if call else Turn("Hm.", "Hm.")
    task = Task(name, ({"role": "user", "content": name},), TOOLS, (ToolCall("book", {"to": "Oslo"}),))
    failure = find_failure(Trajectory(task, (turn,)), Verdict(0.0, True))
    assert failure is not None
    return FeedbackExample(failure, api, origin, text)


EXAMPLES = [
    make_example("a", "Old", ToolCall("book", {"to": "Rome"}), "corruption:wrong_value"),
    make_example("b", "Old", ToolCall("book", {}), "corruption:missing_argument"),
    make_example("c", "New", ToolCall("find_train", {}), "corruption:wrong_tool"),
    make_example("d", "New", None, "sampled:m"),
]
TEXTS = {
    "a": "error: `to` must be Oslo",  # leaks; specific
    "b": "error: `to` is missing",  # specific
    "c": "error: one argument is not right",  # not specific
}
SOURCE = FunctionSource("mine", lambda failure: TEXTS.get(failure.task.id))


def test_the_numbers_of_four_texts_are_those_counted_by_hand():
    groups = {"all": EXAMPLES, "seen APIs": EXAMPLES[:2], "unseen APIs": EXAMPLES[2:], "none": []}
    (every, seen, unseen), answers = check_source((SOURCE,), groups)
    assert (every.answered.hits, every.answered.of) == (3, 4)
    assert (every.leaked.hits, every.leaked.of) == (1, 3)
    assert (every.specific.hits, every.specific.of) == (2, 3)
    assert every.rejected == {"mine: no diagnosis": 1}
    assert (seen.name, seen.answered.of, seen.leaked.hits, seen.specific.hits) == ("seen APIs", 2, 1, 2)
    assert (unseen.answered.hits, unseen.answered.of, unseen.specific.hits) == (1, 2, 0)
    assert every.leaked.interval == pytest.approx((0.0615, 0.7923), abs=1e-4)  # Wilson, 1 of 3
    assert metrics_json(every)["leaked"]["rate"] == pytest.approx(1 / 3)
    assert len(answers) == 8


def test_a_runtimes_words_are_no_leaks_but_counted_beside_them_and_compared_with_the_data():
    real = replace(EXAMPLES[1], diagnosis="error: no `to` but Oslo", teacher="environment")
    answers = [
        SourceAnswer(EXAMPLES[0], "no city; try Oslo", from_environment=True),  # a wrong call that raised nothing
        SourceAnswer(EXAMPLES[0], "error: `to` must be Oslo"),
        SourceAnswer(real, "{'error': 'no `to` but Oslo'}", from_environment=True),
        SourceAnswer(real, "error: no `to`"),
    ]
    metrics = compute_metrics("all", answers)
    assert (metrics.leaked.hits, metrics.exempt.hits, metrics.exempt.of) == (1, 2, 4)
    assert (metrics.real.hits, metrics.real.of) == (1, 2)
    assert (metrics.invented.hits, metrics.invented.of) == (1, 2)
    assert "invented errors" in metrics_table([metrics])


def test_latency_is_the_mean_time_per_failure():
    slow = FunctionSource("slow", lambda failure: time.sleep(0.01))
    (metrics,), _ = check_source((slow,), {"all": EXAMPLES})
    assert 0.01 <= metrics.seconds < 0.1
    assert compute_metrics("all", [SourceAnswer(EXAMPLES[0], "x")] * 4, seconds=2.0).seconds == 0.5


def test_leaks_are_only_counted_where_there_is_a_reference():
    failure = replace(EXAMPLES[0].failure, task=replace(EXAMPLES[0].failure.task, reference=None))
    unknown = SourceAnswer(replace(EXAMPLES[0], failure=failure), "error: `to` must be Oslo")
    metrics = compute_metrics("all", [unknown, SourceAnswer(EXAMPLES[1], "hm")])
    assert (metrics.leaked.hits, metrics.leaked.of, metrics.answered.hits) == (0, 1, 2)


def test_rules_are_always_specific_and_never_leak():
    (metrics,), _ = check_source(make_chain("rules"), {"all": EXAMPLES})
    assert (metrics.leaked.hits, metrics.specific.hits, metrics.answered.hits) == (0, 4, 4)


def test_the_next_source_of_a_chain_is_asked_and_silence_and_the_fixed_text_are_not_specific():
    first, *_, last = ask_sources(make_chain(["environment", "rules"]), EXAMPLES)
    assert first.rejected == ("environment: no diagnosis",)
    assert last.text == "error: a tool call is needed here, but none was made"
    silent = compute_metrics("all", ask_sources(make_chain("none"), EXAMPLES))
    assert (silent.answered.hits, silent.leaked.of, silent.rejected, silent.leaked.interval) == (0, 0, {}, None)
    fixed = ask_sources(make_chain("fixed"), EXAMPLES)
    assert (compute_metrics("all", fixed).specific.hits, {answer.text for answer in fixed}) == (0, {FIXED_TEXT})


def test_examples_are_drawn_at_random_but_always_the_same_and_in_order():
    few = draw_examples(EXAMPLES, 2)
    assert few == draw_examples(EXAMPLES, 2)
    assert len(few) == 2
    assert few == sorted(few, key=EXAMPLES.index)
    assert draw_examples(EXAMPLES, 9) == EXAMPLES


def write_data(folder):
    labelled = [replace(example, diagnosis=TEXTS.get(example.id, "error: no call")) for example in EXAMPLES]
    write_examples(folder / "train.jsonl", labelled[:2])
    write_examples(folder / "test.jsonl", labelled[2:])
    return ["--data", str(folder), "--output", str(folder / "out")]


def test_the_command_prints_and_writes_seen_and_unseen_apis_and_shows_leaks(tmp_path, capsys):
    assert simulator_command(["check", *write_data(tmp_path), "--source", "teacher"]) == 0
    shown = capsys.readouterr().out
    written = json.loads((tmp_path / "out" / "check.json").read_text())
    seen, unseen = written["groups"]
    assert (seen["name"], seen["leaked"]["hits"], seen["specific"]["hits"]) == ("seen APIs", 1, 2)
    assert (unseen["name"], unseen["answered"]["of"], unseen["specific"]["hits"]) == ("unseen APIs", 2, 1)
    assert written["leaked"] == [{"failure": "a", "text": "error: `to` must be Oslo"}]
    assert [shown["failure"] for shown in written["unspecific"]] == ["c"]
    for word in ("answered", "leaked", "specific", "latency", "unseen APIs"):
        assert word in shown


@pytest.mark.parametrize(("share", "group"), [(TRAIN, "seen APIs"), (TEST, "unseen APIs")])
def test_all_data_may_be_in_one_file(share, group, tmp_path):
    for name in (TRAIN, TEST):
        write_examples(tmp_path / name, [replace(one, diagnosis="error: no") for one in EXAMPLES if name == share])
    argv = ["--data", str(tmp_path), "--output", str(tmp_path), "--source", "rules"]
    assert simulator_command(["check", *argv]) == 0
    written = json.loads((tmp_path / "check.json").read_text())["groups"]
    assert [(one["name"], one["answered"]["of"]) for one in written] == [(group, 4)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--source", "oracle"], "no feedback source is called 'oracle'"),
        (["--source", "rules", "--usefulness", "test.jsonl"], "--usefulness needs a policy"),
        (["--source", "rules", "--data", "nowhere"], "train.jsonl: cannot be read"),
    ],
)
def test_mistakes_are_one_line_on_stderr(options, expected, tmp_path, capsys):
    argv = write_data(tmp_path)
    assert (
        simulator_command(
            ["check", *argv, *(str(tmp_path / word) if word == "test.jsonl" else word for word in options)]
        )
        == 1
    )
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert expected in error


def test_a_source_that_breaks_costs_its_answers_with_a_reason():
    class Broken:
        def start(self, failures):
            raise SystemExit("no model")

    example = make_example("a", "api", None, "x")
    future = Future()
    future.set_exception(RuntimeError("x"))
    late = FunctionSource("late", lambda failure: None)
    late.start = lambda failures: [future for _ in failures]
    (answer,) = ask_sources([Broken(), late], [example])
    assert answer.text is None
    assert answer.rejected == ("Broken: raised SystemExit", "late: raised RuntimeError")
