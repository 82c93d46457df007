"""A run directory written by hand, and its report page parsed."""

import json
from html.parser import HTMLParser

from fission_grpo.core.types import ErrorKind
from fission_grpo.evaluation.metrics import compute_metrics
from fission_grpo.evaluation.records import CallRecord, CaseRecord, StepRecord, TurnRecord, to_line
from fission_grpo.evaluation.run import Manifest, eval_line, write_manifest
from fission_grpo.report.page import write_report

FINE = CallRecord("move_file", {"name": "b"}, "ok")
BAD = CallRecord("move_file", {"name": "a"}, "{'error': 'no file a'}", "no file a", ErrorKind.RAISED)

PUSHED = {
    "event": "pushed", "id": "t1/r1", "step": 1, "root": "t1", "parent": "t1", "depth": 1,
    "kind": "bad_arguments", "source": "rules", "feedback": "`date` must match YYYY-MM-DD", "leaked": False,
    "fallback": None, "failed": '<tool_call>{"name": "x"}</tool_call>', "reward": 0.25,
    "prompt": [{"role": "user", "content": "book it"}],
}  # fmt: skip


RECOVERED = {"event": "recovered", "id": "t1/r1", "step": 2, "age": 1, "rewards": [0.0, 1.0, None, 0.25],
             "completions": ["worse", "better", "unjudged", "same"]}  # fmt: skip


EVALUATION = {
    "name": "base", "step": 0, "generated_tokens": 0, "tasks": 200, "success": 0.41, "success_ci": [0.344, 0.479],
    "error_cases": 90, "recovered": 9, "recovery_rate": 0.1, "recovery_ci": [0.054, 0.179], "errors": 131,
}  # fmt: skip


GRPO = EVALUATION | {"name": "grpo", "step": 8, "generated_tokens": 52_000, "success": 0.5, "success_ci": [0.43, 0.57]}


FISSION = GRPO | {"name": "fission", "success": 0.6, "success_ci": [0.53, 0.67], "generated_tokens": 51_750}


def write_run(path, *, log=(), fission=(PUSHED, RECOVERED), evaluations=(EVALUATION, GRPO, FISSION)):
    path.mkdir(parents=True, exist_ok=True)
    if log is not None:
        (path / "trainer_state.json").write_text(json.dumps({"global_step": 3, "log_history": list(log)}))
    for name, events in (("fission.jsonl", fission), ("eval.jsonl", evaluations)):
        if events:
            (path / name).write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


def case(name, success, *calls, request="Move the file.", **fields):
    """A case of one turn, with a step for each call and a last one without."""
    steps = (*(StepRecord("", (call,)) for call in calls), StepRecord("Done."))
    return CaseRecord(str(name), "", (TurnRecord(steps, success, request),), success, **fields)


def write_evaluation(run, name, cases, step=0, tokens=0, line=True, **manifest):
    """An `eval-NAME` folder of these cases, and their line in the run's eval.jsonl."""
    folder = run / f"eval-{name}"
    about = {"tasks": {"kind": "desk", "sha256": "abc", "count": len(cases)}, "prompt": {}, "decoding": {"seed": 0}}
    policy = {"model": f"models/{name}", "step": step, "tokens": tokens}
    write_manifest(folder, Manifest(name, **{**about, **manifest}, policy=policy))
    (folder / "cases.jsonl").write_text("".join(to_line(one) + "\n" for one in cases))
    if line:
        with (run / "eval.jsonl").open("a") as file:
            file.write(eval_line(compute_metrics(cases), name, step, tokens, manifest.get("tasks")) + "\n")
    return folder


class Page(HTMLParser):
    """The tags and attributes a browser would see, and the text of every table cell."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.cells, self._in_cell = [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "td":
            self._in_cell = True
            self.cells.append("")

    def handle_endtag(self, tag):
        if tag == "td":
            self._in_cell = False

    def handle_data(self, data):
        if self._in_cell:
            self.cells[-1] += data


def page_of(run_dir):
    text = write_report(run_dir).read_text(encoding="utf-8")
    return text, Page(text)
