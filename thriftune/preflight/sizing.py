"""How many rows a run has and how long they are, from its first rows: what a plan needs to say how long it takes."""

import tempfile
from pathlib import Path

from thriftune.config import RunConfig
from thriftune.planning.time.run import Size
from thriftune.preflight import base_model, rows, sampling, steps, tokenizer


def size_of(config: RunConfig, token: str | None) -> Size | None:
    """Read and tokenize the first rows of a run.

    Args:
        config: The run.
        token: Hub token.

    Returns:
        Its rows; None where rows or tokenizer cannot be had. Why not is for the preflight to say.
    """
    with tempfile.TemporaryDirectory() as folder:
        base = base_model.check(config.model, token, Path(folder), config.labels)
        ready = tokenizer.check(config, base).tokenizer
        sample = sampling.read(config, Path(folder), token, ()).value
        if ready is None or sample is None:
            return None
        tried = rows.convert(sample, config, ready).value
        if tried is None or not tried.lengths:
            return None
        counted = steps.of_sample(tried, sample, config)
    longest = config.data.max_length
    said = f"all {sample.count:,} rows" if sample.is_whole else f"the first {sample.count:,} rows"
    return Size(counted.rows if counted else 0, tuple(min(length, longest) for length in tried.lengths), said)
