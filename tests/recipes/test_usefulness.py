"""How much a diagnosis helps an untrained policy: on a policy that mends exactly the parameters it is told of, the
table is worked by hand."""

import json
import re

import pytest
from endpoint_support import policy_of
from openai_server import OpenAIServer
from scripted_policy import ScriptedPolicy

from fission_grpo.core.chat import parse, render_call
from fission_grpo.core.errors import RunFileError
from fission_grpo.core.types import (
    ErrorKind,
    Failure,
    Task,
    ToolCall,
)
from fission_grpo.evaluation.intervals import wilson
from fission_grpo.feedback.shuffled import ShuffledFeedback
from fission_grpo.feedback.sources import FIXED_TEXT, FunctionSource
from fission_grpo.feedback.spec import make_chain
from fission_grpo.recipes.error_simulator.usefulness import (
    AttemptsFile,
    compute_usefulness,
    make_arms,
    run_attempts,
)

RIGHT = {"to": "Oslo", "seats": 4}
TOOLS = ({"name": "book", "parameters": {"type": "object", "properties": {"to": {}, "seats": {}}}},)


def failure(name: str, **wrong) -> Failure:
    task = Task(name, ({"role": "user", "content": name},), TOOLS, (ToolCall("book", RIGHT),))
    return Failure(task, (parse(render_call(ToolCall("book", {**RIGHT, **wrong}))),), ErrorKind.WRONG_CALL)


FAILURES = [failure("a", seats=2), failure("b", seats=3), failure("c", to="Rome")]


def mends(messages) -> str:
    """Make the failed call again, with the right value for every parameter that the feedback names."""
    call = parse(messages[-2]["content"]).calls[0]
    named = re.findall(r"`(\w+)`", messages[-1]["content"])
    return render_call(ToolCall("book", {**call.arguments, **{name: RIGHT[name] for name in named}}))


def table(tmp_path, arms, policy=None, failures=FAILURES, samples=2, **settings):
    file = AttemptsFile(tmp_path / "usefulness.jsonl", settings)
    run_attempts(file, failures, arms, policy or ScriptedPolicy(mends), samples)
    return {one.source: one for one in compute_usefulness(file)}


def test_the_table_of_a_policy_that_corrects_what_is_named_is_computed_by_hand(tmp_path):
    """Rules name every fault: 3 of 3 mended. Shuffled, of a and b one is told of the other's `seats`, the rest of a
    parameter that is right already: 1 of 3, whatever the order."""
    rows = table(tmp_path, make_arms(make_chain("rules"), "rules"))
    hits = {name: (row.success.hits, row.success.of) for name, row in rows.items()}
    assert hits == {
        "none": (0, 6),
        "fixed": (0, 6),
        "rules": (6, 6),
        "environment": (0, 6),
        "shuffled": (2, 6),
    }
    assert (rows["rules"].gains["fixed"].change, rows["rules"].gains["fixed"].pairs) == (1.0, 3)
    assert rows["rules"].gains["shuffled"].change == pytest.approx(2 / 3)
    assert rows["shuffled"].gains["fixed"].change == pytest.approx(1 / 3)
    assert rows["rules"].success.interval == wilson(3, 3)  # all agree: failures count, not attempts
    assert rows["shuffled"].success.interval == (0.0, 1.0)  # of 3 failures drawn with replacement, 0 to 3 are mended
    assert "fixed" not in rows["fixed"].gains


def test_a_leaking_diagnosis_is_replaced_counted_and_helps_nobody(tmp_path):
    leaking = FunctionSource("mine", lambda one: "error: `to` must be Oslo, `seats` must be 4")
    row = table(tmp_path, make_arms((leaking,), "mine"))["mine"]
    feedback = AttemptsFile(tmp_path / "usefulness.jsonl", {}).feedback
    assert [feedback["mine", one.task.id].rejected for one in FAILURES] == [(("mine", "leak"),)] * 3
    assert (row.failures, row.success.hits) == (3, 0)


def test_a_chains_later_source_gives_its_text(tmp_path):
    row = table(tmp_path, {"both": make_chain(["environment", "rules"])})["both"]
    assert (row.failures, row.success.hits, row.gains) == (3, 6, {})


def test_gains_are_paired_and_their_interval_is_over_failures(tmp_path):
    """10 failures; told: 8 mended, fixed: 3 of these too. Gain 0.5; resampled over 10 failures its deviation is
    sqrt(0.25 / 10) = 0.158, so that the interval is about 0.5 +- 0.31, and never goes below 0."""
    failures = [failure(f"f{i}", seats=10 + i) for i in range(10)]
    mended = {"yes": range(8), "fixed": range(3)}

    def write(messages):
        arm = "yes" if messages[-1]["content"] == "told" else "fixed"
        good = int(messages[0]["content"][1:]) in mended[arm]
        return render_call(ToolCall("book", RIGHT if good else {}))

    arms = {"fixed": make_chain("fixed"), "yes": (FunctionSource("yes", lambda one: "told"),)}
    rows = table(tmp_path, arms, ScriptedPolicy(write), failures, samples=3)
    gain = rows["yes"].gains["fixed"]
    assert (rows["yes"].success.rate, rows["fixed"].success.rate, gain.change) == (0.8, 0.3, 0.5)
    assert gain.interval == pytest.approx((0.2, 0.8), abs=0.101)
    assert rows["yes"].success.of == 30
    low, high = rows["yes"].success.interval
    assert high - low == pytest.approx(0.5, abs=0.11)  # 2 * 1.96 * sqrt(0.8 * 0.2 / 10), and not over 30


