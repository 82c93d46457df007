"""MathAPI, which has no state."""

from __future__ import annotations

import random
from typing import Any

from fission_grpo.recipes.bfcl_tasks.templates.base import Intent, Request, Trial


def config(rng: random.Random) -> dict[str, Any]:
    """There is nothing to set."""
    return {}


def _numbers(t: Trial) -> list[float]:
    return [float(t.rng.randint(1, 99)) for _ in range(t.rng.randint(3, 5))]


def two(t: Trial) -> Request:
    a, b = float(t.rng.randint(2, 999)), float(t.rng.randint(2, 99))
    name, texts = t.pick(
        [
            ("add", ("Add {a} and {b}.", "What is {a} plus {b}?")),
            ("subtract", ("Subtract {b} from {a}.", "What is {a} minus {b}?")),
            ("multiply", ("Multiply {a} by {b}.", "What is {a} times {b}?")),
            ("divide", ("Divide {a} by {b}.", "What is {a} over {b}?")),
        ]
    )
    t.do(name, a=a, b=b)
    return t.ask(*texts, vague=texts[0].replace("{b}", "a number"), detail="The number is {b}.", a=a, b=b)


def statistic(t: Trial) -> Request:
    numbers = _numbers(t)
    name, word = t.pick(
        [
            ("mean", "mean"),
            ("standard_deviation", "standard deviation"),
            ("max_value", "maximum"),
            ("min_value", "minimum"),
            ("sum_values", "sum"),
        ]
    )
    t.do(name, numbers=numbers)
    shown = ", ".join(map(str, numbers))
    return t.ask("What is the {word} of {shown}?", "Compute the {word}: {shown}.", word=word, shown=shown)


def mean_rounded(t: Trial) -> Request:
    numbers = _numbers(t)
    value = t.do("mean", numbers=numbers)["result"]
    t.do("round_number", number=value, decimal_places=1)
    shown = ", ".join(map(str, numbers))
    return t.ask(
        "Take the mean of {shown} and round it to 1 place.", "Mean of {shown}, rounded to 1 decimal.", shown=shown
    )


def power(t: Trial) -> Request:
    base, exponent = float(t.rng.randint(2, 12)), float(t.rng.randint(2, 5))
    t.do("power", base=base, exponent=exponent)
    return t.ask("Raise {base} to the power {exponent}.", "{base} to the {exponent}?", base=base, exponent=exponent)


def percent(t: Trial) -> Request:
    part, whole = float(t.rng.randint(2, 80)), float(t.rng.randint(81, 400))
    t.do("percentage", part=part, whole=whole)
    return t.ask(
        "What percentage of {whole} is {part}?", "{part} is how many percent of {whole}?", part=part, whole=whole
    )


def root(t: Trial) -> Request:
    number, digits = float(t.rng.randint(2, 900)), t.rng.randint(2, 9)
    t.do("square_root", number=number, precision=digits)
    return t.ask(
        "Square root of {n} with precision {d}.", "What is the root of {n}, precision {d}?", n=number, d=digits
    )


def difference_absolute(t: Trial) -> Request:
    a, b = float(t.rng.randint(2, 99)), float(t.rng.randint(100, 999))
    value = t.do("subtract", a=a, b=b)["result"]
    t.do("absolute_value", number=value)
    return t.ask("Subtract {b} from {a} and give the absolute value.", "Absolute value of {a} minus {b}?", a=a, b=b)


def convert(t: Trial) -> Request:
    value, (unit, to) = float(t.rng.randint(2, 99)), t.pick((("km", "miles"), ("kg", "lb"), ("cm", "in")))
    t.do("imperial_si_conversion", value=value, unit_in=unit, unit_out=to)
    return t.ask("Convert {value} {unit} to {to}.", "How many {to} are {value} {unit}?", value=value, unit=unit, to=to)


INTENTS: tuple[Intent, ...] = (
    two,
    two,
    two,
    statistic,
    mean_rounded,
    power,
    percent,
    root,
    difference_absolute,
    convert,
)
