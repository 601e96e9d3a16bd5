"""Answer prompts in batches, with a model and any number of adapters."""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from thriftune import damage
from thriftune.data.questions import encode_prompt, prompt_style
from thriftune.errors import AdapterError, ModelSourceError
from thriftune.inference.prompts import require_prompts
from thriftune.models import classifier
from thriftune.models.answering import Sampling, complete
from thriftune.models.completeness import require_no_adapter
from thriftune.models.files import ADAPTER_FILES, files_of
from thriftune.models.loading import Placement, attach_adapters, load_model
from thriftune.models.tokenizer import load_tokenizer

logger = logging.getLogger(__name__)

OutputFormat = Literal["jsonl", "parquet"]
BASE = "base"  # name for answers without any adapter


@dataclass(frozen=True)
class Answer:
    """The answer to one prompt.

    Attributes:
        prompt: As it was given.
        adapter: Name of the adapter that answered, or `base`.
        answer: What the model generated, without special tokens.
    """

    prompt: str
    adapter: str
    answer: str


def generate(
    model_dir: Path,
    prompts: Sequence[str],
    *,
    adapters: dict[str, Path],
    placement: Placement,
    sampling: Sampling,
    batch: int,
) -> list[Answer]:
    """Answer prompts with a model directory.

    Args:
        model_dir: A model: a base model, a fine-tuned or a merged one.
        prompts: The prompts.
        adapters: Adapter directories by name; each of them answers every prompt. If empty, the model itself answers.
        placement: How to hold the model.
        sampling: How tokens are sampled.
        batch: Prompts per forward pass.

    Returns:
        One answer per prompt and adapter, adapter by adapter.

    Raises:
        DataError: There are no prompts, or one is empty.
        UserError: The model or an adapter is damaged, contains links out of its directory, or is a classifier.
    """
    require_prompts(prompts)
    _require_whole(model_dir, adapters.values())
    require_no_adapter(model_dir)
    classifier.require_language(model_dir, "model_dir")
    for adapter in adapters.values():
        classifier.require_language(adapter, "adapters")
    tokenizer = load_tokenizer(model_dir, padding_side="left")
    # torch allows no dot in a module's name, and adapters are named by their paths.
    internal = {name: f"adapter_{number}" for number, name in enumerate(adapters)}
    model = attach_adapters(load_model(model_dir, placement), {internal[n]: path for n, path in adapters.items()})
    model.eval()
    style = prompt_style(next(iter(adapters.values()), model_dir), tokenizer)
    encoded = [encode_prompt(prompt, tokenizer, style) for prompt in prompts]
    answers = []
    for name in list(adapters) or [BASE]:
        if name in adapters:
            model.set_adapter(internal[name])
        logger.info("Answering %d prompts with %s", len(prompts), name)
        texts = complete(model, tokenizer, encoded, sampling, batch)
        answers += [Answer(prompt, name, text) for prompt, text in zip(prompts, texts, strict=True)]
    return answers


def _require_whole(model_dir: Path, adapters: Iterable[Path]) -> None:
    """Refuse a model or an adapter that is damaged, or that contains links out of its directory.

    Args:
        model_dir: The model.
        adapters: Adapter directories.

    Raises:
        UserError: With the name of each wrong file.
    """
    files_of(model_dir, "model_dir", ModelSourceError)
    damage.require_undamaged(model_dir, "model_dir", content=True)
    for adapter in adapters:
        files_of(adapter, "adapters", AdapterError, ADAPTER_FILES, ())
        damage.require_undamaged(adapter, "adapters", content=True)


def by_adapter(answers: Sequence[Answer]) -> dict[str, list[str]]:
    """The texts of answers by the name of the adapter, each in the order of the prompts.

    Args:
        answers: The answers.
    """
    texts: dict[str, list[str]] = {}
    for answer in answers:
        texts.setdefault(answer.adapter, []).append(answer.answer)
    return texts


def write_answers(answers: Sequence[Answer], file: Path) -> None:
    """Write answers as Parquet or JSONL, depending on the file's ending.

    Args:
        answers: The answers.
        file: The file to write.
    """
    rows = [asdict(answer) for answer in answers]
    if file.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        file.write_text(text, encoding="utf-8")
