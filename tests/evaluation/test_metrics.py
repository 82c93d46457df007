"""Rates of hand-made records, worked by hand, and what must hold for any records."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fission_grpo.core.types import ErrorKind
from fission_grpo.evaluation.intervals import difference_interval, ratio_interval, wilson
from fission_grpo.evaluation.metrics import (
    compute_metrics,
    metrics_json,
    retry_loops,
    steps_to_recovery,
    summarize,
    turn_recovery,
)
from fission_grpo.evaluation.records import (
    CallRecord,
    CaseRecord,
    StepRecord,
    TurnRecord,
    read_records,
    to_line,
)
from fission_grpo.evaluation.tables import metrics_markdown, metrics_table


def fine(name="f", **arguments):
    return CallRecord(name, arguments, "ok")


def bad(name="f", kind=ErrorKind.RAISED, injected=False, **arguments):
    return CallRecord(name, arguments, '{"error": "no"}', "no", kind, injected)


def steps(*calls):
    """One call a step; a text is a reply that could not be read."""
    return tuple(
        StepRecord(call, unread="not JSON") if isinstance(call, str) else StepRecord(calls=(call,)) for call in calls
    )


def case(name, *turns, success=True, valid=None, **fields):
    """A case whose turns are tuples of calls; `valid` gives each turn's verdict, None for unjudged turns."""
    marks = valid or [None] * len(turns)
    made = tuple(TurnRecord(steps(*turn), mark) for turn, mark in zip(turns, marks, strict=True))
    return CaseRecord(name, turns=made, success=success, **fields)


RECORDS = [
    case("clean", (fine(),), valid=[True], category="base"),
    case("wrong", (fine(),), success=False, valid=[False], category="base"),
    case("one error", (bad(), fine()), valid=[True], category="base"),
    case("never", (bad(), bad()), success=False, valid=[False], category="base"),
    case(
        "late",
        (fine(),),
        ("oops", bad("g", ErrorKind.UNKNOWN_TOOL), fine()),
        (bad("h", ErrorKind.BAD_ARGUMENTS),),
        success=False,
        valid=[True, True, False],
        category="long",
    ),
    case("injected", (bad(injected=True), fine()), valid=[True], category="long"),
    case("both", (bad(injected=True), bad(), fine()), valid=[True], category="long"),
    case("lost", (), missing="endpoint down", success=None, category="long"),
    case("foreign", (fine(), bad()), success=None, category="long"),
]


def counts(share):
    return share.hits, share.of


def groups(found):
    return {group.name: (*counts(group.success), group.errors) for group in found}


def test_success_and_case_recovery_are_over_the_judged_cases_and_those_with_an_error_of_their_own():
    rates = compute_metrics(RECORDS)
    assert (rates.cases, rates.judged, rates.unjudged, rates.missing) == (9, 7, 1, 1)
    assert rates.missing_reasons == {"endpoint down": 1}
    assert (counts(rates.success), counts(rates.flawless)) == ((4, 7), (1, 7))
    assert (counts(rates.recovery), rates.recovery.rate) == ((2, 4), 0.5)  # of one error, never, late, both
    assert rates.recovery.interval == wilson(2, 4)
    assert rates.recovery.interval == pytest.approx((0.1500, 0.8500), abs=5e-5)


def test_injected_errors_are_counted_apart_from_the_policys_own():
    rates = compute_metrics(RECORDS)
    assert (rates.own_errors, rates.injected_errors) == (1 + 2 + 3 + 1 + 1, 2)
    assert counts(rates.injected_only) == (1, 1)  # "both" has an error of its own
    alone = compute_metrics([RECORDS[5]])
    assert (counts(alone.recovery), alone.recovery.rate, counts(alone.flawless)) == ((0, 0), None, (0, 1))


def test_a_turn_counts_for_recovery_only_after_a_valid_prefix_and_if_it_was_judged():
    # one error: (1, 1); never: (0, 1); late: turn 2 (1), turn 3 (0); both: (1, 1); foreign: unjudged
    assert counts(compute_metrics(RECORDS).turn_recovery) == (3, 5)
    after_a_wrong_turn = case("x", (fine(),), (bad(), fine()), valid=[False, False], success=False)
    assert turn_recovery(summarize(after_a_wrong_turn)) == (0, 0)
    assert turn_recovery(summarize(case("x", (fine(),), (bad(), fine()), valid=[None, True]))) == (0, 0)


