import itertools
import random

import pytest

from fission_grpo.shared_prefix.prefixes import common_beginnings


def cost(prompts, clusters, uses):
    return sum(length + sum(uses[i] * (len(prompts[i]) - length) for i in members) for length, members in clusters)


def beginning_of(prompts, members, least):
    columns = itertools.takewhile(
        lambda tokens: len(set(tokens)) == 1, zip(*(prompts[i] for i in members), strict=False)
    )
    length = min(len(list(columns)), *(len(prompts[i]) - 1 for i in members), 99)
    return (length if length >= least and len(members) > 1 else 0), members


def by_first_token(prompts):
    firsts = {prompt[0] for prompt in prompts}
    return [[i for i, prompt in enumerate(prompts) if prompt[0] == first] for first in firsts]


def random_prompts(rng):
    found = {tuple(rng.choices((1, 2), k=rng.randint(1, 3)))}
    while len(found) < rng.randint(1, 5):
        begin = rng.choice(sorted(found))
        found.add(begin[: rng.randint(0, len(begin))] + tuple(rng.choices((1, 2, 3), k=rng.randint(1, 4))))
    return [list(prompt) for prompt in rng.sample(sorted(found), len(found))]


@pytest.mark.parametrize("seed", range(100))
def test_clusters_compute_no_more_tokens_than_simpler_ones(seed):
    rng = random.Random(seed)
    prompts, least = random_prompts(rng), rng.choice((1, 2, 3))
    uses = [rng.choice((1, 1, 2, 4)) for _ in prompts]
    clusters = common_beginnings(prompts, uses, least)
    assert sorted(i for _, members in clusters for i in members) == list(range(len(prompts)))
    for length, members in clusters:
        assert length == 0 or length >= least
        assert all(len(prompts[i]) > length and prompts[i][:length] == prompts[members[0]][:length] for i in members)

    as_one = beginning_of(prompts, list(range(len(prompts))), least)
    branches = [beginning_of(prompts, members, least) for members in by_first_token(prompts)]
    unshared = [(0, [i]) for i in range(len(prompts))]
    assert cost(prompts, clusters, uses) <= min(cost(prompts, some, uses) for some in ([as_one], branches, unshared))


def test_tool_sets_with_a_short_system_text_in_common_are_clusters_of_their_own():
    text, one, other = [1] * 50, [2] * 400, [3] * 400
    prompts = [[*text, *one, 7], [*text, *other, 7], [*text, *one, 8], [*text, *other, 8]]
    assert common_beginnings(prompts) == [(450, [0, 2]), (450, [1, 3])]


def test_a_prompt_used_once_shares_nothing_and_a_prompt_used_twice_all_but_its_last_token():
    prompt = list(range(80))
    assert common_beginnings([prompt]) == [(0, [0])]
    assert common_beginnings([prompt], uses=[2]) == [(79, [0])]
    assert common_beginnings([]) == []


def test_a_thousand_prompts_that_extend_each_other_are_clustered():
    prompts = [[5] * size for size in range(40, 1040)]
    clusters = common_beginnings(prompts)
    assert sum(len(members) for _, members in clusters) == 1000
