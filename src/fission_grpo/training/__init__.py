"""FissionGRPOTrainer, a drop-in for TRL's GRPOTrainer, its configuration and checkpoints."""

from fission_grpo.training.trl_compat import check_versions

check_versions()  # before any module of this package imports trl
