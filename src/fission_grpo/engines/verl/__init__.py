"""Fission-GRPO on verl 0.9.1: parts that verl loads by the names in its configuration. No code of verl is copied.

See docs/verl.md, and configs/verl for complete recipes.
"""

from importlib.metadata import PackageNotFoundError, version

from fission_grpo.core.errors import UnsupportedVersionError

SUPPORTED = ("0.9.1",)


def check_version() -> None:
    """Raise UnsupportedVersionError if verl is missing, or is not a version that these parts were run with."""
    try:
        installed = version("verl")
    except PackageNotFoundError:
        installed = None
    if installed not in SUPPORTED:
        found = "is not installed" if installed is None else f"{installed} is installed"
        raise UnsupportedVersionError(
            f"fission_grpo.engines.verl runs on verl {', '.join(SUPPORTED)}, whose hooks it uses; verl {found}. In an "
            f"environment of its own: pip install 'verl[vllm]=={SUPPORTED[-1]}' (docs/verl.md)."
        )


check_version()
