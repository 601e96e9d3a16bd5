"""A server as its clients see it: answers equal to generate's, errors of one line, and an end that loses nothing."""

import json
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from serving.http_server import question, serving
from thriftune.hardware import DEVICES
from thriftune.inference.generation import generate
from thriftune.models.answering import Sampling
from thriftune.models.loading import Placement

CPU = Placement(DEVICES["CPU"], "fp32")
PROMPTS = ["What is the capital of France?", "hi", "The quick brown fox jumps over the lazy dog", "Zwölf Öfen, 猫?"]
TOKENS = 20
THREADS, QUESTIONS_EACH = 16, 4


@pytest.fixture(scope="module")
def adapters(module_adapters):
    return module_adapters


@pytest.fixture(scope="module")
def server(tiny_model_dir, adapters, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log"
    with serving(tiny_model_dir, adapters, log, ["--max-tokens", "200"]) as running:
        yield running


@pytest.fixture(scope="module")
def expected(tiny_model_dir, adapters):
    """What generate answers, by model and prompt."""
    found = {}
    for name in ("base", *adapters):
        given = {name: adapters[name]} if name in adapters else {}
        answers = generate(tiny_model_dir, PROMPTS, adapters=given, placement=CPU, sampling=Sampling(TOKENS), batch=1)
        found |= {(name, answer.prompt): answer.answer for answer in answers}
    return found


def client_of(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


def answer(client, model, prompt, *, stream):
    """The answer of a model, and why it ended."""
    reply = client.chat.completions.create(**question(prompt, model, max_tokens=TOKENS), stream=stream)
    if not stream:
        return reply.choices[0].message.content, reply.choices[0].finish_reason
    chunks = [chunk.choices[0] for chunk in reply]
    return "".join(chunk.delta.content or "" for chunk in chunks), chunks[-1].finish_reason


def test_every_answer_under_load_is_that_of_generate(server, expected):
    """16 clients at once, streaming and not, all models in one batch: nothing is lost, no row has another's text."""
    keys, clients = list(expected), [client_of(server) for _ in range(THREADS)]

    def ask_on(thread):
        for number in range(QUESTIONS_EACH):
            model, prompt = keys[(7 * thread + number) % len(keys)]
            text, end = answer(clients[thread], model, prompt, stream=bool((thread + number) % 2))
            assert (text, end) == (expected[model, prompt], "length")

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(ask_on, range(THREADS)))
    assert server.metric("thriftune_accepted") == 0
    alone, steps = (server.metric(f"thriftune_batch_rows_{name}") for name in ('bucket{le="2.0"}', "count"))
    assert alone < steps, "the answers were decoded one after the other"
    with server.client() as client:
        assert 'thriftune_requests_total{model="a1",status="200"}' in client.get("/metrics").text


def test_the_models_are_the_base_and_the_adapters(server, adapters):
    client = client_of(server)
    assert [model.id for model in client.models.list()] == ["base", *adapters]
    assert client.models.retrieve("a2").id == "a2"
    with pytest.raises(openai.NotFoundError, match="There are: base, a1"):
        client.models.retrieve("../a2")


def test_usage_and_choices_are_counted(server):
    reply = server.ask(model="a1", n=3, temperature=0.8, seed=5, max_tokens=6).json()
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in reply["choices"]}) > 1
    assert reply["usage"]["completion_tokens"] == 18
    assert reply["usage"]["total_tokens"] == reply["usage"]["prompt_tokens"] + 18
    again = server.ask(model="a1", n=3, temperature=0.8, seed=5, max_tokens=6).json()
    assert again["choices"] == reply["choices"]


def test_a_stream_ends_with_its_counts_if_they_are_asked_for(server):
    body = question("hi", "a3", stream=True, stream_options={"include_usage": True})
    with server.client() as client:
        text = client.post("/v1/chat/completions", json=body).text
    events = [event.removeprefix("data: ") for event in text.split("\n\n") if event]
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["usage"]["completion_tokens"] == 8
    assert all(json.loads(event)["usage"] is None for event in events[:-2])


def test_an_answer_ends_before_a_stop_text(server, expected):
    whole = next(text for (model, _), text in expected.items() if model == "a1" and len(text) > 8)
    prompt = next(prompt for (model, prompt), text in expected.items() if model == "a1" and text == whole)
    stop = whole[4:6]
    for stream in (False, True):
        body = question(prompt, "a1", max_tokens=TOKENS, stop=[stop])
        reply = client_of(server).chat.completions.create(**body, stream=stream)
        if stream:
            chunks = [chunk.choices[0] for chunk in reply]
            text, end = "".join(chunk.delta.content or "" for chunk in chunks), chunks[-1].finish_reason
        else:
            text, end = reply.choices[0].message.content, reply.choices[0].finish_reason
        assert (text, end) == (whole[: whole.index(stop)].rstrip(), "stop")


def test_earlier_turns_are_read(server):
    turns = [
        {"role": "user", "content": "My cat is red."},
        {"role": "assistant", "content": "Nice."},
        {"role": "user", "content": [{"type": "text", "text": "What colour?"}]},
    ]
    long = server.ask(messages=turns).json()
    assert long["usage"]["prompt_tokens"] > server.ask(messages=turns[-1:]).json()["usage"]["prompt_tokens"]


def test_a_signal_under_load_loses_no_accepted_request(tiny_model_dir, adapters, expected, tmp_path):
    """SIGTERM comes twice, as `timeout` sends it: each request is answered in full, or refused with 503."""
    ended, results = threading.Event(), []

    def ask_on(client, model, prompt, number):
        while not ended.is_set():
            try:
                text, end = answer(client, model, prompt, stream=bool(number % 2))
            except openai.APIConnectionError:
                ended.set()  # the port is closed: it has exited
                return
            except openai.InternalServerError as error:
                results.append(error.status_code)
                return
            assert (text, end) == (expected[model, prompt], "length")
            results.append("answered")

    with serving(tiny_model_dir, adapters, tmp_path / "log", ["--max-batch", "4"]) as server:
        keys = list(expected)
        threads = [
            threading.Thread(target=ask_on, args=(client_of(server), *keys[n % len(keys)], n)) for n in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 60
        while len(results) <= THREADS:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        before = len(results)
        server.process.send_signal(signal.SIGTERM)
        assert server.end() == 0
        for thread in threads:
            thread.join(30)
        log = server.log.read_text()
    answered = results.count("answered")
    assert log.count(" 200 model=") == answered, "an accepted request has no answer"
    assert answered > before
    assert {*results} <= {"answered", 503}
    assert "Traceback" not in log
    assert "leaked" not in log
