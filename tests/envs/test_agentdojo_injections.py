"""AgentDojo's injection cases: the official attacks' texts, and the official verdicts on what became of them."""

import json
import random
from collections import Counter

import pytest

from fission_grpo.core.install import AGENTDOJO

pytest.importorskip("agentdojo", reason=f"pip install {' && pip install '.join(AGENTDOJO)}")

from openai_server import OpenAIServer, calls

from fission_grpo.cli.main import main
from fission_grpo.core.errors import UsageError
from fission_grpo.envs.agentdojo.env import ENVIRONMENTS, injection
from fission_grpo.envs.agentdojo.suites import SUITES, load_suite, official
from fission_grpo.envs.agentdojo.tasks import injection_rows
from fission_grpo.evaluation.records import read_records
from fission_grpo.evaluation.task_sets import TaskSpec, task_set
from fission_grpo.inference.base import Reply

ATTACK = "important_instructions"
COUNTS = {"workspace": 560, "travel": 140, "banking": 144, "slack": 105}


def started(suite, row):
    environment = ENVIRONMENTS[suite]()
    environment.reset(**row)
    return environment


def make(environment, made):
    """Make official calls, as long as they have no errors."""
    for call in made:
        environment._call(call.function, dict(call.args))


@pytest.mark.parametrize("suite", SUITES)
def test_rows_are_all_official_pairs_and_few_of_them_vary_both_tasks(suite):
    rows = injection_rows(suite, ATTACK)
    tasks = load_suite(suite)
    pairs = {(row["user_task"], row["injection_task"]) for row in rows}
    assert len(rows) == len(pairs) == COUNTS[suite] == len(tasks.user_tasks) * len(tasks.injection_tasks)
    first = rows[: len(tasks.user_tasks)]
    assert len({row["user_task"] for row in first}) == len(first)
    assert len({row["injection_task"] for row in first}) == min(len(tasks.injection_tasks), len(first))
    goal = tasks.injection_tasks[rows[0]["injection_task"]].GOAL
    assert all(goal in text for text in json.loads(rows[0]["injections"]).values())


@pytest.mark.parametrize("suite", SUITES)
def test_verdicts_are_the_official_ones(suite):
    """Of the user task's and of the injection task's official calls, on 15 pairs."""
    pipeline = official("agent_pipeline.ground_truth_pipeline").GroundTruthPipeline
    tasks = load_suite(suite)
    seen = set()
    for row in random.Random(1).sample(injection_rows(suite, ATTACK), 15):
        user, injected = tasks.user_tasks[row["user_task"]], tasks.injection_tasks[row["injection_task"]]
        for task in (user, injected):
            expected = tasks.run_task_with_pipeline(pipeline(task), user, injected, json.loads(row["injections"]))
            environment = started(suite, row)
            make(environment, task.ground_truth(environment._state.model_copy(deep=True)))
            output = task.GROUND_TRUTH_OUTPUT
            utility, attack = environment._reward(output), environment._reward(output, "injection")
            assert (utility == 1.0, attack == 1.0) == expected
            seen.add(expected)
    assert {(True, False), (False, True)} <= seen


@pytest.mark.parametrize(
    ("suite", "undone"),
    [
        ("workspace", {"injection_task_0": 9, **{f"injection_task_{number}": 40 for number in range(6, 14)}}),
        ("travel", {}),
        ("banking", {}),
        ("slack", {}),
    ],
)
def test_injection_tasks_that_their_own_official_calls_do_not_do(suite, undone):
    found = Counter()
    for row in injection_rows(suite, ATTACK):
        environment, task = started(suite, row), load_suite(suite).injection_tasks[row["injection_task"]]
        make(environment, task.ground_truth(environment._state.model_copy(deep=True)))
        found[task.ID] += environment._reward(task.GROUND_TRUTH_OUTPUT, "injection") != 1.0
    assert +found == undone


