"""Templates for MathAPI, which has no state."""

from fission_grpo.recipes.bfcl_tasks.templates.base import Sandbox, UserRequest, any_call, number, one_call

# fmt: off
OPERATIONS = (
    ("add", ("Add {a} and {b}.", "What is {a} plus {b}?")),
    ("subtract", ("Subtract {b} from {a}.", "What is {a} minus {b}?")),
    ("multiply", ("Multiply {a} by {b}.", "What is {a} times {b}?")),
    ("divide", ("Divide {a} by {b}.", "What is {a} over {b}?")),
)
STATISTICS = {
    function: (f"What is the {word} of {{numbers}}?", f"Compute the {word}: {{numbers}}.")
    for function, word in (
        ("mean", "mean"), ("standard_deviation", "standard deviation"), ("max_value", "maximum"),
        ("min_value", "minimum"), ("sum_values", "sum"),
    )
}


def numbers(t: Sandbox) -> list[float]:
    return [float(t.rng.randint(1, 99)) for _ in range(t.rng.randint(3, 5))]


def operation(t: Sandbox) -> UserRequest:
    a, b = float(t.rng.randint(2, 999)), float(t.rng.randint(2, 99))
    function, phrases = t.pick(OPERATIONS)
    t.do(function, a=a, b=b)
    return t.request(*phrases, vague=phrases[0].replace("{b}", "a number"), detail="The number is {b}.")


def mean_rounded(t: Sandbox) -> UserRequest:
    value = t.do("mean", numbers=numbers(t))["result"]
    t.do("round_number", number=value, decimal_places=1)
    return t.request("Take the mean of {numbers} and round it to 1 place.",
                     "Mean of {numbers}, rounded to 1 decimal.")


def absolute_difference(t: Sandbox) -> UserRequest:
    a, b = float(t.rng.randint(2, 99)), float(t.rng.randint(100, 999))
    value = t.do("subtract", a=a, b=b)["result"]
    t.do("absolute_value", number=value)
    return t.request("Subtract {b} from {a} and give the absolute value.", "Absolute value of {a} minus {b}?")


def convert(t: Sandbox) -> UserRequest:
    value, (unit, target) = float(t.rng.randint(2, 99)), t.pick((("km", "miles"), ("kg", "lb"), ("cm", "in")))
    t.do("imperial_si_conversion", value=value, unit_in=unit, unit_out=target)
    return t.request("Convert {value} {unit_in} to {unit_out}.", "How many {unit_out} are {value} {unit_in}?")


TEMPLATES = (
    operation,
    operation,
    operation,
    any_call(STATISTICS, numbers=numbers),
    mean_rounded,
    one_call("power", "Raise {base} to the power {exponent}.", "{base} to the {exponent}?",
             base=number(2, 12, 1.0), exponent=number(2, 5, 1.0)),
    one_call("percentage", "What percentage of {whole} is {part}?", "{part} is how many percent of {whole}?",
             part=number(2, 80, 1.0), whole=number(81, 400, 1.0)),
    one_call("square_root", "Square root of {number} with precision {precision}.",
             "What is the root of {number}, precision {precision}?",
             number=number(2, 900, 1.0), precision=number(2, 9)),
    absolute_difference,
    convert,
)
