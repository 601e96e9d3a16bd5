"""How stores are reached: whose endpoint and keys are used, for fsspec and for obstore alike."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from refusing_bucket import BUCKET, DENIED, refusing_bucket

from tasks.settings import POD_ENVIRONMENT
from thriftune.stores import access, object_stores
from thriftune.stores import aws as amazon

ROOT = Path(__file__).parents[2]
CLOSED = "http://127.0.0.1:9"
PROFILE = "[{}]\naws_access_key_id = {}\naws_secret_access_key = secret\nendpoint_url = {}\nregion = eu-west-1\n"


@pytest.fixture(autouse=True)
def as_before():
    used = dict(access._used)
    yield
    access.use(used)


@pytest.fixture(scope="module")
def server():
    with refusing_bucket() as server:
        server.client.put_object(Bucket=BUCKET, Key="by-fsspec", Body=b"1")
        server.client.put_object(Bucket=BUCKET, Key="by-obstore", Body=b"2")
        yield server


def flyte(server):
    return {
        "FLYTE_AWS_ENDPOINT": server.endpoint, "FLYTE_AWS_ACCESS_KEY_ID": "FLYTEKEY",
        "FLYTE_AWS_SECRET_ACCESS_KEY": "secret",
    }  # fmt: skip


def aws(server):
    return {"AWS_ENDPOINT_URL": server.endpoint, "AWS_ACCESS_KEY_ID": "AWSKEY", "AWS_SECRET_ACCESS_KEY": "secret"}


def in_home(server, home, profile="default"):
    (home / ".aws").mkdir()
    (home / ".aws" / "credentials").write_text(PROFILE.format(profile, "HOMEKEY", server.endpoint))
    return {} if profile == "default" else {"AWS_PROFILE": profile}


def of_fsspec(server, home):
    folder = home / ".config" / "fsspec"
    folder.mkdir(parents=True)
    options = {"key": "FSSPECKEY", "secret": "secret", "client_kwargs": {"endpoint_url": server.endpoint}}
    (folder / "conf.json").write_text(json.dumps({"s3": options}))
    return {}


def variables_of_fsspec(server, _home):
    return {
        "FSSPEC_S3_KEY": "FSSPECKEY", "FSSPEC_S3_SECRET": "secret", "FSSPEC_S3_ENDPOINT_URL": server.endpoint,
    }  # fmt: skip


# Where endpoint and keys are given, the key that must be used, and how it is called.
GIVEN = {
    "FLYTE_AWS_*": (lambda s, _: flyte(s), "FLYTEKEY", "FLYTE_AWS_ACCESS_KEY_ID or Flyte's configuration"),
    "AWS_*": (lambda s, _: aws(s), "AWSKEY", "AWS_ACCESS_KEY_ID"),
    "~/.aws": (in_home, "HOMEKEY", "shared-credentials-file"),
    "AWS_PROFILE": (lambda s, home: in_home(s, home, "other"), "HOMEKEY", "shared-credentials-file"),
    "fsspec's file": (of_fsspec, "FSSPECKEY", "the configuration of fsspec"),
    "fsspec's variables": (variables_of_fsspec, "FSSPECKEY", "the configuration of fsspec"),
    "all of them": (
        lambda s, home: {
            **in_home(s, home), **aws(s), **variables_of_fsspec(s, home), "FSSPEC_S3_ENDPOINT_URL": CLOSED, **flyte(s),
        },
        "FLYTEKEY", "FLYTE_AWS_ACCESS_KEY_ID or Flyte's configuration",
    ),
}  # fmt: skip


@pytest.mark.parametrize("where", GIVEN)
def test_keys_are_found_wherever_they_are_given_for_both_libraries(server, tmp_path, where):
    """Pods of the sandbox get FLYTE_AWS_* only, which no look-up of ours read."""
    give, key, origin = GIVEN[where]
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("AWS_", "FLYTE_", "FSSPEC_", "XDG_"))}
    environment |= {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true", "PYTHONPATH": str(ROOT)}
    environment |= give(server, tmp_path)
    server.keys.clear()
    command = [sys.executable, str(Path(__file__).with_name("reaching.py")), BUCKET]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == origin
    assert set(server.keys) == {key}
    assert len(server.keys) >= 3


def test_options_are_merged_and_the_orchestrators_win(monkeypatch):
    of_fsspec = {
        "key": "theirs",
        "anon": True,
        "client_kwargs": {"region_name": "eu-west-1", "endpoint_url": "http://a"},
    }
    monkeypatch.setitem(fsspec.config.conf, "s3", of_fsspec)
    access.use({"s3": {"key": "ours", "client_kwargs": {"endpoint_url": "http://b"}}})
    found = access.of("s3://bucket/x")
    assert found.options["key"] == "ours"
    assert found.options["anon"] is True
    assert found.options["client_kwargs"] == {"region_name": "eu-west-1"}
    assert found.options["endpoint_url"] == "http://b"
    assert found.options["config_kwargs"]["read_timeout"] == access.READ_S
    assert found.endpoint == "http://b"
    access.use({})
    assert access.of("s3://bucket/x").options["key"] == "theirs"
    assert of_fsspec["client_kwargs"]["endpoint_url"] == "http://a"


@pytest.mark.parametrize(
    ("url", "protocol"),
    [
        ("s3://b/x", "s3"), ("s3a://b/x", "s3"), ("gs://b/x", "gs"), ("gcs://b/x", "gs"),
        ("abfs://c@a.dfs.core.windows.net/x", "abfs"), ("abfss://c/x", "abfs"), ("az://c/x", "abfs"),
        ("file:///x", "file"), ("local:///x", "file"), ("/x", "file"), ("rows-*.jsonl", "file"),
        ("memory://x", "memory"), ("https://h/x", "https"),
    ],
)  # fmt: skip
def test_a_protocol_has_one_name(url, protocol, monkeypatch):
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    assert access.protocol_of(url) == protocol
    assert (object_stores.why_not(access.of(url)) == "") == (protocol in ("s3", "gs", "abfs"))


@pytest.mark.parametrize("url", ["s3a://b/x", "gcs://b/x", "abfss://c/x"])
def test_options_are_those_of_all_names_of_a_protocol(url):
    access.use({"s3": {"key": "k"}, "gs": {"token": "anon"}, "abfs": {"account_name": "n"}})
    assert access.of(url).options.items() >= access._used[access.protocol_of(url)].items()


def test_what_is_pickled_knows_its_keys_and_shows_none(server):
    """Processes that are spawned know no configuration."""
    access.use({"s3": {"key": "AKEY", "secret": "s3cret", "client_kwargs": {"endpoint_url": server.endpoint}}})
    sent = pickle.dumps(access.of(f"s3://{BUCKET}"))
    access.use({})
    copy = pickle.loads(sent)
    assert "s3cret" not in f"{copy!r} {copy}"
    assert "AKEY" not in repr(copy)
    filesystem, path = copy.opened(f"s3://{BUCKET}/by-fsspec")
    assert filesystem.cat_file(path) == b"1"
    assert bytes(object_stores.make(copy, BUCKET).get("by-obstore").bytes()) == b"2"
    assert server.keys[-1] == "AKEY"


def test_keys_reach_no_pod_of_another():
    assert not [name for name in POD_ENVIRONMENT if "AWS" in name or "FSSPEC" in name]


@pytest.mark.parametrize(
    ("bucket", "account"), [("box@mine.dfs.core.windows.net", "mine"), ("box", "configured")]
)  # fmt: skip
def test_an_azure_url_may_name_the_account(bucket, account):
    access.use({"abfs": {"account_name": "configured", "account_key": "a2V5"}})
    store = object_stores.make(access.of(f"abfs://{bucket}/x"), bucket)
    assert store.config["account_name"] == account
    assert store.config["container_name"] == "box"


def test_google_takes_a_file_of_keys_or_nothing(tmp_path):
    access.use({"gs": {"token": "anon"}})
    assert object_stores.make(access.of("gs://b"), "b").config["skip_signature"]


@pytest.mark.parametrize("key", ["k", DENIED])
def test_the_region_of_a_bucket_is_the_one_it_is_in(server, monkeypatch, key):
    """Amazon refuses what is signed for another region, and says it to keys that may not list the bucket too."""
    if key != DENIED:
        server.client.create_bucket(Bucket="elsewhere", CreateBucketConfiguration={"LocationConstraint": "eu-north-1"})
    access.use({"s3": {"key": key, "secret": "s", "client_kwargs": {"endpoint_url": server.endpoint}}})
    assert object_stores.make(access.of("s3://elsewhere"), "elsewhere").config["region"] == "us-east-1"
    monkeypatch.setattr(amazon, "_regions", {})
    monkeypatch.setattr(access.Access, "endpoint", "")
    assert object_stores.make(access.of("s3://elsewhere"), "elsewhere").config["region"] == "eu-north-1"


def test_keys_of_one_origin_are_not_mixed_with_another_s_token(monkeypatch):
    """FLYTE_AWS_* were signed together with the session token of a laptop's login."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "other")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "other")
    given = amazon.keys_for_obstore({"key": "k", "secret": "s"})()
    assert given == {"access_key_id": "k", "secret_access_key": "s", "expires_at": None}
    assert amazon.keys_for_obstore({})()["token"] == "other"


