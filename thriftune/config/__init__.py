"""The run file that a person writes: its schema, the rules over several fields, and the messages."""

from thriftune.config.schema import (
    AUTO,
    BenchmarksConfig,
    CheckpointConfig,
    ClassificationConfig,
    DataConfig,
    DataFormat,
    DataSource,
    EvaluationConfig,
    ExportConfig,
    FsdpConfig,
    HardwareConfig,
    LlamaAdapterConfig,
    LongRows,
    LoraConfig,
    Method,
    MixedSource,
    ModelConfig,
    PartialConfig,
    PrefixConfig,
    PublishConfig,
    ReplaySource,
    RunConfig,
    Section,
    StrategyName,
    Task,
    TrainingConfig,
    ZeroConfig,
)

__all__ = [
    "AUTO", "BenchmarksConfig", "CheckpointConfig", "ClassificationConfig", "DataConfig", "DataFormat", "DataSource",
    "EvaluationConfig", "ExportConfig", "FsdpConfig", "HardwareConfig", "LlamaAdapterConfig", "LongRows", "LoraConfig",
    "Method", "MixedSource", "ModelConfig", "PartialConfig", "PrefixConfig", "PublishConfig", "ReplaySource",
    "RunConfig", "Section", "StrategyName", "Task", "TrainingConfig", "ZeroConfig",
]  # fmt: skip
