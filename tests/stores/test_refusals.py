"""What a store refuses is one message, whoever asked: which bucket, with which keys, and what to set."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import s3fs
import yaml
from conftest import run_dict
from flytekit import FlyteContextManager
from flytekit.core.data_persistence import FileAccessProvider
from flytekit.types.structured import StructuredDataset
from refusing_bucket import BUCKET, DENIED, GOOD, WRONG, refusing_bucket

from tasks import results, settings, transfer
from thriftune.config import ModelConfig
from thriftune.data import sources
from thriftune.errors import ResultError, ThriftuneError, TransientError, UserError
from thriftune.models import architecture, config_json
from thriftune.models import fetching as models
from thriftune.models.adapter_weights import RESUME_FROM
from thriftune.models.weight_files import Folder, weights_in
from thriftune.planning import catalogue
from thriftune.preflight import adapters
from thriftune.stores import access, failures, index, object_stores, retrying
from thriftune.stores.store import Store

ROOT = Path(__file__).parents[2]
CLOSED = "http://127.0.0.1:9"
KEYS = "They are looked for in: FLYTE_AWS_ACCESS_KEY_ID and FLYTE_AWS_SECRET_ACCESS_KEY, FSSPEC_S3_KEY"


def by_obstore(place):
    """As the module that moves files asks and explains."""
    with failures.explained("model.source", place, UserError):
        list(object_stores.make(access.of(place), place.removeprefix("s3://")).list())


def try_outputs(place, folder):
    """What the preflight says of the place for results, or why it does not know."""
    context = FlyteContextManager.current_context()
    writing = FileAccessProvider(str(folder), f"{place}/outputs")
    with FlyteContextManager.with_context(context.with_file_access(writing)):
        tried = transfer.try_outputs()
    assert {prefix.startswith(place) for prefix, _ in tried.values()} == {True}
    refused = [UserError.single(setting, prefix, why, "") for setting, (prefix, why) in tried.items() if why]
    if refused:
        assert len(refused) == len(tried) == 2
        raise refused[0]


def send_file(place, folder):
    """What is refused while it sends a file obstore raises as an OSError of no kind: it was tried again for minutes."""
    (folder / "shard").write_bytes(b"x")
    Store(f"{place}/run", pauses=()).upload(folder / "shard", "shard")


# Everything that reaches into a store, by what it is for.
ASKING = {
    "model version": lambda place, _: models.version(f"{place}/model"),
    "model fetched": lambda place, folder: models.fetch(f"{place}/model", "1", folder / "model"),
    "model's configuration": lambda place, _: architecture.of(ModelConfig(source=f"{place}/model")),
    "weight headers": lambda place, _: weights_in(Folder(f"{place}/model"), f"{place}/model"),
    "GGUF version": lambda place, _: models.version(f"{place}/tiny.gguf"),
    "GGUF head": lambda place, _: config_json.read(ModelConfig(source=f"{place}/tiny.gguf"), None),
    "GGUF fetched": lambda place, folder: models.fetch(f"{place}/tiny.gguf", "1", folder / "model"),
    "data version": lambda place, _: sources.version(f"{place}/rows.jsonl"),
    "data version of a glob": lambda place, _: sources.version(f"{place}/rows/*.jsonl"),
    "data rows": lambda place, folder: sources.brought(f"{place}/rows.jsonl", f"{place}/rows.jsonl", folder),
    "table version": lambda place, _: transfer.table_version(StructuredDataset(uri=f"{place}/table")),
    "catalogue": lambda place, _: catalogue.load(f"{place}/nodes.yaml"),
    "adapter version": lambda place, _: models.version(f"{place}/adapter", field=RESUME_FROM),
    "adapter": lambda place, folder: adapters._bring(f"{place}/adapter", folder, "lora.resume_from"),
    "checkpoints listed": lambda place, _: Store(f"{place}/run", pauses=()).names(),
    "checkpoint read": lambda place, _: Store(f"{place}/run", pauses=()).get_bytes("manifest.json"),
    "checkpoint's file sent": send_file,
    "checkpoint written": lambda place, _: Store(f"{place}/run", pauses=()).put_bytes("manifest.json", b"{}"),
    "results written": try_outputs,
    "files moved": lambda place, _: by_obstore(place),
}


@pytest.fixture(scope="module")
def server():
    with refusing_bucket() as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch, tmp_path):
    """No keys anywhere, and nothing remembered of another test."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    used = dict(access._used)
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    access.use(used)
    s3fs.S3FileSystem.clear_instance_cache()


def said(what, place, folder, key, endpoint):
    """The message that something gets from a store, without its first line."""
    keys = {"key": key, "secret": "s3cret"} if key else {}
    access.use({"s3": {"client_kwargs": {"endpoint_url": endpoint}, **keys}})
    with pytest.raises(ThriftuneError) as caught:
        ASKING[what](place, folder)
    assert "s3cret" not in str(caught.value)
    assert isinstance(caught.value, TransientError) == (endpoint == CLOSED)
    (problem,) = [line for line in str(caught.value).splitlines() if "s3://" in line]
    return problem


@pytest.mark.parametrize("what", ASKING)
@pytest.mark.parametrize("key", [WRONG, DENIED])
def test_keys_that_are_refused(server, tmp_path, what, key):
    words = r"(403: Forbidden|InvalidAccessKeyId: .*|AccessDenied: .*)"
    with_keys = "with keys from FLYTE_AWS_ACCESS_KEY_ID or Flyte's configuration"
    message = said(what, f"s3://{BUCKET}", tmp_path, key, server.endpoint)
    assert re.search(
        rf"access is denied to s3://{BUCKET} at {server.endpoint}, {with_keys} \({words}\)\. Give", message
    )
    assert KEYS in message
    assert "FLYTE_AWS_ENDPOINT or AWS_ENDPOINT_URL names the server" in message


