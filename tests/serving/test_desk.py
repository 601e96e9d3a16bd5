"""Who is taken in, and until when: places are free again whatever a client does."""

import asyncio
from dataclasses import replace

import pytest

from thriftune.inference.serving.asking import Ask, Cancel, Piece, Report
from thriftune.inference.serving.desk import Desk, Told
from thriftune.inference.serving.limits import Limits
from thriftune.inference.serving.metrics import UNKNOWN
from thriftune.inference.serving.refusals import RefusedError


@pytest.fixture
def sent():
    """What the decoder was asked."""
    return []


@pytest.fixture
def desk(sent):
    made = Desk(Limits(max_batch=2, max_queue=2), sent.append)
    made.state = "ready"
    return made


ASK = Ask("a", "base", (1, 2), 8, is_streamed=True)


def test_more_answers_than_there_are_places_are_never_told_to_come_again(desk):
    """It was status 429, which clients try again and again."""
    with pytest.raises(RefusedError, match="n = 5, and there are 4 places") as raised:
        desk.require_room(5)
    assert (raised.value.status, raised.value.param) == (400, "n")


def test_texts_that_are_read_have_places(desk):
    """However many came at once were all made into tokens, and then refused."""
    with desk.reading(3):
        with pytest.raises(RefusedError, match="3 answers are being made or wait") as raised, desk.reading(2):
            pass
        assert raised.value.status == 429
        with desk.reading(1):
            pass
    desk.require_room(4)


async def stream(desk, told, *, reads):
    """Stream an answer to a client that reads so many parts of it at first, and the rest once it was given up."""
    from thriftune.inference.serving.requests import read
    from thriftune.inference.serving.responses import EventStream

    given_up, parts = asyncio.Event(), []

    async def receive():
        await asyncio.Event().wait()

    async def send(message):
        if len(parts) >= reads and b"error" not in message.get("body", b"error"):
            await given_up.wait()
        parts.append(message.get("body", b"").decode())

    request = read(b'{"model": "base", "messages": [{"role": "user", "content": "hi"}]}', ["base"])
    answering = asyncio.create_task(EventStream(desk, request, [ASK], told)({}, receive, send))
    while not desk.accepted:
        await asyncio.sleep(0)
    desk.arrived(Report((Piece("a", "one", 1), Piece("a", "two", 2, finish="length")), 1, 0))
    while desk.accepted:
        await asyncio.sleep(0.01)
    given_up.set()
    await answering
    return parts


def test_a_client_that_reads_slowly_is_given_up_in_time(desk, sent):
    """Its places were held until it had read everything, though the decoder was long done."""
    told, desk.limits = Told(), replace(desk.limits, request_seconds=0.2)
    parts = asyncio.run(stream(desk, told, reads=2))
    assert told.outcome == 504
    assert '"code": "timeout"' in parts[-2]
    assert parts[-1] == ""
    assert "[DONE]" not in "".join(parts)
    assert sent == [ASK, Cancel("a")]


def test_one_that_reads_gets_everything(desk):
    told = Told()
    parts = asyncio.run(stream(desk, told, reads=99))
    assert told.outcome is None
    assert [word for word in ("one", "two", "[DONE]", "error") if word in "".join(parts)] == ["one", "two", "[DONE]"]


def test_no_adapter_is_counted_as_the_unknown_ones():
    from thriftune.config.benchmark_run import problem_of_name

    assert problem_of_name(UNKNOWN, "adapters", UNKNOWN) is not None
