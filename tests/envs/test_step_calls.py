"""The calls of static tasks are made in their environments, and every mistake is named by row and field."""

import json

import pytest

from fission_grpo.core.chat import dialogue_results
from fission_grpo.core.errors import TaskFileError
from fission_grpo.core.result_errors import error_rule
from fission_grpo.core.types import Task, ToolCall
from fission_grpo.envs.catalog import environment_of_row, is_environment_name, load_factory
from fission_grpo.envs.step_calls import StepEnvironments, guard_with, try_environments
from fission_grpo.envs.wrapper import ToolLimits

TEXT = {"type": "string"}
TOOLS = tuple(
    {"name": name, "description": "", "parameters": {"type": "object", "properties": dict.fromkeys(names, TEXT)}}
    for name, names in {"open_box": ("name", "code"), "ask": ("name",), "odd": ("how",)}.items()
)
ASK = {"role": "user", "content": "Open red, then blue."}
RED, BLUE = (ToolCall("open_box", {"name": name, "code": name[0] * 3}) for name in ("red", "blue"))
CODES = {"red": "rrr", "blue": "bbb"}
QUICK = guard_with(ToolLimits(timeout=0.3))


def done(call, content):
    function = {"name": call.name, "arguments": dict(call.arguments)}
    return (
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]},
        {"role": "tool", "name": call.name, "content": content},
    )


def step(*dialogue, name="Locker", reference=(BLUE,), tools=TOOLS, **columns):
    environment = name if ":" in name else f"step_environments:{name}"
    messages = (ASK, *dialogue)
    history = () if columns.get("snapshot") else dialogue_results(messages)
    columns = {"environment": environment, "codes": CODES, **columns}
    return Task("t", messages, tools, reference, columns, history=history)


def tried(*tasks, guard=QUICK):
    return try_environments(lambda index: f"tasks.jsonl, row {index + 1}", tasks, guard)


def test_a_wrong_call_gets_the_environments_own_words_at_its_turn():
    environments = StepEnvironments()
    task = step(*done(RED, "open: red"))
    wrong, right = environments.results(task, (ToolCall("open_box", {"name": "blue", "code": "x"}), BLUE))
    assert (wrong.error, right.content) == ("blue needs another code; ask the guard", "open: red, blue")
    counts = environments.pop_counts()
    assert {name: n for name, n in counts.items() if n} == {"env/step_calls": 1, "env/replayed": 1}


def test_equal_calls_at_a_turn_are_made_once_until_the_counts_are_read():
    environments, task = StepEnvironments(), step()
    assert environments.results(task, (RED,)) is environments.results(task, (RED,))
    assert environments.pop_counts()["env/step_calls"] == 1
    assert environments.results(task, (RED,)) is not None
    assert environments.pop_counts()["env/step_calls"] == 1


def test_a_snapshot_brings_the_environment_to_the_turn_without_the_dialogues_calls():
    state = {"codes": {"blue": "new"}, "open": ["green"]}
    task = step(*done(RED, "something else"), name="Restorable", snapshot=state)
    (result,) = StepEnvironments().results(task, (ToolCall("open_box", {"name": "blue", "code": "new"}),))
    assert result.content == "open: green, blue"
    assert state["open"] == ["green"], "the row keeps its snapshot"


def test_async_tools_and_tools_that_the_row_does_not_list_are_answered():
    environments, code = StepEnvironments(), ToolCall("ask", {"name": "red"})
    assert environments.results(step(), (code,))[0].content == "rrr"
    hidden = step(tools=TOOLS[:1], codes={"red": "other"})
    hidden = Task("hidden", hidden.prompt, hidden.tools, hidden.reference, hidden.columns)
    assert environments.results(hidden, (code,))[0].error == "Tool ask not found."


@pytest.mark.parametrize(
    ("how", "message"),
    [("silent", "('', None)"), ("empty", "AssertionError"), ("exit", "odd tried to end the process")],
)
def test_an_error_always_says_something(how, message):
    (result,) = StepEnvironments().results(step(), (ToolCall("odd", {"how": how}),))
    assert message in result.error


def test_a_long_result_is_cut_to_the_limit():
    environments = StepEnvironments(guard_with(ToolLimits(max_result_chars=50)))
    (result,) = environments.results(step(), (ToolCall("odd", {"how": "long"}),))
    assert result.content == "x" * 50 + "... [cut: 10000000 characters]"


def test_a_dialogue_with_the_whole_of_a_long_result_is_answered_as_it_was():
    long = step(*done(ToolCall("odd", {"how": "long"}), "x" * 10_000_000))
    assert tried(long) == "1 tasks tried in their environments"


