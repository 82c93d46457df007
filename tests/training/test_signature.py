"""What editors and type checkers see of the trainer and its configuration."""

import inspect
import json
import subprocess
import sys

from trl import GRPOTrainer

from fission_grpo import FissionGRPOTrainer

SCRIPT = """\
from fission_grpo import FissionGRPOConfig, FissionGRPOTrainer

args = FissionGRPOConfig("runs/mine", num_recovery_generations=8, beta=0.01)
trainer = FissionGRPOTrainer(model="starter", reward_funcs=lambda completions, **_: [0.0], args=args, feedback="rules")
trainer.train()
FissionGRPOTrainer(model="starter", reward_func=None)
FissionGRPOTrainer(model="starter", feedback=3)
FissionGRPOConfig("runs/mine", num_recovery=8)
"""


def test_the_signature_has_the_arguments_of_the_installed_trl_and_ours():
    theirs, ours = (inspect.signature(trainer).parameters for trainer in (GRPOTrainer, FissionGRPOTrainer))
    assert list(ours) == [*theirs, "feedback", "error_if"]
    assert {name: ours[name].default for name in theirs} == {name: one.default for name, one in theirs.items()}


def test_a_type_checker_accepts_a_users_script_and_finds_its_wrong_arguments(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(SCRIPT)
    words = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", str(script)]
    found = json.loads(subprocess.run(words, capture_output=True, text=True).stdout)["generalDiagnostics"]
    messages = {one["range"]["start"]["line"] + 1: one["message"] for one in found}
    assert sorted(messages) == [6, 7, 8]
    assert messages[6] == 'No parameter named "reward_func"'
    assert 'cannot be assigned to parameter "feedback"' in messages[7]
    assert messages[8] == 'No parameter named "num_recovery"'
