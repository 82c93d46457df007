"""Diagnoses judged by themselves: forms of leaks, kinds of error, shares with hand-counted numbers."""

import pytest
from scripted_policy import ScriptedPolicy

from fission_grpo.core.chat import render_call
from fission_grpo.core.types import (
    ErrorKind,
    Failure,
    Task,
    ToolCall,
    Trajectory,
    Turn,
    Verdict,
)
from fission_grpo.feedback.dataset import FeedbackExample
from fission_grpo.feedback.leak_guard import find_leak
from fission_grpo.feedback.rules import rules
from fission_grpo.feedback.sources import FIXED_TEXT, FunctionSource, make_chain
from fission_grpo.fission.failures import find_failure
from fission_grpo.recipes.error_simulator.check import (
    Said,
    ask_all,
    drawn,
    qualities,
    quality,
    quality_json,
)
from fission_grpo.recipes.error_simulator.judge import judge_kinds, judge_leaks
from fission_grpo.recipes.error_simulator.leak_forms import how_leaked, paths_told
from fission_grpo.recipes.error_simulator.said_kinds import KINDS, said_kinds, true_kinds

TOOLS = (
    {
        "name": "book",
        "parameters": {
            "type": "object",
            "properties": {
                "to": {"type": "string"},
                "day": {"type": "string"},
                "seats": {"type": "integer"},
                "note": {"type": "string"},
                "filter": {"type": "object"},
            },
            "required": ["to"],
        },
    },
    {"name": "find_train", "parameters": {"type": "object", "properties": {}}},
)
LONG = "please send the tickets to the office on the third floor"
RIGHT = ToolCall("book", {"to": "New Delhi", "day": "2024-03-05", "seats": 1250, "note": LONG})


def failed(*calls: ToolCall, reference=(RIGHT,), kind=ErrorKind.WRONG_CALL, name="t") -> Failure:
    task = Task(name, ({"role": "user", "content": name},), TOOLS, reference)
    return Failure(task, (Turn("".join(map(render_call, calls)), calls=calls),), kind)


WRONG = failed(ToolCall("book", {"to": "Mumbai", "day": "tomorrow", "seats": 2, "note": "hi"}))


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("error: `to` must be New Delhi", "exact"),
        ("error: `seats` must be 1250", "exact"),
        ("error: `to` must be new_delhi", "normalised"),
        ("error: `to` must be NEW DELHI", "normalised"),
        ("error: `seats` must be 1,250", "numeric"),
        ("error: `seats` must be twelve hundred fifty", "numeric"),
        ("error: the day is March 5th, 2024", "date"),
        ("error: the day is 5.3.2024", "date"),
        ("error: it is new. delhi", "split across words"),
        ("error: say N e w D e l h i", "split across words"),
        ("error: it must say send the tickets to the office on the", "substring"),
        ("error: the base64 is TmV3IERlbGhp", "disguised"),
        ("error: backwards it is ihled wen", "disguised"),
        ("error: `to` is not right, got 'Mumbai'", None),
        (FIXED_TEXT, None),
    ],
)
def test_every_leak_has_its_form_and_what_the_guard_passes_has_none(text, form):
    assert (find_leak(text, WRONG) is None) is (form is None)
    assert how_leaked(text, WRONG) == form


def test_a_tools_name_is_a_value_too():
    other = failed(ToolCall("book", {"to": "x"}), reference=(ToolCall("find_train", {}),))
    assert how_leaked("error: use find_train", other) == "exact"
    assert how_leaked("error: use Find Train", other) == "normalised"


NESTED = failed(
    ToolCall("book", {"filter": {"range": {}}}), reference=(ToolCall("book", {"filter": {"range": {"max": 77}}}),)
)


def test_a_nested_value_told_with_its_path_is_a_leak_by_path_and_without_it_is_not():
    assert how_leaked("error: filter.range.max must be 77", NESTED) == "JSON path"
    assert how_leaked("error: 'max' in range must be seventy-seven", NESTED) == "JSON path"
    assert how_leaked("error: something must be 77", NESTED) == "exact"


