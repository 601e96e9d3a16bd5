"""The model as lm-evaluation-harness calls it: nothing is cut silently, and draws do not depend on the batch.

Imported where it is used: the harness takes seconds to load.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lm_eval.models.huggingface import HFLM
from transformers import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper

from thriftune.errors import ModelSourceError
from thriftune.inference.benchmarks.room import too_long
from thriftune.models.drawing import Draws, seed_of
from thriftune.models.stopping import before_stop, stop_tokens
from thriftune.progress import progress

if TYPE_CHECKING:
    import torch
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedTokenizerBase

# It warns of arguments that it ignores for a loaded model; that of cut rows, which is an error here, is never due.
logging.getLogger(HFLM.__module__).setLevel(logging.ERROR)

# For models that do not say how many positions they have (ALiBi): the harness would assume 2,048.
_NO_LIMIT = 1 << 20

TokenPair = tuple[list[int], list[int]]
_Scored = list[tuple[float, bool]]


class MeasuredModel(HFLM):  # type: ignore[misc]
    """A loaded model.

    Args:
        model: The model, with or without adapters.
        tokenizer: Its tokenizer.
        batch: Most rows per forward pass.
        max_new_tokens: Longest answer of a task that does not say.
        seed: Seed of tasks that draw.
        positions: Most tokens of a row; None if the model does not say.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        batch: int,
        max_new_tokens: int,
        seed: int,
        positions: int | None,
    ) -> None:
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch,
            max_length=positions or _NO_LIMIT,
            softmax_dtype="float32",  # in bf16, sums would have three digits, and choices be equal by chance
        )
        self._max_new_tokens, self._seed = max_new_tokens, seed
        self._names: Sequence[str] = ()
        self._asked: Counter[tuple[int, ...]] = Counter()
        self._bar: Any = None
        self.stopped: dict[tuple[int, ...], bool] = {}

    @property
    def max_gen_toks(self) -> int:
        """Longest answer of a task that does not say."""
        return self._max_new_tokens

    def score(self, names: Sequence[str], pairs: Sequence[TokenPair]) -> _Scored:
        """Log-likelihoods of continuations, given as tokens.

        Args:
            names: What each pair belongs to, for messages.
            pairs: Tokens before a continuation, and of it; neither is empty.

        Returns:
            For each, the log-likelihood in nats, and whether every token is the likeliest.

        Raises:
            DataError: One has more tokens than the model has positions.
        """
        self._names = names
        with self._counting(len(pairs)):
            return self._loglikelihood_tokens([(("", ""), before, after) for before, after in pairs])

    def loglikelihood(self, requests: "list[Instance]", disable_tqdm: bool = False) -> _Scored:
        """Log-likelihoods of continuations, as the harness asks for them."""
        self._names = [f"{request.task_name}/{request.doc_id}" for request in requests]
        with self._counting(len(requests)):
            found: _Scored = super().loglikelihood(requests, disable_tqdm=True)
            return found

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> _Scored:
        """What every log-likelihood goes through.

        Raises:
            DataError: One has more tokens than the model has positions: the harness would cut its start off.
            ModelSourceError: One is not a number: the harness would take the first choice.
        """
        for number, (_, before, after) in enumerate(requests):
            if len(before) + len(after) - 1 > self.max_length:  # the last one is never given to the model
                name = self._name(number, len(requests))
                raise too_long(name, len(before) + len(after), self.max_length, writes=False)
        found: _Scored = super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)
        for number, (likelihood, _) in enumerate(found):
            if math.isnan(likelihood):
                raise _not_a_number(self._name(number, len(requests)), str(self.model.dtype).removeprefix("torch."))
        return found

    def _name(self, number: int, count: int) -> str:
        """What a request belongs to, where the names are those of these requests."""
        return self._names[number] if len(self._names) == count else ""

    def generate_until(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[str]:
        """Written answers, as the harness asks for them.

        Args:
            requests: Each with its prompt, and how its answer ends.
            disable_tqdm: Not read: progress is shown by this package.

        Raises:
            DataError: One needs more tokens than the model has positions.
        """
        for request in requests:
            needed = len(self.tokens(request)) + int(request.args[1].get("max_gen_toks") or self._max_new_tokens)
            if needed > self.max_length:
                name = f"{request.task_name}/{request.doc_id}"
                raise too_long(name, needed, self.max_length, writes=True)
        self._asked.clear()
        with self._counting(len(requests)):
            found: list[str] = super().generate_until(requests, disable_tqdm=True)
            return found

    def tokens(self, request: "Instance") -> tuple[int, ...]:
        """The tokens that a written answer is asked for with.

        Args:
            request: What the harness asks for.
        """
        ids, mask = self.tok_batch_encode([request.args[0]])
        return tuple(ids[0][mask[0].bool()].tolist())

    def _model_call(self, inps: "torch.Tensor", *others: Any, **named: Any) -> "torch.Tensor":
        logits: torch.Tensor = super()._model_call(inps, *others, **named)
        self._bar.update(len(inps))
        return logits

    def _model_generate(self, context: "torch.Tensor", max_length: int, stop: list[str], **named: Any) -> Any:
        """Continue a batch, and note which answers ended by themselves."""
        mask = named["attention_mask"]
        prompts = [tuple(row[kept.bool()].tolist()) for row, kept in zip(context, mask, strict=True)]
        # The harness knows EOS alone; a turn may end with another token, which a base's generation_config lacks.
        stops = stop_tokens(self.tokenizer, self.model.generation_config.eos_token_id)
        made = super()._model_generate(context, max_length, stop, **self._drawn(prompts, named), eos_token_id=stops)
        for prompt, row in zip(prompts, made[:, context.shape[1] :], strict=True):
            tokens = row.tolist()
            said, text = before_stop(tokens, stops), self.tok_decode(tokens, skip_special_tokens=False)
            self.stopped[prompt] = len(said) < len(tokens) or any(end in text for end in stop)
            row[len(said) :] = self.tokenizer.pad_token_id  # the token that ends a turn may be no special one
        self._bar.update(len(prompts))
        return made

    def _drawn(self, prompts: Sequence[tuple[int, ...]], named: dict[str, Any]) -> dict[str, Any]:
        """The harness's arguments, with draws of our own in place of `generate`'s."""
        if not named.get("do_sample"):
            return named
        others = {key: value for key, value in named.items() if key not in ("temperature", "top_k", "top_p")}
        steps: list[Any] = [Draws([self._seed_of(prompt) for prompt in prompts], 1.0)]
        if (top_p := named.get("top_p")) is not None and top_p < 1:
            steps.insert(0, TopPLogitsWarper(top_p))
        if named.get("top_k"):
            steps.insert(0, TopKLogitsWarper(named["top_k"]))
        heat = named.get("temperature") or 1.0
        steps.insert(0, lambda _ids, scores: scores / heat)
        return {**others, "do_sample": False, "temperature": 0.0, "logits_processor": LogitsProcessorList(steps)}

    def _seed_of(self, prompt: tuple[int, ...]) -> int:
        """A seed from the prompt, and from how often it was asked: tasks ask several times to vote."""
        self._asked[prompt] += 1
        return seed_of(self._seed, repr(prompt), str(self._asked[prompt]))

    @contextmanager
    def _counting(self, rows: int) -> Iterator[None]:
        with progress(rows, "Measuring") as self._bar:
            yield


def _not_a_number(name: str, dtype: str) -> ModelSourceError:
    message = f"has a log-likelihood that is not a number: the model overflows in {dtype}, or its weights are damaged."
    remedy = "Compute in bf16 or fp32 (precision), and look at the training's losses."
    return ModelSourceError.single("benchmarks.tasks", name, message, remedy)