@pytest.mark.parametrize(("endpoint", "why"), [("https://mine", "it does not know AWS_CA_BUNDLE"), ("http://mine", "")])
def test_certificates_of_amazon_s_variables_are_known_to_fsspec_alone(monkeypatch, endpoint, why):
    monkeypatch.setenv("AWS_CA_BUNDLE", "/etc/ca.pem")
    assert object_stores.why_not(access.Access("s3", {"endpoint_url": endpoint})) == why


@pytest.mark.parametrize(
    ("url", "options", "why"),
    [
        ("s3://b/x", {"client_kwargs": {"verify": "/etc/ca.pem"}}, "it does not know client_kwargs.verify"),
        ("s3://b/x", {"version_aware": True}, "it does not know version_aware"),
        ("s3://b/x", {"s3_additional_kwargs": {"ACL": "a"}}, "it does not know s3_additional_kwargs.ACL"),
        ("gs://b/x", {"token": "google_default"}, "it does not know this token"),
        ("abfs://b/x", {"connection_string": "c"}, "it does not know connection_string"),
        ("https://b/x", {}, "it has no client for it"),
    ],
)  # fmt: skip
def test_with_options_that_obstore_does_not_know_fsspec_moves_the_files(url, options, why):
    """They were left out without a word."""
    found = access.Access(access.protocol_of(url), options)
    assert object_stores.why_not(found) == why


def test_what_a_bucket_demands_is_handed_on():
    kms = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "k"}
    access.use({"s3": {"endpoint_url": CLOSED, "requester_pays": True, "s3_additional_kwargs": kms}})
    config = object_stores.make(access.of("s3://b"), "b").config
    assert (config["server_side_encryption"], config["sse_kms_key_id"]) == ("aws:kms", "k")
    assert config["request_payer"]


def test_a_region_that_is_configured_is_not_asked_for(server):
    server.keys.clear()
    access.use({"s3": {"key": "k", "secret": "s", "client_kwargs": {"region_name": "eu-west-3"}}})
    assert object_stores.make(access.of("s3://any"), "any").config["region"] == "eu-west-3"
    assert server.keys == []


def test_which_urls_are_files():
    assert [access.has_files(url) for url in ("s3://b/x", "abfss://c/x", "/x", "memory://x", "https://h/x")] == [
        True
    ] * 5
    assert not access.has_files("bq://project.dataset.table")
