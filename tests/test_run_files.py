"""Run files as `pyflyte run` reads them: flytekit's own parameter type, on a file."""

import itertools
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from conftest import run_dict
from flytekit.clis.sdk_in_container import pyflyte, run, utils
from flytekit.interaction import click_types

from tasks import run_files
from thriftune.config import RunConfig
from thriftune.errors import ConfigError

ROOT = Path(__file__).parents[1]
PYFLYTE = str(Path(sys.executable).parent / "pyflyte")


@pytest.fixture
def typed(tmp_path, monkeypatch):
    """What `--config` gives for a file with this text."""
    for module, name in ((click_types.JsonParamType, "convert"), (utils, "pretty_print_exception"), (run, "yaml")):
        monkeypatch.setattr(module, name, getattr(module, name))
    run_files.use_in_pyflyte()

    def read(text: str, encoding: str = "utf-8") -> RunConfig:
        file = tmp_path / "run.yaml"
        file.write_text(text, encoding=encoding)
        return click_types.JsonParamType(RunConfig).convert(str(file), None, None)

    return read


def text_of(**overrides) -> str:
    return yaml.safe_dump(run_dict(**overrides))


def test_a_name_that_looks_like_a_date_is_the_text_that_stands_there(typed):
    """It ended with "Object of type date is not JSON serializable", before anything of ours saw it."""
    text = text_of().replace("name: tiny", "name: 2024-01-05")
    assert "2024-01-05" in text
    assert typed(text).name == "2024-01-05"


def test_a_number_that_was_meant_as_text_is_told_to_be_quoted(typed):
    text = text_of(model={"source": "owner/model", "revision": "REVISION"}).replace("REVISION", "0012345")
    with pytest.raises(ConfigError, match=r"model\.revision = 5349: .*\(octal\).* in quotes.*: revision: '\.\.\.'"):
        typed(text)


def test_a_run_file_that_is_no_text_in_utf8_or_no_yaml_is_refused(typed):
    with pytest.raises(ConfigError, match=r"--config = .*run\.yaml: is not UTF-8\. .*iconv -f UTF-16"):
        typed(text_of(), "utf-16")
    with pytest.raises(ConfigError, match=r"--config = .*run\.yaml: is not YAML in line 1: "):
        typed("name: [")


def test_every_run_file_here_is_read_as_by_yaml(typed):
    files = sorted(ROOT.glob("configs/*.yaml"))
    assert files
    for file in files:
        assert run_files.load(file.read_text()) == yaml.safe_load(file.read_text())


@pytest.mark.parametrize("again", ["name: other", "training: {}"])
def test_a_key_that_stands_twice_is_refused(typed, again):
    """The last of them won, without a word."""
    key = again.partition(":")[0]
    with pytest.raises(ConfigError, match=rf"{key} = line \d+: is in line \d+ too"):
        typed(text_of() + again + "\n")


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in itertools.pairwise("abcdefghi")
)
BAD = {
    "aliases of aliases": (LAUGHS, "expands to more than 20,000 keys and values"),
    "merged aliases": (
        "a: &a {k: 1}\n"
        + "".join(f"{n}: &{n} {{<<: [{', '.join([f'*{b}'] * 9)}]}}\n" for b, n in itertools.pairwise("abcdefghi")),
        "expands to more than 20,000 keys and values",
    ),
    "a list that contains itself": ("name: &a [*a]", "has a value that contains itself, in line 1"),
    "a mapping that contains itself": ("name: &a\n  b: *a", "has a value that contains itself, in line 2"),
    "depth": ("name: " + "[" * 100_000, "is nested more than 32 levels deep"),
    "depth by mappings": ("".join(f"{' ' * n}a:\n" for n in range(200)), "is nested more than 32 levels deep"),
    "many keys": ("".join(f"k{n}: 1\n" for n in range(21_000)), "expands to more than 20,000 keys and values"),
    "size": ("name: " + "x" * (1 << 21), "has more than 1,048,576 characters"),
}


