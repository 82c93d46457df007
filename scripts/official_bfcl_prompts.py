"""What BFCL's official Qwen handlers do with given replies: prompts, decoded calls, results. For comparison with ours.

    BFCL_PROJECT_ROOT=$(mktemp -d) VENV/bin/python scripts/official_bfcl_prompts.py ASKED.json ANSWERED.json

VENV is the environment of `scripts/official_bfcl.py`; fission-grpo is not needed. ASKED.json:

    {"cases": [{"id": "multi_turn_base_0", "format": "qwen-fc", "replies": ["...", ...]}, ...],
     "texts": ["a reply to decode", ...], "tails": 0}

Each case is played by the official `inference` of the handler, with the model's replies taken from the list (then
empty ones). ANSWERED.json has, for each case, `prompts` (SHA-256, number of characters, last `tails` characters),
`results` of all tool calls, and `result` as the result file would hold it; for each text what `decode_execute` and
`decode_ast` of both handlers give, null where they raise. Official code calls `eval` on replies: give it no others
than your own.
"""

import contextlib
import hashlib
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

from bfcl_eval.constants.enums import ReturnFormat
from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_utils
from bfcl_eval.model_handler.local_inference.qwen import QwenHandler
from bfcl_eval.model_handler.local_inference.qwen_fc import QwenFCHandler
from bfcl_eval.utils import load_dataset_entry

HANDLERS = {
    "qwen-fc": QwenFCHandler("Qwen/Qwen3-8B", 0, "Qwen/Qwen3-8B-FC", True),
    "qwen-prompting": QwenHandler("Qwen/Qwen3-8B", 0, "Qwen/Qwen3-8B", False),
}


def play(asked, entry, tails):
    handler, replies, prompts = HANDLERS[asked["format"]], iter(asked["replies"]), []

    def query(data):
        prompts.append(handler._format_prompt(data["message"], data["function"]))
        usage = SimpleNamespace(prompt_tokens=0, completion_tokens=0)
        return SimpleNamespace(choices=[SimpleNamespace(text=next(replies, ""))], usage=usage), 0.0

    handler._query_prompting = query
    before, log = set(vars(multi_turn_utils)), []
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            result, metadata = handler.inference(entry, False, True)
        log = metadata.get("inference_log", [])
    except Exception as error:  # noqa: BLE001 - as the official runner does
        result = f"Error during inference: {error}"
    for name in set(vars(multi_turn_utils)) - before:
        delattr(multi_turn_utils, name)
    said = [line for turn in log for key, step in turn.items() if key.startswith("step_") for line in step]
    hashed = [[hashlib.sha256(p.encode()).hexdigest(), len(p), p[-tails:] if tails else ""] for p in prompts]
    return {"prompts": hashed, "results": [x["content"] for x in said if x["role"] == "tool"], "result": result}


def decoded(text):
    answer = {}
    for name, handler in HANDLERS.items():
        for what, decode, language in (
            ("execute", handler.decode_execute, ()),
            ("ast", handler.decode_ast, (ReturnFormat.PYTHON,)),
        ):
            try:
                answer[f"{name} {what}"] = json.loads(json.dumps(decode(text, *language, False), default=repr))
            except Exception:  # noqa: BLE001 - officially every exception is "not decodable"
                answer[f"{name} {what}"] = None
    return answer


def main():
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    categories = {case["id"].rsplit("_", 1)[0] for case in asked["cases"]}
    lines = {e["id"]: json.dumps(e) for category in categories for e in load_dataset_entry(category)}
    answered = {
        "cases": [play(case, json.loads(lines[case["id"]]), asked["tails"]) for case in asked["cases"]],
        "texts": [decoded(text) for text in asked["texts"]],
    }
    Path(sys.argv[2]).write_text(json.dumps(answered, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
