"""Whether an export is what was trained: everything is looked at, and all that differs is named."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from thriftune.errors import ModelSourceError
from thriftune.inference.parity import differences, llama_cpp
from thriftune.inference.parity.allowed import ALLOWED, Allowed, fewest_stopping
from thriftune.inference.parity.differences import Difference
from thriftune.inference.parity.outputs import log_probabilities
from thriftune.inference.parity.reference import LONGEST_ANSWER, Reference, Stopping, which_stop
from thriftune.inference.parity.report import Measure, Parity, beyond, measures_of
from thriftune.models.exporting.gguf_architectures import is_derived
from thriftune.models.exporting.quantized import dequantized
from thriftune.models.exporting.reading import Candidate, opened
from thriftune.models.exporting.tensors import StoredTensors
from thriftune.models.next_tokens import compare

logger = logging.getLogger(__name__)

_JOINED = "are held under other names and were compared by what the model says alone."
_SHAPES = ("vocabulary", "settings", "weights")


@dataclass(frozen=True)
class _Weights:
    """What was found of the weights.

    Attributes:
        measure: The largest error.
        wrong: What is beyond the limit.
        remarks: Which were not compared.
    """

    measure: Measure
    wrong: list[Difference]
    remarks: list[str]


def check(reference: Reference, directory: Path, kind: str) -> Parity:
    """Compare an export with what was trained.

    Args:
        reference: What was trained.
        directory: The export.
        kind: Its format: a key of `ALLOWED`.

    Returns:
        All that differs, with what was measured.
    """
    limits, candidate = ALLOWED[kind], opened(directory)
    stops, asked = reference.stops, reference.asked
    found = list(differences.in_text(reference.tokenizer, stops, candidate, asked.prompts, asked.style))
    trained, theirs = (one.get_text_config() for one in (reference.config, candidate.config(reference.config)))
    found += differences.in_settings(trained, theirs)
    measures, remarks = [], [remark for remark in (reference.remark, _unlisted(reference, candidate)) if remark]
    if (stored := _weights(reference, candidate, limits)) is not None:
        measures.append(stored.measure)
        found += stored.wrong
    if reference.likely is None and not measures:
        found.append(Difference("weights", "nothing of its numbers could be compared; export it where there is memory"))
    parity = Parity(kind, found, measures, prompts=len(asked.prompts), remarks=remarks)
    if reference.likely is None:
        return parity
    try:
        model = candidate.load(reference.config, reference.dtype)
    except (ModelSourceError, RuntimeError, ValueError) as error:
        if not any(one.what in _SHAPES for one in found):  # it was not said yet why
            found.append(Difference("weights", f"the model cannot be loaded: {error}"))
        return parity
    if not measures and (held := _weights(reference, candidate, limits, model)) is not None:
        differing, told = [*found, *held.wrong], [*remarks, *held.remarks]
        parity = replace(parity, differences=differing, measures=[held.measure], remarks=told)
    return _with_llama_cpp(run(reference, model, candidate.tokenizer(), limits, parity), reference, candidate, limits)


def run(reference: Reference, model: Any, tokenizer: Any, limits: Allowed, parity: Parity) -> Parity:
    """Compare what a model in memory says with what was trained: for exports, and for what is merged or served.

    Args:
        reference: What was trained, with its next tokens.
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        limits: How far it may be from the reference.
        parity: What is known of it.

    Returns:
        That, with the next tokens and answers.
    """
    assert reference.likely is not None
    compared = compare(reference.likely, log_probabilities(model, reference.rows), limits.tied)
    stopped = which_stop(model, tokenizer, reference.asked)
    measures = [*measures_of(compared, limits), _stopping(reference, stopped, limits)]
    wrong = list(beyond(measures))
    return replace(
        parity,
        differences=[*parity.differences, *wrong],
        measures=[*parity.measures, *measures],
        rows=compared.rows,
        tokens=compared.tokens,
        prompts=len(reference.asked.prompts),
    )


def _stopping(reference: Reference, stopped: Stopping, limits: Allowed, where: str = "") -> Measure:
    """The share of answers that stop, with the least that may be left of those that stopped of what was trained."""
    name = f"answers that stop{where}, share"
    both = [pair for pair in zip(reference.stopped or (), stopped, strict=True) if None not in pair]
    if not both:
        return Measure(name, None, 0.0, is_least=True)
    was, ours = (sum(map(bool, one)) for one in zip(*both, strict=True))
    return Measure(name, ours / len(both), fewest_stopping(was, limits.stops) / len(both), is_least=True)


def _weights(reference: Reference, candidate: Candidate, limits: Allowed, model: Any = None) -> _Weights | None:
    """Compare the weights in an export's files, or in the model that was loaded from them.

    Returns:
        What was found; None if there was nothing to compare.
    """
    if reference.weights is None:
        return None
    with StoredTensors(reference.weights) as stored:
        found = dequantized(model) if model else candidate.tensors(reference.config, list(stored))
        error, wrong, compared = differences.in_weights(stored, found, limits.weights)
        needed = [name for name in stored if not is_derived(name, reference.config)]
    if error is None:
        return None
    left = sorted({*needed}.difference(compared))
    remarks = [f"{len(left)} of {len(needed)} weights, such as {left[0]}, {_JOINED}"] if left else []
    return _Weights(Measure("largest error of a weight", error, limits.weights), wrong, remarks)


def _unlisted(reference: Reference, candidate: Candidate) -> str:
    """What ended an answer of what was trained and is not named in the export; empty if there is nothing."""
    lost = [token for token in reference.listed if token not in candidate.stops]
    names = ", ".join(repr(name) for name in reference.tokenizer.convert_ids_to_tokens(lost))
    return f"generation_config.json names {names} too as ends of an answer, which the file does not." if lost else ""


def _with_llama_cpp(parity: Parity, reference: Reference, candidate: Candidate, limits: Allowed) -> Parity:
    """Add what llama.cpp makes of a GGUF file, where it is installed."""
    if candidate.gguf is None or reference.likely is None:
        return parity
    if not llama_cpp.is_installed():
        return replace(parity, remarks=[*parity.remarks, "llama.cpp's Python package is not installed: not run there."])
    asked, tokenizer = reference.asked, reference.tokenizer
    rows, likely = reference.rows, reference.likely
    made = llama_cpp.run(candidate.gguf, tokenizer, asked, rows, likely, LONGEST_ANSWER, limits.tied)
    if isinstance(made, Difference):
        return replace(parity, differences=[*parity.differences, made])
    kl, agreement = (made.compared.kl, made.compared.agreement) if made.compared.tokens else (None, None)
    measures = [  # None where every row is longer than what it is given to read
        Measure("KL divergence in llama.cpp, nats", kl, limits.kl),
        Measure("likeliest token agrees in llama.cpp, share", agreement, limits.agreement, is_least=True),
        _stopping(reference, made.stopped, limits, " in llama.cpp"),
    ]
    wrong = [*made.differences, *beyond(measures, "in llama.cpp, ")]
    return replace(
        parity,
        differences=[*parity.differences, *wrong],
        measures=[*parity.measures, *measures],
        llama_cpp=made,
    )
