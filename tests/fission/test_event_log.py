"""fission.jsonl, written by the journal and read back by the report's reader."""

import json
from dataclasses import replace

import pytest

from fission_grpo.core.errors import RunFileError
from fission_grpo.core.types import ErrorKind, Failure, Task, Turn
from fission_grpo.fission.event_log import EventLog, read_events
from fission_grpo.fission.recovery import CorrectiveInstance
from fission_grpo.report.run import read_run

ASK = {"role": "user", "content": "hi"}


def instance(name="x1", step=3):
    task = Task(name, (ASK,), root="t", parent="t", depth=1)
    return CorrectiveInstance(task, step, ErrorKind.RAISED, "rules", "no such file", "ls", 0.0)


def test_instance_is_read_back_with_its_outcome(tmp_path):
    log = EventLog(tmp_path / "fission.jsonl")
    log.pushed(instance())
    log.recovered(instance(), 5, [1.0, None], ["Done.", "\ud800 odd"])
    (read,) = read_run(tmp_path).instances
    assert (read.id, read.step, read.root, read.kind, read.feedback) == ("x1", 3, "t", "raised", "no such file")
    assert (read.retried_at, read.retried_at - read.step, read.rewards) == (5, 2, (1.0, None))
    assert [dict(message) for message in read.prompt] == [ASK]


def test_what_a_killed_run_wrote_after_its_checkpoint_is_void_once_resumed(tmp_path):
    path = tmp_path / "fission.jsonl"
    log = EventLog(path)
    log.pushed(instance("kept", step=3))
    log.pushed(instance("void", step=4))
    with path.open("a") as file:
        file.write('{"event": "pushed", "id": "half')  # the kill
    EventLog(path).resumed(step=4)
    log.pushed(instance("again", step=4))
    assert [read.id for read in read_run(tmp_path).instances] == ["kept", "again"]


def test_a_resume_cuts_off_what_was_written_after_the_checkpoint(tmp_path):
    path = tmp_path / "fission.jsonl"
    log = EventLog(path)
    log.pushed(instance("kept", step=3))
    mark = json.loads(json.dumps(log.mark()))
    before = path.read_bytes()
    log.pushed(instance("void", step=4))
    with path.open("a") as file:
        file.write('{"event": "pushed", "id": "half')
    again = EventLog(path)
    for _ in range(2):  # a second kill before anything is written changes nothing
        again.resumed(4, mark)
        assert path.read_bytes() == before
    again.pushed(instance("again", step=4))
    assert [read.id for read in read_run(tmp_path).instances] == ["kept", "again"]


def test_a_file_that_is_not_the_checkpoints_is_kept_and_its_later_steps_are_void(tmp_path, caplog):
    path = tmp_path / "fission.jsonl"
    log = EventLog(path)
    log.pushed(instance("kept", step=3))
    mark = log.mark()
    path.write_text(path.read_text().replace("kept", "else"))  # as long, but another file
    EventLog(path).pushed(instance("void", step=4))
    EventLog(path).resumed(4, mark)
    assert [read.id for read in read_run(tmp_path).instances] == ["else"]
    assert "differs from the file at the checkpoint" in caplog.text
    EventLog(path).resumed(4, {"bytes": 10**9, "tail": ""})  # shorter than it was
    assert path.read_text().endswith('{"event": "resumed", "step": 4}\n')


def test_a_run_that_begins_anew_in_the_same_process_has_every_set_of_tools_in_its_own_file(tmp_path):
    log, path, first = EventLog(tmp_path / "fission.jsonl"), tmp_path / "fission.jsonl", tmp_path / "first.jsonl"
    failure = Failure(Task("t", (ASK,)), (Turn("ls", ()),), ErrorKind.RAISED, "no such file")
    for _ in range(2):
        if path.exists():
            path.rename(first)
        log.start()
        log.failed(failure, "x1", 3)
    assert first.read_text() == path.read_text()
    assert EventLog(None).mark() is None


def test_fresh_run_writes_no_resumed_line(tmp_path):
    EventLog(tmp_path / "fission.jsonl").resumed(step=0)
    assert not (tmp_path / "fission.jsonl").exists()


def test_other_ranks_write_nothing():
    EventLog(None).pushed(instance())


def test_lines_are_json_of_ascii(tmp_path):
    log = EventLog(tmp_path / "fission.jsonl")
    log.dropped(instance(), 9, "age")
    (line,) = (tmp_path / "fission.jsonl").read_text("ascii").splitlines()
    assert json.loads(line) == {"event": "dropped", "id": "x1", "step": 9, "reason": "age"}


LONG = {"role": "system", "content": "x" * 106_000}
SHORT = {"role": "assistant", "content": "calls"}


@pytest.mark.parametrize(
    ("prompt", "recovery"),
    [
        ((LONG, ASK), (LONG, ASK, SHORT)),
        ((LONG, ASK), (LONG, {"role": "user", "content": "other"}, SHORT)),
        (LONG["content"], LONG["content"] + "calls\n\nno such file\n\n"),
        (LONG["content"], "another text"),
        ("", ""),
    ],
    ids=["messages", "in part", "text", "nothing in common", "empty"],
)
def test_a_dialogue_is_stored_once_and_read_whole(tmp_path, prompt, recovery):
    path = tmp_path / "fission.jsonl"
    log = EventLog(path)
    failure = Failure(Task("t", prompt), (Turn("calls"),), ErrorKind.LOW_REWARD)
    item = replace(instance(), task=Task("x1", recovery, root="t", parent="t", depth=1))
    log.pushed(item)
    log.failed(failure, "x1", 3)
    shared = 0 if recovery == "another text" else 1
    assert path.read_text().count("x" * 106_000) == (1 if prompt else 0)
    assert path.stat().st_size < 108_000
    assert ("shared" in path.read_text()) == bool(shared and prompt)
    by_event = {line.record["event"]: line.record for line in read_events(path)}
    whole = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    assert by_event["failed"]["messages"] == whole
    (read,) = read_run(tmp_path).instances
    assert read.prompt == recovery


def test_a_failure_of_another_instance_and_of_an_older_file_are_stored_whole(tmp_path):
    path = tmp_path / "fission.jsonl"
    log = EventLog(path)
    log.pushed(instance("other"))
    failure = Failure(Task("t", (ASK,)), (Turn("calls"),), ErrorKind.LOW_REWARD)
    log.failed(failure, "x1", 3)
    assert "shared" not in path.read_text()
    assert [line.record.get("messages") for line in read_events(path)][-1] == [ASK]


@pytest.mark.parametrize(
    ("shared", "said"),
    [({"shared": 9}, "do not fit"), ({"shared": -1}, "do not fit"), ({"shared_text": 2}, "do not fit"), ({}, None)],
)
def test_a_reference_to_messages_that_are_not_there_names_the_line(tmp_path, shared, said):
    path = tmp_path / "fission.jsonl"
    EventLog(path).pushed(instance())
    lost = {
        "event": "failed",
        "id": "x2" if said is None else "x1",
        "step": 3,
        "messages": [],
        **(shared or {"shared": 1}),
    }
    with path.open("a") as file:
        file.write(json.dumps(lost) + "\n")
    with pytest.raises(RunFileError, match=rf"fission\.jsonl, line 2: .*{said or 'which is missing'}"):
        read_events(path)
