"""What is registered of the types of inputs and outputs can be read by clients that have nothing else."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import run_dict
from documents import run_files
from flytekit import FlyteContextManager
from flytekit.core.type_engine import TypeEngine
from flytekit.models.types import LiteralType

from thriftune.config import RunConfig
from workflows import finetune, generate, plan

ROOT = Path(__file__).parents[1]
TASKS = [
    found
    for module in (finetune, generate, plan)
    for found in vars(module).values()
    if hasattr(found, "python_interface")
]


def structures() -> dict[str, LiteralType]:
    """The types of our own in all interfaces, as a client gets them, by the title of their schema."""
    found = {}
    for task in TASKS:
        for variable in {**task.interface.inputs, **task.interface.outputs}.values():
            kind = LiteralType.from_flyte_idl(variable.type.to_flyte_idl())
            if kind.metadata:
                found[kind.metadata["title"]] = kind
    return found


STRUCTURES = structures()


def test_all_of_ours_are_looked_at():
    assert {"RunConfig", "TrainingPlan", "RunMetrics", "TrainingResult"} <= set(STRUCTURES)


@pytest.mark.parametrize("kind", STRUCTURES.values(), ids=STRUCTURES)
def test_a_schema_is_one_that_every_reader_of_flytekit_s_understands(kind):
    """`pyflyte run remote-launchplan` ended with "'bool' object has no attribute 'get'"."""
    for schema in below(kind.metadata):
        assert not isinstance(schema.get("additionalProperties"), bool), schema
        assert "prefixItems" not in schema
        assert isinstance(schema.get("items", {}), dict)


def below(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
    for item in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from below(item)


@pytest.mark.parametrize("kind", STRUCTURES.values(), ids=STRUCTURES)
def test_a_client_takes_a_dict_for_it(kind):
    """What flytekit makes of the schema wants every key, and drops those it does not know."""
    assert TypeEngine.guess_python_type(kind) is dict


def sent(content: dict[str, Any]) -> RunConfig:
    """What a task gets of a dict that a client sends."""
    context, kind = FlyteContextManager.current_context(), STRUCTURES["RunConfig"]
    literal = TypeEngine.to_literal(context, content, dict, kind)
    return TypeEngine.to_python_value(context, literal, RunConfig)


@pytest.mark.parametrize("file", run_files(), ids=lambda file: file.stem)
def test_a_dict_is_the_run_that_its_file_is(file):
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert sent(content) == RunConfig.model_validate(content)


def test_a_deepspeed_configuration_of_the_run_s_own_arrives_too():
    own = {"zero_optimization": {"stage": 2, "reduce_bucket_size": 5e8, "overlap_comm": True}}
    assert sent(run_dict(strategy="zero", zero={"config": own})).zero_or_default.config == own


def test_no_type_is_one_that_flytekit_does_not_know():
    """Each pod began with "Unsupported Type typing.Any found, Flyte will default to use PickleFile"."""
    done = subprocess.run(
        [sys.executable, "-c", "import workflows.finetune, workflows.plan, workflows.generate"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout + done.stderr == ""
