"""`fission-grpo eval` as a user runs it: local models, an endpoint over real sockets, files, BFCL, transcripts."""

import json
from dataclasses import replace

import pytest
from openai_server import OpenAIServer

from fission_grpo.cli.evaluate import eval_parser, make_task_spec
from fission_grpo.cli.main import main
from fission_grpo.core.chat import render_call
from fission_grpo.core.types import ToolCall
from fission_grpo.envs.desk.tasks import make_rows, solution
from fission_grpo.evaluation.records import read_records
from fission_grpo.evaluation.run import read_manifest
from fission_grpo.evaluation.task_sets import task_set

STARTER = ["--model", "starter", "--tasks", "desk", "--num_tasks", "12"]


def evaluated(output, *options):
    return main(["eval", *options, "--output", str(output)])


def test_an_evaluation_leaves_its_cases_manifest_rates_and_one_line_for_reports(tmp_path, capsys):
    assert evaluated(tmp_path, *STARTER) == 0
    said = capsys.readouterr().out
    assert "error recovery, cases" in said
    records = read_records(tmp_path / "eval-starter" / "cases.jsonl")
    assert len(records) == 12
    rates = json.loads((tmp_path / "eval-starter" / "rates.json").read_text())
    assert rates["success"]["hits"] == sum(bool(record.success) for record in records)
    manifest = read_manifest(tmp_path / "eval-starter")
    assert (manifest.tasks["kind"], manifest.tasks["count"]) == ("desk", 12)
    assert manifest.decoding == {"temperature": 1.0, "max_new_tokens": 64, "seed": 0}
    assert evaluated(tmp_path, *STARTER) == 0  # nothing is played again, and no line added
    assert "12 of 12 cases are there already" in capsys.readouterr().err
    [line] = (tmp_path / "eval.jsonl").read_text().splitlines()
    assert (json.loads(line)["of"], json.loads(line)["samples"]) == ("desk", 1)


def test_two_evaluations_are_compared_and_others_refused(tmp_path, capsys):
    greedy = ("--temperature", "0")
    assert evaluated(tmp_path, *STARTER, "--name", "a") == 0
    assert evaluated(tmp_path, *STARTER, "--name", "b", "--seed", "0") == 0
    assert evaluated(tmp_path, *STARTER, "--name", "c", *greedy) == 0
    assert main(["compare", str(tmp_path / "eval-a"), str(tmp_path / "eval-b")]) == 0
    assert (tmp_path / "eval-b" / "compare" / "compare.svg").stat().st_size > 1000
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "eval-a"), str(tmp_path / "eval-c")]) == 2
    assert "decoding.temperature" in capsys.readouterr().err
    assert evaluated(tmp_path, *STARTER, "--name", "a", *greedy) == 2
    assert "holds another evaluation" in capsys.readouterr().err


def test_template_options_are_part_of_an_evaluation(tmp_path, capsys):
    few = (*STARTER[:-1], "2")
    options = ("--chat_template_kwargs", '{"enable_thinking": false}')
    assert evaluated(tmp_path, *few, *options) == 0
    assert read_manifest(tmp_path / "eval-starter").prompt["chat_template_kwargs"] == {"enable_thinking": False}
    assert evaluated(tmp_path, *few) == 2
    assert "holds another evaluation" in capsys.readouterr().err
    assert evaluated(tmp_path, *few, *options, "--endpoint", "http://localhost:1/v1") == 2
    assert "an endpoint takes them in --extra_body" in capsys.readouterr().err


def desk_solver(tasks):
    """Answers chat requests as one who knows the solutions of these desk tasks."""
    by_request = {row["prompt"][0]["content"]: list(solution(row)) for row in tasks}

    def answer(body):
        calls = by_request[body["messages"][0]["content"]]
        turn = sum(message["role"] == "assistant" for message in body["messages"])
        return render_call(calls[turn]) if turn < len(calls) else "Done."

    return answer


def test_an_endpoint_that_falters_loses_cases_and_gets_them_back_when_resumed(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-0123456789")
    solve = desk_solver(make_rows(6, 0, "held_out"))

    def answer(body):
        return "hello" if len(body["messages"]) == 1 and "Say hello" in str(body) else solve(body)

    options = ["--model", "small", "--tasks", "desk", "--num_tasks", "6"]
    with OpenAIServer(answer) as server:
        server.faults = lambda number: "400" if number == 3 else "500" if number == 5 else None
        assert evaluated(tmp_path, *options, "--endpoint", server.url) == 0
        first = read_records(tmp_path / "eval-small" / "cases.jsonl")
        assert [record.success for record in first].count(True) == 5
        assert [record.missing is not None for record in first].count(True) == 1
        server.faults = ()
        assert evaluated(tmp_path, *options, "--endpoint", server.url) == 0
    records = read_records(tmp_path / "eval-small" / "cases.jsonl")
    assert [record.success for record in records] == [True] * 6
    said = capsys.readouterr()
    assert '"retries/HTTP 500": 1' in said.err
    kept = "".join(path.read_text() for path in tmp_path.rglob("*.json*"))
    assert "very-secret" not in kept + said.err + said.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "starter", "--tasks", "nowhere.jsonl"], "'nowhere.jsonl' is no file"),
        (["--model", "starter", "--format", "qwen-fc"], "--format and --mode are for BFCL"),
        (["--model", "/no/such/model"], "/no/such/model does not exist"),
        (["--tasks", "desk"], "--model is missing"),
        (["--model", "starter", "--environment", "a.py:A"], "--rows is missing"),
        (["--model", "starter", "--tasks", "desk", "--rows", "a.jsonl"], "two kinds of tasks"),
        (["--model", "x", "--endpoint", "http://127.0.0.1:9/v1", "--raw"], "--raw needs --tokenizer"),
        (["--traces", "nowhere.jsonl"], "no such file"),
    ],
)
def test_a_mistake_in_the_options_is_one_clear_line(tmp_path, capsys, options, words):
    try:
        status = evaluated(tmp_path, *options)
    except SystemExit as stopped:  # of argparse
        status = stopped.code
    assert status == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert words in said[-1]


