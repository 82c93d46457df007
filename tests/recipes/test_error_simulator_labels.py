"""How failures are labelled, what is specific, what the filters drop, and how training and test are kept apart."""

from collections import Counter

import pytest
from simulator_support import ASK, CLOSE, RIGHT, TASK, WRONG, found, refuses

from fission_grpo.core.types import Task, ToolCall, ToolResult
from fission_grpo.feedback.dataset import FeedbackExample, make_example
from fission_grpo.feedback.sources import FunctionSource
from fission_grpo.recipes.error_simulator.failures import LabelledFailure, StepContext, judge_reply
from fission_grpo.recipes.error_simulator.filters import (
    FilterLimits,
    draw_evenly,
    draw_test_apis,
    filter_failures,
    split_by_api,
    template,
)
from fission_grpo.recipes.error_simulator.labels import (
    DEFAULT_TEACHERS,
    as_error,
    is_specific,
    label,
    make_teachers,
    pointed_rules,
)

# --- labels


def test_the_environments_words_come_first_and_the_rules_point_where_they_are_unspecific():
    plain = judge_reply(StepContext(TASK, refuses), WRONG)
    one = LabelledFailure(FeedbackExample(plain, "A", "fission"), "r")
    labels = label([one], make_teachers(DEFAULT_TEACHERS))
    (made,) = labels.labelled
    assert made.example.diagnosis == "error: no such ticket; `ticket_id` is not right, got 8"
    assert (made.example.teacher, labels.rejected) == ("rules", Counter({"environment: unspecific": 1}))
    assert pointed_rules(plain) == made.example.diagnosis


def test_a_message_beside_the_schemas_fault_is_left_for_the_rules():
    def says(calls):
        return tuple(ToolResult(call, "{'error': 'Ticket 700 not found.'}", "Ticket 700 not found.") for call in calls)

    task = Task("t1", (ASK,), (CLOSE,), (ToolCall("close", {"ticket_id": 700}),))
    one = LabelledFailure(
        FeedbackExample(judge_reply(StepContext(task, says), RIGHT.replace("7", '"700"')), "A", "fission"), "r"
    )
    labels = label([one], make_teachers(DEFAULT_TEACHERS))
    assert labels.labelled[0].example.diagnosis == "error: `ticket_id` must be an integer, got '700'"
    assert labels.rejected == Counter({"environment: beside the fault": 1})


def names_the_ticket(calls):
    return tuple(ToolResult(call, "{'error': 'close 7'}", "close 7: use 7 for ticket_id") for call in calls)


def test_what_the_environment_gives_away_is_a_label_and_passes_the_filters():
    one = LabelledFailure(make_example(judge_reply(StepContext(TASK, names_the_ticket), WRONG), "A", "fission"), "r")
    labels = label([one], make_teachers("environment"))
    assert [made.example.diagnosis for made in labels.labelled] == ["error: close 7: use 7 for ticket_id"]
    assert filter_failures(labels.labelled, FilterLimits()) == (list(labels.labelled), Counter())


def test_a_leak_of_another_teacher_and_a_failure_nobody_can_label_are_dropped_and_counted():
    def tell(failure):
        return "error: use 7 for ticket_id"

    one = LabelledFailure(make_example(judge_reply(StepContext(TASK, names_the_ticket), WRONG), "A", "fission"), "r")
    labels = label([one], [FunctionSource("model", tell)])
    assert (labels.labelled, labels.dropped) == ((), Counter({"leak": 1}))


def test_a_label_begins_with_error_once():
    assert [as_error(text) for text in ("no file", "Error: no file", "error no file")] == ["error: no file"] * 2 + [
        "error: error no file"
    ]


def test_an_unknown_teacher_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match="no feedback source is called 'oracle'; give one of fixed, "):
        make_teachers("oracle")
    with pytest.raises(ValueError, match="no feedback source is called ''"):
        make_teachers(" ,")


# --- specificity


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("error: close failed", "tool"),
        ("error: `ticket_id` is not right", "parameter"),
        ("error: Ticket ID is not known", "parameter"),
        ("error: 8 is not known", "value"),
        ("error: something is wrong", None),
        ("error: the closed door, 18 of 88", None),
        ("error: you made a mistake. please try again.", None),
    ],
)
def test_a_diagnosis_names_tool_parameter_value_or_nothing(text, named):
    failure = judge_reply(StepContext(TASK), WRONG)
    assert is_specific(text, failure) == (named is not None)


def test_of_a_turn_without_calls_the_form_is_what_is_named():
    unread = judge_reply(StepContext(TASK), WRONG[:-20])
    assert is_specific("error: tool call is not valid JSON", unread)
    silent = judge_reply(StepContext(TASK), "Done.")
    assert is_specific("error: a tool call is needed here, but none was made", silent)
    assert not is_specific("error: that is wrong", silent)
    needless = judge_reply(StepContext(Task("t", (ASK,), (CLOSE,), ())), WRONG)
    assert is_specific("error: no tool call is needed here", needless)
    assert not is_specific("error: that is wrong", needless)


# --- filters and split


def test_each_filter_drops_what_it_is_for():
    many = [
        found("a"),
        found("a"),  # the same turn
        found("b", diagnosis="error: use 7 for `ticket_id`"),
        found("c", diagnosis="error: that is wrong"),
        found("d", diagnosis="`ticket_id`"),
        found("e", diagnosis="error: `ticket_id` " + "x" * 500),
        found("A"),  # the same call but for case, the same diagnosis
        found("f"),
        found("g"),
    ]
    kept, dropped = filter_failures(many, FilterLimits(alike=2))
    assert [one.example.id for one in kept] == ["a", "f"]
    assert dropped == Counter(
        {
            "duplicate": 1,
            "leak": 1,
            "unspecific": 1,
            "too short": 1,
            "too long": 1,
            "near duplicate": 1,
            "template": 1,
        }
    )


def test_a_template_leaves_out_quoted_values_and_numbers():
    assert template("error: `a` is 'x' or 7, got \"y\"") == "error: `a` is _ or _, got _"


def test_apis_roots_and_texts_are_in_one_side_only():
    many = [found("a", "A", root="1"), found("b", "B", root="1"), found("c", "A", root="2"), found("d", "B", root="3")]
    many.append(found("d", "A", root="4"))  # the same text as in B
    split = split_by_api(many, ("B",), 0, 0.5, 0)
    assert [one.example.id for one in split.train] == ["c"]
    assert [one.example.id for one in split.test] == ["b", "d"]
    assert split.dropped == Counter({"its case is tested on": 1, "its failed turn is tested on": 1})


def test_thinning_is_even_over_apis():
    many = [found(str(i), "A") for i in range(5)] + [found("x", "B")]
    assert Counter(one.example.api for one in draw_evenly(many, 4, 0)) == {"A": 3, "B": 1}


def test_apis_are_drawn_by_the_seed_never_all_of_them():
    many = [found(f"{api}{i}", api) for api in "ABCD" for i in range(5)]
    assert len(draw_test_apis(many, 0.2, 0)) == 1
    assert len({draw_test_apis(many, 0.2, seed) for seed in range(20)}) > 1
    assert len(draw_test_apis(many, 0.99, 0)) == 3
    assert (draw_test_apis(many, 0, 0), draw_test_apis(many, 1, 0)) == ((), ("A", "B", "C", "D"))