def test_cases_are_split_by_error_kind_number_of_errors_and_depth():
    rates = compute_metrics(RECORDS)
    assert groups(rates.by_kind) == {
        "unparsed": (0, 1, 1),
        "unknown_tool": (0, 1, 1),
        "bad_arguments": (0, 1, 1),
        "raised": (2, 3, 4),
    }
    assert groups(rates.by_errors) == {
        "0": (2, 3, 0),
        "1": (2, 2, 2),
        "2": (0, 1, 2),
        "3": (0, 1, 3),
        "4+": (0, 0, 0),
    }
    assert groups(rates.by_depth) == {"1": (2, 3, 4), "2": (0, 1, 3)}


def test_five_errors_are_in_the_last_group():
    rates = compute_metrics([case("x", tuple(bad(n=n) for n in range(5)))])
    assert groups(rates.by_errors)["4+"] == (1, 1, 5)


def test_categories_come_in_the_order_of_their_first_case_with_their_missing_ones():
    base, long = compute_metrics(RECORDS).by_category
    assert (base.name, counts(base.success), counts(base.recovery), base.errors, base.missing) == (
        "base", (2, 4), (1, 2), 3, 0,
    )  # fmt: skip
    assert (long.name, counts(long.success), counts(long.recovery), long.errors, long.missing) == (
        "long", (2, 3), (1, 2), 5, 1,
    )  # fmt: skip
    assert counts(long.turn_recovery) == (2, 3)


def test_a_retry_loop_is_the_same_failing_call_or_the_same_unreadable_text_at_once_again():
    assert retry_loops(summarize(case("x", (bad(n=1), bad(n=1), bad(n=1), fine(n=2))))) == (2, 3)
    assert retry_loops(summarize(case("x", (bad(n=1), fine(n=1), bad(n=1))))) == (0, 2)  # it worked in between
    assert retry_loops(summarize(case("x", (bad(n=1), bad(n=True), bad("g", n=True))))) == (0, 3)  # 1 is not true
    assert retry_loops(summarize(case("x", (bad(a=1, b=2),), (bad(b=2, a=1),)))) == (1, 2)  # across user turns
    assert retry_loops(summarize(case("x", ("<tool_call>{", "<tool_call>{", "<tool_call>[")))) == (1, 3)
    assert retry_loops(summarize(case("x", (bad(), bad(injected=True))))) == (0, 1)
    assert counts(compute_metrics(RECORDS).retry_loops) == (1, 8)  # of "never"


def test_steps_to_recovery_end_with_the_user_turn():
    quiet = TurnRecord((*steps(bad()), StepRecord("sorry"), *steps(fine())))
    assert steps_to_recovery(summarize(CaseRecord("x", turns=(quiet,)))) == [2]
    half = TurnRecord((*steps(bad()), StepRecord(calls=(fine(), bad(injected=True))), *steps(fine())))
    assert steps_to_recovery(summarize(CaseRecord("x", turns=(half,)))) == [2]  # the middle step is not free of errors
    assert steps_to_recovery(summarize(case("x", (bad(),), (fine(),)))) == []
    waits = compute_metrics(RECORDS).steps_to_recovery
    assert (waits.recovered, waits.of) == (4, 8)  # one error: 1; late: 2 and 1; both: 1
    assert (waits.mean, waits.median) == (1.25, 1.0)


def test_errors_per_call_are_over_calls_and_unreadable_replies_without_injected_errors():
    # attempts: 1 + 1 + 2 + 2 + 5 + (2 - 1) + (3 - 1) + 2
    assert counts(compute_metrics(RECORDS).errors_per_call) == (8, 16)


def test_mean_tokens_are_per_played_case_and_unknown_without_any():
    told = CaseRecord("x", turns=(TurnRecord((StepRecord(tokens=30), StepRecord(tokens=10))),), success=True)
    assert compute_metrics([told, case("y", (fine(),)), RECORDS[7]]).mean_tokens == 20
    assert compute_metrics(RECORDS).mean_tokens is None


