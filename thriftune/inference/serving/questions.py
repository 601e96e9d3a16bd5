"""Turning a request into what the decoder is asked: tokens in the form that the adapter was trained on."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from thriftune.config import DataFormat
from thriftune.config.benchmark_run import BASE
from thriftune.data.formats import FORMATS
from thriftune.data.questions import encode_text, prompt_style, prompt_text
from thriftune.errors import DataError
from thriftune.inference.serving.asking import Ask
from thriftune.inference.serving.limits import Limits
from thriftune.inference.serving.refusals import RefusedError
from thriftune.inference.serving.requests import ChatRequest, Said
from thriftune.models import chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FREE_TEMPERATURE = 1.0  # OpenAI's, for a request that does not say
# Making tokens takes 150 times the memory of a text. One with more letters a token than any language has is measured by
# its beginning, which may have a few tokens more where it was cut.
_LETTERS_PER_TOKEN, _CUT_TOKENS = 16, 64


@dataclass(frozen=True)
class Questions:
    """How questions to each of the served models are written.

    Attributes:
        tokenizer: The base model's tokenizer.
        styles: The format of questions by the name of the model: of `base` and of each adapter.
        limits: What is too long.
        positions: Length of the model's position table; None if it has none.
    """

    tokenizer: "PreTrainedTokenizerBase"
    styles: Mapping[str, DataFormat]
    limits: Limits
    positions: int | None = None

    def asks(self, request: ChatRequest) -> list[Ask]:
        """What the decoder is asked for a request: once for each of its choices.

        Args:
            request: The request, of a model that is served.

        Raises:
            RefusedError: The conversation cannot be put in the adapter's form, or is too long.
        """
        prompt = self._prompt(request)
        seed = secrets.randbits(62) if request.seed is None else request.seed
        return [
            Ask(
                uid=uuid4().hex,
                model=request.model,
                prompt=prompt,
                max_tokens=self._room(request, len(prompt)),
                temperature=_FREE_TEMPERATURE if request.temperature is None else request.temperature,
                top_p=request.top_p or 1.0,
                seed=(seed + number) % (1 << 63),
                stop=request.stops,
                is_streamed=bool(request.stream),
            )
            for number in range(request.n or 1)
        ]

    def _prompt(self, request: ChatRequest) -> tuple[int, ...]:
        """The tokens of a conversation, with the answer's turn opened."""
        style, most = self.styles[request.model], self.limits.max_prompt_tokens
        text, beginning = self._text(request.messages, request.model), _LETTERS_PER_TOKEN * most
        if len(text) > beginning:
            read = len(encode_text(text[:beginning], self.tokenizer, style))
            if read > most + _CUT_TOKENS:
                raise _too_long(f"more than {read - _CUT_TOKENS}", most)
        prompt = tuple(encode_text(text, self.tokenizer, style))
        if len(prompt) > most:
            raise _too_long(str(len(prompt)), most)
        if not prompt:  # some tokenizers leave out letters without a shape
            raise RefusedError(400, "The messages have no tokens. Write some text.", "messages", "invalid_value")
        return prompt

    def _room(self, request: ChatRequest, prompt: int) -> int:
        """Longest answer, in tokens. The decoder relies on it: looking at the model would take it 20 ms a request."""
        wanted = request.wanted_tokens
        if wanted is not None and wanted > self.limits.max_tokens:
            message = f"{wanted} tokens were asked for; an answer has at most {self.limits.max_tokens}. Ask for fewer."
            raise RefusedError(400, message, "max_tokens", "invalid_value")
        room = wanted or self.limits.max_tokens
        if self.positions is None:
            return room
        if prompt >= self.positions:
            message = f"The messages are {prompt} tokens, and the model has {self.positions} positions. Shorten them."
            raise RefusedError(400, message, "messages", "context_length_exceeded")
        return min(room, self.positions - prompt)

    def _text(self, messages: Sequence[Said], model: str) -> str:
        """A conversation in the form that the model was trained on."""
        style = self.styles[model]
        if style in FORMATS and FORMATS[style].is_chat:
            turns = [{"role": said.role, "content": said.text} for said in messages]
            try:
                return chat_template.apply(turns, self.tokenizer, prompt=True)
            except chat_template.TemplateFailsError as error:
                raise RefusedError(400, f"{error}. Send other messages.", "messages", "template_refuses") from None
        if [said.role for said in messages] != ["user"]:
            message = f"{model} was trained on the format {style}, which has no conversations. Send one user message."
            raise RefusedError(400, message, "messages", "single_message_only")
        try:
            return prompt_text(messages[0].text, self.tokenizer, style)
        except DataError as error:
            raise RefusedError(400, error.problems[0].message, "messages", "invalid_value") from None


def _too_long(tokens: str, most: int) -> RefusedError:
    message = f"The messages are {tokens} tokens; at most {most} are read. Shorten them."
    return RefusedError(400, message, "messages", "context_length_exceeded")


def styles_of(
    model_dir: Path, adapters: Mapping[str, Path], tokenizer: "PreTrainedTokenizerBase"
) -> dict[str, DataFormat]:
    """The format of questions by the name of each served model.

    Args:
        model_dir: The base model.
        adapters: Adapter directories by name.
        tokenizer: The base model's tokenizer.
    """
    return {name: prompt_style(path, tokenizer) for name, path in {BASE: model_dir, **adapters}.items()}
