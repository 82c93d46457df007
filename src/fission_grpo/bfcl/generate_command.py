"""`fission-grpo tasks generate`: training and held-out cases over BFCL's environments."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

from fission_grpo.bfcl import INSTALL
from fission_grpo.task_rows import TaskFileError


def generate_command(argv: list[str]) -> int:
    """Write train.jsonl and heldout.jsonl. Returns 0; 1 if a check fails; 2 for a mistake in the options."""
    arguments = _parser().parse_args(argv)
    try:
        return run(arguments)
    except ModuleNotFoundError as error:
        how = "pip install 'fission-grpo[endpoint]'" if error.name == "openai" else INSTALL
        print(f"error: generating tasks needs {error.name}; {how}", file=sys.stderr)
        return 1
    except TaskFileError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(arguments: argparse.Namespace) -> int:
    """Generate, rewrite if asked to, write, check what was written, and report on stdout."""
    from fission_grpo.bfcl.generate import Mix, generate
    from fission_grpo.bfcl.overlap import overlaps
    from fission_grpo.bfcl.tasks import check_cases, load_cases

    mix = Mix(
        max_turns=arguments.max_turns,
        max_calls=arguments.max_calls,
        pairs=arguments.pairs,
        miss_func=arguments.miss_func,
        miss_param=arguments.miss_param,
        classes=tuple(arguments.classes or ()),
    )
    arguments.output.mkdir(parents=True, exist_ok=True)
    failed = 0
    for split, count in (("train", arguments.train), ("heldout", arguments.heldout)):
        if not count:
            continue
        began = time.monotonic()
        cases = generate(split, count, arguments.seed, mix)
        if arguments.rewrite_model:
            from fission_grpo.bfcl.rewrite import Rewriter

            rewriter = Rewriter(arguments.rewrite_model, arguments.rewrite_url)
            cases = [rewriter.case(case) for case in cases]
            print(f"{split}: {rewriter.summary()}")
        path = arguments.output / f"{split}.jsonl"
        path.write_text("".join(case.to_json() + "\n" for case in cases), encoding="utf-8")
        print(check_cases(path))
        written = load_cases(path)
        found = overlaps(written)
        failed += len(found)
        print(
            f"  overlap with BFCL's test cases: {len(found) or 'none'}"
            + (f", {dict(list(found.items())[:3])}" if found else "")
        )
        for name, counts in (
            ("classes", Counter("+".join(sorted(case.classes)) for case in written)),
            ("variants", Counter(case.variant for case in written)),
        ):
            print(f"  {name}: " + ", ".join(f"{key} {n}" for key, n in counts.most_common()))
        used = {call.name for case in written for turn in case.turns for call in turn.reference}
        print(f"  {len(used)} functions used; {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "fission-grpo tasks generate",
        description="Make cases over BFCL's environments: train.jsonl on Travel, Trading, Ticket and Message, "
        "heldout.jsonl on Files, Vehicle, Twitter and Math. All references pass the official checker; none overlaps "
        "with BFCL's test cases.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder to write", default=argparse.SUPPRESS
    )
    parser.add_argument("--train", type=int, default=2000, help="training cases; 0: none")
    parser.add_argument("--heldout", type=int, default=400, help="held-out cases; 0: none")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same files")
    parser.add_argument("--max_turns", type=int, default=3, help="most user turns; a variant adds one")
    parser.add_argument("--max_calls", type=int, default=4, help="most reference calls in a user turn")
    parser.add_argument("--pairs", type=float, default=0.3, help="share of cases with two classes")
    parser.add_argument("--miss_func", type=float, default=0.1, help="share of cases with a function held back")
    parser.add_argument("--miss_param", type=float, default=0.1, help="share of cases that lack a value at first")
    parser.add_argument("--classes", nargs="+", help="only these classes (with --train 0 or --heldout 0)")
    parser.add_argument("--rewrite_model", help="let this model of an OpenAI-compatible endpoint reword the requests")
    parser.add_argument("--rewrite_url", help="the endpoint's base URL; the key is read from OPENAI_API_KEY")
    return parser
