"""Generated cases: reproducible, solvable, and without overlap with BFCL's test data."""

import json
from collections import Counter
from dataclasses import replace

import pytest

pytest.importorskip("bfcl_eval", reason="pip install --no-deps bfcl-eval==2026.3.23 mpmath==1.3.0 filelock")

from scripted_policy import ScriptedPolicy

from fission_grpo.cli.main import main
from fission_grpo.core.errors import TaskFileError
from fission_grpo.core.types import ToolCall
from fission_grpo.data.load import load_tasks
from fission_grpo.envs.bfcl.env import TaskError, environment_of
from fission_grpo.envs.bfcl.tasks import (
    GeneratedCase,
    UserTurn,
    all_rows,
    check_case,
    load_cases,
    step_tasks,
)
from fission_grpo.envs.desk.steps import make_steps
from fission_grpo.envs.step_calls import StepEnvironments
from fission_grpo.evaluation.evaluate import evaluate
from fission_grpo.recipes.bfcl_tasks.contamination import find_overlaps, official_tests, words
from fission_grpo.recipes.bfcl_tasks.generate import (
    SPLITS,
    TEMPLATES,
    Mix,
    generate,
)
from fission_grpo.recipes.starter_policy.bfcl_demos import case_demonstrations
from fission_grpo.recipes.starter_policy.desk_demos import MIXED, SKILLED

MIX = Mix(miss_func=0.2, miss_param=0.2)


@pytest.fixture(scope="module")
def cases():
    return {split: generate(split, 60, 3, MIX) for split in SPLITS}


def _leaves(value):
    if isinstance(value, dict):
        return [leaf for inner in value.values() for leaf in _leaves(inner)]
    if isinstance(value, list):
        return [leaf for inner in value for leaf in _leaves(inner)]
    return [] if value is None or isinstance(value, bool) else [str(value)]


def test_the_same_seed_gives_the_same_cases_and_another_others(cases):
    assert [case.to_json() for case in generate("train", 20, 3, MIX)] == [c.to_json() for c in cases["train"][:20]]
    assert generate("train", 5, 4, MIX)[0].turns != cases["train"][0].turns


def test_splits_share_no_class(cases):
    for split, classes in SPLITS.items():
        assert {name for case in cases[split] for name in case.classes} == set(classes)
    assert not set(SPLITS["train"]) & set(SPLITS["heldout"])
    assert set(SPLITS["train"]) | set(SPLITS["heldout"]) == set(TEMPLATES)


def test_every_reference_passes_the_official_checker(cases):
    for case in [*cases["train"], *cases["heldout"]]:
        check_case(case)


def test_every_value_of_a_reference_can_be_known_from_the_dialogue(cases):
    checked = 0
    for row in all_rows([*cases["train"], *cases["heldout"]]):
        text = " ".join(str(message["content"]) for message in row["prompt"][1:])
        environment = environment_of(row["environment"])()
        environment.reset(**row)
        for call in json.loads(row["scenario"])["reference"]:
            for value in _leaves(call["arguments"]):
                checked += 1
                known = value in text or value.removesuffix(".0") in text or value.lower() in text.lower()
                fixed = value in ("1.0", "START", "basic", "l", "w", "c")  # "fully", "start", units
                assert known or fixed, (row["id"], call, text)
            text += " " + str(getattr(environment, call["name"])(**call["arguments"]))
    assert checked > 300


def test_variants_hold_back_a_function_or_a_value_for_a_turn(cases):
    found = Counter()
    for case in [*cases["train"], *cases["heldout"]]:
        found[case.variant] += 1
        for turn, following in zip(case.turns, case.turns[1:], strict=False):
            if turn.without:
                assert turn.reference == ()
                assert set(turn.without) <= {call.name for call in following.reference}
        empty = sum(not turn.reference for turn in case.turns)
        assert empty == (case.variant != "base")
    assert min(found.values()) > 10