@pytest.mark.parametrize(("text", "reason"), BAD.values(), ids=BAD)
def test_a_run_file_without_an_end_is_refused_at_once(typed, text, reason):
    """Aliases that expand took 1.4 GB in 40 s, depth ended in a RecursionError."""
    with pytest.raises(ConfigError) as raised:
        typed(text)
    assert f": {reason}" in str(raised.value)
    assert len(raised.value.problems) == 1


def test_aliases_that_repeat_a_few_values_are_read(typed):
    text = text_of() + "# again\n"
    assert typed(text.replace("name: tiny", "name: &n tiny")).name == "tiny"
    assert run_files.load("a: &a [1, 2]\nb: [*a, *a]") == {"a": [1, 2], "b": [[1, 2], [1, 2]]}


@pytest.mark.parametrize("deep", ["[" * 200_000, '{"a":' * 900 + "1" + "}" * 900])
def test_json_in_place_of_a_run_file_has_an_end_too(typed, tmp_path, deep):
    with pytest.raises(ConfigError, match="is nested more than 64 levels deep"):
        click_types.JsonParamType(RunConfig).convert(deep, None, None)
    file = tmp_path / "run.json"
    file.write_text(deep)
    with pytest.raises(ConfigError, match="is nested more than 64 levels deep"):
        click_types.JsonParamType(RunConfig).convert(str(file), None, None)


def test_json_is_read_as_before(typed):
    assert click_types.JsonParamType(RunConfig).convert(json.dumps(run_dict()), None, None).name == "tiny"
    prompts = click_types.JsonParamType(list[str])
    assert prompts.convert('["What is a GPU?"]', None, None) == ["What is a GPU?"]


def test_a_file_of_all_inputs_has_an_end_too(typed, monkeypatch):
    with pytest.raises(ConfigError, match="--inputs-file: expands to more than 20,000 keys and values"):
        run.yaml.safe_load(LAUGHS)
    assert run.yaml.safe_load("a: 1") == {"a": 1}


# Name of the file, what stands in it, and what is said of it. None: there is no file.
WRONG = {
    "an unknown key": (
        "run.yaml",
        text_of() + "trainings: {epochs: 2}\n",
        "trainings = {'epochs': 2}: is not a key.",
    ),
    "a wrong type": ("run.yaml", text_of(seed="many"), "seed = 'many': input should be a valid integer"),
    "a missing section": ("run.yaml", "name: tiny\nmethod: full\n", "data: is missing. Add it: The rows to train on"),
    "a section that is a list": ("run.yaml", text_of(training=[1]), "training = [1]: is no mapping of keys to values."),
    "no YAML": ("run.yaml", "name: tiny\nmodel: [a", "run.yaml: is not YAML in line 2: "),
    "no UTF-8": ("run.yaml", b"name: \xff\xfe", "run.yaml: is not UTF-8."),
    "a key twice": ("run.yaml", text_of() + "name: other\n", "name = line"),
    "an empty file": ("run.yaml", "", "run.yaml: is empty."),
    "a list": ("run.yaml", "- a\n- b\n", "the file = ['a', 'b']: is no mapping of keys to values."),
    "a text": ("run.yaml", "full", "run.yaml: has no keys; all of it is 'full'."),
    "no file": ("run.yaml", None, "run.yaml: is not a file. Check the path"),
    "another suffix": ("run.txt", text_of(), "run.txt: is not JSON: "),
    "JSON that is no UTF-8": ("run.json", b"{\xff}", "run.json: cannot be read: it is not UTF-8."),
    "JSON with an error": ("run.json", '{"name": }', "run.json: is not JSON: "),
    "a folder": (".", None, ": is not a file."),
}
PLAN = ("workflows/plan.py", "plan", "--config")


def written(folder: Path, name: str, content: str | bytes | None) -> Path:
    file = folder / name
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


