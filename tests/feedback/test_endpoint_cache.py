"""The cache of diagnoses: a resumed run asks nothing twice, and no disk stops it."""

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from endpoint_source_support import SAID, answers_of, failure_of, source_of
from openai_server import OpenAIServer

from fission_grpo.core.serialization import recovery_id
from fission_grpo.feedback.endpoint_state import ResponseCache
from fission_grpo.feedback.local_model import LocalModelFeedback
from fission_grpo.feedback.sources import Diagnosis

A, B, C = "a" * 64, "b" * 64, "c" * 64


def test_what_one_process_wrote_another_reads_and_each_writes_a_file_of_its_own(tmp_path):
    first, second = ResponseCache(tmp_path / "new" / "folder"), ResponseCache(tmp_path / "new" / "folder")
    first.put(A, "error: «é»\n\ud83d")
    first.put(A, "again")
    second.put(B, "two")
    assert (first.get(A), first.get(B)) == ("error: «é»\n\ud83d", None)
    read = ResponseCache(tmp_path / "new" / "folder")
    assert (read.get(A), read.get(B), len(read.texts()), read.skipped) == ("error: «é»\n\ud83d", "two", 2, 0)
    assert len(list((tmp_path / "new" / "folder").iterdir())) == 2


def test_torn_and_alien_lines_are_skipped_counted_and_told_once(tmp_path, caplog):
    lines = [
        json.dumps({"key": A, "text": "good"}).encode(),
        b"\xff\xfe",
        b"[1]",
        b'{"key": "short", "text": "x"}',
        json.dumps({"key": B, "text": ""}).encode(),
        json.dumps({"key": B, "text": "x" * 2001}).encode(),
        b"",
        b"[" * 100_000,
        json.dumps({"key": C, "text": "torn"}).encode()[:-5],
    ]
    (tmp_path / "old.jsonl").write_bytes(b"\n".join(lines))
    (tmp_path / "folder.jsonl").mkdir()
    cache = ResponseCache(tmp_path)
    assert (len(cache.texts()), cache.get(A), cache.skipped) == (1, "good", 7)
    assert [record.message.count("old.jsonl, line 2") for record in caplog.records] == [1]


def test_a_full_disk_is_counted_told_once_and_texts_stay_in_memory(tmp_path, caplog):
    cache = ResponseCache(tmp_path)
    assert cache.path is not None
    cache.path.symlink_to("/dev/full")
    cache.put(A, "one")
    cache.put(B, "two")
    assert (cache.get(A), cache.get(B), cache.failed) == ("one", "two", 2)
    assert ["No space left on device" in record.message for record in caplog.records] == [True]
    assert ResponseCache(tmp_path).skipped == 0  # and what is no file is not read


def test_a_line_that_a_full_disk_has_cut_does_not_spoil_those_written_when_there_is_space_again(tmp_path):
    cache = ResponseCache(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        cache.put(A, "one")
        cache.put(B, "two")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    cache.put(C, "three")
    assert cache.failed == 1
    read = ResponseCache(tmp_path)
    assert (read.get(A), read.get(B), read.get(C), read.skipped) == ("one", None, "three", 1)


def test_a_folder_that_cannot_be_made_stops_nothing(tmp_path):
    (tmp_path / "file").write_text("x")
    cache = ResponseCache(tmp_path / "file" / "folder")
    cache.put(A, "one")
    assert (cache.get(A), cache.failed) == ("one", 1)


@pytest.fixture
def server():
    pytest.importorskip("openai", reason="needs the openai package (pip install 'fission-grpo[endpoint]')")
    with OpenAIServer(lambda body: SAID) as running:
        yield running


def test_a_resumed_run_against_a_restarted_server_asks_nothing_twice(server, tmp_path):
    with source_of(server, cache=str(tmp_path)) as source:
        assert answers_of(source, failure_of(1), failure_of(2)) == [Diagnosis(SAID)] * 2
        assert answers_of(source, failure_of(1)) == [Diagnosis(SAID)]
    with OpenAIServer(lambda body: "error: another text.") as restarted:
        with source_of(restarted, cache=str(tmp_path)) as source:
            assert answers_of(source, failure_of(1), failure_of(2)) == [Diagnosis(SAID)] * 2
            names = ("requested", "answers", "cache_hits")
            assert source.counts() == {f"feedback/model/{name}": 2 for name in names}
        assert restarted.asked == []


def test_without_a_folder_the_checkpoint_keeps_what_was_said(server):
    first, resumed = source_of(server), source_of(server)
    said = answers_of(first)
    state = json.loads(json.dumps(first.state()))
    server.close()
    resumed.load_state(state)
    assert answers_of(resumed) == said == [Diagnosis(SAID)]
    assert resumed.counts()["feedback/model/cache_hits"] == 1
    first.close()
    resumed.close()


def test_a_local_simulator_remembers_what_it_said_before_a_checkpoint():
    source = LocalModelFeedback("no such model")
    source.load_state({"known": [[recovery_id(failure_of()), "error: said before", None]]})
    assert answers_of(source) == [Diagnosis("error: said before")]
    assert source.state() == {"known": [[recovery_id(failure_of()), "error: said before", None, False]]}


def test_another_model_prompt_or_sampling_is_another_entry(server, tmp_path):
    for options in (
        {},
        {"temperature": 0.5},
        {"max_tokens": 9},
        {"system": "Be brief."},
        {"extra_body": {"top_k": 4}},
    ):
        with source_of(server, cache=str(tmp_path), **options) as source:
            answers_of(source)
    with source_of(server, cache=str(tmp_path), timeout=3.0, concurrency=2) as source:  # these change no answer
        answers_of(source)
    assert len(server.asked) == 5


def test_only_usable_texts_are_kept(server, tmp_path):
    server.answer = lambda body: "<|im_start|>"
    with source_of(server, cache=str(tmp_path)) as source:
        assert answers_of(source) == [Diagnosis(None, "control tokens")]
        server.answer = lambda body: SAID
        assert answers_of(source) == [Diagnosis(SAID)]
    assert len(server.asked) == 2


def test_a_process_that_is_killed_loses_nothing_it_was_told(server, tmp_path):
    code = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[3])\n"
        "from endpoint_source_support import *\n"
        "source = EndpointFeedback('small', sys.argv[1], FeedbackModelOptions(cache=sys.argv[2]))\n"
        "answers_of(source, failure_of(5)); os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", code, server.url, str(tmp_path), str(Path(__file__).parents[1] / "support")]
    assert subprocess.run(command, timeout=30, check=False).returncode == -signal.SIGKILL
    with source_of(server, cache=str(tmp_path)) as source:
        answers_of(source, failure_of(5))
        assert source.counts()["feedback/model/cache_hits"] == 1


def test_a_disk_that_is_full_is_counted_in_the_sources_metrics_and_report(server, tmp_path):
    (tmp_path / "file").write_text("x")
    with source_of(server, cache=str(tmp_path / "file")) as source:
        assert answers_of(source, failure_of(1)) == answers_of(source, failure_of(1)) == [Diagnosis(SAID)]
        assert source.counts()["feedback/model/cache_failed"] == 1
        assert "cache_failed 1" in source.report()
    assert len(server.asked) == 1
