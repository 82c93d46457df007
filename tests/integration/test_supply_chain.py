"""What this package runs and loads: no pickles, no code out of data, no model's own code unless asked for."""

import ast
import json
import pickle
import re
import shutil
import tomllib
from pathlib import Path

import pytest

from fission_grpo.cli.main import main
from fission_grpo.inference.pretrained import starter_path

ROOT = Path(__file__).parent.parent.parent
SOURCES = sorted(path for folder in ("src", "scripts", "examples") for path in (ROOT / folder).rglob("*.py"))
NEVER_IMPORTED = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jinja2.environment"}
MAY_PICKLE = {
    "src/fission_grpo/envs/worker.py": "over a pipe between a process and its own child",
    "src/fission_grpo/envs/agentdojo/env.py": "copies of a state, which do not leave the process",
    "src/fission_grpo/engines/verl/driver.py": "between the processes of one run, as verl and Ray do",
    "src/fission_grpo/engines/verl/worker.py": "between the processes of one run, as verl and Ray do",
}
"""Files that may use pickle, and for what: never for a file or for what comes from outside."""

NEVER_CALLED = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "torch.load",
    "np.load",
    "numpy.load",
    "yaml.load",
    "yaml.full_load",
    "yaml.unsafe_load",
    "pd.read_pickle",
    "jinja2.Template",
    "jinja2.Environment",
    "Template",
    "Environment",
}


def dangers(text):
    """What of a module's text runs code out of data, as (line, what)."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from ((node.lineno, name) for name in names if name in NEVER_IMPORTED)
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in NEVER_CALLED:
            yield node.lineno, called
        for keyword in node.keywords:
            value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
            if keyword.arg in ("shell", "trust_remote_code", "allow_pickle") and value is True:
                yield node.lineno, f"{keyword.arg}=True"
            if keyword.arg == "weights_only" and value is False:
                yield node.lineno, "weights_only=False"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_of_ours_runs_code_out_of_data(path):
    allowed = {"pickle"} if path.relative_to(ROOT).as_posix() in MAY_PICKLE else set()
    assert [what for _, what in dangers(path.read_text()) if what not in allowed] == []


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("import pickle", "pickle"),
        ("from dill import loads", "dill"),
        ("eval(row)", "eval"),
        ("x = torch.load(path)", "torch.load"),
        ("yaml.load(text, Loader=yaml.Loader)", "yaml.load"),
        ("subprocess.run(line, shell=True)", "shell=True"),
        ("AutoModel.from_pretrained(name, trust_remote_code=True)", "trust_remote_code=True"),
        ("jinja2.Template(row['text']).render()", "jinja2.Template"),
    ],
)
def test_the_search_finds_what_it_is_to_find(text, what):
    assert list(dangers(f"\n{text}\n")) == [(2, what)]
    assert (
        list(dangers("model.eval()\nyaml.safe_load(x)\nsubprocess.run(words)\nload(p, trust_remote_code=args.t)"))
        == []
    )


# --- model folders


@pytest.fixture
def models(tmp_path):
    """A starter policy whose folder brings its own code, and one whose weights are a pickle; both leave a mark."""
    torch = pytest.importorskip("torch")
    mark = tmp_path / "code_was_run"
    for name in ("with_code", "pickled"):
        shutil.copytree(starter_path(), tmp_path / name)
    own = tmp_path / "with_code"
    config = json.loads((own / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"}}
    (own / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((own / "tokenizer_config.json").read_text())
    tokenizer |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}}
    (own / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (own / "own.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    bad = tmp_path / "pickled"
    (bad / "model.safetensors").unlink()

    class Evil:
        def __reduce__(self):
            return (open, (str(mark), "w"))

    torch.save({"model.embed_tokens.weight": Evil()}, bad / "pytorch_model.bin", pickle_module=pickle)
    return tmp_path


def train(model, output):
    options = {"num_tasks": 8, "max_steps": 1, "per_device_train_batch_size": 8, "num_generations": 4, "use_cpu": True}
    options |= {"bf16": False, "report_to": "none", "gradient_checkpointing": False, "output_dir": output}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return main(["train", "--model_name_or_path", str(model), "--tasks", "desk", *words])


def evaluate(model, output):
    return main(["eval", "--model", str(model), "--tasks", "desk", "--num_tasks", "1", "--output", str(output)])


def diagnose(model, output):
    from fission_grpo.feedback.spec import make_chain

    (source,) = make_chain(f"local:{model}")
    try:
        source.check()
    except ValueError as error:  # which commands show so
        print(f"error: {error}")
        return 2
    return 0


@pytest.mark.parametrize("use", [train, evaluate, diagnose], ids=lambda use: use.__name__)
@pytest.mark.parametrize("kind", ["with_code", "pickled"])
def test_a_model_folder_runs_no_code(use, kind, models, capfd):
    pytest.importorskip("trl")
    before = {path.name for path in models.iterdir()}
    try:
        status = use(models / kind, models / "output")
    except Exception as error:  # noqa: BLE001 - looked at below
        pytest.fail(f"a traceback: {type(error).__name__}: {error}")
    told = capfd.readouterr()
    said = told.out + told.err
    assert status == 2, said
    assert ("contains custom code" if kind == "with_code" else "as a pickle (pytorch_model.bin)") in said
    assert "code_was_run" not in {path.name for path in models.iterdir()} - before


def test_the_option_that_trusts_a_folders_code_is_off_and_lets_it_run(models):
    pytest.importorskip("trl")
    from transformers import AutoConfig

    from fission_grpo import FissionGRPOConfig

    assert FissionGRPOConfig.__dataclass_fields__["trust_remote_code"].default is False
    with pytest.raises(Exception):  # noqa: B017, PT011 - the folder's code is no model
        AutoConfig.from_pretrained(models / "with_code", trust_remote_code=True)
    assert (models / "code_was_run").exists()  # so the tests above could have failed


@pytest.mark.parametrize("name", ["accelerate", "datasets", "jsonschema", "openai", "peft", "transformers", "trl"])
def test_a_library_whose_interface_we_call_has_an_upper_bound(name):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *(one for group in project["optional-dependencies"].values() for one in group)]
    bounds = [line for line in listed if re.match(rf"{name}\b", line)]
    assert bounds
    assert [line for line in bounds if not re.search(r",<\d", line)] == []


def test_torch_is_new_enough_to_read_an_optimizer():
    """transformers refuses torch.load below 2.6, so that an older one saves what it cannot resume from."""
    train = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["train"]
    assert [line for line in train if line.startswith("torch>=")] == ["torch>=2.6"]