def test_an_error_in_a_step_with_unreadable_and_good_calls_is_counted_once_each():
    step = StepRecord("text", (fine(), bad(kind=None)), unread="one is not JSON")
    found = summarize(CaseRecord("x", turns=(TurnRecord((step,)),)))
    assert [attempt.kind for attempt in found.attempts] == [None, ErrorKind.RAISED, ErrorKind.UNPARSED]


def test_rates_over_nothing_are_none_and_left_out_of_the_table():
    rates = compute_metrics([])
    written = metrics_json(rates)
    assert written["success"] == {"rate": None, "hits": 0, "of": 0, "interval": None, "method": "wilson"}
    assert (written["retry_loops"]["rate"], written["steps_to_recovery"]["mean"]) == (None, None)
    assert "0 of 0" not in metrics_table(rates)
    assert "success" not in metrics_table(rates)


def test_two_records_of_one_id_are_refused():
    with pytest.raises(ValueError, match="case 'a' is there 2 times"):
        compute_metrics([case("a", (fine(),)), case("a", (bad(),))])


def test_the_table_has_counts_beside_every_rate_and_aligned_columns():
    lines = metrics_table(compute_metrics(RECORDS)).splitlines()
    assert lines[0] == "cases    9: 7 judged, 1 without a verdict, 1 missing (endpoint down: 1)"
    assert lines[1] == "errors   8 of the policy's own, 2 injected"
    rates = [re.search(r"   (\d\.\d\d|-  )", line) for line in lines if re.search(r"\d of \d", line)]
    assert len(rates) == 5 + 2 * 3 + 4 + 5 + 2 + 3
    assert len({found.start() for found in rates}) == 1
    recovery = next(line for line in lines if line.startswith("error recovery, cases"))
    assert recovery.split("   ")[-1].strip() == "2 of 4 cases with an error of their own"
    assert "0.500   0.150 to 0.850" in recovery


def test_the_json_form_survives_json_and_records_survive_their_file(tmp_path):
    path = tmp_path / "cases.jsonl"
    path.write_text("".join(to_line(record) + "\n" for record in RECORDS))
    rates = compute_metrics(read_records(path))
    assert rates == compute_metrics(RECORDS)
    written = metrics_json(rates)
    assert json.loads(json.dumps(written, allow_nan=False)) == json.loads(json.dumps(written))
    assert written["by_kind"][3]["success"] | {"interval": 0} == {
        "rate": 2 / 3, "hits": 2, "of": 3, "interval": 0, "method": "wilson",
    }  # fmt: skip


def test_the_bootstrap_resamples_cases_not_turns():
    # Two kinds of case in equal number: the ratio's spread is that of 40 cases, however many turns each has.
    few, many = ratio_interval([(1, 1), (0, 1)] * 20), ratio_interval([(50, 50), (0, 50)] * 20)
    assert few == many
    assert few == pytest.approx((0.35, 0.65), abs=0.03)  # 0.5 -+ 1.96 * sqrt(0.25 / 40) = 0.345 to 0.655


def test_where_all_cases_agree_the_interval_is_wilsons_over_cases():
    assert ratio_interval([(0, 9), (0, 1), (0, 0)]) == wilson(0, 2)
    assert ratio_interval([(3, 3)]) == wilson(1, 1)
    assert ratio_interval([(1, 2), (0, 0)]) is None  # one case says nothing about the spread
    assert ratio_interval([(0, 0)]) is None


def test_a_paired_difference_of_equal_runs_has_no_spread():
    assert difference_interval([(1, 1), (0, 1)], [(1, 1), (0, 1)]) is None
    assert difference_interval([(0, 0)], [(1, 1)]) is None
    assert difference_interval([], []) is None