def test_rows_contain_the_turns_before_with_their_real_results():
    tickets = [{"id": 7, "title": "a", "status": "Open", "created_by": "ann"}]
    close, show = (ToolCall(name, {"ticket_id": 7}) for name in ("close_ticket", "get_ticket"))
    turns = (UserTurn("Close it.", (), ("close_ticket",)), UserTurn("Now.", (close,)), UserTurn("Show it.", (show,)))
    case = GeneratedCase("c", ("TicketAPI",), {"TicketAPI": {"ticket_queue": tickets, "current_user": "ann"}}, turns)
    rows = all_rows([case])
    assert [row["id"] for row in rows] == ["c#0", "c#1", "c#2"]
    assert [row["environment"] for row in rows] == ["TicketAPI-close_ticket", "TicketAPI", "TicketAPI"]
    messages = [(message["role"], message["content"]) for message in rows[2]["prompt"][1:]]
    assert messages == [
        ("user", "Close it."),
        ("assistant", "I have no tool for that."),
        ("user", "Now."),
        ("assistant", ""),
        ("tool", '{"status": "Ticket 7 has been closed successfully."}'),
        ("assistant", "Done."),
        ("user", "Show it."),
    ]
    assert json.loads(rows[2]["scenario"])["history"] == [
        [],
        [{"name": "close_ticket", "arguments": {"ticket_id": 7}}],
    ]


def test_the_reference_solves_every_row_in_an_evaluation(cases):
    rows = all_rows(cases["train"][:15])
    references = {json.dumps(row["prompt"]): json.loads(row["scenario"])["reference"] for row in rows}
    lengths = {key: len(json.loads(key)) for key in references}

    def write(dialogue):
        key = max((key for key, n in lengths.items() if json.dumps(dialogue[:n]) == key), key=len)
        done = sum(message["role"] == "assistant" for message in dialogue[lengths[key] :])
        if done == len(references[key]):
            return "Done."
        return f"<tool_call>\n{json.dumps(references[key][done])}\n</tool_call>"

    environments = {row["environment"]: environment_of(row["environment"]) for row in rows}
    assert evaluate(ScriptedPolicy(write), environments, rows, max_turns=6).metrics.success.rate == 1.0


def test_planted_test_data_is_found_in_each_of_three_respects(cases):
    tests, clean = official_tests(), cases["train"][0]
    assert find_overlaps(cases["train"]) == find_overlaps(cases["heldout"]) == {}
    config = json.loads(next(iter(sorted(tests.scenarios))))
    calls = next(json.loads(one) for one in sorted(tests.calls) if len(json.loads(one)) > 1)
    message = next(iter(sorted(tests.messages)))
    turn = clean.turns[0]
    planted = {
        "scenario": replace(clean, config={clean.classes[0]: config}),
        "calls": replace(clean, turns=(replace(turn, reference=tuple(ToolCall(*one) for one in calls)),)),
        "message": replace(clean, turns=(replace(turn, request=message.upper() + "!"),)),
    }
    for kind, case in planted.items():
        assert find_overlaps([case]) == {case.id: [kind]}
    assert words("Close ticket 7!") == "close ticket 7"


def test_demonstrations_are_real_and_worse_when_mixed(cases):
    sample = case_demonstrations(cases["train"][:20])

    def errors(behavior):
        return sum(
            '"error"' in m["content"] or "'error'" in m["content"] for d, _ in sample(40, 0, behavior) for m in d
        )

    assert errors(MIXED) > errors(SKILLED) > 0
    assert sample(3, 1, MIXED)[0][0] == sample(3, 1, MIXED)[0][0]


