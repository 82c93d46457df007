"""BFCL's official result files and its single-turn judge. Multi-turn: `multi_turn_base_100`, as in test_bfcl_run."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("bfcl_eval", reason="pip install --no-deps bfcl-eval==2026.3.23 mpmath==1.3.0 filelock")

from bfcl_support import CASE, FUND, INFO, call, play, verdicts

from fission_grpo.core.errors import RunFileError
from fission_grpo.envs.bfcl.official import multi_turn_cases, single_turn_cases
from fission_grpo.evaluation.bfcl.results import (
    read_result_file,
    replay_case,
    result_path,
    write_result_files,
)
from fission_grpo.evaluation.bfcl.single_turn import run_single_turn
from fission_grpo.inference.base import Reply


def test_files_written_hold_the_steps_and_are_read_back_with_the_same_verdicts(tmp_path):
    wrong = multi_turn_cases("multi_turn_base")[101]
    good = play([f"<think>\nHm.\n</think>\n\n{INFO}", "Done.", FUND, "Done."])[0]
    bad = play(["Done."] * len(wrong.turns), wrong)[0]
    [path] = write_result_files([bad, good], [CASE, wrong], tmp_path)
    assert path == tmp_path / "result/Qwen_Qwen3-8B-FC/multi_turn/BFCL_v4_multi_turn_base_result.json"
    assert path == result_path(tmp_path, "multi_turn_base")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows[0] == {"id": CASE.id, "result": [[INFO, "Done."], [FUND, "Done."]]}
    read = read_result_file(path)
    assert [(r.id, r.verdict) for r in read] == [(r.id, r.verdict) for r in (good, bad)]
    assert read[0].calls == good.calls


def test_calls_made_in_the_chat_format_are_written_in_the_models_form(tmp_path):
    record, _ = play([INFO.replace("\n", ""), "ls()", FUND, "Done."], format="chat")
    [path] = write_result_files([record], [CASE], tmp_path)
    assert json.loads(path.read_text())["result"] == [[INFO, "ls()"], [FUND, "Done."]]
    [path] = write_result_files([record], [CASE], tmp_path, "Qwen/Qwen3-8B")
    written = json.loads(path.read_text())["result"]
    assert written == [["[get_stock_info(symbol='NVDA')]", ""], ["[fund_account(amount=2203.4)]", "Done."]]


def test_missing_cases_are_left_out_and_unknown_ones_refused(tmp_path):
    lost, _ = play([Reply("", lost="down")])
    assert write_result_files([lost], [CASE], tmp_path) == []
    with pytest.raises(
        ValueError, match="1 records belong to none of the cases given, the first is 'multi_turn_base_100"
    ):
        write_result_files([lost], [], tmp_path)


@pytest.mark.parametrize(
    "steps",
    [
        (INFO, FUND),
        ("[get_stock_info(symbol='NVDA')]", "fund_account(amount=2203.4)"),
        ([{"get_stock_info": '{"symbol": "NVDA"}'}], [{"fund_account": '{"amount": 2203.4}'}]),
        ({"get_stock_info": {"symbol": "NVDA"}}, [{"fund_account": {"amount": 2203.4}}]),
        (["get_stock_info(symbol='NVDA')"], ["fund_account(amount=2203.4)"]),
    ],
)
def test_result_files_of_all_kinds_of_models_are_read(steps, tmp_path):
    path = tmp_path / "any.json"
    path.write_text(
        json.dumps({"id": CASE.id, "result": [[step, "All done."] for step in steps], "latency": 1}) + "\n"
    )
    [record] = read_result_file(path)
    assert verdicts(record) == (True, None, [True, True])
    assert [len(step.calls) for step in record.steps] == [1, 0, 1, 0]


def test_a_result_with_too_few_turns_was_forced_to_end():
    assert verdicts(replay_case(CASE, [[INFO]])) == (False, "multi_turn:force_terminated", [True])
    assert verdicts(replay_case(CASE, "Error during inference: x")) == (False, "multi_turn:inference_error", [])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"result": []}, "line 2: field 'id' must be str, but is missing"),
        ({"id": "memory_0", "result": []}, "line 2: field 'id': 'memory_0' is of no BFCL category that can be judged"),
        ({"id": "multi_turn_base_999", "result": []}, "BFCL's multi_turn_base has no case 'multi_turn_base_999'"),
        ({"id": "multi_turn_base_1", "result": 5}, "line 2: field 'result' must be str or list or dict, but is 5"),
        ({"id": "multi_turn_base_1", "result": {}}, "line 2: field 'result' must be a list of user turns"),
        ({"id": "multi_turn_base_1", "result": ["x"]}, "field 'result\\[0\\]' must be a list of steps, but is \"x\""),
        ({"id": "multi_turn_base_1", "result": [[], [5]]}, "field 'result\\[1\\]\\[0\\]' must be text, an object"),
        ({"id": CASE.id, "result": []}, "line 2: field 'id': 'multi_turn_base_100' is also in an earlier line"),
    ],
)
def test_a_broken_row_is_named_with_its_line_and_field(row, message, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"id": CASE.id, "result": []}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(RunFileError, match=message):
        read_result_file(path)


def test_a_missing_result_file_is_named(tmp_path):
    with pytest.raises(
        RunFileError, match=r"does not exist; a BFCL result file is named BFCL_v4_CATEGORY_result\.json"
    ):
        read_result_file(tmp_path / "no.json")


def single(category, reply, format="qwen-fc", number=0):
    going = run_single_turn(single_turn_cases(category)[number], format)
    next(going)
    with pytest.raises(StopIteration) as end:
        going.send(Reply(reply))
    return end.value.value


@pytest.mark.parametrize(
    ("category", "reply", "verdict"),
    [
        ("simple_python", call("calculate_triangle_area", base=10, height=5), None),
        ("simple_python", call("calculate_triangle_area", base=10, height=6), "value_error:others"),
        ("simple_python", call("calculate_triangle_area", base=10), "simple_function_checker:missing_required"),
        ("simple_python", "It is 25.", "simple_function_checker:wrong_count"),
        ("simple_python", call("x")[:-13] + "</tool_call>", "simple_function_checker:wrong_count"),
        ("multiple", call("triangle_properties.get", side1=5, side2=4, side3=3), None),
        ("irrelevance", "I have no tool for that.", None),
        ("irrelevance", call("determine_body_mass_index"), "irrelevance_error:decoder_success"),
        ("live_relevance", "No.", "relevance_error:decoder_failed"),
    ],
)
def test_single_turn_replies_get_the_official_verdict(category, reply, verdict):
    record = single(category, reply)
    assert (record.success, record.verdict, record.turns[0].valid) == (verdict is None, verdict, verdict is None)


def test_a_single_turn_call_in_words_or_python_is_judged_in_its_format():
    assert single("simple_python", "[calculate_triangle_area(base=10, height=5)]", "qwen-prompting").success
    assert single("simple_python", "It is 25.", "qwen-prompting").verdict == "ast_decoder:decoder_failed"
    dotless = call("triangle_properties_get", side1=5, side2=4, side3=3)
    record = single("multiple", dotless, "chat")
    assert (record.success, record.calls[0].name) == (True, "triangle_properties.get")


def test_single_turn_results_are_written_and_read_back(tmp_path):
    cases = single_turn_cases("simple_python")[:1]
    record = single("simple_python", call("calculate_triangle_area", base=10, height=5))
    [path] = write_result_files([record], cases, tmp_path)
    assert path.parent.name == "non_live"
    assert read_result_file(path)[0].success


def test_the_official_judge_leaves_no_stand_in_among_the_modules():
    single("simple_python", "It is 25.")
    config = sys.modules.get("bfcl_eval.constants.model_config")
    assert config is None or hasattr(config, "ModelConfig")


def test_the_scripts_differences_name_cases_judged_apart():
    sys.path.append(str(Path(__file__).parents[2] / "scripts"))
    from official_bfcl import Score, differences

    scores = {"c": Score(0.5, 1, 2, {"c_1": "e"})}
    assert differences(scores, {"c_0": None, "c_1": "e"}) == []
    assert differences(scores, {"c_0": "e", "c_1": None}) == [("c_0", "e", None), ("c_1", None, "e")]


def test_words_in_a_file_of_an_fc_model_are_no_broken_calls(tmp_path):
    row = json.dumps({"id": "simple_python_0", "result": "[calculate_triangle_area(base=10"}) + "\n"
    for model, unread in (("Qwen_Qwen3-8B-FC", False), ("Qwen_Qwen3-8B", True)):
        path = tmp_path / "result" / model / "non_live" / "BFCL_v4_simple_python_result.json"
        path.parent.mkdir(parents=True)
        path.write_text(row)
        (record,) = read_result_file(path)
        assert (record.steps[0].unread is not None) is unread
        assert record.success is False
