"""What the policy is told: specific, deterministic, never the answer, and never an exception."""

import time
from concurrent.futures import Future

import pytest

from fission_grpo.core.chat import parse, render_call
from fission_grpo.core.types import (
    ErrorKind,
    Failure,
    Task,
    ToolCall,
    ToolResult,
    Trajectory,
    Turn,
    Verdict,
)
from fission_grpo.feedback.leak_guard import find_reference_leak
from fission_grpo.feedback.request import Feedback, FeedbackRequest, feedback_for
from fission_grpo.feedback.rules import MAX_LENGTH, rules
from fission_grpo.feedback.shuffled import ShuffledFeedback
from fission_grpo.feedback.sources import FIXED_TEXT, SOURCES, Diagnosis, FunctionSource, environment
from fission_grpo.feedback.spec import make_chain
from fission_grpo.fission.failures import find_failure

TOOLS = (
    {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "date": {"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}$"},
                "units": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                "days": {"type": "integer", "minimum": 3},
                "options": {"type": "object"},
            },
            "required": ["city"],
        },
    },
    {"name": "get_time", "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}}},
)
OPTIONS = {"wind": {"unit": "knots", "gusts": True}}
RIGHT = ToolCall("get_weather", {"city": "Oslo", "units": "celsius", "options": OPTIONS})


def weather(**arguments) -> ToolCall:
    return ToolCall("get_weather", {**RIGHT.arguments, **arguments})


def told(*calls: ToolCall, reference=(RIGHT,), text: str | None = None) -> str | None:
    """What `rules` says of a turn with these calls, or of this text."""
    turn = parse(text if text is not None else "".join(map(render_call, calls)))
    failure = find_failure(Trajectory(Task("t", "go", TOOLS, reference), (turn,)), Verdict(0.0, True))
    assert failure is not None
    said = rules(failure)
    assert said is None or find_reference_leak(said, reference, turn.calls, TOOLS) is None
    return said


def failure(kind: ErrorKind = ErrorKind.RAISED, detail: str = "", reference=None) -> Failure:
    return Failure(Task("t", "go", reference=reference), (Turn("x"),), kind, detail)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (weather(date=1706745600), "error: `date` must match YYYY-MM-DD, got 1706745600"),
        (weather(units="kelvin"), "error: `units` must be one of celsius, fahrenheit, got 'kelvin'"),
        (ToolCall("get_wether"), "error: unknown tool 'get_wether'; available: get_weather, get_time"),
        (
            weather(town="Oslo"),
            "error: unexpected argument `town`; allowed: `city`, `date`, `units`, `days`, `options`",
        ),
        (weather(units="fahrenheit"), "error: `units` is not right, got 'fahrenheit'"),
        (ToolCall("get_time"), "error: another tool than 'get_time' is needed"),
    ],
)
def test_rules_are_specific(call, said):
    assert told(call) == said


def test_rules_name_every_wrong_missing_and_superfluous_argument_of_a_wrong_call():
    call = ToolCall("get_weather", {"city": "Rome", "date": "2024-01-01", "options": OPTIONS})
    assert told(call) == "error: `date` should not be given; `city` is not right, got 'Rome'; `units` is missing"


def test_rules_go_down_to_the_one_wrong_field_that_the_call_itself_wrote():
    said = told(weather(options={"wind": {"unit": "mph", "gusts": True}}))
    assert said == "error: `options.wind.unit` is not right, got 'mph'"
    # a field that is missing is not named: in a free-form object its name may be part of the answer
    said = told(weather(options={"wind": {"unit": "knots"}}))
    assert said == "error: `options.wind` lacks a field"


def test_rules_say_that_calls_are_too_few_or_too_many():
    second = ToolCall("get_time", {"zone": "CET"})
    assert told(RIGHT, reference=(RIGHT, second)) == "error: at least one more tool call is needed"
    assert told(RIGHT, second) == "error: a call 'get_time' is not needed"
    assert told(RIGHT, reference=()) == "error: no tool call is needed here"
    assert told(text="Done.") == "error: a tool call is needed here, but none was made"
    assert told(text="", reference=()) == "error: the answer is empty"


def test_rules_say_in_which_of_several_calls_an_argument_is_wrong():
    second = ToolCall("get_time", {"zone": "CET"})
    said = told(RIGHT, ToolCall("get_time", {"zone": "UTC"}), reference=(RIGHT, second))
    assert said == "error: `zone` is not right, got 'UTC' in the call of 'get_time'"


