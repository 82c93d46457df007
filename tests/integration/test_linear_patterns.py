"""Every regular expression of the package takes linear time on texts that are made to slow it down.

The expressions are found by walking the modules and their source, and the texts are derived from each expression:
what it begins with, again and again, and what nearly fits.
"""

import ast
import importlib
import pkgutil
import random
import re
import time
import warnings
from pathlib import Path

import pytest

import fission_grpo
from fission_grpo.core.errors import UsageError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import re._constants as constants
    import re._parser as parser

SIZES = (1000, 4000, 16_000)  # characters
FLOOR = 0.03  # seconds; shorter times are noise
GROWTH = 7.0  # largest growth of the time from one size to the next, which has 4 times as many characters
METHODS = ("match", "fullmatch", "search", "sub", "subn", "findall", "finditer", "split")

# expressions that only texts of a limited length reach
BOUNDED = {
    r"feedback.value_forms:(?:error|fail\w*|status|response) [(\[]$": "is_used: 80 characters",
    "feedback.value_forms._NO_VALUE": "is_used: 80 characters",
}
MOST_ATTACKS = 40  # of one expression


def modules():
    names = [info.name for info in pkgutil.walk_packages(fission_grpo.__path__, "fission_grpo.")]
    for name in names:
        if name.endswith("__main__"):
            continue
        try:
            yield importlib.import_module(name)
        except (ImportError, UsageError):  # an optional package
            continue


def patterns_in(value, name):
    if isinstance(value, re.Pattern):
        yield name, value
    elif isinstance(value, tuple | list):
        for number, item in enumerate(value):
            yield from patterns_in(item, f"{name}[{number}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from patterns_in(item, f"{name}[{key}]")


def found():
    """Names of expressions with the expressions and the methods by which they are used."""
    compiled, inline, used = {}, {}, {}
    for module in modules():
        short = module.__name__.removeprefix("fission_grpo.")
        for name, value in vars(module).items():
            for place, pattern in patterns_in(value, name):
                compiled.setdefault(pattern.pattern, (f"{short}.{place}", pattern, name))
        for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner, method = node.func.value, node.func.attr
            if isinstance(owner, ast.Name) and method in METHODS:
                used.setdefault(owner.id, set()).add(method)
            is_re = isinstance(owner, ast.Name) and owner.id == "re" and method in (*METHODS, "compile")
            if is_re and node.args and isinstance(node.args[0], ast.Constant):
                text = node.args[0].value
                kind = {"match"} if method == "compile" else {method}
                place = f"{short}:{text if isinstance(text, str) else text.decode()}"
                inline.setdefault(text, [place, re.compile(text), set()])[2].update(kind)
    every = [(place, pattern, used.get(name) or {"search"}) for place, pattern, name in compiled.values()]
    return every + [tuple(entry) for text, entry in inline.items() if text not in compiled]


def sample(tree):
    """A short text that a parsed expression matches, more or less."""
    text = ""
    for operation, argument in tree:
        if operation in (constants.LITERAL, constants.NOT_LITERAL):
            text += chr(argument) if operation is constants.LITERAL else chr(argument ^ 1)
        elif operation is constants.ANY:
            text += "x"
        elif operation is constants.IN:
            text += one_of(argument)
        elif operation in (constants.MAX_REPEAT, constants.MIN_REPEAT, constants.POSSESSIVE_REPEAT):
            least, most, inner = argument
            text += sample(inner) * max(least, min(int(most), 1))
        elif operation is constants.SUBPATTERN:
            text += sample(argument[-1])
        elif operation is constants.ATOMIC_GROUP:
            text += sample(argument)
        elif operation is constants.BRANCH:
            text += max((sample(branch) for branch in argument[1]), key=len)
    return text


def one_of(items):
    if items and items[0][0] is constants.NEGATE:
        return "x"
    for operation, argument in items:
        if operation is constants.LITERAL:
            return chr(argument)
        if operation is constants.RANGE:
            return chr(argument[0])
        if operation is constants.CATEGORY:
            return {"DIGIT": "1", "WORD": "x", "SPACE": " "}.get(str(argument).rpartition("_")[2], "-")
    return "x"


def branches(tree):
    """Samples of all branches, and of every part that may be repeated."""
    yield sample(tree)
    for operation, argument in tree:
        if operation is constants.BRANCH:
            for branch in argument[1]:
                yield from branches(branch)
        elif operation in (constants.MAX_REPEAT, constants.MIN_REPEAT, constants.POSSESSIVE_REPEAT):
            yield from branches(argument[2])
        elif operation is constants.SUBPATTERN:
            yield from branches(argument[-1])
        elif operation is constants.ATOMIC_GROUP:
            yield from branches(argument)
        elif operation in (constants.ASSERT, constants.ASSERT_NOT):
            yield from branches(argument[1])


def attacks(pattern):
    """Pairs of a beginning and what is repeated after it."""
    source = pattern.pattern if isinstance(pattern.pattern, str) else pattern.pattern.decode("latin-1")
    tree = parser.parse(source, pattern.flags & ~re.UNICODE & ~re.DEBUG)
    whole = sample(tree)
    units = {" ", "\n", "\t", "x", "1", "a.", "\\", "'", '"', "-", "(", "[{", "x ", " x", "\n\n", "1,", "_"}
    for text in set(branches(tree)):
        units |= {text, text[:-1], text[1:], text[:-1] + " ", text + " ", text + "\n", text[-1:], text[:1], text[:2]}
    units |= {whole[:end] for end in range(1, min(len(whole), 30))}
    starts = {"", *(whole[: len(whole) * part // 4] for part in (1, 2, 3))}
    every = [(start, unit) for unit in sorted(filter(None, units)) for start in sorted(starts)]
    return every if len(every) <= MOST_ATTACKS else random.Random(0).sample(every, MOST_ATTACKS)


def seconds(call, text):
    began = time.perf_counter()
    call(text)
    return time.perf_counter() - began


def calls_of(pattern, methods):
    for method in methods:
        bound = getattr(pattern, method)
        if method in ("sub", "subn"):
            replacement = "" if isinstance(pattern.pattern, str) else b""
            yield lambda text, bound=bound, replacement=replacement: bound(replacement, text)
        elif method == "finditer":
            yield lambda text, bound=bound: list(bound(text))
        else:
            yield bound


def slow_text(pattern, methods):
    """A beginning, what is repeated after it, and the times; None if all are fast."""
    for start, unit in attacks(pattern):
        for end in ("", "!\n"):
            for call in calls_of(pattern, methods):
                before = None
                for size in SIZES:
                    text = start + unit * (size // len(unit)) + end
                    given = text if isinstance(pattern.pattern, str) else text.encode("utf-8", "replace")
                    took = seconds(call, given)
                    if took > FLOOR and before is not None:
                        took = min(took, seconds(call, given))
                    if took > FLOOR and before is not None and took > GROWTH * max(before, FLOOR / GROWTH):
                        return start, unit, end, size, took
                    before = took
    return None


FOUND = found()


def test_the_expressions_of_the_package_are_found():
    assert len(FOUND) > 90
    assert {"core.chat._TAG", "core.messages._OTHER_CALL"} <= {place for place, _, _ in FOUND}


@pytest.mark.parametrize(("place", "pattern", "methods"), FOUND, ids=[place for place, _, _ in FOUND])
def test_no_text_takes_more_than_linear_time(place, pattern, methods):
    if place in BOUNDED:
        return
    assert slow_text(pattern, methods) is None
