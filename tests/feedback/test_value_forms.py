"""Numbers, dates, times and booleans in the forms that people write them in."""

import pytest

from fission_grpo.feedback.leak_guard import number_of, states_boolean, states_date, states_number, states_time


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("forty-two", 42),
        ("one hundred and five", 105),
        ("one thousand two hundred and fifty", 1250),
        ("minus seven", -7),
        ("to six and call again", 6),
        ("to one", 1),
        ("1,250 or so", 1250),
        ("1,250.00", 1250),
        ("1 250 euros", 1250),
        ("1.250,00 euros", 1250),
        ("1'250", 1250),
        ("1.25e3", 1250),
        ("1250.0", 1250),
        ("118,5", 118.5),
        ("118.50", 118.5),
        ("-7", -7),
        ("2,000,000", 2_000_000),
    ],
)
def test_numbers_are_found_in_any_usual_form(text, value):
    assert states_number(text, value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("one of these", 1),
        ("two arguments", 2),
        ("one more call", 1),
        ("twenty-two", 2),
        ("twenty-two", 20),
        ("two hundred", 2),
        ("two hundred", 100),
        ("3,000", 3),
        ("v42", 42),
        ("someone", 1),
        ("-7", 7),
        ("2024-03-30", 3),
        ("3.5", 3),
        ("anything", float("nan")),
    ],
)
def test_words_that_only_count_and_parts_of_numbers_are_no_values(text, value):
    assert not states_number(text, value)


def test_only_numbers_and_their_spellings_are_numbers():
    assert (number_of("1,250"), number_of(3), number_of("3.0")) == (1250, 3, 3)
    assert number_of(True) is number_of("three") is number_of(None) is number_of(10**400) is None


def test_dates_are_read_from_any_usual_form_and_found_in_any():
    for value in ("2024-01-05", "2024-01-05t14:30", "2024/1/5", "05/01/2024", "january 5, 2024", "5 jan 2024"):
        for text in ("5. jan 2024", "20240105", "jan. 5", "the 5th of january", "05.01.2024", "1/5/24", "2024-1-5"):
            assert states_date(text, value), (text, value)
        for text in ("january 6", "the 15th of january", "2024-01-15", "5 of them", "2023-01-05"):
            assert not states_date(text, value), (text, value)
    assert states_date("on 2024-05-01", "05/01/2024")  # either order of day and month


@pytest.mark.parametrize("value", ["march on", "2024", "2024-13-05", "mayor 5, 2024", "room 12"])
def test_other_values_are_no_dates(value):
    assert not states_date("on march 5, may 5, 2024-01-05, 5.13.2024 and 12.12.2024", value)


def test_times_are_found_on_both_clocks():
    for value in ("14:30:00", "2:30 pm", "14:30", "2024-01-05t14:30"):
        for text in ("2:30 pm", "2.30 p.m.", "14.30h", "14h30", "14:30", "14:30:00"):
            assert states_time(text, value), (text, value)
        for text in ("2:30 am", "14:31", "114:30", "2:30", "1430"):
            assert not states_time(text, value), (text, value)
    assert states_time("at 2 pm", "14:00")
    assert not states_time("at 2 pm", "14:30")
    assert not states_time("25:30", "25:31")


def test_switching_on_is_true_and_off_is_false():
    assert states_boolean("turn it on", True)
    assert states_boolean("\x00 should be disabled", False)
    assert not states_boolean("it is on you; turn it on the spot? no", False)
    assert not states_boolean("error: no such file", False)
