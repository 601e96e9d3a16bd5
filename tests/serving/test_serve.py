"""The command line of the server: what is wrong is said before anything is loaded, and the key is asked for."""

import os
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psutil
import pytest

from serving.http_server import STARTING_SECONDS, command, question, serving
from thriftune.errors import ConfigError
from thriftune.inference.serve import main
from thriftune.inference.serving import checking

KEY = "a-key-of-letters-4711"
PATH = "/v1/chat/completions"


def wrong(capsys, *arguments):
    """The one line that a wrong command line gets."""
    assert main([str(argument) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --")
    return line


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["x"], "--adapters = x: is not NAME=DIR."),
        (["base=d"], "--adapters = base: is no name"),
        (["../x=d"], "--adapters = ../x: is no name"),
        (["a b=d"], "is no name for an adapter."),
        (["a=d", "a=e"], "--adapters = a: is there twice. Give each adapter a name of its own."),
        (["a="], "is not NAME=DIR."),
    ],
)
def test_names_of_adapters(capsys, tmp_path, given, text):
    assert text in wrong(capsys, "--base", tmp_path, "--adapters", *given)


def test_what_is_not_there(capsys, tmp_path, tiny_model_dir):
    assert "--base" in wrong(capsys, "--port", 0, "--base", tmp_path / "none")
    line = wrong(capsys, "--port", 0, "--base", tiny_model_dir, "--adapters", f"a={tmp_path / 'none'}")
    assert line.startswith(f"error: --adapters a = {tmp_path / 'none'}: ")


def test_an_adapter_of_another_base(capsys, tmp_path, tiny_model_dir, module_adapters):
    from transformers import AutoConfig, AutoModelForCausalLM

    from thriftune.models.tokenizer import load_tokenizer

    config = AutoConfig.from_pretrained(tiny_model_dir)
    config.hidden_size = config.intermediate_size = 32
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    load_tokenizer(tiny_model_dir).save_pretrained(tmp_path)
    capsys.readouterr()  # progress bars
    line = wrong(capsys, "--port", 0, "--base", tmp_path, "--adapters", f"a1={module_adapters['a1']}")
    assert line.startswith("error: --adapters a1 = ")
    assert "other shapes than the model needs" in line


def test_an_adapter_that_was_trained_on_another_base(tiny_model_dir, random_adapter):
    from thriftune import artifacts

    adapter = random_adapter(1)
    lineage = {"base": "another", "template": "", "parent": ""}
    artifacts.change_manifest(adapter, artifacts.read_content(adapter) | {"lineage": lineage})
    with pytest.raises(checking.AdapterError, match="--adapters a1 = .* was trained on another base model"):
        checking.require_servable(tiny_model_dir, {"a1": adapter})


CHANGED = {
    "biases": ({"bias": "lora_only"}, "trained biases are those of the base model"),
    "tokens": ({"trainable_token_indices": {"embed_tokens": [5, 6]}}, "beside one with tokens that trained"),
}


