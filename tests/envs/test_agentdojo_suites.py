"""The names of AgentDojo's suites, and what happens without the package. These tests need no agentdojo."""

import sys

import pytest

from fission_grpo.core.errors import UsageError
from fission_grpo.envs.agentdojo.suites import SUITES, environment_name, official, suites_of
from fission_grpo.envs.catalog import environment_of_row
from fission_grpo.evaluation.task_sets import TaskSpec, task_set

INSTALL = r"install --no-deps agentdojo==0\.1\.35 && .*install .*'pydantic\[email\]>=2\.7' pyyaml rich google-genai$"


def test_a_name_of_tasks_means_all_suites_or_one():
    assert suites_of("agentdojo") == SUITES
    assert suites_of(environment_name("slack")) == ("slack",)
    assert suites_of("agentdojo:slack,banking") == ("slack", "banking")
    assert suites_of("desk") == suites_of("agentdojo.jsonl") == ()
    with pytest.raises(UsageError, match="after 'agentdojo:' write one of workspace, travel, banking, slack"):
        suites_of("agentdojo:")


def test_without_the_package_commands_say_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "agentdojo", None)
    for name in [name for name in sys.modules if name.startswith(("agentdojo.", "fission_grpo.envs.agentdojo."))]:
        if name != "fission_grpo.envs.agentdojo.suites":
            monkeypatch.delitem(sys.modules, name)
    official.cache_clear()
    for ask in (
        lambda: task_set(TaskSpec("agentdojo:slack")),
        lambda: environment_of_row({"environment": "agentdojo:slack"}),
    ):
        with pytest.raises(UsageError, match=INSTALL):
            ask()
