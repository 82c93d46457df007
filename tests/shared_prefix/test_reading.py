"""Which beginnings are read once, from token ids alone."""

import pytest

pytest.importorskip("torch")

from fission_grpo.shared_prefix.reading import _nested_beginnings  # noqa: E402


def test_beginnings_that_other_sets_of_tools_have_in_common_are_nested_and_no_level_occurs_twice():
    tools = [[1] * 100 + [2] * 50, [1] * 100 + [3] * 50, [4] * 150]  # the first two sets begin alike
    prompts = [one + [5 + number] * 5 for one in tools for number in range(2)]
    levels = _nested_beginnings(prompts)
    assert [sorted(level) for level in levels] == [
        [(0, [4, 5]), (100, [0, 1, 2, 3])],
        [(150, [0, 1]), (150, [2, 3]), (150, [4, 5])],
    ]
