"""Which versions of TRL and transformers we run on, what we need of TRL, and how its versions differ.

The only place that knows of differences between versions. It imports neither. docs/reliability.md: what was run.
"""

from __future__ import annotations

import inspect
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from types import MappingProxyType
from typing import Any, NamedTuple

from fission_grpo.core.errors import UnsupportedVersionError

_log = logging.getLogger(__name__)


ANYWAY = "FISSION_GRPO_ANY_TRL"
"""Environment variable: 1 goes on with versions newer than those tested, with a warning."""


NEEDED_METHODS = {
    "_calculate_rewards": ("inputs", "prompts", "completions", "completion_ids_list"),
    "_compute_loss": ("model", "inputs"),
    "_generate_and_score_completions": ("inputs",),
    "_get_per_token_logps_and_entropies": ("model",),
    "_load_optimizer_and_scheduler": ("checkpoint",),
    "_prepare_inputs": ("generation_batch",),
    "_save_checkpoint": ("model", "trial"),
    "_generate_single_turn": ("prompt_ids", "images", "multimodal_fields"),
    "_get_output_dir": ("trial",),
    "_get_tool_suffix_ids": ("tool_messages",),
    "_get_train_sampler": (),
    "_push_from_checkpoint": ("checkpoint_folder",),
    "_tool_call_loop": ("prompts",),
}
"""Methods of `trl.GRPOTrainer` that we override or call: their first parameters after `self`."""


NEEDED_ATTRIBUTES = (
    "_buffered_inputs",
    "_entropy_bonus_enabled",
    "_metrics",
    "_standalone_tools",
    "_tokenizer",
    "async_loop",
    "aux_loss_enabled",
    "beta",
    "environment_factories",
    "environments",
    "max_tool_calling_iterations",
    "num_generations",
    "reward_funcs",
    "reward_weights",
    "tools",
)
"""What `GRPOTrainer.__init__` sets and we read."""


class Range(NamedTuple):
    """Releases of a package that we run on.

    Args:
        first, last: the oldest and the newest release, as far as they are told apart: (1, 16) is any 1.16.x.
        tested: what the seam tests were run on (docs/reliability.md); the newest of each minor release.
        why: these and no older ones.
        left_out: minor releases in between that we do not run on, and why.
    """

    first: tuple[int, ...]
    last: tuple[int, ...]
    tested: tuple[str, ...]
    why: str
    left_out: Mapping[tuple[int, ...], str] = MappingProxyType({})

    @property
    def pip(self) -> str:
        """As pip writes it. `Range((1, 12), (1, 16), ...).pip` is ">=1.12,<1.17"; (5, 15) to (5,) is ">=5.15,<6"."""
        above = (*self.last[:-1], self.last[-1] + 1)
        between = "".join(f"!={'.'.join(map(str, one))}.*," for one in self.left_out)
        return f">={'.'.join(map(str, self.first))},{between}<{'.'.join(map(str, above))}"


NO_TRL = {(1, 15): "its update fails without Triton, which torch for CPUs has not, also in TRL's own trainer"}


SUPPORTED = {
    "trl": Range((1, 12), (1, 16), ("1.12.0", "1.13.0", "1.14.2", "1.16.0"), "older ones are not tested", NO_TRL),
    "transformers": Range((5, 15), (5,), ("5.15.0", "5.23.0"), "older ones have no `parse_response` with tools"),
}


