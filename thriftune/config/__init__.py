"""The run file that a person writes: its schema, the rules over several fields, and the messages."""

from thriftune.config.schema import (
    AUTO,
    CheckpointConfig,
    DataConfig,
    DataFormat,
    DataSource,
    EvaluationConfig,
    HardwareConfig,
    LongRows,
    LoraConfig,
    Method,
    MixedSource,
    ModelConfig,
    PublishConfig,
    RunConfig,
    Section,
    StrategyName,
    TrainingConfig,
    ZeroConfig,
)

__all__ = [
    "AUTO", "CheckpointConfig", "DataConfig", "DataFormat", "DataSource", "EvaluationConfig", "HardwareConfig",
    "LongRows", "LoraConfig", "Method", "MixedSource", "ModelConfig", "PublishConfig", "RunConfig", "Section",
    "StrategyName", "TrainingConfig", "ZeroConfig",
]  # fmt: skip
