"""Short values count only where a text uses them as values: plausible messages pass, and hints do not."""

import pytest

from fission_grpo.core.types import ToolCall
from fission_grpo.feedback.leak_guard import find_reference_leak

MADE = (ToolCall("book_flight"), ToolCall("f"))  # the failed calls, whose tools are no secret
NUMBERS = (2, 3, 5, 12, 404)
COUNTED = (  # messages with a number that is no argument
    "ValidationError: {n} validation errors for book_flight",
    "{n} validation errors for Booking\nname\n  Field required [type=missing, input_value={{}}, input_type=dict]",
    "TypeError: book() takes {n} positional arguments but {m} were given",
    "TypeError: book() takes {m} positional arguments but {n} were given",
    "book() missing {n} required positional arguments: 'name' and 'date'",
    "Traceback (most recent call last):\n  File \"tool.py\", line {n}, in book\nKeyError: 'date'",
    "Expecting value: line 1 column {n} (char {m})",
    "Expecting ',' delimiter: line {n} column 17 (char 16)",
    "tool call is not valid JSON: expecting value at character {n}",
    "Error code: {n} - the request was rejected",
    "[Errno {n}] No such file or directory",
    "attempt {n} of 9 failed",
    "the request timed out after {n} seconds",
    "the process returned exit code {n}",
    "list index {n} out of range",
    "too many requests; retry in {n} s",
    "{n} errors occurred while the form was read",
    "{n} of the arguments are wrong",
    "expected 1 argument, got {n}",
    "expected {n} arguments, got 1",
    "the query matched {n} rows, one was expected",
    "1. Check the request. 2. Check the types. 3. Call again. 4. Stop. 5. Done.",
    "there were {n} earlier warnings",
    "page {n} does not exist",
    "rating must lie between 1 and {n}",
    "server error (HTTP {n})",
    "Ticket with ID {n} not found.",
)
HINTED = (  # hints that give a number of seats away
    "seats should be {n}",
    "seats={n}",
    "seats = {n}.",
    "seats: {n}",
    "`seats` must be {n}",
    "`seats` must be {n}, not 7",
    "use {n} seats",
    "use {n}",
    "try {n} instead",
    "set seats to {n}",
    "change `seats` to {n} and call again",
    "you need {n} seats",
    "{n} seats are needed",
    "the number of seats is {n}",
    '{{"seats": {n}}}',
    '{{"seats": "{n}"}}',
    "book_flight(seats={n})",
    "the user wants {n}",
    "the right value is {n}",
    "correct value: {n}",
    "seats -> {n}",
    "seats (should be {n})",
    "expected {n} for seats",
    "it should be {n}, not 7",
    "error: `seats` is not right, got {n}",
    "'{n}'",
    "{n}",
    "{n}!",
    "no: {n}, please",
)
WORDS = (  # a parameter, its value, and messages that use the word otherwise
    ("city", "Nice", "that is not a nice request"),
    ("city", "Nice", "nice try, but the call failed"),
    ("city", "Nice", "it would be nice to have a date"),
    ("city", "Reading", "an error occurred while reading the file"),
    ("city", "Reading", "Reading the response failed"),
    ("city", "Split", "cannot split an empty string"),
    ("city", "Bath", "a room without bath was requested"),
    ("city", "Mobile", "mobile clients are not supported"),
    ("city", "Orange", "the orange line does not run today"),
    ("unit", "c", "c is not defined"),
    ("unit", "c", "NameError: name c is not defined"),
    ("unit", "c", "error in module c of the driver"),
    ("unit", "C", "see appendix C of the manual"),
    ("unit", "f", "f() got an unexpected keyword argument"),
    ("unit", "m", "5 m is too short"),
    ("month", "May", "the date may be wrong"),
    ("month", "may", "you may not do this twice"),
    ("month", "March", "please march on"),
    ("name", "Will", "this will fail again"),
    ("name", "Mark", "there is a missing quotation mark"),
    ("mode", "open", "could not open the file"),
    ("mode", "open", "failed to open."),
    ("mode", "open", "the file is not open"),
    ("mode", "read", "unable to read the response"),
    ("mode", "read", "Read timed out"),
    ("mode", "write", "you have no permission to write"),
    ("level", "high", "the temperature is too high for this model"),
    ("level", "low", "disk space is low"),
    ("order", "last", "the last call failed"),
    ("cabin", "first", "you have to log in first"),
    ("cabin", "first", "the first argument is missing"),
    ("scope", "all", "not all arguments are there"),
    ("kind", "new", "there are no new rows"),
    ("kind", "file", "no such file or directory"),
    ("kind", "error", "error: the request was rejected"),
    ("state", "failed", "the request failed"),
    ("state", "closed", "the connection was closed"),
    ("country", "us", "tell us more"),
    ("country", "de", "this is de facto impossible"),
    ("field", "time", "the tool ran out of time"),
    ("field", "date", "date is required"),
    ("action", "START", "Start the engine before activating the cruise control."),
)
TOOLS_AS_WORDS = (
    ("find", "could not find the file"),
    ("search", "the search returned nothing"),
    ("move", "cannot move a locked file"),
    ("book", "failed to book."),
    ("read", "the response could not be read"),
    ("cd", "a cd drive was not found"),
)
VALUES = (("unit", "c"), ("city", "Nice"), ("unit", "celsius"), ("mode", "open"), ("cabin", "first"), ("city", "rome"))
HINTED_WORDS = (  # hints that give a word away
    "use {p} {v}",
    "use {v}",
    "use {v} instead",
    "try {v}.",
    "{p}={v}",
    "{p} = {v}",
    "{p}: {v}",
    "{p} should be {v}",
    "{p} should have been {v}",
    "{p} must be {v}, not kelvin",
    "`{p}` must be {v}",
    "`{p}` should be {v} because the user says so",
    "the {p} is {v}",
    "the {p} is {v}, not kelvin",
    "set {p} to {v}",
    "{p} must be set to {v}",
    "change `{p}` to {v} and call again",
    "did you mean {v}?",
    "'{v}' is the right {p}",
    '{{"{p}": "{v}"}}',
    "f({p}='{v}')",
    "f({p}={v})",
    "{v}, not kelvin",
    "it should be {v}",
    "the user asked for {v}",
    "{v} is what the user wants",
    "the right {p} would be {v}",
    "expected {v}",
    "want {v}!",
    "answer: {v}",
    "pass {v} as {p}",
    "call it with {v}",
    "the {p} must equal {v}",
    "not kelvin but {v}",
    "{p} -> {v}",
    "{v}",
    "error: `{p}` is not right, got {v}",
    "wrong {p} (should be {v})",
)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("message", COUNTED)
def test_a_number_that_counts_something_else_is_no_leak(message, number):
    text = message.format(n=number, m=number + 1)
    assert find_reference_leak(text, [ToolCall("book_flight", {"seats": number})], MADE) is None


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("hint", HINTED)
def test_a_number_used_as_a_value_is_a_leak(hint, number):
    found = find_reference_leak(hint.format(n=number), [ToolCall("book_flight", {"seats": number})], MADE)
    assert found == "the value of `seats`"