def test_rules_choose_a_vaguer_wording_where_the_schema_itself_holds_the_answer():
    # "`days` must be at least 3, got 1" would name 3, the very value that is wanted
    said = told(weather(days=1), reference=(weather(days=3),))
    assert said == "error: `days` does not fit the tool's schema"
    # with swapped arguments, quoting what was written would name the other one's value
    reference = (ToolCall("get_weather", {"city": "Oslo", "options": {"to": "Rome"}}),)
    said = told(ToolCall("get_weather", {"city": "Rome", "options": {"to": "Oslo"}}), reference=reference)
    assert said == "error: `city` is not right; `options.to` is not right"


def test_rules_report_the_parsers_message():
    assert told(text="<tool_call>{") == "error: unclosed <tool_call>"


def test_rules_pass_on_the_environments_message_unchanged():
    assert rules(failure(detail="KeyError: 'a.txt'")) == "KeyError: 'a.txt'"


@pytest.mark.parametrize("kind", [ErrorKind.LOW_REWARD, ErrorKind.INFRASTRUCTURE])
def test_rules_say_nothing_where_nothing_is_known(kind):
    assert rules(failure(kind)) is None


@pytest.mark.parametrize("kind", [ErrorKind.TRUNCATED, ErrorKind.OUT_OF_TURNS, ErrorKind.NO_CALL])
def test_rules_have_a_text_for_every_other_kind(kind):
    assert rules(failure(kind)).startswith("error: ")


def test_the_environment_source_is_the_message_or_nothing():
    assert environment(failure(detail="no such file")) == "no such file"
    assert environment(failure(ErrorKind.WRONG_CALL)) is None
    result = ToolResult(RIGHT, "{'error': 'closed'}", "closed")
    turn = Turn("x", calls=(RIGHT,), results=(result,))
    found = find_failure(Trajectory(Task("t", "go"), (turn,)), Verdict(0.0, True))
    assert feedback_for(found, make_chain("environment")) == Feedback("closed", "environment")


def asked(function, **of) -> Feedback:
    """What comes of asking a source named "mine"."""
    return feedback_for(failure(**of), [FunctionSource("mine", function)])


def test_nothing_to_say_falls_back_to_the_papers_text():
    for nothing in (None, "", "  \n"):
        feedback = asked(lambda _, nothing=nothing: nothing)
        assert feedback == Feedback(FIXED_TEXT, "fixed", (("mine", "no diagnosis"),))
        assert (feedback.fallback, feedback.leaked) == ("mine: no diagnosis", False)


def test_a_source_that_raises_or_returns_no_text_never_stops_training(caplog):
    def broken(_: Failure) -> str:
        raise ValueError("endpoint down")

    assert asked(broken) == Feedback(FIXED_TEXT, "fixed", (("mine", "raised ValueError"),))
    assert "endpoint down" in caplog.text
    assert asked(lambda _: 3).fallback == "mine: returned int"


@pytest.mark.parametrize("error", [SystemExit(0), GeneratorExit()], ids=repr)
def test_a_source_that_ends_the_process_costs_one_answer(error):
    def ends(failure):
        raise error

    assert asked(ends) == Feedback(FIXED_TEXT, "fixed", (("mine", f"raised {type(error).__name__}"),))


def test_a_leaking_text_is_replaced_and_counted_whatever_the_source():
    feedback = asked(lambda _: "error: it rains in Oslo", reference=(RIGHT,))
    assert feedback == Feedback(FIXED_TEXT, "fixed", (("mine", "leak"),))
    assert feedback.leaked
    raised = failure(detail="only Oslo is served", reference=(RIGHT,))
    assert rules(raised) == "error: the tool reported an error"


ENVIRONMENTS_MESSAGES = (  # as the environments of benchmarks/evidence answer
    "only Oslo is served",
    "no weather for 'Rome'; did you mean 'Oslo'?",
    "units must be celsius here, as no station of Rome measures fahrenheit",
    '{"error": "unknown city", "available": ["Oslo"]}',
    "Oslo",
)


def marked(text):
    return lambda _: Diagnosis(text, from_environment=True)


def attributed(text):
    def call_the_tool(_: Failure) -> str:
        return text

    call_the_tool.from_environment = True
    return call_the_tool


