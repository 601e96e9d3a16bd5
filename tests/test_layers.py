"""Imports go one way: workflows > tasks > {pod_templates, deepspeed_configs, thriftune}."""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

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

# The line that something is named in, and its name.
Found = tuple[int, str]
FILES = sorted(file for layer in LAYERS for file in (ROOT / layer).rglob("*.py"))


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def layer_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0]


@cache
def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def modules(node: ast.AST) -> list[str]:
    """Full names of what a statement imports; a name taken from a package counts as a module of it."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative imports hide the layer"
        return [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def imports(file: Path) -> list[Found]:
    return [(node.lineno, module) for node in ast.walk(parse(file)) for module in modules(node)]


def imported_on_load(file: Path) -> list[Found]:
    """What importing the file imports: everything outside functions and `if TYPE_CHECKING:`."""
    found: list[Found] = []
    pending: list[ast.AST] = list(parse(file).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            pending += node.orelse
            continue
        found += [(node.lineno, module) for module in modules(node)]
        pending += ast.iter_child_nodes(node)
    return found


def root(module: str) -> str:
    return module.partition(".")[0]


def files_of(*layers: str, but: Iterable[str] = ()) -> list[Path]:
    """The files of layers, without some; never none."""
    found = [file for file in FILES if layer_of(file) in layers and name_of(file) not in but]
    assert {layer_of(file) for file in found} == set(layers)
    return found


def require_none(files: list[Path], find: Callable[[Path], list[Found]], is_wrong: Callable[[str], bool]) -> None:
    """Fail with all that is wrong in files, each with its file and line."""
    wrong = [f"{name_of(file)}:{line}: {name}" for file in files for line, name in find(file) if is_wrong(name)]
    assert not wrong, "\n".join(wrong)


def test_there_are_files_in_every_layer():
    assert {layer_of(file) for file in FILES} == set(LAYERS)
    assert len(FILES) > 40


def test_imports_go_one_way():
    def forbidden(file: Path) -> list[Found]:
        return [(line, name) for line, name in imports(file) if root(name) in {*LAYERS} - MAY_IMPORT[layer_of(file)]]

    require_none(files_of(*LAYERS), forbidden, lambda _name: True)


def test_the_library_knows_no_orchestrator():
    require_none(files_of("thriftune"), imports, lambda name: root(name) in ORCHESTRATION)


def test_pod_templates_need_only_flytekit_and_kubernetes():
    allowed = {*sys.stdlib_module_names, "pod_templates", "flytekit", "kubernetes"}
    require_none(files_of("pod_templates"), imports, lambda name: root(name) not in allowed)


def test_deepspeed_configurations_need_only_the_standard_library():
    allowed = sys.stdlib_module_names
    require_none(files_of("deepspeed_configs"), imports, lambda name: root(name) not in allowed)


def test_heavy_libraries_are_imported_where_they_are_used():
    files = files_of(*LAYERS, but=IMPORTS_HEAVY)
    require_none(files, imported_on_load, lambda name: root(name) in HEAVY)


def test_the_module_that_needs_a_heavy_library_is_imported_late():
    late = {name.removesuffix(".py").replace("/", ".") for name in IMPORTS_HEAVY}
    require_none(files_of(*LAYERS), imported_on_load, late.__contains__)


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


def test_the_environment_is_read_in_two_places_only():
    def named(file: Path) -> list[Found]:
        attributes = [node for node in ast.walk(parse(file)) if isinstance(node, ast.Attribute)]
        return [*imports(file), *((node.lineno, ast.unparse(node)) for node in attributes)]

    readers = {"os.environ", "os.getenv", "os.putenv", "os.environb"}
    require_none(files_of(*LAYERS, but=READS_ENVIRONMENT), named, readers.__contains__)


def test_the_exceptions_are_files_that_exist_and_need_their_exception():
    assert {name_of(f) for f in FILES} >= READS_ENVIRONMENT | IMPORTS_HEAVY
    for name in READS_ENVIRONMENT:
        assert "os.environ" in (ROOT / name).read_text()
    for name in IMPORTS_HEAVY:
        assert {root(module) for _, module in imported_on_load(ROOT / name)} & (HEAVY | {"torch"})
