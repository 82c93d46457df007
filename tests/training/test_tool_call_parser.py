"""Tools' schemas are made once, and turns are read as before."""

import pytest

pytest.importorskip("transformers")

from transformers.utils import get_json_schema

from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.wrapper import tool_methods
from fission_grpo.training.tool_call_parser import tool_schemas


def test_schemas_of_methods_are_made_once_per_environment_and_are_transformers_own():
    desk = Desk()
    first = tool_schemas(list(tool_methods(desk).values()))
    assert first == [get_json_schema(tool) for tool in tool_methods(desk).values()]
    assert tool_schemas(list(tool_methods(desk).values())) is first
    assert tool_schemas(list(tool_methods(Desk()).values())) is not first


def test_tools_given_as_schemas_are_left_as_they_are():
    given = [get_json_schema(tool_methods(Desk())["move_file"])]
    assert tool_schemas(given) is given
