"""Which beginnings are read once, from token ids alone."""

import pytest

pytest.importorskip("torch")

from fission_grpo.shared_prefix.reading import _nested_beginnings


def test_beginnings_that_other_sets_of_tools_have_in_common_are_nested_and_no_level_occurs_twice():
    tools = [[1] * 2000 + [2] * 1000, [1] * 2000 + [3] * 2000, [4] * 3000]  # the first two sets begin alike
    prompts = [one + [5 + number] * 5 for one in tools for number in range(2)]
    levels = _nested_beginnings(prompts)
    assert [sorted(level) for level in levels] == [
        [(0, [4, 5]), (2000, [0, 1, 2, 3])],
        [(3000, [0, 1]), (3000, [4, 5]), (4000, [2, 3])],
    ]
