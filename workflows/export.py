"""Export a model directory to GGUF, bitsandbytes or other safetensors, each compared with the model.

pyflyte run workflows/export.py export --model_dir outputs/.../model --formats '["gguf-q8_0", "int8"]'
"""

from typing import NamedTuple

from flytekit import workflow
from flytekit.types.directory import FlyteDirectory
from flytekit.types.file import FlyteFile

from tasks.export import export_model
from thriftune.config.exporting import OnFail
from thriftune.inference.parity.report import Parity


class ExportResult(NamedTuple):
    """The exports, in the order of the formats, and what was measured of each."""

    exports: list[FlyteDirectory]
    parity: list[Parity]


@workflow
def export(
    model_dir: FlyteDirectory,
    formats: list[str],
    adapter: FlyteDirectory | None = None,
    rows: FlyteFile | None = None,
    shard_gb: float = 5.0,
    on_fail: OnFail = "error",
) -> ExportResult:
    """Export a model, and compare each export with it: prompts token by token, weights, next tokens, and answers.

    Args:
        model_dir: A base, fine-tuned or merged model directory.
        formats: A JSON list of gguf-f16, gguf-q8_0, gguf-q4_0 (one file for llama.cpp), int8, nf4 (bitsandbytes), fp32,
            fp16 and bf16 (safetensors).
        adapter: An adapter directory to merge into the model first.
        rows: Rows to compare on: a file of any kind that training data may have with the columns prompt and answer. If
            there is none, general questions with their right answers are used.
        shard_gb: Largest safetensors file, in GB.
        on_fail: What to do with an export that differs too much from the model. error: it is not kept, and the run
            fails. keep: it is kept, with a warning.

    Returns:
        The exports that were kept, and what was measured of each, with what is allowed.
    """
    made = export_model(
        model_dir=model_dir, formats=formats, adapter=adapter, rows_file=rows, shard_gb=shard_gb, on_fail=on_fail
    )
    return ExportResult(made.exports, made.parity)
