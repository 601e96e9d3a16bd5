"""Errors of single requests, in the shape that OpenAI's clients read."""

from dataclasses import dataclass

from thriftune.redaction import redacted

_KINDS = {401: "authentication_error", 429: "rate_limit_error"}


@dataclass(eq=False)  # not frozen: Python writes an error's traceback into it
class RefusedError(Exception):
    """A request that is not answered.

    Attributes:
        status: HTTP status.
        message: What is wrong and what to do, in one line.
        param: The field of the request that is wrong; empty if none is.
        code: Short name of the problem.
        retry_after: Seconds after which another try may work; None if it will not.
    """

    status: int
    message: str
    param: str = ""
    code: str = ""
    retry_after: int | None = None

    def __post_init__(self) -> None:
        super().__init__(self.message)

    @property
    def body(self) -> dict[str, dict[str, str | None]]:
        """What the client gets, as JSON."""
        kind = _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        message = " ".join(redacted(self.message).split())
        return {"error": {"message": message, "type": kind, "param": self.param or None, "code": self.code or None}}

    @property
    def headers(self) -> dict[str, str]:
        """What stands in the answer's head."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def draining() -> RefusedError:
    """The server was told to end."""
    return RefusedError(503, "The server is shutting down. Ask another one, or later.", code="draining", retry_after=5)


def loading() -> RefusedError:
    """The model is not there yet."""
    return RefusedError(503, "The model is still being loaded. Ask again.", code="loading", retry_after=5)


def too_slow(seconds: float) -> RefusedError:
    """A request took longer than it may.

    Args:
        seconds: The limit.
    """
    message = f"The answer took more than {seconds:.0f} s (--request-seconds). Ask for fewer tokens, or later."
    return RefusedError(504, message, code="timeout")
