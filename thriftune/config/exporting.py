"""The section of a run file about exporting its result to other formats."""

from typing import Literal

from pydantic import Field

from thriftune.config.data import Section

OnFail = Literal["error", "keep"]
ExportFormat = Literal["gguf-f16", "gguf-q8_0", "gguf-q4_0", "int8", "nf4", "fp32", "fp16", "bf16"]


class ExportConfig(Section):
    """What a run's result is exported to. Each export is compared with what was trained before it counts."""

    formats: tuple[ExportFormat, ...] = Field(
        min_length=1,
        description="gguf-f16, gguf-q8_0, gguf-q4_0: one GGUF file for llama.cpp. int8, nf4: bitsandbytes, for "
        "transformers. fp32, fp16, bf16: safetensors.",
    )
    shard_gb: float = Field(default=5.0, gt=0, description="Largest safetensors file, in GB (1e9 bytes).")
    on_fail: OnFail = Field(
        default="error",
        description="What to do with an export that differs too much from what was trained. error: the run fails, and "
        "the export is not kept. keep: it is kept, with a warning.",
    )
