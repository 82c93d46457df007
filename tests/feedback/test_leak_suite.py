"""The adversarial suite of the leak guard, disguises one by one, and what holds for any text."""

import base64
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fission_grpo.core.types import ToolCall
from fission_grpo.feedback.leak_guard import (
    dates_of,
    leaks,
    numbers_in,
    readings,
    says_date,
    says_split,
    says_time,
    says_truth,
    says_turned,
    time_of,
)

FOLDER = Path(__file__).parent.parent.parent / "benchmarks" / "leaks"
ROWS = [json.loads(line) for line in (FOLDER / "suite.jsonl").read_text(encoding="utf-8").splitlines()]
REFERENCE = [
    ToolCall("go", {"to": "Rome", "day": "2024-01-05", "at": "14:30", "n": 42, "text": "a long way from home"})
]


def found(row):
    reference, failed = (ToolCall(**row[key]) for key in ("reference", "failed"))
    return leaks(row["text"], [reference], [failed], row["tools"]) is not None


def test_on_the_development_half_recall_and_precision_do_not_fall():
    rows = [(row["leak"], found(row)) for row in ROWS if row["half"] == "development"]
    caught = rows.count((True, True))
    assert caught / sum(leak for leak, _ in rows) >= 0.99
    assert caught / sum(alarm for _, alarm in rows) >= 0.99


def test_the_suite_is_large_enough_and_its_halves_share_no_situation():
    assert sum(row["leak"] for row in ROWS) >= 300
    assert sum(not row["leak"] for row in ROWS) >= 300
    halves = [{row["id"].split("/")[0] for row in ROWS if row["half"] == half} for half in ("development", "held out")]
    assert [len(half) for half in halves] == [16, 16]
    assert not halves[0] & halves[1]
    new = {row["rule"] for row in ROWS if row["new_rule"]}
    assert not new & {row["rule"] for row in ROWS if row["half"] == "development"}


def test_the_suite_is_what_the_script_makes():
    code = "import json, make_suite; print(*(json.dumps(r, ensure_ascii=False) for r in make_suite.rows()), sep='\\n')"
    made = subprocess.run([sys.executable, "-X", "utf8", "-c", code], cwd=FOLDER, capture_output=True, check=True)
    assert made.stdout.decode() == (FOLDER / "suite.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("use Um9tZQ==", "use Rome"),
        ("use 526f6d65", "use Rome"),
        ("use 52 6f 6d 65", "use Rome"),
        ("use %52ome", "use Rome"),
        ("use &#82;ome", "use Rome"),
        ("use \\u0052ome", "use Rome"),
        ("use VW05dFpRPT0=", "use Rome"),  # base64 twice
        ("zoe at acme dot org", "zoe@acme.org"),
        ("use 7a6f652061636d65", "use zoe acme"),  # "acme" is base64, too
    ],
)
def test_encodings_are_resolved(text, says):
    assert says in list(readings(text))


def test_words_that_are_no_encoding_are_left_alone():
    for text in ("the arguments do not match", "cafe deadbeef", "100% sure", "call \\udc00", "look at this"):
        assert list(readings(text)) == [text]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("forty-two", 42),
        ("one hundred and five", 105),
        ("three point five", 3.5),
        ("minus seven", -7),
        ("four two", 42),
        ("to six and call again", 6),
        ("to one", 1),
        ("1,250 or so", 1250),
        ("1 250 euros", 1250),
        ("1.250,00 euros", 1250),
        ("1.5k", 1500),
        ("118,5", 118.5),
        ("0x2a", 42),
        ("4-2", 42),
    ],
)
def test_numbers_are_read_in_any_spelling(text, value):
    assert value in numbers_in(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("one of these", 1), ("two arguments", 2), ("one more call", 1), ("3,000", 3), ("v42", 42), ("someone", 1)],
)
def test_words_that_only_count_and_parts_of_numbers_are_no_values(text, value):
    assert value not in numbers_in(text)


def test_dates_are_read_from_any_usual_form_and_found_in_any():
    assert dates_of("2024-01-05t14:30") == ((2024, 1, 5),)
    assert dates_of("05/01/2024") == ((2024, 1, 5), (2024, 5, 1))
    assert dates_of("january 5, 2024") == ((2024, 1, 5),)
    assert dates_of("march on") == dates_of("2024") == ()
    for text in ("the fifth of january", "5. jan 2024", "month 1, day 5", "20240105", "the 5th day of month 1"):
        assert says_date(text, 2024, 1, 5), text
    for text in ("january 6", "the 15th of january", "month 11, day 5", "2024-01-15", "5 of them"):
        assert not says_date(text, 2024, 1, 5), text


def test_times_are_found_on_both_clocks():
    assert time_of("14:30:00") == time_of("2:30 pm") == (14, 30)
    assert time_of("25:30") is None
    for text in ("2:30 pm", "2.30 p.m.", "14.30h", "14h30", "half past two", "1430 hours"):
        assert says_time(text, 14, 30), text
    for text in ("2:30 am", "14:31", "114:30", "half past three", "1430"):
        assert not says_time(text, 14, 30), text
    assert says_time("at noon", 12, 0)


def test_switching_on_is_true_and_off_is_false():
    assert says_truth("turn it on", True)
    assert says_truth("\x00 should be disabled", False)
    assert not says_truth("it is on you; turn it on the spot? no", False)
    assert not says_truth("error: no such file", False)


def test_letters_set_apart_and_words_turned_are_found_but_not_neighbours():
    for text in ("r-o-m-e", "'ro' + 'me'", "r o m e", "r.o.m.e"):
        assert says_split(text, "rome", frozenset()), text
    assert not says_split("pro me", "rome", frozenset())
    assert not says_split("to be", "tobe", frozenset({"to", "be"}))
    assert says_turned("try emor, backwards", "rome")
    assert says_turned("try ebzr", "rome")
    assert not says_turned("one step back", "pets")


@given(st.text(alphabet=st.characters(exclude_characters="`'\x00", codec="utf-8"), max_size=80), st.data())
@settings(max_examples=150, deadline=None)
def test_a_stated_value_is_found_after_any_text_and_through_case_and_invisible_characters(text, data):
    value = data.draw(st.sampled_from(["Rome", "2024-01-05", "14:30", "42"]))
    shown = data.draw(st.sampled_from([value, value.upper(), "\u200b".join(value), "\u00ad".join(value)]))
    assert leaks(f"{text}. It is '{shown}'.", REFERENCE)


@given(st.sampled_from(["Rome", "2024-01-05", "14:30"]), st.sampled_from([1, 2]))
def test_base64_hides_no_value(value, times):
    for _ in range(times):
        value = base64.b64encode(value.encode()).decode()
    assert leaks(f"look: {value}", REFERENCE)


@given(st.text(max_size=200) | st.text("\\ux&#;%=0123456789abcdef one-hundred", max_size=200))
@settings(max_examples=200, deadline=None)
def test_no_text_breaks_the_guard_and_the_answer_is_the_same_twice(text):
    assert leaks(text, REFERENCE) == leaks(text, REFERENCE)


def test_hostile_texts_of_full_length_take_no_long_time():
    for part in (
        "two ",
        "ab",
        "%41",
        "1 ",
        "1 000 ",
        "`",
        "month ",
        "'",
        " ",
        "aa ",
        "one hundred and ",
        "a at ",
        "thousand ",
    ):
        began = time.perf_counter()
        leaks((part * 2000)[:2000], REFERENCE)
        assert time.perf_counter() - began < 0.15, part  # 10 ms at most when measured, the machine to oneself
