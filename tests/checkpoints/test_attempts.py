"""Every attempt finds all those before it, whatever became of them."""

import threading

import pytest
from checkpointing import save_steps

from thriftune.checkpoints.attempts import begin_attempt
from thriftune.checkpoints.layout import ATTEMPTS
from thriftune.checkpoints.restoring import complete
from thriftune.stores.store import Store

pytest_plugins = ("store_kinds",)


def prefixes(stores):
    return [store.prefix for store in stores]


@pytest.mark.parametrize("previous", [None, "", '""', "''"])
def test_the_first_attempt_is_alone(local, previous):
    assert prefixes(begin_attempt(local.prefix, previous)) == [local.prefix]
    assert local.names() == [], "a run that dies before its first checkpoint is not the newest one to go on from"


def test_four_attempts_where_the_second_died_before_it_saved(store, tmp_path):
    places = [f"{store.prefix}-{number}" for number in range(4)]
    for number, place in enumerate(places):
        stores = begin_attempt(place, places[number - 1] if number else None)
        assert prefixes(stores) == list(reversed(places[: number + 1]))
        if number != 1:
            save_steps(stores[0], tmp_path / str(number), 10 * (number + 1))
    assert [(s.prefix, m.step) for s, m in complete(stores)] == [(places[3], 40), (places[2], 30), (places[0], 10)]


def test_all_ranks_of_all_nodes_may_begin_at_once_and_again(store):
    first, second = f"{store.prefix}-0", f"{store.prefix}-1/"
    begin_attempt(first, None)
    found: list[list[str]] = []
    threads = [threading.Thread(target=lambda: found.append(prefixes(begin_attempt(second, first)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[second.rstrip("/"), first]] * 4
    assert prefixes(begin_attempt(second, first)) == found[0]
    assert Store(second).names() == [ATTEMPTS]


@pytest.mark.parametrize("content", [b"[", b'{"a": 1}', b"[1]", b"\xff\xfe", b"null"])
def test_a_broken_list_is_said_and_what_is_known_goes_on(local, caplog, content):
    before = Store(f"{local.prefix}-0")
    before.put_bytes(ATTEMPTS, content)
    assert prefixes(begin_attempt(local.prefix, before.prefix)) == [local.prefix, before.prefix]
    assert f"{before.prefix}/attempts.json is damaged" in caplog.text


def test_what_was_learned_once_stays_when_the_list_before_breaks_later(local):
    places = [f"{local.prefix}-{number}" for number in range(3)]
    begin_attempt(places[0], None)
    begin_attempt(places[1], places[0])
    begin_attempt(places[2], places[1])
    Store(places[1]).put_bytes(ATTEMPTS, b"?")
    assert prefixes(begin_attempt(places[2], places[1])) == [places[2], places[1], places[0]]


def test_an_attempt_that_was_never_begun_still_counts_as_a_prefix(store):
    assert prefixes(begin_attempt(store.prefix, "memory://nowhere/at-all")) == [store.prefix, "memory://nowhere/at-all"]
