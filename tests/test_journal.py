"""fission.jsonl, written by the journal and read back by the report's reader."""

import json

from fission_grpo.corrective_instance import CorrectiveInstance
from fission_grpo.journal import Journal
from fission_grpo.run_files import read_run
from fission_grpo.trajectory import ErrorKind, Task

ASK = {"role": "user", "content": "hi"}


def instance(name="x1", step=3):
    task = Task(name, (ASK,), root="t", parent="t", depth=1)
    return CorrectiveInstance(task, step, ErrorKind.RAISED, "rules", "no such file", "ls", 0.0)


def test_instance_is_read_back_with_its_outcome(tmp_path):
    journal = Journal(tmp_path / "fission.jsonl")
    journal.pushed(instance())
    journal.recovered(instance(), 5, [1.0, None], ["Done.", "\ud800 odd"])
    (read,) = read_run(tmp_path).instances
    assert (read.id, read.step, read.root, read.kind, read.feedback) == ("x1", 3, "t", "raised", "no such file")
    assert (read.retried_at, read.age, read.rewards) == (5, 2, (1.0, None))
    assert [dict(message) for message in read.prompt] == [ASK]


def test_what_a_killed_run_wrote_after_its_checkpoint_is_void_once_resumed(tmp_path):
    path = tmp_path / "fission.jsonl"
    journal = Journal(path)
    journal.pushed(instance("kept", step=3))
    journal.pushed(instance("void", step=4))
    with path.open("a") as file:
        file.write('{"event": "pushed", "id": "half')  # the kill
    Journal(path).resumed(step=4)
    journal.pushed(instance("again", step=4))
    assert [read.id for read in read_run(tmp_path).instances] == ["kept", "again"]


def test_fresh_run_writes_no_resumed_line(tmp_path):
    Journal(tmp_path / "fission.jsonl").resumed(step=0)
    assert not (tmp_path / "fission.jsonl").exists()


def test_other_ranks_write_nothing():
    Journal(None).pushed(instance())


def test_lines_are_json_of_ascii(tmp_path):
    journal = Journal(tmp_path / "fission.jsonl")
    journal.dropped(instance(), 9, "age")
    (line,) = (tmp_path / "fission.jsonl").read_text("ascii").splitlines()
    assert json.loads(line) == {"event": "dropped", "id": "x1", "step": 9, "reason": "age"}