def test_generate_and_check_commands_print_a_summary(tmp_path, capsys):
    assert main(["tasks", "generate", "--output", str(tmp_path), "--train", "12", "--heldout", "6"]) == 0
    text = capsys.readouterr().out
    assert "12 cases" in text
    assert text.count("overlap with BFCL's test cases: none") == 2
    first = (tmp_path / "train.jsonl").read_bytes()
    assert main(["tasks", "generate", "--output", str(tmp_path), "--train", "12", "--heldout", "0"]) == 0
    assert (tmp_path / "train.jsonl").read_bytes() == first
    assert main(["tasks", "check", str(tmp_path / "heldout.jsonl")]) == 0
    assert "all pass the official checker" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": ""}, "row 1, field 'id': must be a non-empty str"),
        ({"classes": ["Nope"]}, r"field 'classes\[0\]': must be one of"),
        ({"variant": "odd"}, "field 'variant'"),
        ({"turns": [{"request": 1, "reference": []}]}, r"field 'turns\[0\].request'"),
        (
            {"turns": [{"request": "x", "reference": [{"name": "fly", "arguments": {}}]}]},
            r"'turns\[0\].reference\[0\].name'",
        ),
        ({"turns": [{"request": "x", "reference": [], "without": ["fly"]}]}, r"'turns\[0\].without\[0\]'"),
    ],
)
def test_a_bad_row_is_named_by_row_and_field(tmp_path, cases, change, message):
    path = tmp_path / "cases.jsonl"
    path.write_text(json.dumps(json.loads(cases["train"][0].to_json()) | change))
    with pytest.raises(TaskFileError, match=message):
        load_cases(path)


def test_a_reference_that_fails_in_its_environment_is_named(tmp_path, capsys, cases):
    case = cases["train"][0]
    wrong = replace(case.turns[0], reference=(ToolCall(case.turns[0].reference[0].name, {"no_such": 1}),))
    path = tmp_path / "cases.jsonl"
    path.write_text(replace(case, turns=(wrong,)).to_json())
    assert main(["tasks", "check", str(path)]) == 1
    assert f"case '{case.id}'" in capsys.readouterr().err
    with pytest.raises(TaskError):
        check_case(replace(case, turns=(wrong,)))


@pytest.mark.parametrize("mix", [Mix(classes=("MathAPI",)), Mix(max_turns=0), Mix(max_calls=0)])
def test_settings_that_allow_no_case_are_refused(mix):
    with pytest.raises(ValueError, match="train"):
        generate("train", 1, 0, mix)


# -- step tasks ---------------------------------------------------------------------------------------------------


def test_step_tasks_of_every_call_pass_in_their_environments(tmp_path, capsys):
    options = ["--train", "12", "--heldout", "12", "--seed", "3", "--miss_func", "0.3", "--miss_param", "0.3"]
    assert main(["tasks", "generate", "--steps", "--output", str(tmp_path / "steps"), *options]) == 0
    shown = capsys.readouterr().out
    assert main(["tasks", "generate", "--output", str(tmp_path / "cases"), *options]) == 0
    for split in SPLITS:
        cases = load_cases(tmp_path / "cases" / f"{split}.jsonl")
        turns = [turn for case in cases for turn in case.turns]
        tasks = load_tasks(str(tmp_path / "steps" / f"{split}.jsonl"))
        assert len(tasks) == sum(max(1, len(turn.reference)) for turn in turns)
        assert f"\n{len(tasks)} tasks tried in their environments\n" in shown, "all of them, and nothing is odd"
        assert tasks == [task for case in cases for task in step_tasks(case)]
        assert sum(not task.reference for task in tasks) == sum(not turn.reference for turn in turns) > 0


def test_a_wrong_call_of_a_step_task_gets_the_simulators_answer(cases):
    task = next(task for case in cases["train"] for task in step_tasks(case) if "TicketAPI" in task.columns["classes"])
    calls = (ToolCall("get_ticket", {"ticket_id": 999999}), ToolCall("resolve_ticket"))
    lost, incomplete = StepEnvironments().results(task, calls)
    assert "not found" in (lost.error or "")
    assert "missing" in (incomplete.error or "")


def test_the_desks_step_tasks_are_written_as_training_draws_them(tmp_path):
    options = ["--environment", "desk", "--train", "8", "--heldout", "4", "--seed", "7"]
    assert main(["tasks", "generate", "--output", str(tmp_path), *options]) == 0
    assert load_tasks(str(tmp_path / "train.jsonl")) == make_steps(8, 7, "train")
    assert load_tasks(str(tmp_path / "heldout.jsonl")) == make_steps(4, 7, "held_out")
