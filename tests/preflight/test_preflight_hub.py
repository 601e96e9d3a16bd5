"""What a preflight asks the hub, and what it says of each answer: models, datasets, and where a result is published."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run_dict
from fake_hub import COMMIT, READ_TOKEN, TOKEN, fake_hub

FOLDER = Path(__file__).parent


def cases(model, rows):
    """Runs and tokens, by name."""
    with_model, here = {"model": {"source": str(model)}}, {"data": {"source": str(rows)}}

    def of_model(name, **section):
        return run_dict(model={"source": f"owner/{name}", **section}, **here), TOKEN

    def of_data(name, **section):
        return run_dict(**with_model, data={"source": f"owner/{name}", **section}), TOKEN

    def publishing(repository, token=TOKEN, **section):
        return run_dict(**with_model, **here, publish={"repository": repository, **section}), token

    return {
        "good": of_model("good"),
        "good too": of_model("good-too"),  # fetched after its preflight
        "gated": of_model("gated"),
        "missing": of_model("missing"),
        "private": of_model("private"),
        "bad token": of_model("bad-token"),
        "odd": of_model("odd"),
        "revision": of_model("revision", revision="nope"),
        "line break in the token": (of_model("good")[0], f"{TOKEN}\n"),
        "broken": of_model("broken"),
        "rows": of_data("good"),
        "rows missing": of_data("missing"),
        "rows gated": of_data("gated"),
        "rows revision": of_data("revision", revision="nope"),
        "rows of a part": of_data("good", split="train[:50%]"),
        "rows of all splits": of_data("good", split="all"),
        "rows split": of_data("good", split="nope"),
        "rows broken": of_data("broken"),
        "publish there": publishing("me/there"),
        "publish new": publishing("me/new"),
        "publish team": publishing("team/new"),
        "publish readers": publishing("readers/new"),
        "publish other": publishing("other/new"),
        "publish other there": publishing("other/there"),
        "publish read token": publishing("me/new", READ_TOKEN),
        "publish bad token": publishing("me/new", "hf_Unknown"),
        "publish dry run": publishing("other/new", None, dry_run=True),
    }


def ask(endpoint, model, runs, folder):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hf"), "NO_PROXY": "*", "no_proxy": "*"}
    environment["PYTHONPATH"] = os.pathsep.join([str(FOLDER), str(FOLDER.parent), str(FOLDER.parent.parent)])
    command = [sys.executable, str(FOLDER / "preflight_client.py"), json.dumps([str(model), runs])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=folder)
    assert "RESULTS" in done.stdout, done.stderr[-5000:]
    return json.loads(done.stdout.rpartition("RESULTS")[2]), done.stdout + done.stderr


@pytest.fixture(scope="module")
def asked(tmp_path_factory, tiny_model_dir, chat_rows_file):
    """What the preflight of every run came to, all that was printed, and what the hub was asked."""
    files = {p.name: p.read_bytes() for p in tiny_model_dir.iterdir()} | {"README.md": b"# A card"}
    with fake_hub(files) as (endpoint, seen):
        runs = cases(tiny_model_dir, chat_rows_file)
        results, printed = ask(endpoint, tiny_model_dir, runs, tmp_path_factory.mktemp("asked"))
    return results, printed, seen


def errors(result):
    return {found["code"] for found in result["findings"] if found["severity"] == "error"}


@pytest.mark.parametrize(
    ("name", "codes"),
    [
        ("good", set()),
        ("gated", {"model-gated"}),
        ("missing", {"model-not-found"}),
        ("private", {"model-not-found"}),
        ("bad token", {"hub-token-refused"}),
        ("odd", {"model-unreadable"}),
        ("revision", {"model-revision-not-found"}),
        ("line break in the token", {"hub-token-refused"}),
        ("broken", {"hub-unreachable"}),
        ("rows", set()),
        ("rows missing", {"data-not-found"}),
        ("rows gated", {"data-gated"}),
        ("rows revision", {"data-revision-not-found"}),
        ("rows of a part", set()),
        ("rows of all splits", set()),
        ("rows split", {"data-split-not-found"}),
        ("rows broken", {"hub-unreachable"}),
        ("publish there", set()),
        ("publish new", set()),
        ("publish team", set()),
        ("publish readers", {"publish-no-write-access"}),
        ("publish other", {"publish-no-write-access"}),
        ("publish other there", {"publish-no-write-access"}),
        ("publish read token", {"publish-no-write-access"}),
        ("publish bad token", {"hub-token-refused"}),
        ("publish dry run", set()),
    ],
)
def test_each_answer_of_the_hub_has_its_own_code(asked, name, codes):
    assert errors(asked[0][name]) == codes, asked[0][name]["text"]


def test_a_hub_model_is_pinned_licensed_and_brought_without_its_weights(asked):
    results, _printed, seen = asked
    facts = results["good"]["facts"]
    assert facts["model_version"] == COMMIT
    assert facts["license"] == "apache-2.0"
    assert facts["examples"] == 60
    brought = {path.rpartition("/")[2] for path in seen if path.startswith("GET owner/good/resolve/")}
    assert {"config.json", "tokenizer.json", "chat_template.jinja"} <= brought
    weights = [name for name in brought if ".safetensors" in name]
    assert weights == ["model.safetensors bytes=0-100000"], "more than the header was asked for"


def test_the_tokenizer_of_a_hub_model_is_known_before_it_is_fetched(asked):
    found = asked[0]["good too"]
    assert len(found["facts"]["tokenizer_version"]) == 64
    assert found["facts"]["tokenizer_version"] == found["fetched"]


def test_a_hub_dataset_is_read_as_far_as_the_sample_goes(asked):
    facts = asked[0]["rows"]["facts"]
    assert facts["data_version"] == COMMIT
    assert (facts["rows_sampled"], facts["is_whole"]) == (1000, False)
    assert facts["examples"] == 1000
    part = asked[0]["rows of a part"]["facts"]
    assert (part["rows_sampled"], part["is_whole"], part["rows_total"]) == (1000, False, None)


def test_the_token_is_shown_nowhere(asked):
    results, printed, _seen = asked
    assert TOKEN not in json.dumps(results)
    # At level DEBUG the HTTP library writes a header that it refuses; tasks hand over no such token.
    shown = [line for line in printed.splitlines() if not line.startswith("DEBUG:httpcore2")]
    assert shown
    assert TOKEN not in "".join(shown)


def test_a_hub_that_cannot_be_reached_is_the_only_error(tmp_path, tiny_model_dir, chat_rows_file):
    with fake_hub({}) as (endpoint, _):
        pass
    runs = {name: cases(tiny_model_dir, chat_rows_file)[name] for name in ("good", "rows", "publish new")}
    for result in ask(endpoint, tiny_model_dir, runs, tmp_path)[0].values():
        assert errors(result) == {"hub-unreachable"}
