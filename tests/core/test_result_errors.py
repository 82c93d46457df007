"""Results that report an error in words, and those that only speak of errors."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fission_grpo.core.chat import read_result
from fission_grpo.core.errors import UsageError
from fission_grpo.core.result_errors import (
    LIKE_AN_ERROR,
    check_error_pattern,
    error_rule,
    is_like_an_error,
    like_errors,
    matches,
)
from fission_grpo.core.types import ToolCall


@pytest.mark.parametrize(
    "text",
    [
        "Error: user not found",
        "error: no such file",
        "ERROR: x",
        "ValueError: bad",
        "requests.exceptions.HTTPError: 404",
        "Error executing tool add: 1 validation error",
        "Error during execution: no ls",
        "Traceback (most recent call last):\n  File",
        '"Error: quoted"',
        "\n Exception: x",
        "Error code: 401 - {}",
        '{"status": "error", "message": "no such user"}',
        '{"message": "no such user", "success": false}',
        "{'ok': False}",
        "Error 404",
        "Error - no such user",
        "<tool_use_error>InputValidationError</tool_use_error>",
    ],
)
def test_results_that_begin_like_an_error_are_recognised(text):
    assert LIKE_AN_ERROR.match(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ok",
        "No error: all is well",
        "The Error: none",
        "errors: 0",
        "Errors found: none",
        '{"error": null}',
        "Terror: a film",
        '{"status": "ok"}',
        '{"success": true, "falsehood": false}',
        '{"order": {"status": "failed"}}',
        "Error rates fell by 3%",
        "<errors>none</errors>",
    ],
)
def test_other_results_are_not(text):
    assert not LIKE_AN_ERROR.match(text)


@pytest.mark.parametrize(
    "text",
    [
        "Error fetching data: 404",
        "Error reading file",
        "Error parsing arguments: x",
        "Error (404): x",
        "Error (timeout): x",
        "[ERROR] x",
        "Error. x",
        "Error.",
        "Tool error: x",
        "Tool execution failed: timeout",
        "Failed to call tool: x",
        "An error occurred: x",
        "An unexpected error occurred while x",
        "Execution error: x",
        "Error\nboom",
        "**Error**: x",
        "Exception occurred: x",
        "Request failed with status code 404",
        "API request failed: 500",
        '{"data": {}, "status": "error"}',
        '{"status": "Error"}',
        '{"status":"ERROR","message":"x"}',
        '{"data": {"a": {"b": 1}}, "Status": "Failure"}',
        '{"success": "false"}',
        "{'data': {}, 'status': 'error'}",
        "Error: x",
        "HTTP error 500",
        "[error] x",
        "Error occurred: x",
        "Internal server error",
        "Function call failed: x",
        "Error",
        "error",
        "Error invoking tool",
        "Error validating input: x",
        "Tool call failed.",
        "Tool 'f' failed: x",
        "Tool weather failed: timeout",
        "API Error: x",
        "Error while x",
        "Error (code 5): x",
        "Error - x",
        "error fetching",
        "ERROR reading file x",
        "Failed: no such user",
        "Failure: timeout",
        "Error (invalid id)",
        "Error, no such order",
        "Error; no such order",
        "Error from server: x",
        "Error on line 3",
        "ERROR order 77 not found",
        "❌ Error: no such order",
        "⚠️ Error: no such order",
        "Error：no such order",
        "KeyError('x')",
        '{"errors": ["x"]}',
        '{"data": null, "errors": [{"message": "x"}]}',
        '{"Error": "x"}',
        '{"code": 404, "message": "not found"}',
        '{"status": 503, "detail": "busy"}',
        '{"status": "failed", "message": "no such user"}',
        "Not found",
        "404 Not Found",
        "Permission denied.",
        "HTTP 500 Internal Server Error",
        "HTTP/1.1 404 Not Found",
        "Invalid argument: x",
        "Invalid order id: x",
        "Error 404 Not Found",
        "Error 404: x",
        "ERROR 2024-01-01 12:00 x",
    ],
)
def test_errors_in_words_and_statuses_of_failure_are_recognised(text):
    assert is_like_an_error(text)


@pytest.mark.parametrize(
    "text",
    [
        "Error handling in Python is easy",
        "Error rates fell",
        "Error correcting codes",
        "Failed tests: 3",
        "Tool error rate: 3%",
        "No errors",
        "errors: 0",
        "The tool failed to x",
        "An error budget is a thing",
        "Errors found: none",
        '[{"id":1,"status":"completed"},{"id":2,"status":"failed"}]',
        '[{"id":1,"error":"timeout"},{"id":2,"error":null}]',
        "Request for failed orders: 3",
        "API documentation",
        "Server status: ok",
        "Terror: a film",
        "error-free",
        "Connection established",
        '{"job": 3, "status": "failed"}',
        '{"job": 3, "status": "failed", "message": "disk full"}',
        '{"status": 0, "message": "done"}',
        '{"code": 404, "name": "T-shirt"}',
        '{"code": 404, "description": "T-shirt"}',
        '{"code": 200, "message": "found"}',
        '{"errors": []}',
        '{"errors": ["line 3"], "file": "a.py"}',
        '{"errors": 3}',
        '{"Error": "none"}',
        '{"Error": 0.02}',
        "Error 404 T-shirt, 3 in stock",
        "Error Handling in Python",
        "error, warning, info",
        "Failed: 0, passed: 12",
        "Failed: none",
        "Invalid rows: 3",
        "Not found in the archive, but in the inbox: notes.txt",
        "ERROR logs: none",
        "HTTP methods",
    ],
)
def test_right_results_that_speak_of_errors_are_not(text):
    assert not is_like_an_error(text)


def test_a_long_result_is_searched_for_errors_in_no_time():
    began = time.monotonic()
    for text in (
        "a" * 10**6,
        "Error" * 10**5,
        " " * 10**5,
        "{" * 10**5,
        "[" * 10**5,
        "tool " * 10**5,
        "an a-" * 10**5,
    ):
        is_like_an_error(text)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("text", ["(", "*a", "[z-a]", "", ".*", "a|", r"(?P<n>x)(?P<n>y)"])
def test_a_pattern_that_is_none_or_fits_every_text_is_refused(text):
    with pytest.raises(UsageError, match=r"is no regular expression|fits every text"):
        check_error_pattern(text)


def test_a_pattern_is_held_against_the_beginning_and_given_up_in_time():
    assert matches(check_error_pattern("^Error"), "Error: x")
    assert not matches(check_error_pattern("^Error"), "No Error: x")
    assert matches(check_error_pattern("^$"), "")
    assert not matches(check_error_pattern("late"), "x" * 5000 + "late")
    began = time.monotonic()
    with pytest.raises(UsageError, match=r"--error_pattern .* takes too long"):
        matches(check_error_pattern("^(a|a|b?a)+$"), "a" * 500 + "!")
    assert time.monotonic() - began < 20


def test_the_end_of_a_pattern_is_pythons():
    assert matches(check_error_pattern("Error$"), "x Error\n")
    assert matches(check_error_pattern("^[[a]rror"), "[rror")


@pytest.mark.parametrize("text", ["(a|b?)" * 7000, "(" * 3000 + ")" * 3000, "((a{1000}){1000}){1000}", "x" * 5001])
def test_a_pattern_too_large_to_compile_is_refused_at_once(text):
    began = time.monotonic()
    with pytest.raises(UsageError, match="is no regular expression"):
        check_error_pattern(text)
    assert time.monotonic() - began < 2


def test_a_pattern_is_given_up_in_a_thread_too():
    began = time.monotonic()
    with ThreadPoolExecutor() as pool, pytest.raises(UsageError, match="takes too long"):
        pool.submit(matches, "^(a|aa)+$", "a" * 900 + "!").result()
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("^Error", bool), "error_pattern and error_if are both given"),
        ((None, 3), "error_if must be a pattern or a function"),
        (("(",), "is no regular expression"),
    ],
)
def test_a_rule_that_cannot_be_used_is_refused(given, message):
    with pytest.raises(UsageError, match=message):
        error_rule(*given)


def test_a_rule_adds_to_the_errors_that_a_result_reports_by_its_structure():
    rule = error_rule(None, lambda text: text.startswith("Sorry"))
    call = ToolCall("find")
    texts = ["Sorry, no order 77 ", "shipped", '{"error": "no"}', "Sorry"]
    assert [read_result(call, text, rule).error for text in texts] == ["Sorry, no order 77", None, "no", "Sorry"]
    assert [read_result(call, text).error for text in texts] == [None, None, "no", None]
    assert error_rule(None) is None


def test_a_function_that_fails_stops_with_its_error_and_the_result():
    rule = error_rule(None, lambda text: text[5] == "x")
    with pytest.raises(UsageError, match=r"error_if raised IndexError.*on the result 'ok'"):
        read_result(ToolCall("find"), "ok", rule)


def test_results_that_begin_like_errors_are_counted_and_named():
    results = [("Error: order 77 not found", None), ("ok", None), ("Error: no", "no"), ("Error: late", None)]
    number, note = like_errors(results)
    assert number == 2
    assert note.startswith(
        "2 of 4 results begin like errors and count as successes (such as 'Error: order 77 not found')"
    )
    assert "error_pattern" in note
    assert like_errors(results[1:3]) == (0, "")
