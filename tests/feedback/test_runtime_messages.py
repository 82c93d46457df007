"""Templates of an environment's messages: what they may give away, and which texts count as a runtime's."""

from dataclasses import replace

import pytest

from fission_grpo.core.chat import render_call
from fission_grpo.core.serialization import recovery_id
from fission_grpo.core.types import ErrorKind, Failure, Task, ToolCall, Turn
from fission_grpo.feedback import runtime_messages
from fission_grpo.feedback.dataset import make_example
from fission_grpo.feedback.local_model import LocalModelFeedback
from fission_grpo.feedback.request import FeedbackRequest
from fission_grpo.feedback.runtime_messages import as_runtime, learn_templates, message_of, template
from fission_grpo.feedback.sources import Diagnosis


def failure(wrong, right, kind=ErrorKind.RAISED):
    task = Task(f"{wrong}", ({"role": "user", "content": "Do it."},), (), (right,))
    return Failure(task, (Turn(render_call(wrong), calls=(wrong,)),), kind, call_index=0)


def moved(name, right="plan_2.md", folder="archive", said_folder="archive"):
    return failure(
        ToolCall("move_file", {"name": name, "folder": said_folder}),
        ToolCall("move_file", {"name": right, "folder": folder}),
    )


LOCKED = failure(ToolCall("delete_file", {"name": "memo_3.md"}), ToolCall("unlock_file", {"name": "memo_3.md"}))
SAID = [
    (moved("plan.txt"), "no file 'plan.txt'; similar: plan_2.md"),
    (moved("report.txt", "report_7.pdf"), "no file 'report.txt'; similar: report_7.pdf, report_9.csv"),
    (LOCKED, "memo_3.md is locked; call unlock_file first"),
]


def example(failed, message, teacher="environment"):
    return replace(make_example(failed, "desk", "sampled:mine"), diagnosis=f"error: {message}", teacher=teacher)


TEMPLATES, _ = learn_templates(example(*said) for said in SAID)


@pytest.mark.parametrize(
    ("text", "written", "expected"),
    [
        ("no file 'plan.txt'; similar: plan_2.md, plan_3.md", [], "no file _; similar: _"),
        ("no event 'lunch'; lunch is E35", ["lunch"], "no event _; _ is _"),
        ("10:30 is taken on 2026-01-05; next free 11:00", [], "_ is taken on _; next free _"),
        ("can't open \"it's mine\"; don't", [], "can't open _; don't"),
    ],
)
def test_a_template_leaves_out_values_lists_and_what_the_call_wrote(text, written, expected):
    assert template(text, written) == expected


def test_a_message_is_the_same_however_it_is_written():
    forms = ("no 'x' here", "error: no 'x' here", "{'error': \"no 'x' here\"}", '{"error": "no \'x\' here"}')
    assert {message_of(form) for form in forms} == {"no 'x' here"}


def test_templates_are_learned_with_what_their_messages_gave_away():
    assert TEMPLATES == {
        "no file _; similar: _": ["the value of `name`"],
        "_ is locked; call unlock_file first": ["the name of tool 'unlock_file'"],
    }


def test_only_an_environments_messages_about_calls_are_learned():
    silent = replace(moved("plan.txt"), turns=(Turn("Done."),), kind=ErrorKind.NO_CALL)
    rules = example(moved("plan.txt"), "`name` is not right, got 'plan.txt'", teacher="rules")
    assert learn_templates([rules, example(silent, "a tool call is needed")]) == ({}, 0)


def test_the_rarest_templates_are_left_out_and_counted(monkeypatch):
    monkeypatch.setattr(runtime_messages, "MAX_TEMPLATES", 1)
    kept, left_out = learn_templates(example(*said) for said in SAID)
    assert (list(kept), left_out) == (["no file _; similar: _"], 1)


def answer(text, failed):
    return as_runtime(Diagnosis(text), failed, TEMPLATES)


def test_a_text_in_the_environments_words_is_shown_as_the_policy_would_read_it():
    said = answer("error: no file 'offer'; similar: offer_5.csv", moved("offer", "offer_5.csv"))
    assert said == Diagnosis("{'error': \"no file 'offer'; similar: offer_5.csv\"}", from_environment=True)


OFFER = moved("offer", "offer_5.csv", folder="box_4", said_folder="home")


@pytest.mark.parametrize(
    "text",
    [
        "error: no file 'offer'; similar: box_4",  # the value of another parameter
        "error: no file 'offer'; similar: offer_5.csv, box_4",
        "error: no file 'offer; move it to box_4'; similar: offer_5.csv",
        "error: box_4 is locked; call unlock_file first",  # the environment named no folder here
        "error: `name` must be offer_5.csv",  # words that the environment does not use
        "error: no file 'offer'; similar: offer_5.csv. Move it to box_4",
    ],
)
def test_a_reference_value_in_a_place_where_the_environment_named_none_is_guarded(text):
    assert answer(text, OFFER) == Diagnosis(text)
    feedback = FeedbackRequest([OFFER], [Fixed(answer(text, OFFER))]).feedback()[0]
    assert feedback.leaked


class Fixed(LocalModelFeedback):
    """A simulator that remembers its answer to every failure."""

    def __init__(self, given):
        super().__init__("no model")
        self.load_state({"known": [[recovery_id(OFFER), given.text, given.reason, given.from_environment]]})


def test_a_text_in_the_environments_words_passes_the_guard_and_is_counted_also_after_a_resume():
    source = Fixed(answer("error: no file 'offer'; similar: offer_5.csv", OFFER))
    again = LocalModelFeedback("no model")
    again.load_state(source.state())
    for one in (source, again):
        feedback = FeedbackRequest([OFFER], [one]).feedback()[0]
        assert (feedback.source, feedback.exempt, feedback.leaked) == ("local", True, False)


def test_what_the_policy_wrote_itself_is_not_given_away():
    swapped = failure(
        ToolCall("move_file", {"name": "box_4", "folder": "home"}),
        ToolCall("move_file", {"name": "offer_5.csv", "folder": "box_4"}),
    )
    assert answer("error: no file 'box_4'; similar: offer_5.csv", swapped).from_environment


def test_only_the_environment_could_tell_that_it_would_not_have_said_so_here():
    # the limit of templates: the runtime finds nothing similar to 'x', but it does name files in this place
    assert answer("error: no file 'x'; similar: offer_5.csv", moved("x", "offer_5.csv")).from_environment


def test_an_answer_without_text_or_about_no_call_stays_as_it_is():
    silent = replace(OFFER, turns=(Turn("Done."),), kind=ErrorKind.NO_CALL)
    assert answer(None, OFFER) == Diagnosis(None)
    assert not answer("error: no file 'offer'; similar: offer_5.csv", silent).from_environment
