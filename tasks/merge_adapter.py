"""Merge the adapter into the base model."""

from typing import NamedTuple

from flytekit import task
from flytekit.types.directory import FlyteDirectory

from tasks import results, settings
from tasks.declaring import TRAIN_CACHE, cache, cpu_task
from tasks.transfer import download, upload
from thriftune.config import RunConfig
from thriftune.inference.parity import saved as parity
from thriftune.models import merging
from thriftune.models.classifier import Classes
from thriftune.models.saving import ROWS, SavedWeights
from thriftune.models.tokenizer import load_tokenizer
from thriftune.training.held_out import HeldOut, held_out_rows
from thriftune.training.objective import objective_of

# Each pass converts every weight to fp32 once; for a large model only a few rows are measured anyway.
_ROWS_AT_ONCE = 8


class Merged(NamedTuple):
    """A merged model, and what merging did to its loss."""

    model: FlyteDirectory
    saved: SavedWeights | None


@task(**cpu_task(), cache=cache(TRAIN_CACHE, "config", "model", "adapter", "dataset", "record"))
def merge_adapter(
    config: RunConfig,
    model: FlyteDirectory,
    adapter: FlyteDirectory,
    dataset: FlyteDirectory,
    cache_key: str,  # noqa: ARG001 - read by Flyte's cache alone
    record: str,
) -> Merged:
    """Merge an adapter into the unquantized base model.

    Args:
        config: The run.
        model: The base model.
        adapter: The adapter.
        dataset: The prepared dataset, on whose held-out rows the merged model is compared.
        cache_key: What Flyte's cache knows the result by.
        record: URL to write the place of the result to; empty in a local run.

    Returns:
        An ordinary model directory, and its loss compared with that of the adapter on the same base.
    """
    place, model_dir = settings.result_path(config.name, "model"), download(model)
    tokenizer = load_tokenizer(model_dir, trust_remote_code=config.model.trust_remote_code)
    dataset_dir, trusts = download(dataset), config.model.trust_remote_code
    saved = merging.merge(
        model_dir,
        download(adapter),
        place,
        held_out=HeldOut(held_out_rows(dataset_dir, ROWS), tokenizer, _ROWS_AT_ONCE, objective_of(config.labels)),
        save_dtype=config.training.save_dtype,
        seed=config.seed,
        trust_remote_code=trusts,
        classes=Classes.of(config),
    )
    parity.compare(model_dir, place, dataset_dir, trust_remote_code=trusts)
    merged = upload(place)
    results.remember(record, merged)
    return Merged(merged, saved)
