"""Every corruption differs from the reference and is the kind of failure that it claims."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fission_grpo.core.chat import parse
from fission_grpo.core.types import ErrorKind, Task, ToolCall
from fission_grpo.recipes.error_simulator.corruptions import CORRUPTIONS, corrupt, find_step_failure
from fission_grpo.recipes.error_simulator.values import (
    allowed_values,
    call_context,
    dialogue_values,
    neighbours,
    reformat,
    shape_of,
)

BOOK = {
    "name": "book_flight",
    "description": "Book a flight.",
    "parameters": {
        "type": "object",
        "properties": {
            "origin": {"type": "string", "description": "Airport."},
            "target": {"type": "string", "description": "Airport."},
            "date": {"type": "string", "description": "YYYY-MM-DD"},
            "seats": {"type": "integer"},
            "fare": {"type": "string", "enum": ["economy", "business", "first"]},
            "meals": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["origin", "target", "date", "seats"],
    },
}
CANCEL = {
    "name": "cancel_booking",
    "description": "Cancel a booking.",
    "parameters": {"type": "object", "properties": {"booking_id": {"type": "string"}}, "required": ["booking_id"]},
}
LIST = {"name": "list_bookings", "description": "All bookings.", "parameters": {"type": "object", "properties": {}}}
TOOLS = (BOOK, CANCEL, LIST)
CALL = ToolCall("book_flight", {"origin": "SFO", "target": "JFK", "date": "2024-03-01", "seats": 2, "fare": "first"})
LISTED = {"type": "function", "function": {"name": "list_bookings", "arguments": {}}}
DIALOGUE = (
    {"role": "user", "content": "Book 2 seats from SFO to JFK on 2024-03-01, first class."},
    {"role": "assistant", "content": "", "tool_calls": [LISTED]},
    {"role": "tool", "name": "list_bookings", "content": '{"bookings": [{"origin": "LAX", "id": "B17"}]}'},
)


def task(call=CALL):
    return Task("t", DIALOGUE, TOOLS, () if call is None else (call,))


def made(name, call=CALL, seed=0):
    return corrupt(name, call_context(task(call)), random.Random(seed))


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name != "needless_call"])
def test_every_corruption_applies_to_a_call_with_arguments_of_many_types(name):
    assert made(name) is not None


@pytest.mark.parametrize("name", CORRUPTIONS)
@settings(max_examples=25, deadline=None)
@given(
    seats=st.integers(-3, 10**6),
    places=st.tuples(st.text(max_size=12), st.text(max_size=12)),
    date=st.one_of(st.dates().map(str), st.just("14:05"), st.text(max_size=6)),
    meals=st.lists(st.text(max_size=5), max_size=3),
    seed=st.integers(0, 99),
)
def test_a_corruption_is_never_right_and_of_a_kind_it_claims(name, seats, places, date, meals, seed):
    arguments = {"origin": places[0], "target": places[1], "date": date, "seats": seats, "meals": meals}
    call = None if name == "needless_call" else ToolCall("book_flight", arguments)
    text = made(name, call, seed)
    if text is None:
        return
    failure = find_step_failure(task(call), text)
    assert failure is not None
    assert failure.kind in CORRUPTIONS[name][1]
    assert failure.calls != failure.reference
    assert text == made(name, call, seed)


def test_each_type_changes_what_its_name_says():
    assert set(parse(made("missing_argument")).calls[0].arguments) < set(CALL.arguments)
    assert set(parse(made("extra_argument")).calls[0].arguments) > set(CALL.arguments)
    assert "fare" not in parse(made("missing_option")).calls[0].arguments
    assert parse(made("wrong_tool")).calls[0].name in ("cancel_booking", "list_bookings")
    assert parse(made("misspelt_tool")).calls[0].name not in ("book_flight", "cancel_booking", "list_bookings")
    assert parse(made("misspelt_tool")).calls[0].arguments == CALL.arguments
    assert parse(made("broken_json")).error is not None
    assert parse(made("no_call")).calls == ()
    assert parse(made("extra_call")).calls[0] == CALL
    assert len(parse(made("extra_call")).calls) == 2
    swapped = parse(made("swapped_arguments")).calls[0].arguments
    assert sorted(map(str, swapped.values())) == sorted(map(str, CALL.arguments.values()))


def test_a_stale_id_is_one_that_the_dialogue_showed():
    call = ToolCall("cancel_booking", {"booking_id": "B12"})
    assert parse(made("stale_id", call)).calls == (ToolCall("cancel_booking", {"booking_id": "B17"}),)


def test_off_by_one_of_a_single_number_is_a_neighbour():
    call = ToolCall("cancel_booking", {"booking_id": "B12"})
    texts = {parse(made("off_by_one", call, seed)).calls[0].arguments["booking_id"] for seed in range(20)}
    assert texts == {"B11", "B13"}


def test_what_does_not_apply_gives_nothing():
    bare = ToolCall("list_bookings", {})
    for name in ("wrong_value", "wrong_type", "missing_argument", "stale_id", "swapped_arguments", "needless_call"):
        assert made(name, bare) is None
    assert made("wrong_value", None) is None
    assert find_step_failure(task(None), made("needless_call", None)).kind is ErrorKind.WRONG_CALL


def test_an_unknown_corruption_and_a_reference_of_two_calls_are_refused():
    with pytest.raises(ValueError, match="no corruption 'other'"):
        made("other")
    with pytest.raises(ValueError, match="one call or none"):
        call_context(Task("t", DIALOGUE, TOOLS, (CALL, CALL)))


def test_values_are_seen_in_calls_results_and_texts():
    assert ("origin", "LAX") in dialogue_values(task())
    assert ("id", "B17") in dialogue_values(task())
    assert ("", 2) in dialogue_values(task())


def test_neighbours_shapes_formats_and_options_by_hand():
    assert neighbours(7) == [6, 8]
    assert neighbours("USR350") == ["USR349", "USR351"]
    assert neighbours("2024-03-01") == ["2024-02-29", "2024-03-02"]
    assert neighbours(True) == []
    assert neighbours("B09") == ["B08", "B10"]
    assert (shape_of("USR350"), shape_of("tok2497"), shape_of("2024-05-01"), shape_of(7)) == (
        "A9",
        "a9",
        "9-9-9",
        "integer",
    )
    assert reformat("2024-05-01") == ["05/01/2024", "May 1, 2024", "2024/5/1"]
    assert reformat("14:05") == ["2:05 PM", "14h05"]
    assert reformat(["a", "b"]) == ["a, b"]
    assert allowed_values({"description": 'The mode. [Enum]: ["on", "off"]'}) == ["on", "off"]
    assert allowed_values({"description": "The base. [Enum]: USD, RMB"}) == ["USD", "RMB"]
    assert allowed_values({"enum": [1, 2]}) == [1, 2]