def test_a_nested_field_that_the_call_lacks_is_told_by_its_path_though_it_is_no_leak_to_the_guard():
    assert paths_told("error: `filter.range.max` is missing", NESTED) == ["filter.range.max"]
    assert paths_told("error: set the max in range", NESTED) == ["filter.range.max"]
    assert how_leaked("error: `filter.range.max` is missing", NESTED) is None
    assert paths_told("error: the max number of seats is missing", NESTED) == []
    assert paths_told("error: `filter.range` lacks a field", NESTED) == []  # the call wrote it


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("error: `city` is missing", {"missing argument"}),
        ("book() missing 1 required positional argument: 'to'", {"missing argument"}),
        ("error: `extra` should not be given", {"extra argument"}),
        ("book() got an unexpected keyword argument 'x'", {"extra argument"}),
        ("error: `date` must match YYYY-MM-DD, got 5", {"wrong type or format"}),
        ("error: `seats` must be an integer, got 'two'", {"wrong type or format"}),
        ("error: `to` is not right, got 'missing'", {"wrong value"}),
        ("error: no such file or directory", {"wrong value"}),
        ("error: another tool than 'book' is needed", {"wrong tool"}),
        ("error: there is no tool of that name", {"unknown tool"}),
        ("error: tool call is not valid JSON: expecting value at character 7", {"unreadable call"}),
        ('error: tool call has no "arguments"', {"unreadable call"}),
        ("error: a tool call is needed here, but none was made", {"no call"}),
        ("error: a call 'book' is not needed", {"call not needed"}),
        ("error: at least one more tool call is needed", {"call lacking"}),
        ("error: `from` and `to` seem to be swapped", {"swapped arguments"}),
        ("error: the answer was cut off at its length limit; keep it shorter", {"unfinished"}),
        ("error: `city` is missing; `date` is not right", {"missing argument", "wrong value"}),
        (FIXED_TEXT, set()),
        ("", set()),
    ],
)
def test_the_reader_takes_texts_for_the_kinds_they_speak_of(text, kinds):
    assert said_kinds(text) == kinds


@pytest.mark.parametrize(
    ("call", "kinds"),
    [
        (ToolCall("book", {"to": "Rome"}), {"wrong value"}),
        (ToolCall("book", {"to": 5}), {"wrong type or format"}),
        (ToolCall("book", {}), {"missing argument"}),
        (ToolCall("book", {"to": "Oslo", "note": "x"}), {"extra argument"}),
        (ToolCall("find_train", {}), {"wrong tool"}),
    ],
)
def test_a_sampled_failures_kind_is_how_it_differs_from_the_reference_and_rules_speak_of_it(call, kinds):
    one = failed(call, reference=(ToolCall("book", {"to": "Oslo"}),))
    assert true_kinds(FeedbackExample(one, "book", "sampled:m")) == kinds
    if kinds != {"wrong type or format"}:  # rules call it a wrong value where the schema has not been violated
        assert said_kinds(rules(one) or "") == kinds


def test_a_corruptions_kind_is_its_type_but_an_unreadable_call_is_unreadable_whatever_was_meant():
    assert true_kinds(FeedbackExample(WRONG, "book", "corruption:extra_argument")) == {"extra argument"}
    broken = failed(kind=ErrorKind.UNPARSED)
    assert true_kinds(FeedbackExample(broken, "book", "corruption:extra_argument")) == {"unreadable call"}
    both = true_kinds(
        FeedbackExample(failed(kind=ErrorKind.BAD_ARGUMENTS, reference=None), "book", "corruption:off_by_one")
    )
    assert both == {"wrong value", "wrong type or format"}
    assert true_kinds(FeedbackExample(WRONG, "book", "corruption:off_by_one")) == {"wrong value"}
    assert true_kinds(FeedbackExample(WRONG, "book", "corruption:wrong_format")) == both
    against_schema = failed(kind=ErrorKind.BAD_ARGUMENTS)
    assert true_kinds(FeedbackExample(against_schema, "book", "corruption:wrong_format")) == {"wrong type or format"}


def made(name: str, api: str, call: ToolCall | None, origin: str, text: str = "") -> FeedbackExample:
    turn = Turn(render_call(call), calls=(call,)) if call else Turn("Hm.", "Hm.")
    task = Task(name, ({"role": "user", "content": name},), TOOLS, (ToolCall("book", {"to": "Oslo"}),))
    failure = find_failure(Trajectory(task, (turn,)), Verdict(0.0, True))
    assert failure is not None
    return FeedbackExample(failure, api, origin, text)