@pytest.mark.parametrize(("name", "value", "message"), WORDS)
def test_a_word_used_in_another_sense_is_no_leak(name, value, message):
    assert find_reference_leak(message, [ToolCall("f", {name: value})], MADE) is None


@pytest.mark.parametrize(("tool", "message"), TOOLS_AS_WORDS)
def test_a_tool_name_used_as_a_word_is_no_leak(tool, message):
    assert find_reference_leak(message, [ToolCall(tool)], [ToolCall("ls")]) is None
    for hint in (f"use {tool}", f"call {tool}()", f"the tool is '{tool}'", f"the tool {tool} is needed"):
        assert find_reference_leak(hint, [ToolCall(tool)], [ToolCall("ls")]) == f"the name of tool {tool!r}"


@pytest.mark.parametrize(("name", "value"), VALUES)
@pytest.mark.parametrize("hint", HINTED_WORDS)
def test_a_word_used_as_a_value_is_a_leak(hint, name, value):
    found = find_reference_leak(hint.format(p=name, v=value), [ToolCall("f", {name: value})], MADE)
    assert found == f"the value of `{name}`"


@pytest.mark.parametrize("text", ["the weather in Nice today is fine", "no train runs from Paris via Nice tonight"])
def test_a_name_that_the_text_capitalises_is_a_leak_anywhere(text):
    assert find_reference_leak(text, [ToolCall("f", {"city": "Nice"})]) == "the value of `city`"


