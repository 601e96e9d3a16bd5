"""No secret of a place that a run file names is in anything that a run writes or prints, also of one that fails."""

import ast
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, get_args
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from conftest import chat_rows, run_dict
from pydantic import BaseModel

from tasks.platform import Platform
from tasks.platform import read as read_settings
from thriftune.config import RunConfig
from thriftune.config.data import PATH_OR_URL
from thriftune.data import sources
from thriftune.errors import ConfigError

ROOT = Path(__file__).parent.parent
PLANTED = "pl4nted"
SIGNATURE = f"{PLANTED}S1gnature"
SIGNED = f"X-Amz-Credential=AKIA{'X' * 16}%2F2026&X-Amz-Signature={SIGNATURE}"
TOKEN = f"hf_{PLANTED}AbCdEfGhIjKlMnOpQr"
# Texts that are no places. Who adds a text to the run file says here that it is none, or marks it with PATH_OR_URL.
NO_PLACES = {
    "name", "model.revision", "hardware.instance", "zero.config", "lora.target_modules", "evaluation.prompts",
    "publish.repository", "fsdp.wrap", "lora.modules_to_save", "lora.rank_patterns.pattern", "classification.labels",
    "hardware.device", "benchmarks.tasks.name", "publish.gate.improves.metric", "publish.gate.keeps.metric",
    *(f"data.{part}{name}" for part in ("", "sources.", "replay.")
      for name in ("subset", "split", "revision", "columns", "template", "trained_fields")),
}  # fmt: skip


def texts(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, bool]]:
    """The fields of a section that hold text, and whether each is marked as a place."""
    for name, field in model.model_fields.items():
        options = list(parts_of(field.annotation))
        sections = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
        for section in sections:
            yield from texts(section, f"{prefix}{name}.")
        if not sections and str in options:
            yield f"{prefix}{name}", PATH_OR_URL in field.metadata


