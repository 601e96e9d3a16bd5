"""The YAML file of a run, which defines that run completely. Every key is documented here, once, with its unit.

Nothing here imports a heavy library: the file is read on the laptop that types `pyflyte run` and again in each pod.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    PositiveInt,
    ValidationError,
    model_validator,
)

from thriftune.config import messages as config_errors
from thriftune.config import rules as config_rules
from thriftune.config.benchmarks import BenchmarksConfig
from thriftune.config.choices import AUTO, METHODS, Method, StrategyChoice, StrategyName, Task
from thriftune.config.data import (
    PATH_OR_URL,
    DataConfig,
    DataFormat,
    DataSource,
    LongRows,
    MixedSource,
    ReplaySource,
    Section,
)
from thriftune.config.evaluation import EvaluationConfig
from thriftune.config.exporting import ExportConfig
from thriftune.config.methods import (
    ClassificationConfig,
    LlamaAdapterConfig,
    LoraConfig,
    PartialConfig,
    PrefixConfig,
)
from thriftune.config.publishing import PublishConfig
from thriftune.config.strategies import FsdpConfig, ZeroConfig
from thriftune.errors import ConfigError, Problem
from thriftune.hardware import PrecisionChoice

__all__ = [
    "AUTO", "BenchmarksConfig", "CheckpointConfig", "ClassificationConfig", "DataConfig", "DataFormat", "DataSource",
    "EvaluationConfig", "ExportConfig", "FsdpConfig", "HardwareConfig", "LlamaAdapterConfig", "LongRows", "LoraConfig",
    "Method", "MixedSource", "ModelConfig", "PartialConfig", "PrefixConfig", "PublishConfig", "ReplaySource",
    "RunConfig", "Section", "StrategyName", "Task", "TrainingConfig", "ZeroConfig",
]  # fmt: skip


class ModelConfig(Section):
    """The base model."""

    source: Annotated[str, PATH_OR_URL] = Field(
        min_length=1,
        description="Hub id; directory, local or at an s3://, gs:// or https:// URL; or a .gguf file in one of these.",
    )
    revision: str | None = Field(
        default=None,
        description="Commit, tag or branch of a hub id. It is resolved to a commit once, before anything "
        "is fetched, and recorded; name a commit to always get the same weights.",
    )
    trust_remote_code: bool = Field(default=False, description="Run Python code that the model's repository ships.")


class HardwareConfig(Section):
    """What to run on. The planner fills in what is left out: the cheapest that fits, or this machine in a local run."""

    device: str | None = Field(
        default=None,
        min_length=1,
        description="Kind of GPU that the catalogue knows, such as T4, A10G, L4, A100-80GB or one of its own; or CPU.",
    )
    instance: str | None = Field(
        default=None, min_length=1, description="Node type of the catalogue, such as g4dn.metal; it implies the device."
    )
    nodes: PositiveInt | None = Field(
        default=None, description="Number of machines; above one only with strategy zero, fsdp or ddp."
    )
    devices_per_node: PositiveInt | None = Field(
        default=None,
        description="GPUs per machine, all of them when left out; on CPU, worker processes with zero, fsdp or "
        "ddp, else 1.",
    )


class PlanConfig(Section):
    """What the planner looks for among the machines that a run fits on."""

    minimize: Literal["cost", "time", "price_per_hour"] = Field(
        default="cost",
        description="cost: the price of the whole run. time: the hours until it is done. price_per_hour: the price of "
        "an hour, however many it takes. Where the speed of a device is not known, the price per hour counts.",
    )
    deadline_hours: float | None = Field(
        default=None,
        gt=0,
        description="Only plans expected to be done in so many hours; no limit when left out.",
    )
    budget: float | None = Field(
        default=None,
        gt=0,
        description="Only plans expected to cost no more, in the catalogue's currency; and a training that is about to "
        "exceed it, over all its attempts, stops after a checkpoint. No limit when left out.",
    )
    accept_uncertain: bool = Field(
        default=False,
        description="Train on a cluster although it is uncertain whether the run fits. Memory may run out there: the "
        "micro batch is then halved, as far as it can be. `workflows/plan.py calibrate` settles it beforehand.",
    )


class TrainingConfig(Section):
    """The optimization, for every method."""

    global_batch: PositiveInt = Field(default=16, description="Rows per optimizer step, over all devices.")
    micro_batch: PositiveInt | None = Field(
        default=None, description="Rows per device and forward pass; the planner takes the largest that fits."
    )
    epochs: float = Field(default=1.0, gt=0, description="Passes over the training rows, unless max_steps is given.")
    max_steps: PositiveInt | None = Field(default=None, description="Optimizer steps, instead of epochs.")
    learning_rate: float = Field(default=2e-5, gt=0, description="Peak learning rate, after warmup.")
    scheduler: Literal["constant", "linear", "cosine"] = Field(
        default="cosine", description="How the learning rate falls after warmup."
    )
    warmup_share: float = Field(default=0.03, ge=0, lt=1, description="Share of the steps in which the rate rises.")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's decoupled weight decay.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are scaled down to this norm.")
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = Field(
        default="adamw",
        description="8-bit optimizers (bitsandbytes) work with every strategy but zero and fsdp; paged moves states to "
        "host memory when needed.",
    )
    precision: PrecisionChoice = Field(
        default="auto",
        description="auto: bf16 where the hardware has it, fp16 on older GPUs, "
        "fp32 on a CPU without instructions for bf16.",
    )
    gradient_checkpointing: bool = Field(
        default=True, description="Recompute activations in the backward pass: a third more compute, far less memory."
    )
    save_dtype: Literal["auto", "fp16", "bf16", "fp32"] = Field(
        default="auto",
        description="Precision of the saved weights. auto, for full: the 16-bit type it trained in, and after fp32 "
        "training the base model's own (bf16 if it has none); but fp32 if rounding would lose more than 5 % of what "
        "was learnt, measured on held-out rows. For partial: the base model's own, by the same rule. For adapters: the "
        "base model's.",
    )
    group_by_length: bool = Field(
        default=False,
        description="Put rows of similar length into a batch, which saves padding when data.packing is off.",
    )
    log_every: PositiveInt = Field(default=10, description="Optimizer steps between two progress lines.")
    on_divergence: Literal["stop", "rollback"] = Field(
        default="stop",
        description="What to do if the loss is not a number, stays far above its recent range, or the loss scale stays "
        "at its floor. stop: end the run with an error. rollback: go back to a checkpoint and leave the batch out.",
    )
    stall_timeout: PositiveInt = Field(
        default=1800, description="Seconds without a step after which an attempt ends and is retried."
    )
    keep: Literal["last", "best"] = Field(
        default="last",
        description="Which weights become the result. last: those after the last step. best: those at the validation "
        "with the lowest held-out loss; each that lowers it writes a checkpoint.",
    )
    patience: PositiveInt | None = Field(
        default=None,
        description="Number of validations in a row without a lower held-out loss after which training ends; off when "
        "left out.",
    )
    report_to: Literal["none", "wandb"] = Field(
        default="none",
        description="Where losses are sent in addition to the log. wandb: Weights & Biases (project thriftune, or "
        "WANDB_PROJECT of the pods' environment, set with --env).",
    )


class CheckpointConfig(Section):
    """The checkpoints of a running training, from which another attempt resumes."""

    every_steps: PositiveInt | None = Field(
        default=None, description="Optimizer steps between two checkpoints; only every_minutes counts when left out."
    )
    every_minutes: float = Field(
        default=15.0, gt=0, description="Minutes between two checkpoints; whichever of the two comes first."
    )
    keep_checkpoints: PositiveInt = Field(default=2, description="Complete checkpoints to keep while training.")
    resume_from: Annotated[str | None, PATH_OR_URL] = Field(
        default=None,
        description="Prefix (directory, s3://, gs://) of another run's checkpoints to resume from; that run must have "
        "had as many GPUs as this one.",
    )


# Replace what is wrong or missing, so that the rules can look at the rest; no rule reads the first three.
_UNRULED = {"name": "any", "seed": 0, "model": {"source": "any"}}
_ANY_DATA = {"source": "any", "format": "text"}


class RunConfig(Section):
    """One run, complete."""

    name: str = Field(
        pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$",
        description="Name of the run: lower-case letters, digits and dashes, at most 40.",
    )
    method: Method = Field(
        description="What trains. full: every weight. partial: some of the weights, or new layers. lora: low-rank "
        "adapters on a frozen 16-bit base. qlora: the same on a frozen base in 4 bits (NF4). prefix: keys and values "
        "before every row. llama_adapter: prompts in the last layers, behind a gate."
    )
    strategy: StrategyChoice = Field(
        default=AUTO,
        description="How weights are placed. auto: the planner chooses. zero: divided by DeepSpeed ZeRO, a process per "
        "device. fsdp: divided by PyTorch's FSDP, a process per device. ddp: whole on each device, a process per "
        "device. layers: split by layers over the devices of one node, in one process. single: whole on one device.",
    )
    task: Task = Field(
        default="causal_lm",
        description="What the model learns. causal_lm: to continue a text. classification: to name the class of a "
        "text, with a new output head.",
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**31,  # numpy takes twice as many, and each rank adds its number
        description="Seed of the split, the data order, the adapter's initial weights, and sampling.",
    )
    model: ModelConfig
    data: DataConfig
    hardware: HardwareConfig = HardwareConfig()
    plan: PlanConfig = PlanConfig()
    training: TrainingConfig = TrainingConfig()
    zero: ZeroConfig | None = Field(
        default=None, description="Only for strategy zero; the planner chooses if left out."
    )
    fsdp: FsdpConfig | None = Field(default=None, description="Only for strategy fsdp.")
    partial: PartialConfig | None = Field(default=None, description="For method partial, and only for it.")
    lora: LoraConfig | None = Field(
        default=None, description="Only for lora and qlora; QLoRA's defaults when left out."
    )
    prefix: PrefixConfig | None = Field(default=None, description="Only for method prefix.")
    llama_adapter: LlamaAdapterConfig | None = Field(default=None, description="Only for method llama_adapter.")
    classification: ClassificationConfig | None = Field(
        default=None, description="For task classification, and only for it."
    )
    checkpoints: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    benchmarks: BenchmarksConfig | None = Field(default=None, description="Nothing is measured when left out.")
    export: ExportConfig | None = Field(default=None, description="Nothing is exported when left out.")
    publish: PublishConfig | None = Field(default=None, description="Nothing is pushed when left out.")

    @property
    def zero_or_default(self) -> ZeroConfig:
        """The ZeRO section, with every default when the file has none."""
        return self.zero or ZeroConfig()

    @property
    def fsdp_or_default(self) -> FsdpConfig:
        """The FSDP section, with every default when the file has none."""
        return self.fsdp or FsdpConfig()

    @property
    def partial_or_default(self) -> PartialConfig:
        """The section of partial fine-tuning; without one, nothing trains."""
        return self.partial or PartialConfig()

    @property
    def prefix_or_default(self) -> PrefixConfig:
        """The prefix section, with every default when the file has none."""
        return self.prefix or PrefixConfig()

    @property
    def llama_adapter_or_default(self) -> LlamaAdapterConfig:
        """The LLaMA-Adapter section, with every default when the file has none."""
        return self.llama_adapter or LlamaAdapterConfig()

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes of a classifier; none for another task."""
        return self.classification.labels if self.classification else ()

    @property
    def merges(self) -> bool:
        """Whether the run also writes the base model with what was trained merged into it."""
        return METHODS[self.method].merges and self.lora_or_default.merge

    @property
    def lora_or_default(self) -> LoraConfig:
        """The LoRA section, with every default when the file has none."""
        return self.lora or LoraConfig()

    def problems(self) -> list[Problem]:
        """Every problem of several fields together; a file with more sections looks at these too."""
        return config_rules.check(self)

    @model_validator(mode="wrap")
    @classmethod
    def _collect_problems(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Report all problems at once: those that pydantic finds, and those of several fields together.

        Args:
            data: The parsed file.
            handler: Pydantic's own validation.

        Raises:
            ConfigError: With every problem. It is not a ValueError, so pydantic passes it on unchanged.
        """
        if isinstance(data, cls):
            return data
        try:
            config = handler(data)
        except ValidationError as error:
            problems = config_errors.explain(error, cls)
            try:
                # Without the keys that were wrong, do the others make sense together?
                rest = handler({"data": _ANY_DATA} | config_errors.without_errors(data, error) | _UNRULED)
            except (ValidationError, TypeError):
                raise ConfigError(problems) from None
            named = config_errors.intended_fields(problems) | {problem.field for problem in problems}
            if any(field.startswith("data.sources") for field in named):  # each of them has its own
                named |= {f"data.{name}" for name in DataSource.model_fields}
            problems += [p for p in config_rules.check(rest) if not config_errors.is_named(p.field, named)]
            raise ConfigError(problems) from None
        if problems := config.problems():
            raise ConfigError(problems)
        return config