def test_a_measurement_that_was_stopped_goes_on_and_asks_nothing_twice(tmp_path):
    asked, tried = [], []

    def say(one):
        asked.append(one.task.id)
        return "error: `seats` is not right"

    def stopping(messages):
        if len(tried) == 5:
            raise KeyboardInterrupt
        tried.append(messages)
        return mends(messages)

    arms = {"mine": (FunctionSource("mine", say),), "fixed": make_chain("fixed")}
    file = AttemptsFile(tmp_path / "usefulness.jsonl", {})
    with pytest.raises(KeyboardInterrupt):
        run_attempts(file, FAILURES, arms, ScriptedPolicy(stopping), samples=2, in_flight=1)
    with (tmp_path / "usefulness.jsonl").open("a") as file:
        file.write('{"event": "attempt", "fail')  # killed while writing
    assert (len(asked), len(tried)) == (3, 5)
    rows = table(tmp_path, arms, ScriptedPolicy(lambda messages: tried.append(messages) or mends(messages)))
    assert (len(asked), len(tried)) == (3, 12)
    assert (rows["mine"].success.hits, rows["mine"].success.of, rows["fixed"].success.of) == (4, 6, 6)
    lines = [json.loads(line) for line in (tmp_path / "usefulness.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines].count("attempt") == 12
    assert sum("text" in line for line in lines if line["event"] == "attempt") == 6  # of first attempts only
    again = {one.source: one for one in compute_usefulness(AttemptsFile(tmp_path / "usefulness.jsonl", {}))}
    assert again == rows


def test_the_simulator_is_asked_once_for_its_own_arm_and_the_shuffled_one(tmp_path):
    asked = []
    source = FunctionSource("mine", lambda one: asked.append(one.task.id) or f"error: see {one.task.id}")
    table(tmp_path, make_arms((source,), "mine"))
    assert sorted(asked) == ["a", "b", "c"]
    feedback = AttemptsFile(tmp_path / "usefulness.jsonl", {}).feedback
    assert all(feedback["shuffled", name].text != feedback["mine", name].text for name in asked)


def test_attempts_of_other_settings_are_refused_and_broken_rows_named(tmp_path):
    table(tmp_path, {"fixed": make_chain("fixed")}, temperature=1.0)
    with pytest.raises(RunFileError, match=r"temperature was 1.0, now 0.5.*another --output"):
        AttemptsFile(tmp_path / "usefulness.jsonl", {"temperature": 0.5})
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"event": "attempt", "failure": "a", "source": "fixed", "attempt": 0, "success": "yes"}\n')
    with pytest.raises(RunFileError, match=r"bad.jsonl, line 1: field 'success' must be bool"):
        AttemptsFile(bad, {})


def test_a_failure_that_nobody_can_judge_is_refused(tmp_path):
    unknown = Failure(Task("u", ({"role": "user", "content": "x"},)), FAILURES[0].turns, ErrorKind.LOW_REWARD)
    with pytest.raises(ValueError, match="'u' cannot be tried"):
        table(tmp_path, {"fixed": make_chain("fixed")}, failures=[unknown])


def test_attempts_lost_to_an_endpoint_are_made_again_the_next_time(tmp_path):
    """Of three attempts the first is refused by the server, for good: two count, and three after another go."""
    arms = {"rules": make_chain("rules")}
    with OpenAIServer(lambda body: mends(body["messages"])) as server:
        server.faults = ["500"]
        with policy_of(server, max_retries=0, concurrency=1) as policy:
            first = table(tmp_path, arms, policy, samples=1)["rules"]
            second = table(tmp_path, arms, policy, samples=1)["rules"]
    assert (first.success.of, first.failures) == (2, 2)
    assert (second.success.hits, second.success.of) == (3, 3)
    assert len(server.asked) == 4


def test_the_row_as_json_has_rates_and_intervals(tmp_path):
    row = table(tmp_path, make_arms(make_chain("rules"), "rules"))["shuffled"]
    written = json.loads(json.dumps(row.to_json()))
    assert written["success"]["rate"] == pytest.approx(1 / 3)
    assert written["gains"]["fixed"]["change"] == pytest.approx(1 / 3)


def test_specifications_name_chains_and_shuffle_all_that_follows():
    names = [source.name for source in make_chain("environment, shuffled:rules,fixed")]
    assert names == ["environment", "shuffled:rules", "shuffled:fixed"]
    assert isinstance(make_chain("shuffled:none")[0], ShuffledFeedback)
    (teacher,) = make_chain("teacher", teacher_texts={"a": "error: a"})
    assert [future.result().text for future in teacher.start(FAILURES)] == ["error: a", None, None]


@pytest.mark.parametrize("spec", ["rule", "", "rules,", "local:", "shuffled:", "endpoint:", "teacher"])
def test_a_wrong_specification_is_answered_with_the_forms_there_are(spec):
    with pytest.raises(ValueError, match=r"(?s)no feedback source .*fixed, environment.*endpoint:MODEL"):
        make_chain(spec)


def test_the_fixed_text_is_used_where_a_source_has_none(tmp_path):
    table(tmp_path, {"mine": (FunctionSource("mine", lambda one: None),)})
    held = AttemptsFile(tmp_path / "usefulness.jsonl", {})
    assert {told.text for told in held.feedback.values()} == {FIXED_TEXT}
