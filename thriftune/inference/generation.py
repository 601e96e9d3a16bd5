"""Answering prompts in batches, with a model and any number of adapters."""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from thriftune import artifacts, damage
from thriftune.config import DataFormat
from thriftune.data.formats import FORMATS, question_prompt
from thriftune.errors import AdapterError, DataError, ModelSourceError
from thriftune.inference.prompts import require_prompts
from thriftune.models import chat_template
from thriftune.models.completeness import require_no_adapter
from thriftune.models.files import ADAPTER_FILES, files_of
from thriftune.models.loading import Placement, attach_adapters, load_model
from thriftune.models.positions import answer_room
from thriftune.models.stopping import before_stop, stop_tokens
from thriftune.models.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

OutputFormat = Literal["jsonl", "parquet"]
_SHOWN = 80  # characters of a prompt
BASE = "base"  # the name under which answers without any adapter are listed


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        max_new_tokens: Longest answer.
        temperature: 0 always takes the likeliest token; higher draws from the distribution.
        seed: Of the draws.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """One prompt, answered.

    Attributes:
        prompt: As it was given.
        adapter: Name of the adapter that answered, or `base`.
        answer: What the model said, without special tokens.
    """

    prompt: str
    adapter: str
    answer: str


def encode_prompt(prompt: str, tokenizer: "PreTrainedTokenizerBase", style: DataFormat) -> list[int]:
    """A prompt as the tokens that training put before an answer.

    Args:
        prompt: What a person asks.
        tokenizer: The model's tokenizer.
        style: How the model was trained to be asked.

    Returns:
        Token ids, with BOS exactly once where the tokenizer uses one.

    Raises:
        DataError: The model's chat template makes nothing of it.
    """
    if style in FORMATS and FORMATS[style].is_chat:
        try:
            text = chat_template.apply([{"role": "user", "content": prompt}], tokenizer, prompt=True)
        except chat_template.TemplateFailsError as error:
            remedy = "Ask otherwise, or repair chat_template.jinja."
            raise DataError.single("prompts", repr(prompt[:_SHOWN]), f"{error}.", remedy) from error
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    ids = list(tokenizer(question_prompt(style, prompt))["input_ids"])
    if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids.pop()  # a tokenizer that closes every text with EOS would end the answer before it starts
    return ids


def prompt_style(directory: Path, tokenizer: "PreTrainedTokenizerBase") -> DataFormat:
    """How a model wants to be asked.

    Args:
        directory: The model, or the adapter on it.
        tokenizer: The model's tokenizer.

    Returns:
        The format that its manifest says it was trained on; without one, chat if there is a chat template, else text.
    """
    if artifacts.is_whole(directory):
        data = artifacts.read_manifest(directory).get("config", {}).get("data", {})
        trained_on = next((source["format"] for source in data.get("sources", ())), data.get("format"))
        if trained_on in get_args(DataFormat):
            style: DataFormat = trained_on
            return style
    return "chat" if tokenizer.chat_template else "text"


def complete(
    model: Any, tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[list[int]], sampling: Sampling, batch: int
) -> Iterator[str]:
    """Continue token sequences.

    Args:
        model: A causal language model in evaluation mode.
        tokenizer: Its tokenizer; padding goes to the left, whatever it is set to.
        prompts: Token ids of each prompt.
        sampling: How answers are drawn.
        batch: Prompts per forward pass.

    Yields:
        The continuation of each prompt, in order, without special tokens: up to EOS, the token that the chat template
        ends a turn with, or another that the model's generation_config lists.

    Raises:
        ConfigError: A prompt leaves no room for an answer in the model's position table.
    """
    import torch
    from transformers import set_seed

    set_seed(sampling.seed)
    device = next(model.parameters()).device
    stops = stop_tokens(tokenizer, model.generation_config.eos_token_id)
    for start in range(0, len(prompts), batch):
        part = list(prompts[start : start + batch])
        padded = tokenizer.pad({"input_ids": part}, padding_side="left", return_tensors="pt").to(device)
        longest = answer_room(model, padded["input_ids"].shape[1], sampling.max_new_tokens)
        drawing: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if sampling.temperature > 0:
            drawing = {"do_sample": True, "temperature": sampling.temperature}
        with torch.inference_mode():
            generated = model.generate(
                **padded,
                max_new_tokens=longest,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=stops,
                **drawing,
            )
        for row in generated[:, padded["input_ids"].shape[1] :].tolist():
            yield str(tokenizer.decode(before_stop(row, stops), skip_special_tokens=True)).strip()


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
        prompts: What to ask.
        adapters: Adapter directories by name; each of them answers every prompt. Empty: the model itself answers.
        placement: How to hold the model.
        sampling: How answers are drawn.
        batch: Prompts per forward pass.

    Returns:
        One answer per prompt and adapter, adapter by adapter.

    Raises:
        DataError: No prompts, or one that asks nothing.
        UserError: The model or an adapter is damaged, or has links out of its directory.
    """
    require_prompts(prompts)
    _require_whole(model_dir, adapters.values())
    require_no_adapter(model_dir)
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
    """Refuse what a person hands on where its links lead elsewhere, or it is not what was saved.

    Raises:
        UserError: Names each file.
    """
    files_of(model_dir, "model_dir", ModelSourceError)
    damage.require_undamaged(model_dir, "model_dir", content=True)
    for adapter in adapters:
        files_of(adapter, "adapters", AdapterError, ADAPTER_FILES, ())
        damage.require_undamaged(adapter, "adapters", content=True)


def write_answers(answers: Sequence[Answer], file: Path) -> None:
    """Write answers as Parquet or JSONL, by the file's ending."""
    rows = [asdict(answer) for answer in answers]
    if file.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        file.write_text(text, encoding="utf-8")