@pytest.mark.parametrize(("name", "content", "said"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("where", ["", "--remote"])
def test_pyflyte_says_what_is_wrong_with_a_run_file_and_nothing_else(
    typed, monkeypatch, tmp_path, where, name, content, said
):
    """It printed 300 lines of pydantic's and yaml's source above the message, and ended with status 1."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(logging.getLogger("flytekit"), "level", logging.WARNING)  # pyflyte sets it
    file = written(tmp_path, name, content)
    done = CliRunner().invoke(pyflyte.main, ["run", *([where] if where else []), *PLAN, str(file)])
    assert (done.exit_code, done.stdout) == (2, "")
    headline, *lines = done.stderr.splitlines()
    assert headline.startswith("ConfigError: The configuration cannot be used (")
    assert any(said in line for line in lines)
    assert str(file) in done.stderr
    assert all(line.startswith(("  - ", f"The file is {file}.")) for line in lines)


@pytest.fixture
def in_the_checkout(typed, monkeypatch):
    """What `pyflyte run` says there."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(logging.getLogger("flytekit"), "level", logging.WARNING)  # pyflyte sets it
    return lambda *arguments: CliRunner().invoke(pyflyte.main, ["run", *arguments])


def test_json_from_a_pipe_is_read(in_the_checkout):
    """`--config <(jq ...)` was "not a file"."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as pipe:
        pipe.write(json.dumps(run_dict(trainings={})))
    done = in_the_checkout(*PLAN, f"/dev/fd/{reading}")
    os.close(reading)
    assert done.exit_code == 2
    assert "trainings = {}: is not a key." in done.stderr


@pytest.mark.parametrize(
    ("option", "given"),
    [
        ("--prompts", "What is a GPU?"),
        ("--prompts", "What is a GPU? " * 100),
        ("--adapters", "s3://b/adapter"),
        ("--adapters", "."),
    ],
)
def test_a_text_in_place_of_a_list_is_told_how_a_list_is_written(in_the_checkout, option, given):
    done = in_the_checkout("workflows/generate.py", "generate", "--model_dir", ".", option, given)
    assert (done.exit_code, done.stdout) == (2, "")
    said = """: is no JSON list, and no file. Write a JSON list such as '["..."]', or name a file with one."""
    assert done.stderr.splitlines()[1:] == [f"  - {option} = {given[:80]}{said}"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("export", "--formats", '["fp16"]', "--rows", "none.jsonl"), "--rows = none.jsonl: does not exist. Check"),
        (("export", "--formats", '["fp16"]', "--rows", "docs"), "--rows = docs: is not a file. Name a file."),
        (("export", "--formats", '["fp16"]', "--adapter", "none"), "--adapter = none: does not exist."),
        (("export", "--formats", '["fp16"]', "--adapter", "README.md"), "--adapter = README.md: is not a folder."),
        (("generate", "--prompts_file", "none.txt"), "--prompts_file = none.txt: does not exist."),
        (("generate", "--adapters", '["docs", "none", "s3://b/a"]'), "--adapters = none: does not exist."),
    ],
)
def test_a_path_that_leads_to_nothing_is_named(in_the_checkout, arguments, said):
    """It ended in a traceback: flytekit took it for a text where the option may be left out."""
    workflow, *options = arguments
    done = in_the_checkout(f"workflows/{workflow}.py", workflow, "--model_dir", ".", *options)
    assert (done.exit_code, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()[1:]
    assert line.startswith(f"  - {said}")


@pytest.mark.parametrize("where", [(), ("--remote", "--image", "example:1")], ids=["local", "remote"])
def test_the_command_itself_ends_so(tmp_path, where):
    file = written(tmp_path, "run.yaml", text_of() + "trainings: {}\n")
    command = [PYFLYTE, "run", *where, *PLAN, str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    said = "  - trainings = {}: is not a key. Did you mean 'training'?"
    assert done.stderr.splitlines()[1:] == [said, f"The file is {file}."]


def test_a_run_of_another_workflow_ends_so_too(tmp_path):
    """Its first tasks refuse it."""
    file = written(tmp_path, "run.yaml", text_of(method="full"))
    command = [PYFLYTE, "run", "workflows/qlora_finetune.py", "qlora_finetune", "--config", str(file)]
    environment = {**os.environ, "THRIFTUNE_OUTPUTS": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "method = full: this workflow runs method lora and qlora." in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_more_is_shown_when_asked_for(typed, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(logging.getLogger("flytekit"), "level", logging.WARNING)
    done = CliRunner().invoke(pyflyte.main, ["-v", "run", *PLAN, str(written(tmp_path, "run.yaml", ""))])
    assert done.exit_code == 2
    assert "Traceback" in done.stdout
