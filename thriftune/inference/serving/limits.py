"""What a server takes in at most, and how long it waits."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of a server. Each has an answer: an error that names it, for that request alone.

    Attributes:
        max_batch: Answers that are decoded at once.
        max_queue: Answers that wait for a place at most; more are refused with status 429.
        max_prompt_tokens: Longest question, in tokens.
        max_tokens: Longest answer, in tokens; also where a request does not say.
        max_body_bytes: Longest body of a request.
        max_connections: Connections at once. Another one takes the place of one that sends no request.
        request_seconds: From a request's arrival to the end of its answer.
        head_seconds: Until a connection has sent the head of a request, and then again until its body is there.
        stall_seconds: How long a client may leave what it is sent unread.
        drain_seconds: How long a server that was told to end answers what it has accepted.
    """

    max_batch: int = 8
    max_queue: int = 64
    max_prompt_tokens: int = 4096
    max_tokens: int = 1024
    max_body_bytes: int = 1 << 20
    max_connections: int = 256
    request_seconds: float = 300.0
    head_seconds: float = 10.0
    stall_seconds: float = 30.0
    drain_seconds: float = 60.0