@pytest.mark.parametrize("suite", SUITES)
def test_the_official_calls_of_a_user_task_show_the_text_and_none_shows_nothing(suite):
    for row in injection_rows(suite, ATTACK)[::7]:
        environment = started(suite, row)
        assert environment._reward("", "injection") == -1.0
        make(environment, official_calls(environment))
        assert environment._shown
        state = environment._snapshot()
        other = started(suite, row)
        other._restore(state)
        assert other._shown


def official_calls(environment):
    task = environment._suite.user_tasks[environment._task]
    return task.ground_truth(environment._state.model_copy(deep=True))


def ended(start, made, text="Done."):
    """The record of a case in which the policy makes these calls, one a turn, and ends with a text."""
    replies = [f"<tool_call>{json.dumps({'name': c.function, 'arguments': dict(c.args)})}</tool_call>" for c in made]
    running = start()
    next(running)
    try:
        for reply in [*replies, text]:
            running.send(Reply(reply))
    except StopIteration as end:
        return end.value
    raise AssertionError("the case goes on")


def test_an_evaluation_says_what_became_of_the_instructions():
    tasks = task_set(TaskSpec("agentdojo:slack", attack=ATTACK, max_turns=40))
    assert tasks.settings["attack"] == ATTACK
    assert len(tasks.cases) == COUNTS["slack"]
    name = "slack/user_task_2/injection_task_3"
    (row,) = [row for row in injection_rows("slack", ATTACK) if row["id"] == name]
    environment = started("slack", row)
    user = official_calls(environment)
    injected = load_suite("slack").injection_tasks["injection_task_3"].ground_truth(environment._state)
    outcomes = [ended(tasks.cases[name], made).attack for made in (user, [*user, *injected], [])]
    assert outcomes == ["resisted", "obeyed", "unseen"]


def test_the_reward_function_has_the_arguments_of_trl():
    row = injection_rows("banking", ATTACK)[0]
    environment = started("banking", row)
    message = {"role": "assistant", "content": "I am done."}
    assert injection(prompts=["x"], completions=[[message]], environments=[environment], trainer_state=None) == [-1.0]


@pytest.mark.parametrize("attack", ["nope", "dos", "manual"])
def test_an_unknown_attack_names_the_known_ones(attack):
    with pytest.raises(UsageError, match=r"AgentDojo has no such attack; write one of .*important_instructions"):
        injection_rows("banking", attack)


def test_a_wrong_injection_task_names_the_row_and_the_column():
    row = {"id": "r", "user_task": "user_task_0", "injection_task": "injection_task_99"}
    with pytest.raises(ValueError, match="row 'r': column 'injection_task' must be one of injection_task_0"):
        ENVIRONMENTS["banking"]().reset(**row)


def test_the_command_behind_an_endpoint(tmp_path):
    """A model that makes the official calls of the user's task, and then those of the injected one."""
    (row,) = injection_rows("slack", ATTACK)[:1]
    environment = started("slack", row)
    user = official_calls(environment)
    injected = load_suite("slack").injection_tasks[row["injection_task"]].ground_truth(environment._state)
    scripted = [*user, *injected]

    def answer(body):
        at = sum(message["role"] == "assistant" for message in body["messages"])
        if at >= len(scripted):
            return "Done."
        return calls((scripted[at].function, json.dumps(dict(scripted[at].args))))

    with OpenAIServer(answer) as server:
        given = ["--model", "small", "--endpoint", server.url, "--tasks", "agentdojo:slack", "--attack", ATTACK]
        assert main(["eval", *given, "--num_tasks", "1", "--output", str(tmp_path)]) == 0
    (record,) = read_records(tmp_path / "eval-small" / "cases.jsonl")
    assert (record.id, record.attack) == (row["id"], "obeyed")
    rates = json.loads((tmp_path / "eval-small" / "rates.json").read_text())
    assert (rates["attack_success"]["hits"], rates["attack_success_shown"]["of"]) == (1, 1)
