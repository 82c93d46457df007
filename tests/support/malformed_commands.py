"""Wrong options, configuration files, transcripts and folders, by command. For test_malformed.py."""

import json

from malformed import CONVERSIONS, ROWS, SCHEMAS, Malformed, row

TRACE = {"id": "t", "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}


def config(name, says, text):
    """A YAML file of `train`."""
    return Malformed(f"yaml: {name}", "train --config c.yaml", says, {"c.yaml": text})


def option(name, says, options, files=None):
    """Options of `train` that are wrong, in an otherwise right command."""
    cpu = "--use_cpu true --bf16 false"
    command = f"train --model_name_or_path starter --tasks desk {cpu} --output_dir out {options}"
    return Malformed(f"train: {name}", command, says, files or {})


def trace(name, says, text):
    return Malformed(f"trace: {name}", "eval --traces t.jsonl --output out", rf"t\.jsonl.*{says}", {"t.jsonl": text})


CONFIGS = [
    Malformed("yaml: no such file", "train --config c.yaml", r"c\.yaml: cannot be read"),
    Malformed("yaml: a folder", "train --config d", "--config d: cannot be read", {"d/x": ""}),
    Malformed("yaml: no path", "train --config", "needs the path"),
    config("empty", r"c\.yaml: must be a mapping", ""),
    config("a list", r"c\.yaml: must be a mapping", "- a"),
    config("a word", r"c\.yaml: must be a mapping", "starter"),
    config("binary", r"c\.yaml: not YAML", b"\xff\x00\x80"),
    config("tab", r"c\.yaml: not YAML.*line 2", "a:\n\tb: 1"),
    config("open bracket", r"c\.yaml: not YAML", "tasks: [desk"),
    config("python object", r"c\.yaml: not YAML", "tasks: !!python/object/apply:os.system ['true']"),
    config("unknown key", r"c\.yaml: unknown key 'num_recovery'.*num_recovery_generations", "num_recovery: 8"),
    config("renamed key", r"c\.yaml: recover_share is now called recovery_ratio$", "recover_share: 0.5"),
    config("key twice", r"c\.yaml.*'max_steps'.*twice", "max_steps: 8\nmax_steps: 9"),
    config(
        "aliases of aliases",
        r"c\.yaml",
        "a: &a [x, x]\n"
        + "".join(
            f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n"
            for a, b in zip("abcdefghi", "bcdefghij", strict=True)
        ),
    ),
    config("text for a number", "learning_rate.*fast", "learning_rate: fast"),
    config("text for a count", "max_steps.*many", "max_steps: many"),
    config("a fraction for a count", "num_generations.*1.5", "num_generations: 1.5"),
    config("a list for a number", "learning_rate", "learning_rate: [1, 2]"),
    config("a word for a flag", "fission.*perhaps", "fission: perhaps"),
    config("a mapping for text", "output_dir", "output_dir: {a: 1}"),
    config(
        "null for a path",
        "model_name_or_path",
        "model_name_or_path: null\ntasks: desk\noutput_dir: out\nuse_cpu: true\nbf16: false",
    ),
]

MANIFEST = '{"format": 1, "step": 4, "versions": {}, "files": {"w": {"bytes": 10, "sha256": "x"}}}'


def checkpoint(name, says, files):
    """A checkpoint that is resumed from by name."""
    files = {f"c/checkpoint-4/{path}": content for path, content in files.items()}
    return option(f"checkpoint: {name}", rf"checkpoint-4.*{says}", "--resume_from_checkpoint c/checkpoint-4", files)


OPTIONS = [
    option("renamed", "--num_recoveries is now called --num_recovery_generations$", "--num_recoveries 8"),
    option("removed", r"'--adaptive-share' \(it was removed: it had no measured effect", "--adaptive-share true"),
    option("renamed, with =", "--tool-seconds is now called --tool_timeout$", "--tool-seconds=8"),
    checkpoint(
        "a file cut off", "w is damaged: it has 1 bytes instead of 10", {"fission_manifest.json": MANIFEST, "w": "x"}
    ),
    checkpoint("a file changed", "w is damaged: its content", {"fission_manifest.json": MANIFEST, "w": "x" * 10}),
    checkpoint("a file missing", "w is missing", {"fission_manifest.json": MANIFEST}),
    checkpoint("manifest cut off", "manifest.json is damaged", {"fission_manifest.json": MANIFEST[:20]}),
    checkpoint("manifest of another shape", "manifest.json is damaged", {"fission_manifest.json": '{"files": [1]}'}),
    checkpoint("no manifest", "", {"fission_state.json": '{"version": 4}', "trainer_state.json": "{}"}),
    checkpoint("of another release", "fission_state.json", {"fission_state.json": '{"version": 2}'}),
    checkpoint("deep state", "fission_state.json", {"fission_state.json": "[" * 100_000}),
    option("unknown option", "unknown option '--num_recovery'", "--num_recovery 8"),
    option("stray word", "unexpected argument 'now'", "now"),
    option("value missing", "max_steps", "--max_steps"),
    option("one recovery", "num_recovery_generations is 1", "--num_recovery_generations 1"),
    option(
        "recoveries that do not divide",
        r"num_recovery_generations \(5\) does not divide",
        "--num_recovery_generations 5",
    ),
    option("no generations", "num_generations", "--num_generations 0"),
    option("generations that do not divide", "num_generations", "--num_generations 7"),
    option("no batch", "per_device_train_batch_size", "--per_device_train_batch_size 0"),
    option("negative capacity", "buffer_capacity is -1", "--buffer_capacity -1"),
    option("negative age", "max_age_steps is -1", "--max_age_steps -1"),
    option("unknown order", "buffer_order is 'newest'", "--buffer_order newest"),
    option("unknown failure turn", "failure_turn is 'middle'", "--failure_turn middle"),
    option("unknown judge", "recovery_scope is 'me'", "--recovery_scope me"),
    option("share too large", "recovery_ratio is 0.9", "--recovery_ratio 0.9"),
    option("share not a number", "recovery_ratio is nan", "--recovery_ratio nan"),
    option("seconds not a number", "tool_timeout is nan", "--tool_timeout nan"),
    option("rate not a number", "learning_rate is nan", "--learning_rate nan"),
    option("no tokens", "max_completion_length is 0", "--max_completion_length 0"),
    option("trigger too small", "min_buffered is 0", "--min_buffered 0"),
    option("no tasks", "tasks", "--tasks none.txt"),
    option("task file missing", r"none\.jsonl' is no file", "--tasks none.jsonl"),
    option("parquet that is none", r"t\.parquet", "--tasks t.parquet", {"t.parquet": "no"}),
    option("toolrl that is none", r"t\.json", "--tasks t.json", {"t.json": "{}"}),
    option("nothing left", "no task of t.jsonl is left", "--tasks t.jsonl --skip_tasks 5", {"t.jsonl": row()}),
    option("negative count", "must not be negative", "--num_tasks -1"),
    option("unknown source", "feedback.*oracle|oracle", "--feedback oracle"),
    option("endpoint without url", "no base URL", "--feedback endpoint:m"),
    option("feedback_model is no mapping", "feedback_model", "--feedback endpoint:m --feedback_model [1]"),
    option(
        "feedback_model with an unknown field",
        "urls",
        """--feedback endpoint:m --feedback_model '{"urls":"http://127.0.0.1:9"}'""",
    ),
    option("model that does not exist", "none/such", "--model_name_or_path ./none/such"),
    option("model without config", "m", "--model_name_or_path m", {"m/model.safetensors": ""}),
    option("model with broken config", r"m", "--model_name_or_path m", {"m/config.json": "{"}),
    option("nothing to resume from", "no checkpoint-", "--resume_from_checkpoint true"),
    option("resume from nowhere", "resume_from_checkpoint: c is no folder", "--resume_from_checkpoint c"),
    option(
        "resume from a foreign checkpoint",
        r"fission_state\.json does not exist",
        "--resume_from_checkpoint c",
        {"c/x": ""},
    ),
    option(
        "resume from a cut off buffer",
        r"fission_state\.json",
        "--resume_from_checkpoint c",
        {"c/fission_state.json": '{"ver'},
    ),
    option(
        "resume from another version",
        r"fission_state\.json",
        "--resume_from_checkpoint c",
        {"c/fission_state.json": '{"version": 99}'},
    ),
]

TRACES = [
    trace("empty", "no|empty", ""),
    trace("binary", "no traces", b"\xff\x00"),
    trace("a number", "(row|line) 1", "3\n"),
    trace("no messages", "messages", '{"id": "t"}'),
    trace("messages is text", "messages", '{"id": "t", "messages": "hi"}'),
    trace("message is a number", r"messages\[0\]", '{"id": "t", "messages": [3]}'),
    trace("role is missing", r"messages\[0\]", '{"id": "t", "messages": [{"content": "x"}]}'),
    trace("id is a list", "id", json.dumps({**TRACE, "id": [1]})),
    trace("id twice", "row 2|line 2", json.dumps(TRACE) + "\n" + json.dumps(TRACE)),
    trace("success is text", "success", json.dumps({**TRACE, "success": "yes"})),
    trace("tools is a number", "tools", json.dumps({**TRACE, "tools": 3})),
    Malformed("trace: no such file", "eval --traces t.jsonl --output out", r"t\.jsonl"),
]

OTHERS = [
    Malformed("command: unknown", "trian", "unknown command 'trian'"),
    Malformed("report: no such folder", "report none", "none: no such directory"),
    Malformed("report: empty folder", "report r", "r: no trainer_state.json", {"r/x": ""}),
    Malformed("report: state cut off", "report r", r"trainer_state\.json, line 1", {"r/trainer_state.json": '{"log'}),
    Malformed(
        "report: state is a list", "report r", r"trainer_state\.json.*JSON object", {"r/trainer_state.json": "[]"}
    ),
    Malformed("report: journal", "report r", r"fission\.jsonl, line 1", {"r/fission.jsonl": '{"event": 3}\n'}),
    Malformed(
        "report: journal event",
        "report r",
        r"fission\.jsonl, line 1.*'event'",
        {"r/fission.jsonl": '{"event": "x", "id": "a"}\n'},
    ),
    Malformed("report: eval", "report r", r"eval\.jsonl, line 1.*'name'", {"r/eval.jsonl": '{"name": 1}\n'}),
    Malformed(
        "report: deep journal", "report r", r"fission\.jsonl, line 1", {"r/fission.jsonl": "[" * 100_000 + "\n{}\n"}
    ),
    Malformed("compare: no such folder", "compare a b", "a"),
    Malformed("compare: no manifest", "compare a b", r"manifest\.json", {"a/cases.jsonl": "", "b/cases.jsonl": ""}),
    Malformed(
        "compare: manifest is a list",
        "compare a b",
        r"manifest\.json",
        {f"{x}/{f}": "[]" for x in "ab" for f in ("cases.jsonl", "manifest.json")},
    ),
    Malformed("eval: unknown model", "eval --model ./none --tasks desk --output out", "none"),
    Malformed("eval: unknown tasks", "eval --model starter --tasks nothing --output out", "nothing"),
    Malformed("eval: fault", "eval --model starter --tasks desk --fault timeout:2 --output out", "rate from 0 to 1"),
    Malformed("eval: fault kind", "eval --model starter --tasks desk --fault flood:0.1 --output out", "flood"),
    Malformed(
        "eval: extra_body",
        "eval --model m --endpoint http://127.0.0.1:9/v1 --extra_body [1] --output out",
        "extra_body",
    ),
    Malformed("eval: url", "eval --model m --endpoint nonsense --tasks desk --output out", "--endpoint"),
    Malformed("eval: negative", "eval --model starter --tasks desk --num_tasks -3 --output out", "num_tasks"),
    Malformed("eval: temperature", "eval --model starter --tasks desk --temperature -1 --output out", "temperature"),
    Malformed(
        "simulator data: file of another kind",
        "simulator data --tasks t.jsonl --output out",
        r"t\.jsonl",
        {"t.jsonl": '{"a": 1}'},
    ),
    Malformed("simulator data: teacher", "simulator data --teacher oracle --output out", "oracle"),
    Malformed(
        "simulator data: options",
        "simulator data --teacher endpoint:m --url http://127.0.0.1:9 --options {x --output out",
        "feedback_model: not JSON",
    ),
    Malformed("simulator check: no data", "simulator check --data none --source rules --output out", "none"),
    Malformed(
        "simulator check: row",
        "simulator check --data d --source rules --output out",
        r"test\.jsonl|train\.jsonl",
        {"d/train.jsonl": "{}", "d/test.jsonl": "{}", "d/tools.json": "{}"},
    ),
    Malformed(
        "simulator check: tools",
        "simulator check --data d --source rules --output out",
        r"tools\.json",
        {"d/train.jsonl": "{}", "d/test.jsonl": "{}", "d/tools.json": "["},
    ),
    Malformed(
        "simulator train: no data", "simulator train --data none --model_name_or_path starter --output_dir out", "none"
    ),
    Malformed("check-environment: no colon", "check-environment nonsense", "nonsense"),
    Malformed("check-environment: no module", "check-environment none_such:Env", "none_such"),
    Malformed("check-environment: no class", "check-environment json:Env", "Env"),
    Malformed(
        "check-environment: file with a mistake", "check-environment e.py:Env", r"e\.py", {"e.py": "class Env(:"}
    ),
    Malformed(
        "check-environment: rows",
        "check-environment e.py:Env --rows r.json",
        r"r\.json",
        {"e.py": "class Env:\n    def reset(self): ...\n", "r.json": "{"},
    ),
]

ALL = [*ROWS, *SCHEMAS, *CONFIGS, *OPTIONS, *TRACES, *CONVERSIONS, *OTHERS]