@pytest.mark.parametrize(("changes", "reason"), CHANGED.values(), ids=CHANGED)
def test_an_adapter_that_changes_the_base_is_not_served_beside_others(
    tmp_path, tiny_model_dir, module_adapters, changes, reason
):
    """One that had trained biases answered, and so did all others and the base, with these biases in every row."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype="float32")
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **changes)
    get_peft_model(model, config).save_pretrained(tmp_path / "own")
    with pytest.raises(checking.AdapterError, match=f"--adapters own = .* needs a copy of the base.*{reason}.*Merge"):
        checking.require_servable(tiny_model_dir, module_adapters | {"own": tmp_path / "own"})
    if "bias" in changes:  # of the one alone, who asks the base would get another
        with pytest.raises(checking.AdapterError, match=reason):
            checking.require_servable(tiny_model_dir, {"own": tmp_path / "own"})
    else:
        checking.require_servable(tiny_model_dir, {"own": tmp_path / "own"})


def test_types_that_one_server_cannot_have(tmp_path, tiny_model_dir, module_adapters):
    from peft import IA3Config, PrefixTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    for name, config in {
        "ia3": IA3Config(task_type="CAUSAL_LM"),
        "prefix": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
    }.items():
        model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype="float32")
        get_peft_model(model, config).save_pretrained(tmp_path / name)
    with pytest.raises(checking.AdapterError, match="ia3 = .* is of type IA3, and a1 of type LORA.*Start a server"):
        checking.require_servable(tiny_model_dir, module_adapters | {"ia3": tmp_path / "ia3"})
    with pytest.raises(checking.AdapterError, match="prefix = .* is of type PREFIX_TUNING, whose trained prefix"):
        checking.require_servable(tiny_model_dir, {"prefix": tmp_path / "prefix"})
    assert checking.require_servable(tiny_model_dir, {"ia3": tmp_path / "ia3"}) is None


def test_an_adapter_is_no_base(capsys, module_adapters):
    line = wrong(capsys, "--port", 0, "--base", module_adapters["a1"])
    assert line.startswith(f"error: --base = {module_adapters['a1']}: is an adapter, not a model.")


def test_adapters_of_each_flag_count(capsys, tmp_path):
    assert "a: is there twice" in wrong(capsys, "--base", tmp_path, "--adapters", "a=d", "--adapters", "a=e")


def test_what_only_a_manifest_needs_is_not_left_out_silently(capsys, tmp_path):
    line = wrong(capsys, "--base", tmp_path, "--files", "claim:models")
    assert line == "error: --files = claim:models: is for --manifest alone. Add --manifest k8s, or leave it out."


@pytest.mark.parametrize("port", ["99999", "-1", "http", ""])
def test_what_is_no_port(capsys, tmp_path, port):
    with pytest.raises(SystemExit) as ended:
        main(["--base", str(tmp_path), "--port", port])
    assert ended.value.code == 2
    assert f"argument --port: {port} is no port: 0 to 65535" in capsys.readouterr().err


def test_an_address_of_another_machine(tmp_path):
    with pytest.raises(ConfigError, match=r"--host = 192\.0\.2\.1: .*Name an address of this machine"):
        checking.listen("192.0.2.1", 0, has_key=True, is_open=False)


@pytest.mark.parametrize("threads", [0, -3])
def test_threads_above_zero(capsys, tmp_path, threads):
    assert f"--threads = {threads}: is not above zero." in wrong(capsys, "--base", tmp_path, "--threads", threads)


def test_limits_above_zero(capsys, tmp_path):
    assert "--max-tokens = 0: is no number above zero." in wrong(capsys, "--base", tmp_path, "--max-tokens", 0)


def test_a_port_in_use_is_known_before_the_model_is_loaded(capsys, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        line = wrong(capsys, "--base", tmp_path / "none", "--port", port)
    assert line.startswith(f"error: --port = {port}: cannot be listened on (Address already in use).")


def test_others_may_ask_only_with_a_key_or_if_somebody_says_so(capsys, tmp_path):
    assert "--host = 0.0.0.0: is reached from other machines" in wrong(
        capsys, "--base", tmp_path, "--host", "0.0.0.0", "--port", 0
    )
    for has_key, is_open in [(True, False), (False, True)]:
        checking.listen("0.0.0.0", 0, has_key=has_key, is_open=is_open).close()
    with pytest.raises(ConfigError, match="--host = nowhere.invalid"):
        checking.listen("nowhere.invalid", 0, has_key=True, is_open=False)


@pytest.mark.parametrize("content", ["", " \n", "short", f"{KEY}\n{KEY}"])
def test_a_key_is_one_long_line_and_never_shown(capsys, tmp_path, content):
    file = tmp_path / "key"
    file.write_text(content)
    line = wrong(capsys, "--base", tmp_path, "--api-key-file", file)
    assert f"--api-key-file = {file}" in line
    assert KEY not in line


def test_a_server_with_a_key(tiny_model_dir, module_adapters, tmp_path):
    """Whoever lacks it learns nothing, and neither it nor a text is in the log. What is too slow ends with a reason."""
    (tmp_path / "key").write_text(f"{KEY}\n")
    long = question("hi", max_tokens=100_000)
    limits = ["--max-tokens", "100000", "--request-seconds", "4", "--drain-seconds", "0.5"]
    options = ["--api-key-file", str(tmp_path / "key"), *limits]
    with serving(tiny_model_dir, module_adapters, tmp_path / "log", options) as server:
        for header in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": KEY},
            {"Authorization": f"Basic {KEY}"},
        ):
            with server.client(headers=header) as client:
                assert client.get("/health").status_code == client.get("/ready").status_code == 200
                for path in ("/v1/models", "/metrics", "/", "/info", "/nothing"):
                    assert client.get(path).status_code == 401
                reply = client.post(PATH, json=question("A SECRET TEXT"))
                assert reply.json()["error"]["code"] == "invalid_api_key"
        with server.client(headers={"Authorization": f"Bearer {KEY}"}) as client:
            assert client.post(PATH, json=question("A SECRET TEXT")).status_code == 200
            with ThreadPoolExecutor(2) as pool:  # both at the same time
                asks = [pool.submit(client.post, PATH, json=long | {"stream": stream}) for stream in (False, True)]
                slow, broken = (ask.result() for ask in asks)
            assert (slow.status_code, slow.json()["error"]["code"]) == (504, "timeout")
            assert '"code": "timeout"' in broken.text
            assert "[DONE]" not in broken.text
            with client.stream("POST", PATH, json=long | {"stream": True}) as given_up:
                assert server.end(signal.SIGINT) == 0
                assert '"code": "draining"' in given_up.read().decode()
        log = server.log.read_text()
    assert "Traceback" not in log
    assert KEY not in log
    assert "SECRET" not in log
    assert log.count(" 504 model=base") == 2


def test_a_server_lives_before_its_decoder_is_ready_and_ends_with_it(tiny_model_dir, module_adapters, tmp_path):
    with serving(tiny_model_dir, module_adapters, tmp_path / "log", state="loading") as server:
        with server.client() as client:
            assert (client.get("/health").status_code, client.get("/ready").status_code) == (200, 503)
            reply = client.post(PATH, json=question("hi"))
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "loading")
            assert reply.headers["retry-after"] == "5"
        server.wait_until("ready")
        _decoder_of(server).kill()
        assert server.process.wait(30) == 1
        assert "The decoding process ended with status -9" in server.log.read_text()


@pytest.mark.parametrize(
    ("state", "how", "status"), [("loading", "SIGTERM", 0), ("loading", "SIGKILL", -9), ("ready", "SIGKILL", -9)]
)
def test_nothing_is_left_of_a_server_that_ends(tiny_model_dir, module_adapters, tmp_path, state, how, status):
    """A decoder that was still loading took whoever was its parent afterwards for the server, and stayed for good."""
    with serving(tiny_model_dir, module_adapters, tmp_path / "log", state=state) as server:
        decoder = _decoder_of(server)
        assert server.end(signal.Signals[how]) == status
        with suppress(psutil.NoSuchProcess):
            decoder.wait(STARTING_SECONDS)
        assert not decoder.is_running()


def _decoder_of(server):
    children = psutil.Process(server.process.pid).children(recursive=True)
    (decoder,) = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    return decoder


def test_help_loads_no_libraries():
    python, *rest = command("x", {})[:3]
    told = [python, "-X", "importtime", *rest, "--help"]
    shown = subprocess.run(told, capture_output=True, text=True, timeout=60, check=True, env=os.environ)
    assert "--api-key-file FILE" in shown.stdout
    assert "--max-queue" in shown.stdout
    imported = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
    assert "thriftune.errors" in imported
    assert not imported & {"torch", "transformers", "litserve", "fastapi"}
