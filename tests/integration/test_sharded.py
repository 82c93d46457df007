"""Configurations for accelerate: read by accelerate itself, and run on CPU with the buffer in use.

DeepSpeed's run where it is installed, which it is not by our extras; docs/reliability.md says how.
"""

import importlib.util
import json
import math
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from processes_support import launched, left_by, uneven
from safetensors.torch import load_file

CONFIGS = Path(__file__).parent.parent.parent / "configs" / "accelerate"


def variables(name):
    """What `accelerate launch` puts into the environment of every rank, for one of the configurations."""
    command = ["--config_file", str(CONFIGS / f"{name}.yaml"), "script.py"]
    args, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    if not args.use_deepspeed:
        found = prepare_multi_gpu_env(args)
    else:  # as accelerate's deepspeed_launcher does
        args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        found = prepare_deepspeed_cmd_env(args)[1]
    return {key: value for key, value in found.items() if key.startswith(("ACCELERATE_", "FSDP_"))}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("multi_gpu", {}),
        (
            "fsdp2",
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"},
        ),
        ("zero2", {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}),
        ("zero3", {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3", "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true"}),
    ],
)
def test_accelerate_reads_the_configurations(name, expected):
    found = variables(name)
    assert found["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert {key: found.get(key) for key in expected} == expected
    assert ("ACCELERATE_USE_FSDP" in found, "ACCELERATE_USE_DEEPSPEED" in found) == (name == "fsdp2", "zero" in name)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configurations_tell_that_they_were_not_run_on_a_gpu(path):
    assert path.read_text().startswith("# not run by us on GPU")
    assert yaml.safe_load(path.read_text())["use_cpu"] is False


@pytest.fixture(scope="module", params=["fsdp2", "zero2", "zero3"])
def folder(request, tmp_path_factory):
    """The uneven training on one process and, sharded, on two; and episodes there, of which one rank goes on alone."""
    if request.param != "fsdp2" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    folder, tape = tmp_path_factory.mktemp(request.param), {}
    trainer = uneven(folder / "1" / "uneven", 1, tape, repeat=False)
    trainer.train()
    left_by(trainer, folder / "1" / "uneven")
    (folder / "uneven.json").write_text(json.dumps(tape))
    on_cpu = {"ACCELERATE_MIXED_PRECISION": "no", "DS_ACCELERATOR": "cpu"}
    if request.param != "fsdp2":
        on_cpu["ACCELERATE_USE_CPU"] = "false"
    given = variables(request.param) | on_cpu
    launched(2, "sharded_processes.py", folder, "uneven", "turns", "turns<2", variables=given)
    return folder


def ranks(folder, name):
    return [json.loads((folder / "2" / name / f"rank{i}.json").read_text()) for i in (0, 1)]


@pytest.mark.dear
def test_sharded_ranks_make_the_same_buffer_and_the_same_updates_as_one_process(folder):
    alone = json.loads((folder / "1" / "uneven" / "rank0.json").read_text())
    for rank in ranks(folder, "uneven"):
        assert rank["distributed"] == ("FSDP" if folder.name.startswith("fsdp2") else "DEEPSPEED")
        assert (rank["kinds"] == ["DTensor"]) == folder.name.startswith("fsdp2")  # a part of every parameter
        assert rank["fission"] == alone["fission"]
    ours, theirs = (load_file(folder / run / "parameters.safetensors") for run in ("2/uneven", "1/uneven"))
    apart = math.sqrt(sum((ours[name] - theirs[name]).square().sum().item() for name in theirs))
    assert apart <= 2e-5 * math.sqrt(sum(value.square().sum().item() for value in theirs.values()))


@pytest.mark.dear
def test_sharded_ranks_go_on_together_after_tool_calls_and_leave_prompts_to_trl(folder):
    first, last = ranks(folder, "turns")
    assert first["fission"] == last["fission"]
    assert [entry["fission/phase"] for entry in first["history"] if "fission/phase" in entry] == [0, 1, 0, 1]
    later_turns = [[key for key in rank["tape"] if key.split()[1] != "0"] for rank in (first, last)]
    assert later_turns[0]
    assert not later_turns[1]  # the last rank took part, and kept nothing of it
    assert bool(first["unshared"]) != folder.name.startswith("zero2")  # where parameters are whole, prompts are shared


@pytest.mark.dear
def test_a_resumed_run_of_sharded_ranks_goes_on_with_its_buffer(folder):
    for straight, resumed in zip(ranks(folder, "turns"), ranks(folder, "turns_from_2"), strict=True):
        assert resumed["fission"] == straight["fission"]
        assert resumed["displaced"] == straight["displaced"]
        assert resumed["parameters"] == straight["parameters"]
