"""The sections of a run file about methods: what trains."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from thriftune.config.data import PATH_OR_URL, Section


class LastLayers(Section):
    """The last decoder layers, those next to the output head."""

    last_layers: PositiveInt = Field(description="Number of decoder layers.")


class PartialConfig(Section):
    """Full fine-tuning of a part of the weights, for partial; everything else is frozen."""

    train: tuple[LastLayers | str, ...] = Field(
        default=(),
        description="The weights that train: `last_layers: 2` (the last two decoder layers), norms (of all layers), "
        "head (the output head), embeddings, and patterns of parameter names such as 'model.layers.*.mlp.*'.",
    )
    add_layers: NonNegativeInt = Field(
        default=0,
        description="New fully connected layers after the last decoder layer, each with a residual connection. They "
        "begin as zero, so that the model is unchanged before the first step.",
    )


class RankPattern(Section):
    """Another rank for some modules."""

    pattern: str = Field(min_length=1, description="End of a module's name, such as v_proj, or a regular expression.")
    rank: PositiveInt = Field(description="Rank of the adapters on these modules.")
    alpha: PositiveInt | None = Field(default=None, description="Alpha for these modules; lora.alpha when left out.")


class LoraConfig(Section):
    """Low-rank adapters on a frozen base model, for lora and qlora. Defaults: QLoRA (arXiv 2305.14314), appendix B."""

    rank: PositiveInt = Field(default=64, description="Rank r of the two adapter matrices.")
    alpha: PositiveInt = Field(default=16, description="Adapter output is scaled by alpha / rank.")
    dropout: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Dropout on the adapter's input. When left out, 0.05; but 0 if adapters are on fused experts, "
        "where peft has no dropout, and with init pissa or olora, whose adapters hold a part of the model.",
    )
    target_modules: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Modules to adapt, such as q_proj; when left out, every linear layer except the output head.",
    )
    rank_patterns: tuple[RankPattern, ...] = Field(
        default=(), description="Other ranks for some modules: a list of {pattern, rank, alpha}."
    )
    variant: Literal["lora", "dora", "rslora"] = Field(
        default="lora",
        description="lora: the plain form. dora: magnitude and direction apart (arXiv 2402.09353), slower. rslora: "
        "output scaled by alpha / sqrt(rank) (arXiv 2312.03732), for high ranks.",
    )
    init: Literal["default", "pissa", "olora", "eva", "orthogonal"] = Field(
        default="default",
        description="First values of the adapters. default: no change of the model. pissa: the principal singular "
        "vectors of each weight (arXiv 2404.02948). olora: its QR decomposition (arXiv 2406.01775). eva: the singular "
        "vectors of what the module gets as input, from the first batches (arXiv 2410.07170). orthogonal: orthogonal "
        "matrices.",
    )
    bias: Literal["none", "all", "lora_only"] = Field(
        default="none", description="Biases that train too: none, all, or those of the adapted modules (lora_only)."
    )
    modules_to_save: tuple[str, ...] = Field(
        default=(),
        description="Modules that train as a whole, and are saved with the adapter, such as lm_head or embed_tokens.",
    )
    double_quantization: bool = Field(
        default=True, description="For qlora: quantize the quantization constants too, which saves 0.4 bit per weight."
    )
    resume_from: Annotated[str | None, PATH_OR_URL] = Field(
        default=None, description="Directory (local, s3://, gs://) of an adapter to continue training."
    )
    merge: bool = Field(default=True, description="Also write the base model with the adapter merged into it.")


class PrefixConfig(Section):
    """Trained keys and values before the first token of every layer (arXiv 2101.00190), for prefix."""

    virtual_tokens: PositiveInt = Field(default=30, description="Length of the prefix, in tokens.")
    projection: bool = Field(
        default=False,
        description="Compute the prefix with a small trained network, as the paper does for stable training; only the "
        "prefix is used afterwards.",
    )


class LlamaAdapterConfig(Section):
    """Trained prompts that the last layers attend to through a gate that starts at zero (arXiv 2303.16199)."""

    tokens: PositiveInt = Field(default=10, description="Length of the prompt of each layer, in tokens.")
    layers: PositiveInt | None = Field(
        default=None,
        description="Number of layers that get one, counted from the output head; when left out, all but the first two "
        "(but at most 30).",
    )


class ClassificationConfig(Section):
    """The classes of a classifier, for task classification."""

    labels: tuple[str, ...] = Field(
        min_length=2,
        description="Names of the classes, as the rows have them, in the order of the model's outputs. Rows may also "
        "have whole numbers, which count in this order from 0, unless a name is a number itself.",
    )
