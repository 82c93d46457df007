"""What all trainings of the tests have in common, as fields of GRPOConfig and FissionGRPOConfig."""

QUIETLY_ON_CPU = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "beta": 0.0,
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 1,
    "save_strategy": "no",
}
