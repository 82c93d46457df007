"""Two processes hold the same buffer, though each sees half of every group."""

import json
import os
import subprocess
import sys
from pathlib import Path


def test_two_ranks_hold_the_same_buffer_and_one_journal(tmp_path):
    script = Path(__file__).parent / "two_processes.py"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, str(script), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    pushed = [json.loads(line) for line in (tmp_path / "fission.jsonl").read_text().splitlines()]
    assert sum(first["pushed"]) == sum(line["event"] == "pushed" for line in pushed) > 0
