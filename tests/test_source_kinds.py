"""What one step before training takes, every step takes: every kind of model source, through every step."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bucket import Bucket
from conftest import write_jsonl
from fake_hub import fake_hub
from source_client import STEPS
from tiny_gguf import write_gguf
from web import web

from thriftune.models import fetching as models

TESTS = Path(__file__).parent
# By kind: where the model is, with the parts that are known later.
TAKEN = {
    "hub": "owner/good",
    "folder": "{here}/model",
    "folder in a store": "s3://checkpoints/model",
    "folder in a store, with a slash": "s3://checkpoints/model/",
    "folder on a web server": "{web}/model",
    "gguf": "{here}/tiny.gguf",
    "gguf in a store": "s3://checkpoints/tiny.gguf",
    "gguf on a web server": "{web}/tiny.gguf",
    "signed gguf": "{web}/tiny.gguf?X-Amz-Expires=600&X-Amz-Signature=abc123",
}
REFUSED = {
    "no hub id": ("owner/missing", "is not on the hub"),
    "no folder": ("{here}/none", "does not exist or is empty"),
    "no folder in a store": ("s3://checkpoints/none", "holds no files"),
    "no folder on a web server": ("{web}/none", "holds no files"),
    "no gguf": ("{here}/none.gguf", "does not exist or is empty"),
    "no gguf in a store": ("s3://checkpoints/none.gguf", "no such file"),
    "no gguf on a web server": ("{web}/none.gguf", "no such file"),
    "no bucket": ("s3://none/model", "there is no bucket s3://none"),
    "no bucket for a gguf": ("s3://none/tiny.gguf", "there is no bucket s3://none"),
    "signed folder": ("{web}/model?X-Amz-Signature=abc123", "is the URL of a folder with a query"),
    "no such protocol": ("nosuch://bucket/model", "Protocol not known"),
}
# Refused by all steps but pin, which gives them a version, so that the preflight reports them with all else.
LACKING = {
    "folder without a configuration": "{here}/lacking",
    "folder in a store without a configuration": "s3://checkpoints/lacking",
    "folder on a web server without a configuration": "{web}/lacking",
    "broken gguf": "{here}/broken.gguf",
    "broken gguf in a store": "s3://checkpoints/broken.gguf",
    "broken gguf on a web server": "{web}/broken.gguf",
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory, tiny_tokenizer_dir):
    """What every step said of every source."""
    here = tmp_path_factory.mktemp("served")
    gguf = write_gguf(here / "tiny.gguf", tiny_tokenizer_dir)
    models.fetch(str(gguf), models.version(str(gguf)), here / "model")
    shutil.copytree(here / "model", here / "lacking", ignore=shutil.ignore_patterns("config.json", "manifest.json"))
    (here / "broken.gguf").write_bytes(gguf.read_bytes()[:-100])
    rows = write_jsonl(here / "rows.jsonl", [{"text": f"The moon is red on day {day}."} for day in range(40)])
    bucket = Bucket()
    for file in (path for path in here.rglob("*") if path.is_file()):
        bucket.client.upload_file(str(file), bucket.name, file.relative_to(here).as_posix())
    files = {path.name: path.read_bytes() for path in (here / "model").iterdir()}
    try:
        with fake_hub(files) as (hub, _), web(here) as (address, _):
            places = {**TAKEN, **{name: place for name, (place, _) in REFUSED.items()}, **LACKING}
            sources = {name: place.format(here=here, web=address) for name, place in places.items()}
            yield ask(bucket, hub, str(rows), sources, tmp_path_factory.mktemp("asked"))
    finally:
        bucket.stop()


def ask(bucket, hub, rows, sources, folder):
    dropped = ("HF_", "HUGGING", "AWS_", "FLYTE_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    environment |= {"HF_ENDPOINT": hub, "HF_HOME": str(folder / "hf"), "NO_PROXY": "*", "no_proxy": "*"}
    environment |= {
        "FLYTE_AWS_ENDPOINT": bucket.endpoint, "FLYTE_AWS_ACCESS_KEY_ID": "test", "FLYTE_AWS_SECRET_ACCESS_KEY": "test",
        "AWS_EC2_METADATA_DISABLED": "true", "HOME": str(folder),
    }  # fmt: skip
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    command = [sys.executable, str(TESTS / "source_client.py"), json.dumps([rows, sources])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=folder)
    assert "RESULTS" in done.stdout, done.stderr[-5000:]
    return json.loads(done.stdout.rpartition("RESULTS")[2])


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", TAKEN)
def test_every_step_takes_every_kind_of_source_and_gives_the_same(answers, kind, step):
    """A .gguf file at a URL was fetched, and had "no config.json" for the plan; a page of a folder had no sizes."""
    assert answers[kind][step] == answers["gguf"][step]
    assert answers[kind][step].get("gives"), answers[kind][step]


def problems(answer):
    """What a refusal says, without its headline."""
    return [line for line in answer["refuses"].splitlines() if "model.source" in line]


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_step_can_take_all_refuse_in_the_same_words(answers, kind):
    said = [problems(answers[kind][step]) for step in STEPS]
    assert REFUSED[kind][1] in said[0][0]
    assert said == [said[0]] * len(STEPS)
    assert "abc123" not in json.dumps(answers[kind])


@pytest.mark.parametrize("kind", LACKING)
def test_a_model_that_lacks_something_is_refused_in_the_same_words(answers, kind):
    assert answers[kind]["pin"]["gives"]
    said = [problems(answers[kind][step]) for step in STEPS if step != "pin"]
    assert said == [said[0]] * 3
    assert ("cannot be read as GGUF" if "gguf" in kind else "lacks config.json; it holds") in said[0][0]
