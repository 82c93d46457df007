"""A run directory written by hand, and its report page parsed."""

import json
from html.parser import HTMLParser

from fission_grpo.report.page import write_report

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
