"""Record every feedback text that the leak guard of commit bdb912f refused in the committed runs.

    python record_refused.py --repo CHECKOUT --simulator runs/simulator --output refused.jsonl.gz

Run it in an environment where fission-grpo is installed from CHECKOUT, which must be at commit bdb912f: the script
imports the guard of that commit (`fission_grpo.leaks`), which later commits no longer have. The committed runs kept
the texts that passed, not those that were refused, so the script asks the same sources again about the same
failures. SIMULATOR is the starter-size simulator; `benchmarks/simulator/README.md` of that commit has the two
commands that make it (about 10 minutes on one core). All sources but this one repeat their texts exactly.

A row of the output is `{"text", "source", "found", "record", "kind", "detail", "call_index", "messages", "tools",
"reference", "failed"}`. `found` is what the old guard named, `tools` is the key of a `{"key", "schemas"}` row before
it, and `failed` is the failed reply as it was sampled. Behind the refused texts stands a sample of texts that passed;
their `found` is null.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fission_grpo.feedback
import fission_grpo.rules
import fission_grpo.simulator.filters
import fission_grpo.simulator.leak_forms
import fission_grpo.simulator.teacher
from fission_grpo.diagnose import chain_of
from fission_grpo.feedback import Enquiry
from fission_grpo.leaks import leak_in
from fission_grpo.simulator.check_report import LONGEST, failure_text
from fission_grpo.simulator.chosen import closing, sources_from
from fission_grpo.simulator.data_command import data_command
from fission_grpo.simulator.instances import Instance, instance, load_instances, read_instance, tools_key
from fission_grpo.simulator.quality import ask_all, drawn
from fission_grpo.simulator.usefulness import arms_of
from fission_grpo.task_json import call_fields
from fission_grpo.trajectory import Failure

CALLERS = ("feedback", "rules", "simulator.filters", "simulator.leak_forms", "simulator.teacher")
PASSED = 500
"""How many of the texts that passed are kept. [ours]"""

FALSE_ALARMS = {
    "error: `travel_date` is not right, got 'April 4, 2027'": "quotes the failed call; the old guard took 2027 for hex"
}
"""Refused texts that give nothing away, by reading them. Their rows have this note as `false_alarm`."""

Row = dict[str, Any]


class Recorder:
    """Stands in for the guard in every module that calls it, and keeps what it refuses."""

    def __init__(self):
        self.refused: dict[tuple[str, str], Row] = {}
        self.passed: dict[tuple[str, str], Row] = {}
        self.tools: dict[str, list[Any]] = {}
        self.asked: dict[str, set[tuple[str, str]]] = {}
        self.record = self.source = ""
        for name in CALLERS:
            module = getattr(fission_grpo, name.split(".")[0])
            module = getattr(module, name.split(".")[1]) if "." in name else module
            module.leak_in = self

    def __call__(self, text: str, failure: Failure) -> str | None:
        found = leak_in(text, failure)
        alone = instance(failure, "", "")
        self.asked.setdefault(f"{self.record}: {self.source}", set()).add((text, alone.id))
        rows = self.passed if found is None else self.refused
        if text and (text, alone.id) not in rows:
            rows[text, alone.id] = self._row(text, alone.failure, found)
        return found

    def _row(self, text: str, failure: Failure, found: str | None) -> Row:
        schemas = [dict(tool) for tool in failure.tools]
        key = tools_key(schemas)
        self.tools[key] = schemas
        return {
            "text": text,
            "source": self.source,
            "found": found,
            **({"false_alarm": FALSE_ALARMS[text]} if text in FALSE_ALARMS else {}),
            "record": self.record,
            "kind": str(failure.kind),
            "detail": failure.detail,
            "call_index": failure.call_index,
            "messages": list(failure.task.prompt),
            "tools": key,
            "reference": [call_fields(call) for call in failure.reference or ()],
            "failed": failure.turns[-1].text,
        }


def logged_failures(path: Path) -> Iterator[Instance]:
    """The "failed" events of a training run's log."""
    tools: dict[str, Any] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["event"] == "tools":
            tools[row["key"]] = row["tools"]
        elif row["event"] == "failed":
            yield read_instance({**row, "api": "", "origin": "", "diagnosis": "", "teacher": ""}, tools)[1]


def report_texts(path: Path, asked: list[Instance]) -> Iterator[tuple[str, Instance]]:
    """The (text, instance) examples that a committed report shows."""
    page = path.read_text(encoding="utf-8")
    for one in asked:
        context = failure_text(one.failure, LONGEST).partition("# Dialogue\n")[2]
        block = "\n".join(f"    {line}" for line in context.split("\n"))
        for rest in page.split(f"\n\n{block}\n\n> ")[1:]:
            yield rest.split("\n", 1)[0], one


def record_all(record: Recorder, benchmarks: Path, simulator: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        record.record, record.source = "simulator/data", "labels"
        data_command(["--output", folder])
        train, test = (load_instances(Path(folder) / name) for name in ("train.jsonl", "test.jsonl"))
    failures = load_instances(benchmarks / "simulator/failures/test.jsonl")
    with closing(sources_from(f"local:{simulator},rules", None, {}, {})) as chain:
        record.record, record.source = "simulator/starter_size/check.json", "local:starter_size,rules"
        asked = [*drawn(train, 500, 0), *drawn(test, 500, 0)]
        for said in ask_all(chain, asked):
            record(said.text or "", said.instance.failure)
        record.record = "simulator/starter_size/usefulness.jsonl"
        for record.source, arm in arms_of(chain, "local:starter_size,rules").items():
            Enquiry([one.failure for one in drawn(failures, 500, 0)], arm).feedback()
        record.record, record.source = "simulator/training/fission.jsonl", "local:starter_size,rules"
        logged = [one.failure for one in logged_failures(benchmarks / record.record)]
        Enquiry(logged, chain).feedback()
    record.record, record.source = "demo/fission/fission.jsonl", "environment,rules"
    logged = [one.failure for one in logged_failures(benchmarks / record.record)]
    for source in ("environment", "rules"):
        Enquiry(logged, chain_of(source)).feedback()
    for model, count in (("starter_size", 500), ("smollm2", 75)):
        record.record, record.source = f"simulator/{model}/report.md", f"local:{model},rules"
        asked = [*drawn(train, count, 0), *drawn(test, count, 0)]
        for text, one in report_texts(benchmarks / record.record, asked):
            record(text, one.failure)
    by_id = {one.id: one.failure for one in failures}
    for model in ("starter_size", "smollm2"):
        record.record, record.source = f"simulator/{model}/usefulness.jsonl", "passed in the committed run"
        for line in (benchmarks / record.record).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["event"] == "feedback" and row["text"]:
                record(row["text"], by_id[row["failure"]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repo", type=Path, required=True, help="a checkout of commit bdb912f")
    parser.add_argument("--simulator", required=True, help="folder of the starter-size simulator")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    record = Recorder()
    record_all(record, given.repo / "benchmarks", given.simulator)
    for name, asked in record.asked.items():
        refused = sum(pair in record.refused for pair in asked)
        print(f"{name}: {len(asked):,} different texts, {refused:,} refused")
    passed = list(record.passed.values())
    rows = [*record.refused.values(), *passed[:: max(1, len(passed) // PASSED)]]
    used = {row["tools"] for row in rows}
    lines = [{"key": key, "schemas": schemas} for key, schemas in record.tools.items() if key in used] + rows
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    with gzip.GzipFile(given.output, "wb", mtime=0) as file:
        file.write(text.encode())
    print(f"{len(record.refused):,} refused, {len(passed):,} passed, {given.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
