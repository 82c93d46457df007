"""BFCL's classes as environments, and the official judge on their states."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("bfcl_eval", reason="pip install --no-deps bfcl-eval==2026.3.23 mpmath==1.3.0 filelock")

from transformers.utils import get_json_schema

from fission_grpo.core.tool_schema import check_tool_schema
from fission_grpo.core.types import ToolCall
from fission_grpo.envs.bfcl.env import (
    FunctionError,
    TaskError,
    environment_name,
    environment_of,
)
from fission_grpo.envs.bfcl.functions import (
    FILES,
    class_docs,
    class_of,
    official_schema,
)
from fission_grpo.envs.bfcl.judge import read_call, write_call
from fission_grpo.envs.bfcl.state import new_state
from fission_grpo.envs.restore import make_call
from fission_grpo.envs.wrapper import tool_methods

FUNCTIONS = [name for class_name in FILES for name in class_docs(class_name)]
TICKETS = {"ticket_queue": [{"id": 7, "title": "a", "status": "Open", "created_by": "ann"}], "current_user": "ann"}
CLOSE = {"name": "close_ticket", "arguments": {"ticket_id": 7}}


def scenario(reference=(CLOSE,), history=(), config=None):
    fields = {"config": {"TicketAPI": TICKETS} if config is None else config}
    return json.dumps({**fields, "history": list(history), "reference": list(reference)})


def tickets(**options):
    environment = environment_of("TicketAPI")()
    environment.reset(id="a", scenario=scenario(**options))
    return environment


def test_there_are_128_functions_in_eight_classes():
    assert (len(FILES), len(FUNCTIONS), len(set(FUNCTIONS))) == (8, 128, 128)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_tool_has_the_official_schema(name):
    environment = environment_of(class_of(name))()
    ours, official = get_json_schema(getattr(environment, name))["function"], official_schema(name)
    check_tool_schema(official)
    assert ours["description"] == " ".join(official["description"].split())
    fields = official["parameters"]["properties"]
    assert set(ours["parameters"]["properties"]) == set(fields)
    assert set(ours["parameters"].get("required", [])) == set(official["parameters"]["required"])
    for key, field in fields.items():
        mine = ours["parameters"]["properties"][key]
        assert mine["type"] == field["type"], key
        assert mine["description"].startswith(" ".join(field["description"].split())[:60])
        assert mine.get("items") == field.get("items")
        assert "properties" not in field or (name, key) == ("edit_ticket", "updates")  # all that type hints cannot say


def test_a_turn_earns_the_reward_by_the_official_checks():
    environment = tickets()
    assert (environment._reward(), environment._progress()) == (0.0, 0.0)
    assert json.loads(environment.get_ticket(ticket_id=7))["status"] == "Open"
    assert (environment._reward(), environment._progress()) == (0.0, 0.0)
    environment.close_ticket(ticket_id=7)
    assert (environment._reward(), environment._progress()) == (1.0, 1.0)
    environment.create_ticket(title="b")
    assert (environment._reward(), environment._progress()) == (0.0, 1.0)


def test_earlier_turns_are_made_before_the_episode_begins():
    made = {"name": "create_ticket", "arguments": {"title": "b"}}
    environment = tickets(history=[[CLOSE]], reference=[made])
    assert json.loads(environment.get_ticket(ticket_id=7))["status"] == "Closed"
    environment.create_ticket(title="b")
    assert environment._reward() == 1.0


def test_without_reference_calls_the_state_must_not_change():
    environment = tickets(reference=[])
    assert environment._reward() == 1.0
    environment.get_ticket(ticket_id=7)
    assert environment._reward() == 1.0
    environment.close_ticket(ticket_id=7)
    assert (environment._reward(), environment._progress()) == (0.0, 0.0)


def test_errors_have_the_simulators_message():
    tools = tool_methods(tickets())
    assert make_call(tools, ToolCall("get_ticket", {"ticket_id": 8})).error == "Ticket with ID 8 not found."
    assert "unexpected keyword argument 'id'" in make_call(tools, ToolCall("get_ticket", {"id": 8})).error
    with pytest.raises(FunctionError):
        tickets().get_ticket()


@pytest.mark.parametrize(
    "name", ["_load_scenario", "__init__", "_call", "reset", "eval", "ticket_queue", "send_message"]
)
def test_nothing_but_documented_functions_of_the_classes_can_be_called(name):
    environment = tickets()
    assert name not in tool_methods(environment)
    assert environment._state.call(ToolCall(name, {})).startswith("Error during execution: no ")


def test_arguments_are_data_whatever_they_say():
    environment = tickets()
    hostile = "__import__('pathlib').Path('/tmp/owned').write_text('x')"
    environment.create_ticket(title=hostile, priority=2)
    assert (
        json.loads(environment.get_ticket(ticket_id=environment._state.instances["TicketAPI"].ticket_counter - 1))[
            "title"
        ]
        == hostile
    )
    assert not Path("/tmp/owned").exists()


def test_two_environments_share_nothing_not_even_default_arguments():
    config = {
        "TwitterAPI": {"username": "ann", "password": "x", "authenticated": True, "tweets": {}, "tweet_counter": 1}
    }
    one, other = environment_of("TwitterAPI")(), environment_of("TwitterAPI")()
    for environment in (one, other):
        environment.reset(scenario=scenario(reference=[], config=config))
    one.post_tweet(content="a")
    one.mention(tweet_id=1, mentioned_usernames=["bob"])
    other.post_tweet(content="b")
    assert json.loads(other.get_tweet(tweet_id=1))["mentions"] == []
    assert json.loads(one.get_tweet(tweet_id=1))["mentions"] == ["bob"]


def test_a_snapshot_can_be_restored_anywhere_and_any_number_of_times():
    environment, fresh = tickets(), environment_of("TicketAPI")()
    environment.create_ticket(title="b")
    state = environment._snapshot()
    environment.close_ticket(ticket_id=7)
    fresh._restore(state)
    for each in (fresh, environment):
        each._restore(state)
        assert json.loads(each.get_ticket(ticket_id=7))["status"] == "Open"
        each.close_ticket(ticket_id=7)
    assert fresh._results == environment._results


def test_random_numbers_go_on_from_a_snapshot():
    config = {"MessageAPI": {"current_user": "USR001", "random_seed": 5}}
    environment = environment_of("MessageAPI")()
    environment.reset(scenario=scenario(reference=[], config=config))
    state = environment._snapshot()
    sent = [environment.send_message(receiver_id="USR002", message="hi") for _ in range(2)]
    environment._restore(state)
    assert [environment.send_message(receiver_id="USR002", message="hi") for _ in range(2)] == sent


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (3, "row 'a': column 'scenario' must be JSON text, got 3"),
        ("{", "row 'a': column 'scenario' is no scenario"),
        (scenario(reference=[{"name": "close_ticket", "arguments": {"ticket_id": 9}}]), r"close_ticket.*fails: .*9"),
        (scenario(reference=[{"name": "fly", "arguments": {}}]), "the reference call fly.*fails"),
        (scenario(history=[[{"name": "get_ticket", "arguments": {}}]]), "the history call get_ticket.*fails"),
    ],
)
def test_a_task_that_cannot_be_done_is_one_clear_error(text, words):
    with pytest.raises(TaskError, match=words):
        environment_of("TicketAPI")().reset(id="a", scenario=text)


def test_tool_sets_have_names_and_the_same_name_is_the_same_class():
    name = environment_name(("TicketAPI", "MessageAPI"), ("logout", "add_contact"))
    assert name == "TicketAPI+MessageAPI-add_contact-logout"
    assert environment_of(name) is environment_of(name)
    tools = tool_methods(environment_of(name)())
    assert len(tools) == 9 + 10 - 2
    assert "logout" not in tools
    for wrong in ("Ticket", "TicketAPI-fly", "TicketAPI-send_message"):
        with pytest.raises(ValueError, match=r"TicketAPI|fly|send_message"):
            environment_of(wrong)


@pytest.mark.parametrize("text", ["cd(folder='a')", "cp('a', destination='b(c)')", "mean([1, 2.5])", "logout()"])
def test_official_calls_are_read_without_running_them(text):
    call = read_call(text)
    assert read_call(write_call(call)) == call


@pytest.mark.parametrize(
    "text", ["cd(open('x'))", "fly()", "cd(", "1 + 1", "cd(*['a'])", "os.system('ls')", "cd('a', 'b')"]
)
def test_what_is_no_official_call_is_refused(text):
    with pytest.raises(ValueError, match=r"call|function|arguments"):
        read_call(text)


def test_ground_truth_passes_and_mutated_transcripts_get_the_official_verdict():
    sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benchmarks" / "bfcl_replay"))
    import replay

    everything = {category: replay.cases(category)[::20] for category in replay.CATEGORIES}
    assert {one["passed"] for one in replay.ground_truth(everything).values()} == {10}
    result = replay.mutations(everything, count=60, seed=1)
    assert result["agree"] == result["total"] == 60
    assert 0 < sum(kind["valid"] for kind in result["by_kind"].values()) < 60


def test_everything_else_works_without_bfcl_eval():
    code = "import sys; sys.modules['bfcl_eval'] = None\n"
    code += "from fission_grpo.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    arguments = ["tasks", "generate", "--output", "/tmp/never", "--train", "1"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install --no-deps bfcl-eval==2026.3.23 mpmath==1.3.0 filelock" in done.stderr


def test_unknown_classes_are_refused():
    with pytest.raises(ValueError, match="no BFCL class 'Nope'"):
        new_state(["Nope"], {})
    assert random.Random(0).random()  # nothing here seeds the global generator