def test_an_endpoint_that_is_down_is_told_before_anything_is_played(tmp_path, capsys):
    assert evaluated(tmp_path, "--model", "x", "--endpoint", "http://127.0.0.1:9/v1") == 2
    assert "is the server up" in capsys.readouterr().err
    assert not list(tmp_path.rglob("cases.jsonl"))


def test_injected_faults_are_told_apart_from_the_policys_own_errors(tmp_path):
    assert evaluated(tmp_path, *STARTER, "--fault", "server_error:0.5") == 0
    rates = json.loads((tmp_path / "eval-starter" / "rates.json").read_text())
    assert rates["injected_errors"] > 0
    assert read_manifest(tmp_path / "eval-starter").prompt["faults"][0]["kind"] == "server_error"


def test_step_tasks_are_evaluated_too(tmp_path):
    row = {
        "id": "w",
        "messages": [{"role": "user", "content": "Rain in Oslo?"}],
        "tools": [{"name": "weather", "description": "", "parameters": {"type": "object", "properties": {}}}],
        "reference": [{"name": "weather", "arguments": {}}],
    }
    (tmp_path / "tasks.jsonl").write_text(json.dumps(row) + "\n")
    with OpenAIServer(lambda body: render_call(ToolCall("weather"))) as server:
        options = ["--model", "small", "--endpoint", server.url, "--tasks", str(tmp_path / "tasks.jsonl")]
        assert evaluated(tmp_path, *options) == 0
    (record,) = read_records(tmp_path / "eval-small" / "cases.jsonl")
    assert record.success


def test_bfcl_cases_are_played_and_official_files_written(tmp_path):
    pytest.importorskip("bfcl_eval", reason="bfcl-eval is not installed")
    with OpenAIServer(lambda body: "I cannot help with that.") as server:
        options = ["--model", "small", "--endpoint", server.url, "--tasks", "multi_turn_base,irrelevance"]
        assert evaluated(tmp_path, *options, "--num_tasks", "2") == 0
    records = read_records(tmp_path / "eval-small" / "cases.jsonl")
    assert sorted((record.category, record.success) for record in records) == [
        *[("irrelevance", True)] * 2,
        *[("multi_turn_base", False)] * 2,
    ]
    written = {path.name for path in (tmp_path / "eval-small" / "bfcl").rglob("*.json")}
    assert written == {"BFCL_v4_multi_turn_base_result.json", "BFCL_v4_irrelevance_result.json"}


def test_bare_json_calls_are_part_of_an_evaluation(tmp_path, capsys):
    few = (*STARTER[:-1], "2")
    assert evaluated(tmp_path, *few, "--name", "a") == 0
    assert evaluated(tmp_path, *few, "--name", "b", "--bare_json_calls") == 0
    assert read_manifest(tmp_path / "eval-b").prompt["bare_json_calls"] is True
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "eval-a"), str(tmp_path / "eval-b")]) == 2
    assert "prompt.bare_json_calls: absent in A, true in B" in capsys.readouterr().err
    official = ("--model", "starter", "--tasks", "multi_turn_base", "--endpoint", "http://localhost:1/v1", "--raw")
    assert evaluated(tmp_path, *official, "--format", "qwen-fc", "--bare_json_calls") == 2
    assert "no --bare_json_calls" in capsys.readouterr().err


def test_a_subset_of_bfcl_is_given_by_a_file_of_ids(tmp_path, capsys):
    ids = tmp_path / "ids.txt"
    ids.write_text("# chosen for a test\nmulti_turn_base_3\nmulti_turn_base_1  # TradingBot\n\n", encoding="utf-8")
    spec = make_task_spec(eval_parser().parse_args(["--tasks", "multi_turn_base", "--task_ids", str(ids)]))
    tasks = task_set(spec)
    assert list(tasks.cases) == [case.id for case in tasks.official] == ["multi_turn_base_1", "multi_turn_base_3"]
    assert tasks.sha256 != task_set(replace(spec, ids=("multi_turn_base_1",))).sha256
    options = ("--model", "starter", "--task_ids", str(ids))
    ids.write_text("multi_turn_base_1\nmulti_turn_base_999\n", encoding="utf-8")
    assert evaluated(tmp_path, *options, "--tasks", "multi_turn_base") == 2
    assert "no case of multi_turn_base has the id 'multi_turn_base_999'" in capsys.readouterr().err
    assert evaluated(tmp_path, *options, "--tasks", "desk") == 2
    assert "--task_ids is for BFCL's own cases" in capsys.readouterr().err
    ids.write_text("# none\n", encoding="utf-8")
    assert evaluated(tmp_path, *options, "--tasks", "multi_turn_base") == 2
    assert f"{ids}: holds no id" in capsys.readouterr().err


