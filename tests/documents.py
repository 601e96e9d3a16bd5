"""What is written about the code: pages, and the comments and docstrings of files; and what there is to write about."""

import ast
import io
import re
import tokenize
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("thriftune", "tasks", "workflows", "pod_templates", "deepspeed_configs")
FOLDERS = (*PACKAGES, "benchmarks", "configs", "docs", "scripts", "tests", ".github", ".ci")
_NAMED_LIKE_CODE = {".yaml", ".yml", ".toml", ".json", ".jinja", ".lock"}
_HASH_COMMENTS = {".yaml", ".yml", ".toml"}
_OTHER = {"Makefile", "Dockerfile", ".dockerignore"}
# Made from the code, and as long as it.
_GENERATED = "golden"
# It names what there is not.
_EXCEPTIONS = "tests/test_docs.py"


@cache
def files() -> dict[str, Path]:
    """Every file of the repository, by its path from the root."""
    found = [file for file in ROOT.iterdir() if file.is_file()]
    found += [file for folder in FOLDERS for file in (ROOT / folder).rglob("*") if file.is_file()]
    return {str(file.relative_to(ROOT)): file for file in sorted(found) if "__pycache__" not in file.parts}


def run_files() -> list[Path]:
    """The files in configs/ of single runs that train.

    tests/test_benchmark_run.py has those of runs that only measure, and tests/test_sweep_files.py those of sweeps.
    """
    folder = ROOT / "configs"
    return sorted({*folder.glob("*.yaml")} - {*folder.glob("benchmark-*.yaml"), *folder.glob("*-sweep.yaml")})


@cache
def pages() -> dict[str, str]:
    """The pages that say how things are; CHANGELOG.md says how they were."""
    wanted = [name for name in files() if re.fullmatch(r"README\.md|CONTRIBUTING\.md|docs/.*\.md", name)]
    return {name: files()[name].read_text(encoding="utf-8") for name in wanted}


@cache
def notes() -> dict[str, str]:
    """The comments and docstrings of every file of code or configuration."""
    found = {}
    for name, file in files().items():
        if _GENERATED in name:
            continue
        if file.suffix == ".py":
            found[name] = "\n".join(text for is_note, text in _parts(file) if is_note)
        elif file.suffix in _HASH_COMMENTS or file.name in _OTHER:
            found[name] = "\n".join(re.findall(r"(?:^|\s)#(.*)$", file.read_text(encoding="utf-8"), re.M))
    return found


def prose(page: str) -> str:
    """A page without what is shown in it: commands, YAML and output."""
    return re.sub(r"^```.*?^```", "", page, flags=re.S | re.M)


@cache
def words() -> frozenset[str]:
    """Every word of the code itself: names, keys and strings, not what is said of them."""
    found = {word for name in files() for word in re.findall(r"\w+", Path(name).stem)}
    for name, file in files().items():
        if _GENERATED in name or name == _EXCEPTIONS:
            continue
        if file.suffix == ".py":
            text = " ".join(text for is_note, text in _parts(file) if not is_note)
        elif file.suffix in _NAMED_LIKE_CODE or file.name in _OTHER:
            text = re.sub(r"(?:^|\s)#.*$", "", file.read_text(encoding="utf-8"), flags=re.M)
        else:
            continue
        found.update(re.findall(r"\w+", text))
    return frozenset(found)


@cache
def defined_in(name: str) -> frozenset[str]:
    """What a Python file defines: functions, classes and constants, those inside classes too; not what it imports."""
    found = set()
    for node in ast.walk(ast.parse(files()[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return frozenset(found)


@cache
def _parts(file: Path) -> list[tuple[bool, str]]:
    """The tokens of a Python file that say something, and whether each is a comment or docstring."""
    tokens = tokenize.generate_tokens(io.StringIO(file.read_text(encoding="utf-8")).readline)
    kept = (tokenize.NAME, tokenize.STRING, tokenize.COMMENT)
    said = [(token.type, token.string) for token in tokens if token.type in kept]
    return [(kind == tokenize.COMMENT or text.startswith('"""'), text) for kind, text in said]
