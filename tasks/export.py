"""Export a model to other formats, each compared with the model."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from flytekit import task
from flytekit.types.directory import FlyteDirectory
from flytekit.types.file import FlyteFile
from pydantic import ValidationError

from tasks import pages, settings
from tasks.declaring import cpu_task
from tasks.summarize import write_metrics
from tasks.transfer import download, upload, uri_of
from thriftune.config import ExportConfig, RunConfig
from thriftune.config import messages as config_messages
from thriftune.config.exporting import OnFail
from thriftune.config.rules import require_no_user
from thriftune.data.questions import prompt_style
from thriftune.errors import ConfigError
from thriftune.inference import exporting
from thriftune.inference.exporting import Exports
from thriftune.inference.parity import merged, rows
from thriftune.inference.parity.report import Parity, page_of, table_of
from thriftune.inference.parity.rows import Asked
from thriftune.inference.report import RunMetrics
from thriftune.models import merging
from thriftune.models.fitting import require_all_fit
from thriftune.models.tokenizer import load_tokenizer

logger = logging.getLogger("thriftune.tasks.export")

_NAME = "export"


class Exported(NamedTuple):
    """Exports that were kept, and what was found of each."""

    exports: list[FlyteDirectory]
    parity: list[Parity]


@task(**cpu_task(), enable_deck=True, deck_fields=())
def export_model(
    model_dir: FlyteDirectory,
    formats: list[str],
    adapter: FlyteDirectory | None,
    rows_file: FlyteFile | None,
    shard_gb: float,
    on_fail: OnFail,
) -> Exported:
    """Export a model directory, or an adapter merged into one.

    Args:
        model_dir: A base, fine-tuned or merged model.
        formats: gguf-f16, gguf-q8_0, gguf-q4_0, int8, nf4, fp32, fp16 or bf16.
        adapter: An adapter to merge into it first; None if there is none.
        rows_file: Rows with prompt and answer to compare on; None for the general questions of this package.
        shard_gb: Largest safetensors file, in GB.
        on_fail: What to do with an export that differs: error or keep.

    Returns:
        The exports that were kept, in the order of the formats, and what was found of each.

    Raises:
        ConfigError: A format, or another argument, is not known.
        ParityError: An export is not what was trained.
    """
    config = _config_of(formats, shard_gb, on_fail)
    given = {"model_dir": model_dir, "adapter": adapter, "rows": rows_file}
    require_no_user((field, uri_of(one)) for field, one in given.items() if one is not None)
    here, before, name = download(model_dir), [], Path(uri_of(model_dir)).name
    exporting.require_exportable(here, config, name)  # before minutes of merging
    if adapter is not None:
        base, here = here, settings.result_path(_NAME, "merged")
        # Before minutes of merging, as above.
        require_all_fit(base, {"adapter": download(adapter)})
        _asked(base, rows_file)
        merging.merge(base, download(adapter), here)
        before = [merged.check(base, download(adapter), here)]
    asked = _asked(here, rows_file)
    made = _uploaded(exporting.export(here, settings.result_path(_NAME, "exports"), config, asked, name))
    made = replace(made, parity=[*before, *made.parity])
    _show(_NAME, made, name)
    exporting.require_same(made, config, _places(uri_of(model_dir), made))
    return Exported([FlyteDirectory(place) for place in made.places.values()], made.parity)


@task(**cpu_task(), enable_deck=True, deck_fields=())
def export_result(
    result: FlyteDirectory, dataset: FlyteDirectory, config: RunConfig, to: ExportConfig, metrics: RunMetrics
) -> RunMetrics:
    """Export the result of a run, and compare each export on the held-out rows.

    Args:
        result: The trained or merged model.
        dataset: The prepared dataset.
        config: The run.
        to: Its export section.
        metrics: The metrics of the run.

    Returns:
        The metrics, with the place of each export.

    Raises:
        ParityError: An export is not what was trained, and the run file asks for an error then. Result and metrics are
            kept.
    """
    here = download(result)
    tokenizer = load_tokenizer(here, trust_remote_code=config.model.trust_remote_code)
    asked = rows.of_dataset(download(dataset), tokenizer, prompt_style(here, tokenizer))
    made = _uploaded(exporting.export(here, settings.result_path(config.name, "exports"), to, asked, config.name))
    _show(config.name, made, config.name)
    outputs = {**metrics.outputs, **{f"export {kind}": place for kind, place in made.places.items()}}
    complete = replace(metrics, outputs=outputs, remarks=[*metrics.remarks, *exporting.remarks_of(made)])
    write_metrics(complete)
    pages.show_result(complete)
    exporting.require_same(made, to, _places(uri_of(result), made))
    return complete


def _asked(model_dir: Path, rows_file: FlyteFile | None) -> Asked:
    """What a model and its exports are asked: the rows of a file, or else the general questions."""
    tokenizer = load_tokenizer(model_dir)
    style = prompt_style(model_dir, tokenizer)
    if rows_file is None:
        return rows.of_general(tokenizer, style)
    return rows.of_file(download(rows_file), tokenizer, style)


def _config_of(formats: list[str], shard_gb: float, on_fail: OnFail) -> ExportConfig:
    """The arguments as a section of a run file, which refuses what is not known.

    Raises:
        ConfigError: Names each argument that is wrong.
    """
    try:
        return ExportConfig.model_validate({"formats": formats, "shard_gb": shard_gb, "on_fail": on_fail})
    except ValidationError as error:
        raise ConfigError(config_messages.explain(error, ExportConfig)) from error


def _uploaded(made: Exports) -> Exports:
    """The exports where others find them."""
    return replace(made, places={kind: uri_of(upload(Path(place))) for kind, place in made.places.items()})


def _show(folder: str, made: Exports, name: str) -> None:
    logger.info("\n%s", table_of(made.parity))
    for kind, place in made.places.items():
        logger.info("%s: %s", kind, place)
    pages.show("parity", folder, page_of(name, made.parity))


def _places(model: str, made: Exports) -> str:
    return ", ".join(f"{what}: {place}" for what, place in {"model": model, **made.places}.items())
