"""Teach a model the tools of an environment from demonstrations, before reinforcement learning.

python examples/warm_up.py --environment orders.py:OrderDesk --rows rows.jsonl --model starter --output_dir runs/warm

GRPO, with fission or without, learns from differences between rollouts: where none ever succeeds there are none. The
demonstrations are the calls of the environment's `_reference()` with the environment's own results; TRL's SFTTrainer
trains on them. Use other rows than for training with rewards.

A language model needs tens to hundreds of them. The shipped starter, with a million parameters, needs thousands of
different ones (generate rows), or it learns them by heart, and some 300 steps. Evaluate, and go on while success is
near 0; stop before it is near 1, as a policy that makes no errors has none to recover from.
"""

import argparse

import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from fission_grpo.data.rows import load_rows
from fission_grpo.envs.catalog import load_factory
from fission_grpo.envs.restore import make_call
from fission_grpo.envs.wrapper import tool_methods
from fission_grpo.inference.pretrained import model_path

MAX_EPOCHS = 5  # from which on a model of a million parameters repeats rows instead of reading them


def demonstration(environment, row, tokenizer):
    """The text of a dialogue in which the assistant makes the reference calls of a row."""
    observation = environment.reset(**row)
    messages = [dict(message) for message in row["prompt"]]
    messages[-1]["content"] += observation or ""
    tools = tool_methods(environment)
    for call in environment._reference():
        function = {"name": call.name, "arguments": dict(call.arguments)}
        messages.append(
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
        )
        messages.append({"role": "tool", "name": call.name, "content": make_call(tools, call).content})
    messages.append({"role": "assistant", "content": "Done."})
    return tokenizer.apply_chat_template(messages, tools=list(tools.values()), tokenize=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", required=True, help="module:Class or file.py:Class, with _reference()")
    parser.add_argument("--rows", required=True, help="a .jsonl, .json or .parquet file")
    parser.add_argument("--model", default="starter")
    parser.add_argument("--max_steps", type=int, default=200, help="updates of 16 demonstrations")
    parser.add_argument("--learning_rate", type=float, default=2e-3, help="2e-3 suits the starter; 1e-5 a large model")
    parser.add_argument("--output_dir", default="runs/warm")
    options = parser.parse_args()
    environment = load_factory(options.environment)()
    tokenizer = AutoTokenizer.from_pretrained(model_path(options.model))
    if not hasattr(environment, "_reference"):
        parser.error(f"{options.environment} has no _reference(); add it: the calls that do the task of the row")
    texts = [demonstration(environment, row, tokenizer) for row in load_rows(options.rows, type(environment))]
    epochs = 16 * options.max_steps / len(texts)
    print(f"{len(texts)} demonstrations, {epochs:.1f} epochs of them; the first:\n{texts[0]}")
    if epochs > MAX_EPOCHS:
        print(f"more than {MAX_EPOCHS} epochs: a small model learns the rows by heart; give more rows")
    on_cpu = not torch.accelerator.is_available()
    trainer = SFTTrainer(
        model=model_path(options.model),
        train_dataset=Dataset.from_dict({"text": texts}),
        processing_class=tokenizer,
        args=SFTConfig(
            output_dir=options.output_dir,
            max_steps=options.max_steps,
            learning_rate=options.learning_rate,
            per_device_train_batch_size=16,
            max_length=4096,
            use_cpu=on_cpu,
            bf16=not on_cpu,
            gradient_checkpointing=not on_cpu,
            logging_steps=20,
            save_strategy="no",
            report_to="none",
        ),
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
