"""Exports: whether their formats can hold the model that a run makes, by the architecture of its base."""

import json
from collections.abc import Iterator

from thriftune.config import RunConfig
from thriftune.errors import Problem
from thriftune.models.exporting import exports
from thriftune.preflight.base_model import BaseModel
from thriftune.preflight.findings import skipped
from thriftune.preflight.outcome import attempt
from thriftune.preflight.tokenizer import CheckedTokenizer


def check(config: RunConfig, base: BaseModel, checked: CheckedTokenizer) -> Iterator[Problem]:
    """The problems of a run's exports.

    Args:
        config: The run.
        base: Its base model.
        checked: Its tokenizer.
    """
    if config.export is None:
        return
    if base.architecture is None:
        yield skipped("export", "the base model's architecture is not known")
        return
    formats, source = config.export.formats, config.model.source
    content = json.loads(base.architecture.content)
    found = list(exports.problems_of(formats, content, source))
    yield from found
    tokenizer, rows = checked.tokenizer, content.get("vocab_size")
    if not found and tokenizer is not None and isinstance(rows, int):
        yield from attempt(
            lambda: exports.require_tokenizer(formats, tokenizer, rows), "export.formats", source
        ).findings