@pytest.mark.parametrize("what", ASKING)
def test_no_keys_at_all(server, tmp_path, what):
    """It was NoCredentialsError, under sixty lines of traceback."""
    message = said(what, f"s3://{BUCKET}", tmp_path, "", server.endpoint)
    assert f"access is denied to s3://{BUCKET} at {server.endpoint}, and no keys were found" in message
    assert KEYS in message


@pytest.mark.parametrize("what", [what for what in ASKING if what != "checkpoint read"])  # which is simply not there
def test_no_such_bucket(server, tmp_path, what):
    """Of data it was "no such file", and of checkpoints a plain FileNotFoundError."""
    message = said(what, "s3://no-such-bucket", tmp_path, GOOD, server.endpoint)
    assert f"there is no bucket s3://no-such-bucket at {server.endpoint}. Create it, or name one" in message
    assert "FLYTE_AWS_ENDPOINT or AWS_ENDPOINT_URL names the server" in message


@pytest.mark.parametrize("what", ASKING)
def test_a_server_that_does_not_answer(tmp_path, what, monkeypatch):
    monkeypatch.setattr(retrying, "PAUSES_S", ())
    message = said(what, f"s3://{BUCKET}", tmp_path, GOOD, CLOSED)
    assert "the store cannot be reached or does not answer (" in message
    assert f"It was asked at {CLOSED} (FLYTE_AWS_ENDPOINT or AWS_ENDPOINT_URL names the server)." in message


def test_a_table_in_a_warehouse_has_no_files(tmp_path):
    first, again = (transfer.table_version(StructuredDataset(uri="bq://project.dataset.table")) for _ in range(2))
    assert first == again


def test_a_table_is_known_by_its_files(tmp_path):
    part = Path(tmp_path / "table" / "00000")
    part.parent.mkdir()
    part.write_bytes(b"1")
    first = transfer.table_version(StructuredDataset(uri=str(part.parent)))
    assert first == transfer.table_version(StructuredDataset(uri=str(part.parent)))
    part.write_bytes(b"22")
    assert first != transfer.table_version(StructuredDataset(uri=str(part.parent)))


def test_a_result_that_may_no_longer_be_read_is_made_anew(server, tmp_path, caplog):
    """A bucket of earlier that was closed since ended every later run, for good."""
    first = index.look_up(str(tmp_path), "model-1", "the model")
    index.remember(first.record, [f"s3://{BUCKET}/of-earlier"], {})
    access.use({"s3": {"client_kwargs": {"endpoint_url": server.endpoint}, "key": DENIED, "secret": "s3cret"}})
    second = index.look_up(str(tmp_path), "model-1", "the model")
    assert (second.generation != first.generation, second.made) == (True, None)
    assert "the model is no longer whole in the store, or may not be read, and is made anew: s3://th" in caplog.text
    assert f"access is denied to s3://{BUCKET}" in caplog.text


def test_a_result_that_may_not_be_read_at_the_end_of_a_run_is_named_as_what_it_is(server, monkeypatch):
    """The message said "checkpoints = ... [checkpoint-not-found]", of a model."""
    monkeypatch.setattr(settings, "is_local", lambda: False)
    access.use({"s3": {"client_kwargs": {"endpoint_url": server.endpoint}, "key": DENIED, "secret": "s3cret"}})
    place = f"s3://{BUCKET}/model"
    with pytest.raises(ResultError) as caught:
        results.require_there({"model": place, "adapter": f"s3://{BUCKET}/adapter"})
    assert [problem.field for problem in caught.value.problems] == ["model", "adapter"]
    problem = caught.value.problems[0]
    assert (problem.value, problem.code) == (place, "result-missing")
    assert f"cannot be looked at: access is denied to s3://{BUCKET}" in problem.message
    assert KEYS in problem.remedy


def run(server, folder, key):
    config = run_dict("qlora", model={"source": f"s3://{BUCKET}/model"}, data={"source": f"s3://{BUCKET}/rows.jsonl"})
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    variables = {"FLYTE_AWS_ENDPOINT": server.endpoint, "HOME": str(folder), "AWS_EC2_METADATA_DISABLED": "true"}
    if key:
        variables |= {"FLYTE_AWS_ACCESS_KEY_ID": key, "FLYTE_AWS_SECRET_ACCESS_KEY": "s3cret"}
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("AWS_", "FLYTE_", "FSSPEC_"))} | variables
    command = [Path(sys.executable).with_name("pyflyte"), "run", ROOT / "workflows/qlora_finetune.py", "qlora_finetune"]
    return subprocess.run(
        [*command, "--config", folder / "run.yaml"], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("key", "said"), [(WRONG, "Flyte's configuration (403"), ("", "and no keys were found (NoCred")]
)
def test_a_run_that_is_refused_ends_with_the_message_alone(server, tmp_path, key, said):
    """Sixty lines of traceback stood above it, and ten thousand characters of frames."""
    done = run(server, tmp_path, key)
    assert done.returncode == 1
    last = (
        "ModelSourceError: The base model cannot be used (1 problem):\n  - model.source = s3://things/model: access is"
    )
    assert f"{last} denied" in done.stderr
    assert said in done.stderr.rpartition("ModelSourceError")[2]
    assert len((done.stdout + done.stderr).splitlines()) < 10
    assert "Traceback" not in done.stdout + done.stderr