INSTANCES = [
    made("a", "Old", ToolCall("book", {"to": "Rome"}), "corruption:wrong_value"),
    made("b", "Old", ToolCall("book", {}), "corruption:missing_argument"),
    made("c", "New", ToolCall("find_train", {}), "corruption:wrong_tool"),
    made("d", "New", None, "sampled:m"),
]


def test_the_numbers_of_four_diagnoses_are_those_counted_by_hand():
    said = {
        "a": "error: `to` must be Oslo",  # leaks; specific; names no kind
        "b": "error: `to` is missing",  # specific; right kind
        "c": "error: one argument is not right",  # not specific; another kind
    }
    source = FunctionSource("mine", lambda one: said.get(one.task.id))
    every, seen, unseen = qualities(ask_all((source,), INSTANCES), ["Old"], "mine")
    assert (every.answered.hits, every.answered.of) == (3, 4)
    assert (every.leak.hits, every.leak.of, every.forms) == (1, 3, {"exact": 1})
    assert (every.specific.hits, every.agrees.hits, every.disagrees.hits, every.no_kind.hits) == (2, 1, 1, 1)
    assert every.rejected == {"mine: no diagnosis": 1}
    assert (every.characters, every.words) == ((24.0, 32.0), (5.0, 6.0))
    assert (seen.name, seen.instances, seen.leak.hits, seen.agrees.hits) == ("seen APIs", 2, 1, 1)
    assert (unseen.instances, unseen.answered.hits, unseen.disagrees.hits) == (2, 1, 1)
    assert every.leak.interval == pytest.approx((0.0615, 0.7923), abs=1e-4)  # Wilson, 1 of 3
    assert quality_json(every)["leak"]["rate"] == pytest.approx(1 / 3)


def test_rules_agree_with_every_kind_name_every_fault_and_leak_nothing():
    (every,) = qualities(ask_all(make_chain("rules"), INSTANCES), [one.api for one in INSTANCES], "rules")[:1]
    assert (every.leak.hits, every.specific.hits, every.agrees.hits, every.own.hits) == (0, 4, 4, 4)


def test_a_chain_is_asked_on_and_silence_and_fixed_text_name_nothing():
    first, *_, last = ask_all(make_chain(["environment", "rules"]), INSTANCES)
    assert (first.source, first.rejected) == ("rules", ("environment: no diagnosis",))
    assert last.text == "error: a tool call is needed here, but none was made"
    silent = quality("all", ask_all(make_chain("none"), INSTANCES), "none")
    assert (silent.answered.hits, silent.leak.of, silent.rejected, silent.leak.interval) == (0, 0, {}, None)
    fixed = quality("all", ask_all(make_chain("fixed"), INSTANCES), "fixed")
    assert (fixed.specific.hits, fixed.no_kind.hits, fixed.distinct) == (0, 4, 1)


def test_a_judge_is_asked_yes_or_no_and_anything_else_is_no_verdict():
    seen = []

    def write(messages):
        seen.append(messages[-1]["content"])
        text = messages[-1]["content"].split("# Message\n")[1].split("\n")[0]
        return {"the capital of Norway": "<think>Oslo.</think>\nYes.", "it is off": "No"}.get(text, "Perhaps.")

    told = [(INSTANCES[0].failure, text) for text in ("the capital of Norway", "it is off", "hm")]
    assert judge_leaks(ScriptedPolicy(write), told) == [True, False, None]
    assert '{"name": "book", "arguments": {"to": "Oslo"}}' in seen[0]
    one = Said(INSTANCES[0], "the capital of Norway", judged_leak=True)
    numbers = quality("all", [one, Said(INSTANCES[1], "hm")], "mine")
    assert (numbers.leak.hits, numbers.judged_leak.hits, numbers.judged_leak.of) == (0, 1, 1)


def test_a_judge_of_kinds_must_answer_with_one_of_them():
    replies = iter(["Wrong value.", "none", "`missing argument`"])
    policy = ScriptedPolicy(lambda messages: next(replies))
    told = [(one.failure, "text") for one in INSTANCES[:3]]
    assert judge_kinds(policy, told) == ["wrong value", None, "missing argument"]
    assert "wrong value" in KINDS


def test_instances_are_drawn_at_random_but_always_the_same_and_in_order():
    few = drawn(INSTANCES, 2)
    assert few == drawn(INSTANCES, 2)
    assert len(few) == 2
    assert few == sorted(few, key=INSTANCES.index)
    assert drawn(INSTANCES, 9) == INSTANCES