call_records = st.builds(
    lambda name, argument, error, injected: CallRecord(
        name, {"n": argument}, "r", "no" if error else None, error, injected
    ),
    st.sampled_from("fg"),
    st.sampled_from([1, True, "1"]),
    st.sampled_from([None, ErrorKind.RAISED, ErrorKind.UNKNOWN_TOOL, ErrorKind.BAD_ARGUMENTS]),
    st.booleans(),
)
step_records = st.builds(
    StepRecord,
    text=st.sampled_from(["", "x"]),
    calls=st.lists(call_records, max_size=3).map(tuple),
    unread=st.sampled_from([None, None, "not JSON"]),
    tokens=st.integers(0, 9),
)
turn_records = st.builds(
    TurnRecord, st.lists(step_records, max_size=3).map(tuple), st.sampled_from([None, True, False])
)
case_lists = st.lists(
    st.builds(
        CaseRecord,
        id=st.text(),
        category=st.sampled_from(["a", "b"]),
        turns=st.lists(turn_records, max_size=3).map(tuple),
        success=st.sampled_from([None, True, False]),
        missing=st.sampled_from([None, None, None, "lost"]),
    ),
    max_size=8,
    unique_by=lambda record: record.id,
)


@settings(max_examples=60, deadline=None)
@given(case_lists)
def test_whatever_the_records_nothing_is_counted_twice_and_every_rate_lies_in_its_interval(records):
    rates = compute_metrics(records)
    assert rates.judged + rates.unjudged + rates.missing == rates.cases
    played = [record for record in records if record.missing is None]
    assert rates.own_errors + rates.injected_errors == sum(step.errors for record in played for step in record.steps)
    clean = rates.success.hits - rates.recovery.hits - rates.injected_only.hits
    assert clean == rates.flawless.hits  # every success is in exactly one of the three
    assert sum(group.success.of for group in rates.by_errors) == rates.judged
    assert sum(group.success.hits for group in rates.by_depth) == rates.recovery.hits
    assert sum(group.success.of for group in rates.by_depth) == rates.recovery.of
    assert sum(category.recovery.of for category in rates.by_category) == rates.recovery.of
    assert sum(category.turn_recovery.of for category in rates.by_category) == rates.turn_recovery.of
    assert rates.steps_to_recovery.recovered <= rates.own_errors == rates.retry_loops.of == rates.errors_per_call.hits
    shares = [rates.success, rates.flawless, rates.recovery, rates.injected_only, rates.turn_recovery]
    for share in (*shares, rates.retry_loops, rates.errors_per_call):
        assert (share.rate is None) == (share.of == 0)
        if share.interval is not None and share.rate is not None:
            low, high = share.interval
            assert 0 <= low <= high <= 1
            assert share.method == "bootstrap" or low <= share.rate <= high
    json.dumps(metrics_json(rates), allow_nan=False)
    assert metrics_table(rates)


AS_TEXT = [
    'Sure:\n```json\n{"name": "find", "arguments": {"order": "7"}}\n```',
    'I call {"name": "find", "arguments": {}} now.',
    "[find(order='7')]",
    '{"function": {"name": "find", "arguments": "{}"}}',
    "<function=find><parameter=order>7</parameter></function>",
]


def test_calls_that_a_server_left_as_text_are_named_with_the_flags_that_mend_it():
    plain = ["It is sent.", '```json\n{"order": 7, "name": "Ann"}\n```', "f(x) is a function"]
    records = [
        CaseRecord(f"c{n}", turns=(TurnRecord((StepRecord(text),)),), success=False)
        for n, text in enumerate([*AS_TEXT, *plain])
    ]
    rates = compute_metrics(records)
    (note,) = rates.notes
    assert note.startswith("5 of 8 cases begin with a call as text that is not read as one")
    for flag in ("--enable-auto-tool-choice", "--tool-call-parser", "--jinja", "--raw"):
        assert flag in note
    assert f"note: {note}" in metrics_table(rates)
    assert (rates.without_call.hits, rates.without_call.of) == (8, 8)
    assert re.search(r"cases without any call +1\.000 +\S+ to 1\.000 +8 of 8 cases", metrics_table(rates))
    assert compute_metrics(records[3:]).notes == ()  # 2 of 5


def test_the_markdown_table_has_one_row_to_paste():
    header, rule, row = metrics_markdown("a|b", compute_metrics(RECORDS)).splitlines()
    assert header.split(" | ")[:3] == ["| model", "cases", "success"]
    assert row.startswith("| a\\|b | 9 | 0.")
    assert header.count("|") == rule.count("|") == row.count("|") - 1