@pytest.mark.parametrize("make", [marked, attributed])
@pytest.mark.parametrize("text", ENVIRONMENTS_MESSAGES)
def test_what_a_source_got_from_the_environment_itself_is_no_leak_and_is_counted(text, make):
    feedback = asked(make(text), reference=(RIGHT,))
    assert feedback == Feedback(text, "mine")
    assert (feedback.exempt, feedback.leaked) == (True, False)
    assert asked(lambda _: text, reference=(RIGHT,)).leaked  # the same from a source that only knows the reference


@pytest.mark.parametrize("text", ENVIRONMENTS_MESSAGES)
def test_the_environment_source_may_quote_the_environment(text):
    feedback = feedback_for(failure(detail=text, reference=(RIGHT,)), make_chain("environment"))
    assert feedback == Feedback(text, "environment")
    assert feedback.exempt


def test_a_message_without_a_value_is_not_counted_as_an_exemption():
    assert not asked(marked("try again later"), reference=(RIGHT,)).exempt
    assert not asked(marked("Oslo")).exempt  # no reference, nothing to leak


def test_a_function_that_returns_a_diagnosis_gives_its_reason():
    assert asked(lambda _: Diagnosis(None, "no connection")).rejected == (("mine", "no connection"),)
    assert asked(lambda _: Diagnosis("  \n", from_environment=True)).rejected == (("mine", "no diagnosis"),)
    long = asked(marked("Oslo " * 9999), reference=(RIGHT,))
    assert (len(long.text), long.exempt) == (MAX_LENGTH, True)


def test_the_environments_message_on_another_failure_is_guarded_as_any_text():
    environments = FunctionSource("mine", marked("only Oslo is served"))
    tasks = [Task(name, f"go {name}", reference=(RIGHT,)) for name in "ab"]
    failures = [Failure(task, (Turn("x"),), ErrorKind.RAISED) for task in tasks]
    answers = FeedbackRequest(failures, [ShuffledFeedback(environments)]).feedback()
    assert [answer.leaked for answer in answers] == [True, True]


def test_what_the_environment_has_said_in_the_dialogue_is_no_leak():
    result = ToolResult(RIGHT, "{'error': 'only Oslo is served'}", "only Oslo is served")
    turn = Turn("x", calls=(ToolCall("get_weather", {"city": "Rome"}),), results=(result,))
    said = Failure(Task("t", "go"), (turn,), ErrorKind.RAISED, "only Oslo is served", 0, expected=(RIGHT,))
    assert feedback_for(said, make_chain("rules")) == Feedback("only Oslo is served", "rules")
    assert feedback_for(said, make_chain("rules")).exempt
    assert feedback_for(said, [FunctionSource("mine", lambda _: "you meant Oslo")]).leaked


def test_a_silent_episode_is_compared_with_what_its_environment_expects():
    both = (RIGHT, ToolCall("get_time", {"zone": "CET"}))

    def silent(*made: tuple[ToolCall, str | None], expected=both):
        turns = tuple(Turn("x", calls=(call,), results=(ToolResult(call, "ok", error),)) for call, error in made)
        ending = Turn("Done.", content="Done.")
        return rules(Failure(Task("t", "go"), (*turns, ending), ErrorKind.LOW_REWARD, expected=expected, tools=TOOLS))

    time_, cold = ToolCall("get_time", {"zone": "UTC"}), (weather(units="kelvin"), None)
    assert silent((RIGHT, None), (time_, None)) == "error: `zone` is not right, got 'UTC' in the call of 'get_time'"
    assert silent((RIGHT, None)) == "error: at least one more tool call is needed"
    assert silent(cold, (RIGHT, "no such city"), expected=(RIGHT,)) == "error: `units` is not right, got 'kelvin'"
    looked_up = ToolCall("get_time", {})
    assert silent((looked_up, None), (RIGHT, None), expected=(RIGHT,)) is None  # looking something up is no fault
    assert silent() == "error: a tool call is needed here, but none was made"
    assert silent((RIGHT, None), expected=None) is None


def test_feedback_is_cut_and_can_be_encoded():
    assert asked(lambda _: "\ud800" + "x" * 9999).text == "?" + "x" * (MAX_LENGTH - 1)


def test_silence_on_purpose_is_no_fallback():
    assert feedback_for(failure(), make_chain("none")) == Feedback("", "none")


def test_a_chain_asks_the_next_source_what_the_one_before_could_not_say():
    def named(name, said):
        return FunctionSource(name, lambda _: said)

    chain = [named("first", None), named("second", "error: it rains in Oslo"), named("third", "error: `city`")]
    feedback = feedback_for(failure(reference=(RIGHT,)), chain)
    assert feedback == Feedback("error: `city`", "third", (("first", "no diagnosis"), ("second", "leak")))
    assert feedback.fallback == "first: no diagnosis; second: leak"