@pytest.mark.parametrize(("how", "event"), [("hang", "env/timeouts"), ("down", "env/broken")])
@pytest.mark.parametrize("isolate", [False, True])
def test_a_call_that_nobody_can_answer_gives_no_results_and_is_counted(how, event, isolate):
    environments = StepEnvironments(guard_with(ToolLimits(timeout=0.5), isolate))
    assert environments.results(step(), (ToolCall("odd", {"how": how}),)) is None
    assert environments.results(step(), (RED,))[0].content == "open: red", "the next reset is a fresh begin"
    counts = environments.pop_counts()
    assert (counts[event], counts["env/no_step_calls"], counts["env/step_calls"]) == (1, 1, 1)


# -- mistakes -----------------------------------------------------------------------------------------------------

ODD_CALL = ToolCall("odd", {"how": "hang"})
MISTAKES = {
    "unknown": (
        step(name="desks:"),
        "environment",
        r"unknown environment 'desks:'; write desk, bfcl, agentdojo:SUITE, my_module:MyEnv",
    ),
    "no module": (step(name="no_such_module:A"), "environment", "no_such_module: cannot be imported"),
    "no class": (step(name="Lockers"), "environment", "step_environments has no class 'Lockers'; it has "),
    "no file": (step(name="no/such.py:A"), "environment", "no/such.py: there is no such file"),
    "bfcl": (step(name="bfcl:"), "environment", "unknown environment"),
    "function": (step(name="os:abort"), "environment", "os:abort is no class with a method `reset`"),
    "constructor": (
        step(name="CannotBeMade"),
        "environment",
        "cannot be used: OSError: no licence; the class must be made",
    ),
    "arguments": (
        step(name="NeedsArguments"),
        "environment",
        "missing 1 required positional argument: 'path'; the class",
    ),
    "no reset": (step(name="NoReset"), "environment", "NoReset is no class with a method `reset`"),
    "reset raises": (
        step(name="ResetRaises"),
        "environment",
        "ResetRaises.reset raised KeyError: 'shelf'; it gets codes",
    ),
    "reset takes": (step(name="ResetTakesNothing"), "environment", r"unexpected keyword .*have it take `\*\*_`"),
    "reset hangs": (step(name="ResetHangs"), "environment", "ResetHangs.reset was stopped after 0.3 s"),
    "reset exits": (step(name="ResetExits"), "environment", "ResetExits.reset tried to end the process"),
    "no restore": (step(snapshot={"a": 1}), "snapshot", "Locker has no _restore; add it, or leave out the snapshot"),
    "restore": (
        step(name="Restorable", snapshot={"a": 1}),
        "snapshot",
        "_restore raised KeyError: 'codes'; give a value",
    ),
    "now an error": (
        step(*done(RED, "open: red"), codes={}),
        "messages",
        "open_box is answered .*no box.* now, 'open: red'",
    ),
    "now a result": (
        step(*done(RED, str({"error": "no box"}))),
        "messages",
        "open_box is answered 'open: red' now, .*no box.* in the dialogue; correct the dialogue, or the columns",
    ),
    "dialogue's tool": (step(*done(ToolCall("fly"), "ok")), "messages", "a call of 'fly', which is no tool of Locker"),
    "dialogue hangs": (step(*done(ODD_CALL, "ok")), "messages", "cannot be made again: odd was stopped after 0.3 s"),
    "reference's tool": (step(reference=(RED, ToolCall("fly"))), r"reference\[1\].name", "'fly' is no tool of Locker"),
    "reference hangs": (step(reference=(ODD_CALL,)), "reference", "odd was stopped after 0.3 s"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_refused_before_training_and_gives_no_results_in_it(name, caplog):
    task, field, message = MISTAKES[name]
    with pytest.raises(TaskFileError, match=f"^tasks.jsonl, row 2, field '{field}': .*{message}"):
        tried(step(), task)
    if name.startswith("reference"):
        return
    environments = StepEnvironments(QUICK)
    for _ in range(2):
        assert environments.results(task, (RED,)) is None
        assert environments.pop_counts()["env/no_step_calls"] == 1
    assert caplog.text.count("Such turns are counted as env/no_step_calls") == 1


def test_a_dialogue_answered_in_other_words_is_counted_and_shown():
    summary = tried(step(), step(*done(RED, "opened")), step(*done(RED, "red is open")))
    assert summary == (
        "3 tasks tried in their environments; dialogues answered in other words than in the file: 2, the first: "
        "tasks.jsonl, row 2: open_box: 'open: red', in the file 'opened'"
    )
    environments = StepEnvironments()
    assert environments.results(step(*done(RED, "opened")), (BLUE,))[0].content == "open: red, blue"
    assert environments.pop_counts()["env/replay_mismatches"] == 1


def test_an_error_that_the_dialogue_has_in_words_is_still_that_error():
    wrong = ToolCall("open_box", {"name": "red", "code": "x"})
    assert "dialogues answered in other words than in the file: 1" in tried(step(*done(wrong, "Error: wrong code")))


def test_references_that_fail_and_tools_that_are_lacking_are_shown():
    fly = {"name": "fly", "description": "", "parameters": {"type": "object", "properties": {}}}
    task = step(reference=(ToolCall("open_box", {"name": "red", "code": "x"}),), tools=(*TOOLS, fly))
    summary = tried(task)
    assert "references that fail there: 1, the first: tasks.jsonl, row 1: open_box: 'red needs another code" in summary
    assert (
        "tasks that list tools which their environment lacks: 1, the first: tasks.jsonl, row 1: fly, of Locker"
        in summary
    )
    environments = StepEnvironments()
    assert environments.results(task, (ToolCall("fly"),)) is None, "nobody knows what it would have said"
    assert environments.pop_counts()["env/no_step_calls"] == 1


def test_only_tasks_with_an_environment_are_tried_and_no_more_than_asked():
    plain = Task("plain", (ASK,), TOOLS, (RED,), {"environment": None, "codes": None})
    assert tried(plain, plain) == ""
    assert tried(plain, step(), plain) == "1 tasks tried in their environments"
    assert try_environments(str, [step()] * 5, most=2) == "2 tasks tried in their environments"
    assert try_environments(str, [step()] * 5, most=0, seconds=0) == "5 tasks tried in their environments"


# -- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["desk", "bfcl", "a:B", "a.b:C", "a/b.py:C", "../my envs/b.py:C_1"])
def test_names_of_environments_have_one_of_the_forms(name):
    assert is_environment_name(name)


@pytest.mark.parametrize(
    "name", [None, 3, {"name": "desk"}, "", "production", "desk:2", "a:", ":B", "http://x.org", "a b:C"]
)
def test_other_values_of_the_column_are_no_names(name):
    assert not is_environment_name(name)


@pytest.mark.parametrize("classes", [None, [], "TicketAPI", [3], ["NoAPI"]])
def test_bfcl_needs_its_classes(classes):
    pytest.importorskip("bfcl_eval")
    with pytest.raises(ValueError, match=r"classes|class names"):
        environment_of_row({"environment": "bfcl", "classes": classes})


def test_a_users_file_in_another_folder_is_also_found_by_a_process_of_its_own(tmp_path):
    (tmp_path / "shelves.py").write_text("from step_environments import Locker\n\nclass Shelf(Locker): ...\n")
    environments = StepEnvironments(guard_with(ToolLimits(), isolate=True))
    task = step(*done(RED, "open: red"), name=f"{tmp_path / 'shelves.py'}:Shelf")
    assert environments.results(task, (BLUE,))[0].content == "open: red, blue"


def test_a_file_is_executed_once_and_may_not_hide_another_module(tmp_path):
    path = tmp_path / "env_of_test.py"
    path.write_text(f"open({json.dumps(str(tmp_path / 'runs'))}, 'a').write('x')\nclass A: ...\nclass B: ...\n")
    assert load_factory(f"{path}:A") is load_factory(f"{path}:A")
    load_factory(f"{path}:B")
    assert (tmp_path / "runs").read_text() == "x"
    (tmp_path / "json.py").write_text("class A: ...\n")
    with pytest.raises(ValueError, match="there is another module 'json'; rename the file"):
        load_factory(f"{tmp_path / 'json.py'}:A")
    assert json.loads("1") == 1


def test_a_rule_makes_results_in_words_the_errors_of_a_step_tasks_calls():
    order = {"type": "object", "properties": {"order": TEXT}, "required": ["order"]}
    tools = ({"name": "find", "description": "", "parameters": order},)
    task = step(name="error_words:Orders", reference=(ToolCall("find", {"order": "7"}),), tools=tools, recovery=True)
    call = ToolCall("find", {"order": "9"})
    for rule, error in ((None, None), (error_rule("^Error"), "Error: order 9 not found")):
        environments = StepEnvironments(guard_with(ToolLimits(error_if=rule)))
        results = environments.results(task, [call]) or ()
        assert [(one.content, one.error) for one in results] == [("Error: order 9 not found", error)]