def release(version: str) -> tuple[int, ...]:
    """The numbers of a version. `release("1.17.0.dev0")` is (1, 17, 0); `release("5.15.0rc1")` is (5, 15, 0)."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def trl_release() -> tuple[int, ...]:
    """The minor release of TRL that is installed, such as (1, 16)."""
    return release(metadata.version("trl"))[:2]


def check_versions(
    installed: Callable[[str], str] = metadata.version,
    anyway: bool | None = None,
    warn: Callable[..., Any] = _log.warning,
) -> None:
    """Refuse versions of TRL and transformers that are not supported. A package that is missing is left to its import.

    Args:
        installed: gives a package's version, or raises PackageNotFoundError.
        anyway: go on with newer ones, with a warning; None: as the environment variable `ANYWAY` says.
        warn: takes the warning.

    Raises:
        UnsupportedVersionError: which is installed, which are supported, and the command that mends it.
    """
    anyway = os.environ.get(ANYWAY, "") not in ("", "0") if anyway is None else anyway
    for package, known in SUPPORTED.items():
        try:
            version = installed(package)
        except metadata.PackageNotFoundError:
            continue
        numbers = release(version)
        told = f"{package} {version} is installed, but this fission-grpo runs on {package}{known.pip}"
        mend = f"pip install '{package}{known.pip}'"
        if numbers < known.first:
            raise UnsupportedVersionError(f"{told} ({known.why}). To mend it: {mend}")
        if reason := known.left_out.get(numbers[:2]):
            raise UnsupportedVersionError(f"{told} ({reason}). To mend it: {mend}")
        if numbers[: len(known.last)] > known.last:
            if not anyway:
                raise UnsupportedVersionError(
                    f"{told}; nobody has tested a newer one. To mend it: {mend}. To try all the same: {ANYWAY}=1"
                )
            warn("%s; going on, as %s is set", told, ANYWAY)


def missing_names(trainer: type) -> list[str]:
    """What a `GRPOTrainer` class lacks of what we rely on: methods with their parameters, and attributes."""
    missing = []
    for name, wanted in NEEDED_METHODS.items():
        method = getattr(trainer, name, None)
        if method is None:
            missing.append(f"{name}()")
            continue
        parameters = list(inspect.signature(method).parameters)[1:]
        if tuple(parameters[: len(wanted)]) != wanted:
            missing.append(f"{name}({', '.join(wanted)}), which takes ({', '.join(parameters)}) here")
    known = set(_names_used(trainer.__init__))
    return missing + [f"the attribute {name}" for name in NEEDED_ATTRIBUTES if name not in known]


def check_names(trainer: type, anyway: bool | None = None, warn: Callable[..., Any] = _log.warning) -> None:
    """Refuse a TRL that was changed (a patch, a fork) where we hold on to it. Arguments as `check_versions`.

    Raises:
        UnsupportedVersionError: names what is missing.
    """
    anyway = os.environ.get(ANYWAY, "") not in ("", "0") if anyway is None else anyway
    if not (missing := missing_names(trainer)):
        return
    told = f"{trainer.__module__}.{trainer.__name__} has not what fission-grpo holds on to: {'; '.join(missing)}"
    if not anyway:
        raise UnsupportedVersionError(
            f"{told}. Is TRL patched (by another package that was imported), or a fork? "
            f"pip install --force-reinstall --no-deps 'trl{SUPPORTED['trl'].pip}'. To try all the same: {ANYWAY}=1"
        )
    warn("%s; going on, as %s is set", told, ANYWAY)


def _names_used(function: Callable[..., Any]) -> Iterator[str]:
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is not None:
        yield from code.co_names


# -- differences -----------------------------------------------------------------------------------------------------
def eos_token_ids(trainer: Any) -> tuple[int, ...]:
    """Ids that end a turn: since TRL 1.14 all that the model's generation settings know, before the tokenizer's."""
    found = getattr(trainer, "eos_token_ids", None)
    return (int(trainer._tokenizer.eos_token_id),) if found is None else tuple(found)


def has_fused_head(decoder: Any) -> bool:
    """Whether TRL gave the model a head that scores chosen tokens (since 1.15); else the update shares no prompts."""
    return "forward" in vars(decoder)


def tools_of_every_row(trainer: Any) -> Sequence[Callable[..., Any]]:
    """Tools that all rows have. Before TRL 1.16 the parser of calls is not told which tools its row has."""
    if trainer.environment_factories is None:
        return trainer.tools
    first, *others = trainer._env_tools.values()
    names = [{tool.__name__ for tool in tools} for tools in others]
    return [tool for tool in first if all(tool.__name__ in known for known in names)]


def parser_knows_tools() -> bool:
    """Whether TRL tells the parser of calls which tools a row has: since 1.16."""
    return trl_release() >= (1, 16)


def one_completion_each() -> tuple[Any, ...]:
    """What `_generate_single_turn` takes after prompts, images and fields, to sample one completion of each prompt.

    Since TRL 1.14 their number; before it is not asked, and always the group's with a vLLM server (see below).
    """
    return (1,) if trl_release() >= (1, 14) else ()


def check_server_tools(installed: tuple[int, ...] | None = None) -> None:
    """Refuse tools with a vLLM server for several rows at a time where TRL would mix up the rows.

    Args:
        installed: the minor release of TRL; None: the one that is installed.

    Raises:
        UnsupportedVersionError: TRL is older than 1.14. After a tool call it takes every G-th prompt and samples G
            completions of it, though each row has its own history by then.
    """
    if (installed or trl_release()) < (1, 14):
        raise UnsupportedVersionError(
            "before TRL 1.14 rows get other rows' completions after a tool call in vLLM's server mode (and with "
            "tensor parallelism). To mend it: pip install 'trl>=1.14', or vllm_mode='colocate'"
        )