@pytest.mark.parametrize("text", ["mode=on", "the mode is 'on'", '{"mode": "on"}'])
def test_the_commonest_words_are_values_in_quotes_and_after_an_equals_sign(text):
    assert find_reference_leak(text, [ToolCall("f", {"mode": "on"})]) == "the value of `mode`"
    assert find_reference_leak("it depends on the mode", [ToolCall("f", {"mode": "on"})]) is None


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("num_seats", 2, "2 seats"),
        ("seatCount", 2, "the seat count is 2"),
        ("passengers", 2, "two passengers"),
        ("filter", {"limit": 2}, "the limit 2 is right"),
        ("filter", {"limit": 2}, "limit: 2"),
    ],
)
def test_the_words_of_a_parameters_name_show_its_value(name, value, text):
    assert find_reference_leak(text, [ToolCall("f", {name: value})]) == f"the value of `{name}`"


MARKED = (  # a parameter, its value, and texts that state it in markup, as a comparison, or in Chinese
    ("seats", 2, "seats: **2**"),
    ("city", "Rome", "The city should be **Rome**."),
    ("unit", "c", "unit should be **c**"),
    ("city", "rome", "*rome*"),
    ("city", "rome", "__rome__"),
    ("city", "rome", "<city>rome</city>"),
    ("unit", "c", "<unit>c</unit>"),
    ("city", "rome", "<b>rome</b>"),
    ("city", "rome", '{\\"city\\": \\"rome\\"}'),
    ("seats", 2, '{\\"seats\\": 2}'),
    ("seats", 2, "AssertionError: 3 != 2"),
    ("seats", 2, "AssertionError: 2 != 3"),
    ("city", "rome", "paris != rome"),
    ("city", "rome", "rome != paris"),
    ("seats", 2, "seats 应为 2"),
    ("seats", 2, "seats应为2。"),
    ("city", "rome", "城市应为rome"),
    ("seats", 2, "请用 2 个座位"),
    ("seats", 2, "<seats>2</seats>"),
    ("seats", 2, "use <b>2</b> seats"),
    ("seats", 2, "**seats**: 2"),
    ("seats", 2, "`seats`: **2**"),
    ("city", "rome", "> rome"),
    ("city", "rome", "- **rome**"),
    ("city", "rome", "***rome***"),
    ("city", "rome", "~~paris~~ rome"),
    ("city", "rome", "- paris\n+ rome"),
    ("city", "rome", '{\\n  \\"city\\": \\"rome\\"\\n}'),
    ("seats", 2, '{\\n  \\"seats\\": 2\\n}'),
    ("city", "New York", "<city>New York</city>"),
    ("file", "a_b", "_a_b_"),
    ("seats", 2, "assert 3 == 2"),
    ("city", "rome", "_rome_"),
    ("city", "rome", "city: _rome_"),
    ("city", "rome", "<code>rome</code>"),
    ("city", "rome", '<param name="city">rome</param>'),
    ("city", "rome", "请使用 rome"),
    ("city", "rome", "city 改为 rome,然后重试"),
    ("seats", 2, "| seats | 2 |"),
    ("city", "rome", "[rome](http://x)"),
    ("city", "rome", "<CITY>rome</CITY>"),
    ("city", "rome", "<city><b>rome</b></city>"),
    ("city", "rome", "<city>\n  rome\n</city>"),
    ("city", "rome", "{&quot;city&quot;: &quot;rome&quot;}"),
    ("seats", 2, "3 <> 2"),
    ("seats", 2, "3 !== 2"),
    ("seats", 2, "3 vs 2"),
    ("city", "rome", "paris vs. rome"),
    ("city", "rome", "单位应为「rome」"),
    ("seats", 2, "seats：2"),
    ("seats", 2, "座位数是2。"),
    ("seats", 2, "seats 应该是 2，而不是 3"),
    ("seats", 2, "seats 不是 3,是 2"),
    ("city", "rome", "AssertionError: 'paris' != 'rome'"),
    ("city", "rome", "AssertionError: assert 'paris' == 'rome'"),
    ("city", "rome", "The *city* is _rome_, not paris"),
    ("unit", "c", "unit: `c`"),
    ("unit", "c", "unit: *c*"),
    ("unit", "c", "**unit: c**"),
    ("unit", "c", "use **c**!"),
    ("city", "rome", "<answer>rome</answer>"),
    ("city", "rome", "<b>city</b>: <i>rome</i>"),
    ("city", "rome", '\\"rome\\"'),
    ("seats", 2, "book_flight(seats=**2**)"),
    ("seats", 2, "seats=<b>2</b>"),
    ("mode", "open", "<mode>open</mode>"),
    ("flag", True, "<flag>true</flag>"),
    ("flag", True, "flag: **true**"),
    ("n", 2, "__2__"),
    ("city", "rome", "应为 rome 而不是 paris"),
    ("city", "rome", "AssertionError: assert paris == rome"),
)
STILL_LEAKS = (  # texts near to those of `UNMARKED`
    ("state", "HI", "HI, not CA"),
    ("state", "OK", "OK, Texas is wrong"),
    ("state", "OK", "state: OK"),
    ("state", "OK", "HTTP 200 OK, but the state is OK"),
    ("city", "rome", "HTTP 200 OK: rome"),
    ("city", "rome", "400 Bad Request: rome"),
    ("amount", 500, "Internal Server Error (500), amount should be 500"),
    ("amount", 500, "amount (500)"),
    ("amount", 404, "use 404"),
    ("unit", "m", "the 'm' unit is right"),
    ("unit", "m", "parameter `unit` is not right; it is 'm'"),
    ("unit", "m", "missing unit: m"),
    ("sort", "price", "'price' is a valid key"),
    ("sort", "price", "sort by the 'price' field"),
    ("city", "rome", "required city: rome"),
    ("seats", 2, "missing: 2"),
)
UNMARKED = (  # the names of parameters, states of HTTP, greetings, and emphasis of other words
    ("unit", "m", "The 'm' parameter is unknown"),
    ("amount", 500, "Internal Server Error (500)"),
    ("amount", 405, "405 Method Not Allowed: POST"),
    ("method", "POST", "405 Method Not Allowed: POST"),
    ("state", "OK", "HTTP 200 OK"),
    ("state", "HI", "Hi, the request failed"),
    ("state", "OK", "HTTP/1.1 200 OK"),
    ("amount", 404, "Not Found (404)"),
    ("amount", 503, "503: Service Unavailable"),
    ("unit", "m", "parameter 'm' is unknown"),
    ("unit", "m", "'m' is not a valid parameter"),
    ("state", "OK", "OK, the request failed"),
    ("amount", 422, "Unprocessable Entity (422)"),
    ("amount", 422, "Unprocessable Content (422)"),
    ("amount", 429, "Too Many Requests (429)"),
    ("n", 0, "exit code != 0"),
    ("n", 0, "rc != 0"),
    ("n", 200, "status != 200"),
    ("unit", "m", "Unknown parameter: 'm'"),
    ("amount", 500, "Server error (500)"),
    ("amount", 500, "Request failed (500)"),
    ("amount", 500, "HTTP 500"),
    ("state", "OK", "status 200 OK, but the date is missing"),
    ("state", "OR", "one OR more arguments are missing"),
    ("state", "IN", "The value is not IN the list"),
    ("seats", 2, "有 2 个错误"),
    ("seats", 2, "**2** validation errors for book"),
    ("city", "nice", "that is *not* a **nice** request"),
    ("state", "error", "**Error**: the request failed"),
    ("unit", "c", "Field 'c' is required"),
    ("unit", "m", "unexpected keyword argument 'm'"),
)


