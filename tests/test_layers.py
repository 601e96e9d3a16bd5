"""Imports go one way: workflows > tasks > {pod_templates, deepspeed_configs, thriftune}."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("workflows", "tasks", "pod_templates", "deepspeed_configs", "thriftune")
MAY_IMPORT = {
    "workflows": {"workflows", "tasks", "pod_templates", "deepspeed_configs", "thriftune"},
    "tasks": {"tasks", "pod_templates", "deepspeed_configs", "thriftune"},
    "pod_templates": {"pod_templates"},
    "deepspeed_configs": {"deepspeed_configs"},
    "thriftune": {"thriftune"},
}
HEAVY = {"transformers", "peft", "bitsandbytes", "deepspeed", "datasets", "accelerate"}
ORCHESTRATION = {"flytekit", "flytekitplugins", "kubernetes"}
READS_ENVIRONMENT = {"tasks/settings.py", "thriftune/distributed.py"}
# Subclasses of the Trainer's callback and of torch's modes need their base classes; the modules are imported late.
IMPORTS_HEAVY = {
    "thriftune/planning/memory/tracing.py", "thriftune/training/callbacks.py", "thriftune/training/guarding.py",
    "thriftune/training/resumable.py",
}  # fmt: skip

FILES = sorted(file for layer in LAYERS for file in (ROOT / layer).rglob("*.py"))


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def layer_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0]


def modules(node: ast.stmt) -> list[str]:
    """Full names of what a statement imports; a name taken from a package counts as a module of it."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative imports hide the layer"
        return [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def imports(tree: ast.AST) -> set[str]:
    return {module for node in ast.walk(tree) for module in modules(node)}


def imported_on_load(tree: ast.Module) -> set[str]:
    """What importing the file imports: everything outside functions and `if TYPE_CHECKING:`."""
    found: set[str] = set()
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            pending += node.orelse
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.update(modules(node))
        pending += ast.iter_child_nodes(node)
    return found


def roots(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def test_there_are_files_in_every_layer():
    assert {layer_of(file) for file in FILES} == set(LAYERS)
    assert len(FILES) > 40


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_go_one_way(file):
    layer = layer_of(file)
    assert (roots(imports(parse(file))) & set(LAYERS)) <= MAY_IMPORT[layer]


def test_no_module_takes_a_private_name_from_another():
    taken = [
        f"{name_of(file)}:{node.lineno}: {alias.name} of {node.module}"
        for file in FILES
        for node in ast.walk(parse(file))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
    ]
    assert not taken, "\n".join(taken)


@pytest.mark.parametrize("file", [f for f in FILES if layer_of(f) == "thriftune"], ids=name_of)
def test_the_library_knows_no_orchestrator(file):
    assert not roots(imports(parse(file))) & ORCHESTRATION


@pytest.mark.parametrize("file", [f for f in FILES if layer_of(f) == "pod_templates"], ids=name_of)
def test_pod_templates_need_only_flytekit_and_kubernetes(file):
    found = roots(imports(parse(file))) - set(sys.stdlib_module_names)
    assert found <= {"pod_templates", "flytekit", "kubernetes"}


@pytest.mark.parametrize("file", [f for f in FILES if layer_of(f) == "deepspeed_configs"], ids=name_of)
def test_deepspeed_configurations_need_only_the_standard_library(file):
    assert roots(imports(parse(file))) <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("file", [f for f in FILES if name_of(f) not in IMPORTS_HEAVY], ids=name_of)
def test_heavy_libraries_are_imported_where_they_are_used(file):
    assert not roots(imported_on_load(parse(file))) & HEAVY


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_the_module_that_needs_a_heavy_library_is_imported_late(file):
    late = {name.removesuffix(".py").replace("/", ".") for name in IMPORTS_HEAVY}
    assert not imported_on_load(parse(file)) & late


def test_importing_the_whole_library_loads_no_heavy_one():
    names = [
        name_of(f).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for f in FILES
        if layer_of(f) == "thriftune" and name_of(f) not in IMPORTS_HEAVY
    ]
    assert len(names) > 20
    code = f"import importlib, sys\nfor n in {names!r}: importlib.import_module(n)\nprint(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(result.stdout.split())
    assert "thriftune.config" in loaded
    # flytekitplugins is a namespace package, which Python itself creates at start.
    assert not loaded & (HEAVY | {"flytekit", "kubernetes", "torch"})


@pytest.mark.parametrize("file", [f for f in FILES if name_of(f) not in READS_ENVIRONMENT], ids=name_of)
def test_the_environment_is_read_in_two_places_only(file):
    tree = parse(file)
    attributes = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names = attributes | imports(tree)
    assert not names & {"os.environ", "os.getenv", "os.putenv", "os.environb"}


def test_the_exceptions_are_files_that_exist_and_need_their_exception():
    assert {name_of(f) for f in FILES} >= READS_ENVIRONMENT | IMPORTS_HEAVY
    for name in READS_ENVIRONMENT:
        assert "os.environ" in (ROOT / name).read_text()
    for name in IMPORTS_HEAVY:
        assert roots(imported_on_load(parse(ROOT / name))) & (HEAVY | {"torch"})
