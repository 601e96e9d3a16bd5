"""Imports go one way: workflows > tasks > {pod_templates, thriftune > deepspeed_configs}; in thriftune room by room."""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from thriftune.config.choices import METHODS, STRATEGIES

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("workflows", "tasks", "pod_templates", "deepspeed_configs", "thriftune")
MAY_IMPORT = {
    "workflows": {"workflows", "tasks", "pod_templates", "deepspeed_configs", "thriftune"},
    "tasks": {"tasks", "pod_templates", "deepspeed_configs", "thriftune"},
    "pod_templates": {"pod_templates"},
    "deepspeed_configs": {"deepspeed_configs"},
    "thriftune": {"thriftune", "deepspeed_configs"},
}
# The rooms of thriftune by how high they are: a module imports from its own room and from lower ones. Of two rooms on
# one floor neither imports the other. What lies in no folder is the ground floor.
FLOORS = (
    {"ground"},
    {"config"},
    {"stores"},
    {"models"},
    {"data"},
    {"methods"},
    {"strategies"},
    {"planning", "checkpoints"},
    {"training"},
    {"inference"},
    {"preflight"},
    {"sweeps"},
)
HEAVY = {"transformers", "peft", "bitsandbytes", "deepspeed", "datasets", "accelerate", "lm_eval"}
ORCHESTRATION = {"flytekit", "flytekitplugins", "kubernetes"}
REACHES_STORES = {"fsspec", "s3fs", "gcsfs", "adlfs", "obstore", "botocore", "aiobotocore", "boto3"}
READS_ENVIRONMENT = {"tasks/settings.py", "thriftune/distributed.py"}
# Subclasses of the Trainer's callback, of torch's modes and of the harness's model need their base classes; the
# modules are imported late.
IMPORTS_HEAVY = {
    "thriftune/inference/benchmarks/harness_model.py",
    "thriftune/methods/prefix_model.py", "thriftune/strategies/sharded_product.py",
    "thriftune/strategies/fsdp/writing.py", "thriftune/strategies/memory/operations.py",
    "thriftune/strategies/memory/stand_ins.py", "thriftune/strategies/memory/tracing.py",
    "thriftune/training/budget_stop.py", "thriftune/training/callbacks.py", "thriftune/training/early_stop.py",
    "thriftune/training/guarding.py",
    "thriftune/training/resumable.py", "thriftune/training/telling.py",
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


def floor_of(module: str) -> tuple[int, str]:
    """How high the room of a module of thriftune is, and its name."""
    room = module.removeprefix("thriftune.").partition(".")[0]
    if not (ROOT / "thriftune" / room).is_dir():
        room = "ground"
    (floor,) = (number for number, rooms in enumerate(FLOORS) if room in rooms)
    return floor, room


def test_every_folder_is_a_room_and_every_room_a_folder():
    folders = {path.name for path in (ROOT / "thriftune").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders | {"ground"} == set().union(*FLOORS)


def test_rooms_import_from_lower_ones_only():
    """`where is resume?` had seven answers, and modules of one job imported those of any other."""
    wrong, checked = [], 0
    for file in files_of("thriftune"):
        own, room = floor_of(name_of(file).removesuffix(".py").replace("/", "."))
        for line, module in imports(file):
            if not module.startswith("thriftune."):
                continue
            floor, other = floor_of(module)
            checked += 1
            if floor > own or (floor == own and other != room):
                wrong.append(f"{name_of(file)}:{line}: {room} imports {module} of {other}")
    assert checked > 500
    assert not wrong, "\n".join(wrong)


def test_only_the_two_rooms_ask_for_the_name_of_a_method_or_strategy():
    """`method == "full"` stood in 33 places, for three questions at once: what trains, where weights lie, what runs."""
    names = {*METHODS, *STRATEGIES}

    def asked(file: Path) -> list[Found]:
        nodes = ast.walk(parse(file))
        sides = [side for node in nodes if isinstance(node, ast.Compare) for side in (node.left, *node.comparators)]
        sides += [case.pattern for node in ast.walk(parse(file)) if isinstance(node, ast.Match) for case in node.cases]
        constants = [part for side in sides for part in ast.walk(side) if isinstance(part, ast.Constant)]
        return [(part.lineno, part.value) for part in constants if part.value in names]

    rooms = [ROOT / "thriftune" / room for room in ("methods", "strategies")]
    files = [file for file in files_of(*LAYERS) if not any(file.is_relative_to(room) for room in rooms)]
    require_none(files, asked, lambda _name: True)
    assert {name for file in files_of(*LAYERS) for _, name in asked(file)} <= names


def test_the_library_knows_no_orchestrator():
    require_none(files_of("thriftune"), imports, lambda name: root(name) in ORCHESTRATION)


def test_one_room_alone_reaches_blob_stores():
    """Keys were looked for in four places, each in its own way; one of them did not know the orchestrator's."""
    room = ROOT / "thriftune" / "stores"
    inside = [file for file in FILES if file.is_relative_to(room)]
    assert {"fsspec", "obstore", "botocore"} <= {root(name) for file in inside for _, name in imports(file)}
    outside = [file for file in FILES if file not in inside]
    require_none(outside, imports, lambda name: root(name) in REACHES_STORES)

    def asked(file: Path) -> list[Found]:
        nodes = (node for node in ast.walk(parse(file)) if isinstance(node, ast.Attribute))
        return [(node.lineno, node.attr) for node in nodes]

    require_none(outside, asked, lambda name: name.startswith("get_filesystem") or name.endswith("get_filesystem"))


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
    require_none(files_of(*LAYERS, but=IMPORTS_HEAVY), imported_on_load, late.__contains__)


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
