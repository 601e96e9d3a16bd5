"""Merge the adapter into the base model."""

from dataclasses import replace
from typing import NamedTuple

from flytekit import task
from flytekit.types.directory import FlyteDirectory

from tasks import results, settings
from tasks.declaring import TRAIN_CACHE, cache, cpu_task
from tasks.transfer import download, upload
from thriftune.config import RunConfig
from thriftune.inference.parity import saved as parity
from thriftune.inference.parity.allowed import ALLOWED
from thriftune.models import merging
from thriftune.models.classifier import Classes
from thriftune.models.merging.comparing import ROWS_AT_ONCE, MergedWeights
from thriftune.models.saving import ROWS
from thriftune.models.tokenizer import load_tokenizer
from thriftune.training.held_out import HeldOut, held_out_rows
from thriftune.training.objective import objective_of


class Merged(NamedTuple):
    """A merged model, and what merging did to its loss and next tokens."""

    model: FlyteDirectory
    saved: MergedWeights | None


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
        An ordinary model directory, and its loss and next tokens compared with those of the adapter on the same base.
    """
    place, model_dir = settings.result_path(config.name, "model"), download(model)
    tokenizer = load_tokenizer(model_dir, trust_remote_code=config.model.trust_remote_code)
    dataset_dir, trusts = download(dataset), config.model.trust_remote_code
    saved = merging.merge(
        model_dir,
        download(adapter),
        place,
        held_out=HeldOut(held_out_rows(dataset_dir, ROWS), tokenizer, ROWS_AT_ONCE, objective_of(config.labels)),
        tied=ALLOWED["merged"].tied,
        save_dtype=config.training.save_dtype,
        seed=config.seed,
        trust_remote_code=trusts,
        classes=Classes.of(config),
    )
    measured = saved.next_tokens if saved else None
    found = parity.compare(model_dir, place, dataset_dir, next_tokens=measured, trust_remote_code=trusts)
    if saved and found:
        saved = replace(saved, difference=parity.sentence_of(found))
    merged = upload(place)
    results.remember(record, merged)
    return Merged(merged, saved)