class Slow:
    """A source whose answers come when `answer` is called."""

    name, asynchronous = "slow", True

    def __init__(self):
        self.futures: list[Future[Diagnosis]] = []

    def start(self, failures):
        self.futures += [Future() for _ in failures]
        return self.futures

    def check(self): ...

    def counts(self):
        return {}


def test_what_is_late_is_given_up_and_what_is_there_is_used():
    slow = Slow()
    enquiry = FeedbackRequest([failure(detail="first"), failure(detail="second")], [slow, *make_chain("environment")])
    slow.futures[1].set_result(Diagnosis("error: told"))
    began = time.monotonic()
    first, second = enquiry.feedback(timeout=0.05)
    assert 0.04 < time.monotonic() - began < 1
    assert first == Feedback("first", "environment", (("slow", "late"),))
    assert second == Feedback("error: told", "slow")
    assert slow.futures[0].cancelled()


def test_a_source_may_leave_a_failure_to_the_next_one_without_being_counted():
    slow = Slow()
    enquiry = FeedbackRequest([failure(detail="no such file")], [slow, *make_chain("environment")])
    slow.futures[0].set_result(Diagnosis(None))
    assert enquiry.feedback() == [Feedback("no such file", "environment")]


def test_sources_are_known_by_name_or_given_as_functions_or_in_a_list():
    class Simulator:
        def __call__(self, _: Failure) -> str | None:
            return None

    slow = Slow()
    chain = make_chain(["rules", Simulator(), slow])
    assert [source.name for source in chain] == ["rules", "Simulator", "slow"]
    assert chain[2] is slow
    assert set(SOURCES) == {"fixed", "environment", "rules", "none"}
    with pytest.raises(
        ValueError, match="no feedback source is called 'rulez'; give one of fixed, environment, rules"
    ):
        make_chain("rulez")


@pytest.mark.parametrize(
    "given",
    [
        "environment,rules",
        " environment , rules ",
        ["environment", "rules"],
        ("environment", "rules"),
        ["environment,rules"],
        [["environment"], "rules"],
        ["environment", rules],
    ],
)
def test_a_chain_is_the_same_however_it_is_written(given):
    assert [source.name for source in make_chain(given)] == ["environment", "rules"]


def test_every_form_of_the_command_line_can_be_given_in_python(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    (shuffled,) = make_chain("shuffled:rules")
    assert shuffled.name == "shuffled:rules"
    endpoint, last = make_chain(["endpoint:model", "rules"], url="http://localhost:1/v1")
    assert (endpoint.name, last.name) == ("endpoint", "rules")
    endpoint.close()


@pytest.mark.parametrize("given", [[], (), None, 3, {"a": 1}, ["rules", None], [[]]], ids=str)
def test_what_is_no_source_is_one_error_that_lists_the_forms(given):
    with pytest.raises(ValueError, match=r"feedback must be a name \(fixed, environment, rules, none, local:PATH"):
        make_chain(given)


@pytest.mark.parametrize("given", ["rules,", "environment,,rules", "", "local:", ["rules", ""], ["rules", "oracle"]])
def test_an_unknown_name_is_one_error_in_every_form(given):
    with pytest.raises(ValueError, match="no feedback source is called"):
        make_chain(given)


def circular():
    entries: list = ["rules"]
    entries.append(entries)
    return entries


def nested(levels):
    entries: list = ["rules"]
    for _ in range(levels):
        entries = [entries]
    return entries


@pytest.mark.parametrize(
    "feedback",
    [",".join(["rules"] * 5000), "shuffled:" * 2000 + "rules", ["rules"] * 5000, nested(3000), circular()],
    ids=["commas", "shuffled", "list", "nested", "circular"],
)
def test_a_chain_of_very_many_sources_is_refused_in_one_line(feedback):
    with pytest.raises(ValueError, match="more than 50 sources") as error:
        make_chain(feedback)
    assert len(str(error.value)) < 200


def test_fifty_sources_are_a_chain():
    assert len(make_chain(",".join(["rules"] * 50))) == 50
    assert len(make_chain([["rules", "fixed"], "none"])) == 3
    assert [source.name for source in make_chain("shuffled:shuffled:rules")] == ["shuffled:shuffled:rules"]
