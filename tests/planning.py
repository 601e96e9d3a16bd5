"""Plans for the tests: of the tiny model, for this machine or for the shipped catalogue; and what becomes of them."""

from pathlib import Path
from typing import Any

from flytekit import FlyteContextManager
from flytekit.configuration import FastSerializationSettings, ImageConfig, SerializationSettings

from tasks.settings import PLATFORM
from thriftune.config import ModelConfig, RunConfig, ZeroConfig
from thriftune.models import architecture
from thriftune.planning import catalogue, offers, planner
from thriftune.training_plan import TrainingPlan

TINY = architecture.from_content(
    {
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 288,
    },
    "tiny",
)  # fmt: skip


def planned(config: RunConfig, deepspeed: dict[str, Any] | None = None, model: Path | None = None) -> TrainingPlan:
    """The plan of a run: for this machine if it asks for the CPU, else for the catalogue's nodes."""
    shape = architecture.of(ModelConfig(source=str(model)), labels=config.labels) if model else TINY
    if deepspeed is not None:
        config = config.model_copy(update={"zero": ZeroConfig(config=deepspeed)})
    hardware = config.hardware
    here = offers.this_machine() if hardware.device in (None, "CPU") and hardware.instance is None else None
    return planner.plan(config, catalogue.load(), architecture=shape, here=here)


# Versions of what a run reads, as a preflight gives them.
VERSIONS = {"model_version": "1", "tokenizer_version": "1", "data_version": "1", "table": None}


def compiled(part, config, plan, upload=None, **versions):
    """The nodes of a `@dynamic` part of a workflow, as a pod on a cluster makes them; by default those of a run.

    With an upload, the code comes from there; else it is in the image.
    """
    return compiled_with(part, upload, config=config, plan=plan, **(versions or VERSIONS))


def compiled_with(part, upload=None, **inputs):
    """The same of a part with any inputs."""
    image = ImageConfig.auto(img_name=PLATFORM.image or "registry/thriftune:1")
    fast = FastSerializationSettings(True, "/root", upload) if upload else None
    settings = SerializationSettings(
        project="p", domain="d", version="v", image_config=image, env={}, fast_serialization_settings=fast
    )
    context = FlyteContextManager.current_context()
    state = context.execution_state
    running = context.with_serialization_settings(settings).with_execution_state(
        state.with_params(mode=state.Mode.TASK_EXECUTION)
    )
    part._wf = None  # flytekit keeps what it compiled first; a pod compiles once
    with FlyteContextManager.with_context(running) as inside:
        return part.compile_into_workflow(inside, part._task_function, **inputs).nodes
