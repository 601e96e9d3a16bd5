"""What `--copy all` uploads: everything that a pod reads, nothing else that lies in a checkout, in under a megabyte."""

import shutil
import subprocess
import tarfile
import tomllib
from pathlib import Path

import pytest
from flytekit.constants import CopyFileDetection
from flytekit.tools.fast_registration import FastPackageOptions, fast_package
from flytekit.tools.script_mode import _find_project_root

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# What pods read: the packages, and the run files that launch plans are made of.
UPLOADED = sorted(
    {name.rstrip("*") for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]} | {"configs"}
)
LEFT = ("tests", "docs", "benchmarks", "scripts", ".github")
MOST_BYTES = 1_000_000
# What lies about in a checkout that is worked with, in the root and beside the code.
PLANTED = [
    ".venv/lib/python3.11/site-packages/torch/lib.so",
    ".venv/bin/python",
    "venv/bin/python",
    "outputs/demo-full/20260101T000000/model/model.safetensors",
    "outputs/demo-full/20260101T000000/metrics.json",
    "build/lib/thriftune/config/schema.py",
    "build/flyte-package.tgz",
    "dist/thriftune-0.1.0.tar.gz",
    "wandb/run-1/files/output.log",
    "checkpoints/checkpoint-100/pytorch_model.bin",
    "models/llama/config.json",
    "node_modules/left-pad/index.js",
    "thriftune.egg-info/PKG-INFO",
    "my-data.jsonl",
    "my-run.yaml",
    "model.gguf",
    ".env",
    ".env.production",
    ".netrc",
    ".idea/workspace.xml",
    ".vscode/settings.json",
    ".hypothesis/examples/a",
    ".pytest_cache/v/cache/lastfailed",
    "thriftune/__pycache__/config.cpython-311.pyc",
    "thriftune/.env",
    "thriftune/.DS_Store",
    "thriftune/data/cached.arrow",
    "thriftune/data/rows.parquet",
    "thriftune/.ipynb_checkpoints/config-checkpoint.py",
    "tasks/debug.log",
    "tasks/model.safetensors",
    "tasks/optimizer.pt",
    "workflows/node_modules/left-pad/index.js",
    "workflows/client.pem",
    "configs/.env.local",
    "configs/adapter.bin",
    "configs/service.key",
]
OUTPUTS_BYTES = 5_000_000


def plant(root: Path) -> None:
    for name in PLANTED:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * (OUTPUTS_BYTES if name.startswith("outputs/") else 1000))


def code(root: Path) -> set[str]:
    return {
        file.relative_to(root).as_posix() for name in UPLOADED for file in (root / name).rglob("*") if file.is_file()
    }


@pytest.fixture(params=["a git work tree", "a folder that is none"])
def checkout(request, tmp_path, monkeypatch) -> Path:
    """A copy of this checkout with the code of it only; the copy's own git, if any, and no other's, is asked."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in (*UPLOADED, *LEFT):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".dockerignore", ".flyteignore", ".gitignore", "pyproject.toml", "README.md", "LICENSE", "Dockerfile",
                 "requirements.lock", "requirements-gpu.lock", "Makefile"):  # fmt: skip
        shutil.copy(ROOT / name, copy / name)
    if request.param == "a git work tree":
        subprocess.run(["git", "init", "--quiet"], cwd=copy, check=True)
        subprocess.run(["git", "add", "."], cwd=copy, check=True)
    return copy


def uploaded(checkout: Path, output: Path) -> Path:
    """The archive, made as `pyflyte run` and `pyflyte register` make it."""
    source = _find_project_root(checkout / "workflows" / "full_finetune.py")
    assert Path(source) == checkout
    return Path(fast_package(source, output, False, FastPackageOptions([], copy_style=CopyFileDetection.ALL)))


def test_an_upload_is_the_packages_and_the_run_files_in_under_a_megabyte(checkout, tmp_path):
    expected = code(checkout)
    plant(checkout)
    archive = uploaded(checkout, tmp_path)
    with tarfile.open(archive) as tar:
        names = {member.name for member in tar.getmembers()}
    assert names & set(PLANTED) == set()
    assert expected - names == set()
    assert names - expected == {".dockerignore"}  # docker-py, which reads the patterns, always lets it through
    assert archive.stat().st_size < MOST_BYTES


def test_files_that_only_code_reads_are_among_the_uploaded():
    declared = PROJECT["tool"]["setuptools"]["package-data"]
    patterns = [f"{package.replace('.', '/')}/{name}" for package, names in declared.items() for name in names]
    assert len(patterns) > 4
    for pattern in (*patterns, "configs/*.yaml"):
        found = {file.relative_to(ROOT).as_posix() for file in ROOT.glob(pattern)}
        assert found, pattern
        assert found <= code(ROOT)


def test_git_sees_nothing_of_it_but_what_a_user_wrote(tmp_path):
    shutil.copy(ROOT / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    plant(tmp_path)
    listing = ["git", "ls-files", "--others", "--exclude-standard"]
    seen = subprocess.run(listing, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()
    assert set(seen) == {".gitignore", "my-data.jsonl", "my-run.yaml"}


def test_two_uploads_of_the_same_code_have_the_same_name(checkout, tmp_path):
    # Flyte keeps them by their digest: junk that got in would make a new version of every task.
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    first = uploaded(checkout, tmp_path / "first")
    plant(checkout)
    assert uploaded(checkout, tmp_path / "second").name == first.name