def test_a_local_model_is_loaded_in_the_dtype_asked_for(tmp_path, capsys):
    few = (*STARTER[:-1], "2")
    assert evaluated(tmp_path, *few, "--dtype", "bfloat16") == 0
    assert read_manifest(tmp_path / "eval-starter").policy["dtype"] == "torch.bfloat16"
    assert evaluated(tmp_path, *few, "--dtype", "bfloat16", "--endpoint", "http://localhost:1/v1") == 2
    assert "--dtype is for local models" in capsys.readouterr().err


def test_transcripts_from_elsewhere_need_no_model(tmp_path, capsys):
    call = {"id": "1", "type": "function", "function": {"name": "ls", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "List."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": '{"error": "no such folder"}'},
        {"role": "assistant", "content": "Sorry."},
    ]
    (tmp_path / "t.jsonl").write_text(json.dumps({"messages": messages, "success": False}) + "\n")
    assert main(["eval", "--traces", str(tmp_path / "t.jsonl")]) == 0
    assert "0 of 1 cases with an error of their own" in capsys.readouterr().out
    assert evaluated(tmp_path, "--traces", str(tmp_path / "t.jsonl")) == 0
    assert len(read_records(tmp_path / "eval-t" / "cases.jsonl")) == 1


WORDS = [
    {"role": "user", "content": "Find her."},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "function": {"name": "find", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "1", "content": "Error: user not found"},
    {"role": "assistant", "content": "Sorry."},
]


def test_errors_in_words_are_noted_or_counted_in_output_and_results(tmp_path, capsys):
    (tmp_path / "t.jsonl").write_text(json.dumps({"messages": WORDS, "success": True}) + "\n")
    traces = ("--traces", str(tmp_path / "t.jsonl"))
    assert main(["eval", *traces]) == 0
    said = capsys.readouterr().out
    assert said.startswith("t\n")  # the name of the file
    assert "note: 1 of 1 results begins like an error and is a success (such as 'Error: user not found')" in said
    assert "Cases with such results: 1, 1 of them successful" in said
    assert evaluated(tmp_path, *traces) == 0
    rates = json.loads((tmp_path / "eval-t" / "rates.json").read_text())
    assert (rates["uncounted_errors"], len(rates["notes"]), rates["own_errors"]) == (1, 1, 0)
    capsys.readouterr()
    assert evaluated(tmp_path, *traces, "--error_pattern", "^Error", "--name", "counted") == 0
    said = capsys.readouterr().out
    assert "note:" not in said
    assert "1 of 1 cases with an error of their own" in said
    rates = json.loads((tmp_path / "eval-counted" / "rates.json").read_text())
    assert (rates["uncounted_errors"], rates["notes"], rates["own_errors"]) == (0, [], 1)
    assert main(["compare", str(tmp_path / "eval-t"), str(tmp_path / "eval-counted")]) == 2
    assert "tasks.error_pattern" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--traces", "t.jsonl", "--error_pattern", "("], "'(' is no regular expression"),
        (["--traces", "t.jsonl", "--error_pattern", ".*"], "'.*' fits every text"),
        (["--model", "starter", "--tasks", "multi_turn_base", "--error_pattern", "x"], "leave out --error_pattern"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_one_clear_error(options, complaint, capsys):
    try:
        code = main(["eval", *options])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    assert complaint in capsys.readouterr().err.splitlines()[-1]


def test_faults_of_a_cell_have_rows_of_their_own(tmp_path, capsys):
    assert evaluated(tmp_path, *STARTER, "--fault", "explicit-permanent:0.5") == 0
    assert "explicit-permanent faults (" in capsys.readouterr().out
    (cell,) = json.loads((tmp_path / "eval-starter" / "rates.json").read_text())["by_fault"]
    assert cell["name"] == "explicit-permanent"
    assert cell["recovery"]["of"] == cell["success"]["of"] - cell["not_needed"] > 0


def test_an_attack_is_for_agentdojo_alone(capsys):
    assert main(["eval", "--model", "starter", "--tasks", "desk", "--attack", "direct"]) == 2
    assert "--attack is for AgentDojo's cases; leave it out" in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["flood:0.5", "timeout:2", "timeout", "explicit-permanent", "implicit:0.1"])
def test_a_wrong_fault_names_the_option_and_the_kinds(fault, capsys):
    with pytest.raises(SystemExit):
        main(["eval", "--model", "starter", "--fault", fault])
    said = capsys.readouterr().err
    assert f"argument --fault: '{fault}': write KIND:RATE" in said
    assert "timeout, rate_limit" in said
