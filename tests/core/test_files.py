"""One reader of JSON lines, and the traversal of JSON values."""

import math

import pytest

from fission_grpo.core.errors import RunFileError
from fission_grpo.core.files import parse_json_lines, read_lines
from fission_grpo.core.json_io import walk_json


def test_every_line_has_its_number_and_its_value_or_the_reason_why_not():
    lines = dict(parse_json_lines(b'{"a": "\xe2\x80\xa8"}\n\n{oops\n[1]\n\xff\n' + b"[" * 100_000))
    assert (lines[1], lines[4]) == ({"a": "\u2028"}, [1])
    assert [str(lines[number]).split(":")[0] for number in (5, 6)] == ["not UTF-8", "nested too deeply"]
    assert isinstance(lines[3], ValueError)
    assert 2 not in lines


def test_a_half_written_line_is_noted_and_a_broken_one_refused(tmp_path):
    path, notes = tmp_path / "a.jsonl", []
    path.write_text('{"event": "pushed"}\n{"eve\n{"event": "resumed"}\n{"ev')
    assert [line.number for line in read_lines(path, notes)] == [1, 3]
    assert len(notes) == 2
    path.write_text('{"eve\n{"event": "pushed"}\n')
    with pytest.raises(RunFileError, match=r"a\.jsonl, line 1: not a JSON object"):
        read_lines(path, notes)


def test_a_walk_gives_every_value_with_its_path():
    value = {"a": [1, {"b": math.pi}], "c": {}}
    assert dict(walk_json(value))["a", 1, "b"] == math.pi
    assert [path for path, _ in walk_json({"a": [1, 2]})] == [(), ("a",), ("a", 1), ("a", 0)]
    assert [path for path, _ in walk_json(value, arrays=False)] == [(), ("c",), ("a",)]


MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    "content",
    [MARK + b'{"a": 1}\n{"a": 2}\n', b'{"a": 1}\n' + MARK + b'{"a": 2}', MARK * 1 + b'\r\n{"a": 1}\r\n{"a": 2}'],
)
def test_a_byte_order_mark_before_a_line_is_no_part_of_it(tmp_path, content):
    assert [value for _, value in parse_json_lines(content)] == [{"a": 1}, {"a": 2}]
    path = tmp_path / "a.jsonl"
    path.write_bytes(content + b"\n")
    assert [line.record["a"] for line in read_lines(path, [])] == [1, 2]


def test_other_files_that_people_write_may_begin_with_a_byte_order_mark(tmp_path):
    pytest.importorskip("trl")
    from fission_grpo.cli.check_environment import read_rows
    from fission_grpo.cli.train import parse
    from fission_grpo.evaluation.run import Manifest, read_manifest, write_manifest
    from fission_grpo.feedback.prompt import read_settings

    for name in ("rows.json", "rows.jsonl"):
        (tmp_path / name).write_bytes(MARK + b'{"a": 1}\n')
    (tmp_path / "config.yaml").write_bytes(MARK + b"tasks: desk\nuse_cpu: true\nbf16: false\n")
    assert [*read_rows(tmp_path / "rows.json")] == [*read_rows(tmp_path / "rows.jsonl")] == [{"a": 1}]
    assert parse(["--config", str(tmp_path / "config.yaml")])[0].tasks == "desk"
    manifest = Manifest("t", {"kind": "step"}, {}, {})
    path = write_manifest(tmp_path, manifest)
    path.write_bytes(MARK + path.read_bytes())
    assert read_manifest(tmp_path) == manifest
    (tmp_path / "simulator.json").write_bytes(MARK + b'{"system": "s", "characters": 9, "brief": true}')
    assert read_settings(tmp_path).system == "s"