@pytest.mark.parametrize(("name", "value", "text"), MARKED)
@pytest.mark.parametrize("wrote", ["three", 3, "paris"])
def test_a_short_value_in_markup_or_a_comparison_is_a_leak(name, value, text, wrote):
    calls = [ToolCall("t", {name: value})], [ToolCall("t", {name: wrote})]
    assert find_reference_leak(text, *calls) == f"the value of `{name}`"


@pytest.mark.parametrize(("name", "value", "text"), STILL_LEAKS)
def test_a_value_beside_a_status_a_greeting_or_a_parameter_stays_a_leak(name, value, text):
    calls = [ToolCall("t", {name: value})], [ToolCall("t", {name: "three"})]
    assert find_reference_leak(text, *calls) == f"the value of `{name}`"


@pytest.mark.parametrize(("name", "value", "text"), UNMARKED)
def test_a_parameters_name_a_status_or_a_greeting_is_no_value(name, value, text):
    assert find_reference_leak(text, [ToolCall("t", {name: value})], [ToolCall("t", {name: "three"})]) is None


def test_a_value_that_contains_markup_is_found_as_it_stands():
    for value in ("a*b*c", "__init__", "<b>rome</b>", 'say \\"no\\"', "~~x~~"):
        assert find_reference_leak(f"`x` should be '{value}'", [ToolCall("t", {"x": value})]) == "the value of `x`"
