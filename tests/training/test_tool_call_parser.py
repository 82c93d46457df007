"""Tools' schemas are made once, and turns are read as before."""

import pytest

pytest.importorskip("transformers")

from transformers.utils import get_json_schema

from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.wrapper import tool_methods
from fission_grpo.training.tool_call_parser import Schemas


def test_schemas_of_methods_are_made_once_per_environment_and_are_transformers_own():
    schemas, desk = Schemas(), Desk()
    first = schemas.of(list(tool_methods(desk).values()))
    assert first == [get_json_schema(tool) for tool in tool_methods(desk).values()]
    assert schemas.of(list(tool_methods(desk).values())) is first
    assert schemas.of(list(tool_methods(Desk()).values())) is not first


def test_tools_given_as_schemas_are_left_as_they_are():
    given = [get_json_schema(tool_methods(Desk())["move_file"])]
    assert Schemas().of(given) is given