def parts_of(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in get_args(annotation):
        yield from parts_of(part)


PLACES = [name for name, is_place in texts(RunConfig) if is_place]


def with_text(field: str, text: str) -> tuple[str, dict[str, Any]]:
    """A run with a text in a field, and its method."""
    method = "qlora" if field.startswith("lora") else "full"
    content = run_dict(method)
    *sections, name = field.split(".")
    if "sources" in sections:
        content["data"] = {"sources": [{"source": "rows.jsonl", "format": "chat", name: text}]}
    elif "replay" in sections:
        content["data"] = {"source": "task.jsonl", "format": "chat"}
        content["data"]["replay"] = {"source": "rows.jsonl", "format": "chat", "share": 0.2, name: text}
    elif "tasks" in sections:
        content["benchmarks"] = {"tasks": [{"name": "own", "format": "exact_answer", "file": "own.jsonl", name: text}]}
    elif "gate" in sections:
        content["publish"] = {"repository": "me/tuned", "gate": {sections[-1]: [{name: text}]}}
    elif sections:
        content[sections[0]] = {**content.get(sections[0], {}), name: text}
    else:
        content[name] = text
    return method, content


def numbered(field: str) -> str:
    """The name of a field as a message has it, of the first of a list."""
    return re.sub(r"\b(sources|tasks)\.", r"\1.0.", field)


def test_every_text_of_a_run_file_is_a_place_or_none():
    found = dict(texts(RunConfig))
    assert set(PLACES) == {
        "model.source", "data.source", "data.sources.source", "lora.resume_from", "checkpoints.resume_from",
        "data.replay.source", "benchmarks.tasks.file",
    }  # fmt: skip
    assert {name for name, is_place in found.items() if not is_place} == NO_PLACES


@pytest.mark.parametrize("field", PLACES)
@pytest.mark.parametrize(
    "place", ["http://user:{}@host/x.jsonl", "https://{}@host/x.jsonl", "s3://key:{}@bucket/x.jsonl"]
)
def test_a_password_in_a_url_is_refused_with_the_remedy_and_without_the_password(field, place):
    with pytest.raises(ConfigError) as caught:
        RunConfig.model_validate(with_text(field, place.format(PLANTED))[1])
    said = str(caught.value)
    assert f"{numbered(field)} = " in said
    assert "has a user or a password in its URL" in said
    assert "AWS_ACCESS_KEY_ID" in said
    assert PLANTED not in said + repr(caught.value) + repr(caught.value.args)


@pytest.mark.parametrize("field", sorted([*PLACES, *NO_PLACES]))
def test_a_secret_in_the_wrong_field_is_not_in_the_refusal(field):
    long = f"http://user:{PLANTED}{'x' * 100}@host/x"  # cut off before the @, by which it is told
    for text in (f"http://user:{PLANTED}@host/{SIGNED}", f"http://h/x?{SIGNED}", TOKEN, long, [long]):
        content = with_text(field, text)[1] | {"unknown": text}
        with pytest.raises(ConfigError) as caught:
            RunConfig.model_validate(content)
        assert PLANTED not in str(caught.value) + repr(caught.value)


@pytest.mark.parametrize("name", ["catalogue", "raw_output"])
def test_a_password_in_a_setting_is_refused(name):
    variable = f"THRIFTUNE_{name.upper()}"
    assert PATH_OR_URL in Platform.model_fields[name].metadata
    with pytest.raises(ConfigError, match=rf"{variable} = s3://REDACTED@bucket/x: has a user or a password"):
        read_settings({variable: f"s3://key:{PLANTED}@bucket/x"})


class SigningServer(BaseHTTPRequestHandler):
    """Serves files, as a store does, to those who have the signature, and 403 with the URL in it to others."""

    files: dict[str, bytes]

    def do_GET(self):
        asked = urlsplit(self.path)
        content = self.files.get(asked.path)
        is_signed = parse_qs(asked.query).get("X-Amz-Signature") == [SIGNATURE]
        status = (404 if content is None else 200) if is_signed else 403
        body = content if status == 200 else f"no: {self.path}".encode()
        self.send_response(status, f"because of {self.path}" if status != 200 else None)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"1"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - as http.server looks for it

    def log_message(self, *args):
        """Keep the test's output clean."""


@contextmanager
def signing_server(files: dict[str, bytes]) -> Iterator[str]:
    handler = type("Handler", (SigningServer,), {"files": files})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


ROWS = "".join(json.dumps(row) + "\n" for row in chat_rows()).encode()
BAD_ROWS = ROWS + b'{"messages": "http://h/x?token=pl4nted"}\n' * 30


def run_in(folder: Path, command: list[str], stdin: str | None = None) -> subprocess.CompletedProcess:
    """Run something whose outputs and temporary files are all in a folder."""
    (folder / "tmp").mkdir(exist_ok=True)
    environment = {
        **os.environ, "THRIFTUNE_OUTPUTS": str(folder / "outputs"), "TMPDIR": str(folder / "tmp"), "COLUMNS": "200",
        "HF_TOKEN": "", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    environment.pop("THRIFTUNE_RUN_STAMP", None)
    return subprocess.run(
        command, cwd=ROOT, env=environment, input=stdin, capture_output=True, text=True, timeout=300, check=False
    )


def require_nothing_planted(folder: Path, done: subprocess.CompletedProcess) -> list[Path]:
    """Look through everything that was written and printed; the files that were looked at."""
    for text in (done.stdout, done.stderr):
        unwrapped = re.sub(r"[\s│]+", "", text)  # as tables break lines
        assert PLANTED not in unwrapped, unwrapped[max(0, unwrapped.find(PLANTED) - 500) :][:1000]
        assert "AKIAXXX" not in unwrapped
    files = [file for name in ("outputs", "tmp") for file in (folder / name).rglob("*") if file.is_file()]
    assert not [file for file in files if re.search(rb"pl4nted|AKIAXXX", file.read_bytes())]
    return files


def everywhere(
    place: str, *, several: bool = False, checkpoints: bool = False, benchmarks: bool = False
) -> dict[str, Any]:
    """A run whose places are all the same one; of data a file in it. A store of checkpoints is waited for, for 15 s."""
    rows = {"source": place.replace("?", "/rows.jsonl?"), "format": "chat"}
    content = run_dict("qlora", model={"source": place}, lora={"resume_from": place})
    content["data"] = {"sources": [rows, rows]} if several else rows
    if benchmarks:
        content["data"]["replay"] = {**rows, "source": place.replace("?", "/replay.jsonl?"), "share": 0.2}
        own = {"name": "own", "format": "exact_answer", "file": place.replace("?", "/own.jsonl?")}
        content["benchmarks"] = {"tasks": [own]}
    return content | ({"checkpoints": {"resume_from": place}} if checkpoints else {})


@pytest.fixture(scope="module")
def failed(tmp_path_factory, tiny_model_dir):
    """Runs that fail, with every place: what was printed, and what was written."""
    folder = tmp_path_factory.mktemp("failed")
    with signing_server({"/rows.jsonl": ROWS, "/bad/rows.jsonl": BAD_ROWS}) as server:
        closed, refused = f"http://127.0.0.1:9/x?{SIGNED}", f"{server}/x?{SIGNED}x"
        bad = run_dict(model={"source": str(tiny_model_dir)}, data={"source": f"{server}/bad/rows.jsonl?{SIGNED}"})
        runs = [
            ("preflight", everywhere(closed, several=True, benchmarks=True)),
            ("preflight", everywhere(closed)),
            ("preflight", everywhere(refused, checkpoints=True)),
            ("preflight", everywhere(TOKEN)),
            ("qlora", everywhere(closed)),
            ("preflight", bad),
        ]
        lines = "".join(json.dumps(run) + "\n" for run in runs)
        done = run_in(folder, [sys.executable, str(ROOT / "tests/planted_runs.py")], lines)
    assert done.returncode == 0, done.stderr[-3000:]
    ends = re.findall(r"^=== (.*?)(?=^---|\Z)", done.stdout, re.M | re.S)
    assert len(ends) == len(runs)
    return folder, done, re.sub(r"\s+", " ", "\n".join(ends))


@pytest.mark.slow
def test_nothing_of_a_run_that_fails_holds_a_secret(failed):
    folder, done, _ = failed
    files = require_nothing_planted(folder, done)
    assert len([file for file in files if file.suffix in (".json", ".html")]) >= 2
    assert "REDACTED" in done.stdout
    assert "REDACTED" in done.stderr


# Of checkpoints tests/stores/test_store.py.
@pytest.mark.slow
@pytest.mark.parametrize("field", sorted({*PLACES} - {"checkpoints.resume_from"}))
def test_a_closed_port_is_unreachable(field, failed):
    """It was "no such file" of data, and "holds no files" of a model."""
    name = re.escape(numbered(field))
    assert re.search(rf"{name} = http://127.0.0.1:9/[^ ]* the store cannot be reached", failed[2]), failed[2]


@pytest.mark.slow
@pytest.mark.parametrize("field", ["model.source", "data.source", "lora.resume_from", "checkpoints"])
def test_a_signature_that_is_refused_is_not_a_missing_file(field, failed):
    said = failed[2]
    assert re.search(rf"- {re.escape(field)} = http://[^ ]*/x[^ ]* (access is denied|cannot be used)", said), said


@pytest.mark.slow
def test_a_presigned_url_is_read_and_nothing_of_the_run_holds_its_signature(tmp_path, tiny_model_dir):
    publish = {"repository": "me/tuned", "dry_run": True}
    with signing_server({"/rows.jsonl": ROWS}) as server:
        content = run_dict(
            "qlora", model={"source": str(tiny_model_dir)}, data={"source": f"{server}/rows.jsonl?{SIGNED}"},
            training={"precision": "fp32"}, lora={"rank": 4}, evaluation={"max_new_tokens": 2}, publish=publish,
        )  # fmt: skip
        config = tmp_path / "run.yaml"
        config.write_text(yaml.safe_dump(content))
        pyflyte = Path(sys.executable).with_name("pyflyte")
        arguments = ["run", "workflows/qlora_finetune.py", "qlora_finetune", "--config", str(config)]
        done = run_in(tmp_path, [str(pyflyte), *arguments])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    files = require_nothing_planted(tmp_path, done)
    names = {file.name for file in files}
    assert {"manifest.json", "metrics.json", "README.md", "samples.json", "report.html", "rejected.parquet"} <= names
    (card,) = (tmp_path / "outputs").glob("tiny/*/publish/README.md")
    assert "rows.jsonl?X-Amz-Credential=REDACTED&X-Amz-Signature=REDACTED" in card.read_text()


def test_the_data_of_a_presigned_url_is_the_same_whoever_signed_it():
    with signing_server({"/rows.jsonl": ROWS, "/others.jsonl": ROWS}) as server:
        first = sources.version(f"{server}/rows.jsonl?{SIGNED}")
        assert first == sources.version(f"{server}/rows.jsonl?X-Amz-Date=2&{SIGNED}&X-Amz-Security-Token=another")
        assert first != sources.version(f"{server}/others.jsonl?{SIGNED}")


# Who writes a file but through artifacts.write_text, and why no secret can be in it. A new writer is to be added here,
# or to go through it.
OTHER_WRITERS = {
    ("thriftune/artifacts.py", "write_text"): "the one; and manifests, redacted before their checksum is taken",
    ("thriftune/stores/in_parts.py", "open"): "bytes of a file of a store, as they come",
    ("thriftune/stores/store.py", "write_bytes"): "what is given to put_bytes",
    ("thriftune/data/duplicates.py", "write_bytes"): "marks of rows",
    ("thriftune/data/held_out.py", "open"): "digests",
    ("thriftune/data/held_out.py", "write_bytes"): "marks of rows",
    ("thriftune/data/pieces.py", "open"): "tokens and digests",
    ("thriftune/training/calibration.py", "write_table"): "random tokens",
    ("thriftune/data/rejection.py", "write_table"): "rejected rows, redacted there",
    ("thriftune/inference/benchmarks/results.py", "write_table"): "items and answers, which are the user's",
    ("thriftune/inference/benchmarks/preparing.py", "write_bytes"): "copies of files that describe a benchmark",
    ("thriftune/inference/benchmarks/harness_data.py", "to_parquet"): "items of a benchmark",
    ("thriftune/data/items.py", "write_text"): "the same",
    ("thriftune/inference/answers.py", "write_table"): "prompts and answers, which are the user's",
    ("thriftune/inference/parts.py", "open"): "prompts, which are to be answered as they are",
    ("thriftune/inference/answers.py", "open"): "prompts and answers, which are the user's",
    ("thriftune/preflight/adapters.py", "write_bytes"): "a copy of the adapter's configuration, removed at once",
    ("thriftune/preflight/base_model.py", "write_text"): "a copy of the model's configuration, removed at once",
    ("thriftune/models/stopping.py", "write_text"): "the model's generation_config.json",
    ("thriftune/models/exporting/plain.py", "write_text"): "the model's config.json and index, which are its own",
    ("thriftune/strategies/fsdp/state.py", "write_text"): "numbers of an optimizer, and names of weights",
    ("tasks/elastic.py", "write_text"): "an error of ours that a worker tells its agent, removed at once",
    ("tasks/elastic.py", "to_json"): "the same",
    ("thriftune/models/weight_writer.py", "open"): "weights, under the names that a model has for them",
    ("thriftune/models/gguf_head.py", "open"): "the start of a model's file, removed at once",
    ("thriftune/models/files.py", "open"): "copies of a model's files",
    ("tasks/settings.py", "write_text"): "which run a folder is of",
    ("tasks/transfer.py", "to_parquet"): "rows of a table, removed at once",
    ("thriftune/checkpoints/uploading.py", "put_bytes"): "manifests, redacted in thriftune/checkpoints/manifest.py",
    ("thriftune/checkpoints/changes.py", "put_bytes"): "steps, numbers of rows, and the name of an execution",
    ("thriftune/checkpoints/lease.py", "put_bytes"): "the name of an execution, and times",
    ("thriftune/checkpoints/attempts.py", "put_bytes"): "a step",
    ("thriftune/checkpoints/spent.py", "put_bytes"): "seconds",
    ("thriftune/planning/ledger/keeping.py", "put_bytes"): "records, redacted in thriftune/planning/ledger/record.py",
    ("thriftune/stores/remote.py", "pipe_file"): "nothing: whether it can be written",
    ("thriftune/stores/index.py", "put_bytes"): "places that this package made, and digests",
    ("thriftune/stores/store.py", "pipe_file"): "what is given to put_bytes",
    ("thriftune/gpu_trial.py", "print"): "readings of GPUs, to the process that started it",
    ("tasks/pages.py", "Deck"): "the one that shows decks",
    (
        "tasks/trial_results.py",
        "to_json",
    ): "what came of a trial, whose error is redacted in thriftune/sweeps/outcome_json.py",
    ("thriftune/sweeps/words.py", "to_json"): "the same, from a trial to the process that waits for it",
    ("tasks/trial_results.py", "put_bytes"): "the same, beside the checkpoints of a trial that was stopped early",
    ("tasks/trial_results.py", "open"): "nothing: a lock",
    ("tasks/live.py", "put_bytes"): "the page, redacted there, and lines, redacted where they are made",
    ("thriftune/training/lines.py", "open"): "numbers, and texts that are redacted there",
}
WRITERS = {
    "write_text", "write_bytes", "dump", "to_parquet", "to_csv", "to_json", "write_table", "put_bytes",
    "pipe_file", "Deck", "writelines", "save_to_disk",
}  # fmt: skip


def writers(file: Path) -> Iterator[str]:
    """What a module calls to write, but for artifacts.write_text."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        name = called.rpartition(".")[2]
        modes = [ast.unparse(value) for value in (*node.args, *(key.value for key in node.keywords))]
        is_writing_open = name == "open" and any(re.fullmatch(r"'[wax]b?\+?'", mode) for mode in modes)
        if (name in WRITERS and called != "artifacts.write_text") or called == "print" or is_writing_open:
            yield name


def test_every_text_is_written_where_secrets_are_taken_out():
    files = [*ROOT.glob("thriftune/**/*.py"), *ROOT.glob("tasks/**/*.py")]
    assert len(files) > 100
    found = {(str(file.relative_to(ROOT)), name) for file in files for name in writers(file)}
    assert found == set(OTHER_WRITERS)
