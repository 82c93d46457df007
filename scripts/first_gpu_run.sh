#!/usr/bin/env bash
# The first run on GPUs, which nobody has done yet (docs/verl.md): checks versions, runs two steps of verl with Qwen3-1.7B
# on the built-in tasks, and prints what to compare.
#   scripts/first_gpu_run.sh [PYTHON] [OVERRIDE ...]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python}
shift || true
log=runs/verl/first_gpu_run.log
mkdir -p "$(dirname "$log")"

"$python" - <<'PY'
import importlib.metadata as metadata

import fission_grpo.engines.verl  # refuses another version of verl, and says which it needs
import torch

for name in ("verl", "torch", "vllm", "transformers", "ray", "TransferQueue", "numpy"):
    try:
        print(f"{name:14}{metadata.version(name)}")
    except metadata.PackageNotFoundError:
        raise SystemExit(f"{name} is not installed; see the section Install of docs/verl.md") from None
gpus = torch.cuda.device_count()
print(f"{'GPUs':14}{gpus} x {torch.cuda.get_device_name() if gpus else 'none'}")
if not gpus:
    raise SystemExit("this script needs a GPU; without one: make test-verl")
PY

gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())')
folder=runs/verl/first_gpu_run
steps=$([ -e "$folder" ] && echo 3 || echo 2) # called once more, it resumes and runs one step
"$python" -m verl.trainer.main_ppo --config-path "$PWD/configs/verl" --config-name fission_episodes size=1.7b \
	trainer.n_gpus_per_node="$gpus" trainer.total_training_steps="$steps" trainer.save_freq=1 \
	trainer.experiment_name=first_gpu_run "$@" 2>&1 | tee "$log"

cat <<EOF

Step $steps has run; the metrics are in $log. Compare, and write to the project's issues with the log:
  1. step 1 has fission/phase 0. If fission/buffer was 8 or more after it, step 2 has fission/phase 1.
  2. training/rollout_probs_diff_mean is small (below 0.01): the tokens that the agent loop returned are those that
     the LLM server sampled. A large one means that turns were put together wrongly.
  3. actor/pg_clipfrac and actor/ppo_kl are near 0, as each batch has one update.
  4. fission/lost_rollouts is 0, and $folder/global_step_$steps/fission.json exists.
  5. timing_s/gen of both steps: the time of sampling with environments.
Then run this command once more: it must resume at step 3, with the fission/buffer of step 2. Remove $folder to begin anew.
EOF
