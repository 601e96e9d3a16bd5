"""Reading a chat request: what is understood is checked, and what is not is refused by name."""

import json
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from thriftune.data.tokenization import is_unicode
from thriftune.inference.serving.refusals import RefusedError
from thriftune.limits import is_too_deep

MOST_CHOICES = 8
_MOST_TOKENS = 1 << 31  # what is far beyond any limit is not quoted in thousands of digits
_SHOWN = 80  # characters of a wrong value in a message
# Fields of OpenAI's API that the server does not have, with the values that mean nothing.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "functions": (None, []),
    "function_call": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "modalities": (None, ["text"]),
}


# The decoder, which all share, looks for it at every token.
StopText = Annotated[str, Field(max_length=256)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TextPart(_Strict):
    """A part of a message; only text is read."""

    type: Literal["text"]
    text: str


class Said(_Strict):
    """A message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]

    @property
    def text(self) -> str:
        """Its text, whatever parts it came in."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(_Strict):
    """How an answer is streamed."""

    include_usage: bool | None = None


class ChatRequest(_Strict):
    """A request for an answer to a conversation. `user` and `metadata` label it, and change nothing."""

    model: str
    messages: list[Said] = Field(min_length=1, max_length=1000, fail_fast=True)
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=_MOST_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=_MOST_TOKENS)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None

    @property
    def wanted_tokens(self) -> int | None:
        """Longest answer, by the new name of the field or the old one."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts before which the answer ends."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


def read(body: bytes, served: Collection[str]) -> ChatRequest:
    """Read the body of a request.

    Args:
        body: As it was sent.
        served: The names of models that there are.

    Raises:
        RefusedError: With the field that is wrong.
    """
    content = _object_in(body)
    for name, harmless in _UNSUPPORTED.items():
        if name in content and content.pop(name) not in harmless:
            message = f"{name} is not supported by this server. Leave it out."
            raise RefusedError(400, message, name, "unsupported_parameter")
    _require_served(content.get("model"), served)
    try:
        request = ChatRequest.model_validate(content)
    except ValidationError as error:
        raise _invalid(error) from None
    texts = [*(message.text for message in request.messages), *request.stops]
    if not all(is_unicode(text) for text in texts):
        raise RefusedError(400, "A text holds half of a surrogate pair. Send valid Unicode.", "messages", "not_unicode")
    if "" in request.stops:
        raise RefusedError(400, "A stop text is empty. Leave it out.", "stop", "invalid_value")
    if not request.messages[-1].text.strip():
        raise RefusedError(400, "The last message is empty. Write one.", "messages", "invalid_value")
    return request


def _object_in(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body, object_pairs_hook=_without_twice)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)[:_SHOWN]
        raise RefusedError(400, f"The body is not JSON: {reason}. Send an object.", code="invalid_json") from None
    if not isinstance(content, dict):
        raise RefusedError(400, "The body is not a JSON object. Send one.", code="invalid_json")
    if is_too_deep(content):
        raise RefusedError(400, "The body is nested too deep. Send a flat JSON object.", code="invalid_json")
    return content


def _without_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, unless it has a key twice: one of the two would be left out without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise RefusedError(400, f"The key {twice[:_SHOWN]!a} is there twice. Send it once.", code="invalid_json")
    return found


def _require_served(model: object, served: Collection[str]) -> None:
    """Refuse a name that is not served. It is only looked up, and never a path."""
    if isinstance(model, str) and model not in served:
        message = f"There is no model {model[:_SHOWN]!a} here. Ask for one of: {', '.join(served)}."
        raise RefusedError(404, message, "model", "model_not_found")


def _invalid(error: ValidationError) -> RefusedError:
    """The first problem of a request, in one line."""
    problems = error.errors(include_url=False, include_context=False, include_input=True)
    first: Mapping[str, Any] = problems[0]
    # pydantic also names the alternative of a union that did not fit: str, list[TextPart].
    place = [part for part in first["loc"] if isinstance(part, int) or (part.isidentifier() and part != "str")]
    field = ".".join(str(part)[:_SHOWN] for part in place) or "body"
    if first["type"] == "extra_forbidden":
        message = f"{field} is not a field that this server knows. Leave it out."
        return RefusedError(400, message, field, "unknown_parameter")
    if first["type"] == "missing":
        return RefusedError(400, f"{field} is missing. Add it.", field, "missing_required_parameter")
    more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
    message = f"{field} = {ascii(first['input'])[:_SHOWN]}: {first['msg']}{more}. Correct it."
    return RefusedError(400, message, field, "invalid_value")
