"""Fission-GRPO on verl: parts that verl loads by the names in its configuration (docs/verl.md, configs/verl)."""

from importlib.metadata import distributions

from fission_grpo.core.errors import UnsupportedVersionError

SUPPORTED = "0.9.1"


def check_version() -> None:
    """Raise UnsupportedVersionError if verl is missing, or is not the version that these parts were run with."""
    installed = next((found.version for found in distributions(name="verl")), "none")
    if installed != SUPPORTED:
        raise UnsupportedVersionError(
            f"fission_grpo.engines.verl runs on verl {SUPPORTED}, whose hooks it uses; installed: {installed}. In an "
            f"environment of its own: pip install 'verl[vllm]=={SUPPORTED}' (docs/verl.md)."
        )


check_version()
