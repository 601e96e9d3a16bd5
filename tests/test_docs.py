"""Every path and symbol that pages, comments and docstrings name is there, and where they say.

Two pages named files that held other things by then: the code had moved on, and nothing looked.
"""

import ast
import fnmatch
import importlib
import re
import typing
from pathlib import Path

import pytest
from documents import FOLDERS, PACKAGES, ROOT, defined_in, files, notes, pages, prose, words
from pydantic import BaseModel

from tasks.platform import LOCAL_ONLY, Platform, variable
from thriftune.codes import CODES
from thriftune.config import RunConfig

# Names of other people's things, which our code does not mention outside of comments; by whose they are.
FOREIGN = {
    "deepspeed": {"DS_BUILD_FUSED_ADAM", "inference_all_reduce", "load_hp_checkpoint_state_from_checkpoint_dir_stage3"},
    "torch": {"LayerNorm", "MemTracker", "is_bf16_supported", "ProcessGroupNCCL", "from_local",
              "ncclGetErrorString", "prctl"},
    "bitsandbytes": {"MatMul4Bit", "optimizer_update_8bit_blockwise"},
    "CUDA": {"cuMemAddressReserve"},
    "transformers and accelerate": {"auto_find_batch_size", "find_executable_batch_size", "accepts_loss_kwargs"},
    "flytekit": {"HashMethod", "conditional", "SecretsManager"},
    "Flyte's engine": {"AdjustOrDefaultResource", "ensureResourceRange", "ApplyGPUNodeSelectors", "EntityNotExist",
                       "useUTCTz", "projectQuotaMemory"},
    "Kubernetes": {"OOMKilled", "SchedulingGated", "ErrImagePull", "configmap"},
    "Kueue": {"manageJobsWithoutQueueName", "frameworks"},
    "Karpenter and EKS": {"vmMemoryOverheadPercent", "getMemoryMebibytesToReserve", "getCPUMillicoresToReserve"},
    "what a command is given": {"TOKENIZER_DIRECTORY", "MODEL_DIRECTORY", "JOB"},
}  # fmt: skip
# Files of others that comments and pages cite as sources.
FOREIGN_FILES = {
    "core/utils.py": "flytekit",
    "translator.py": "flytekit",
    "integrations/moe.py": "transformers",
    "elastic/rendezvous/dynamic_rendezvous.py": "torch",
    "comm/torch.py": "DeepSpeed",
    "runtime/fp16/unfused_optimizer.py": "DeepSpeed",
    "runtime/zero/stage3.py": "DeepSpeed",
    "runtime/zero/stage_1_and_2.py": "DeepSpeed",
    "parameter_offload.py": "DeepSpeed",
    "config_hub/finetune/README.md": "litgpt",
    "tutorials/resource-tables.md": "litgpt",
    "resource-tables.md": "litgpt",
    "4bit-transformers-bitsandbytes.md": "the blog of Hugging Face",
    "file.yaml": "an example of a file to run",
    "my-run.yaml": "the README's own run",
    "outputs/demo-full/20261129T054911/go-on.yaml": "of a run",
    "go-on.yaml": "of a run",
}
# What looks like a key of a run file: parameters of a model, and files of its directory.
NO_KEYS = {
    "benchmarks.task_memory",
    "benchmarks.transfer",
    "task.metric",
    "model.layers",
    "model.safetensors",
    "model.safetensors.index.json",
    "model.gguf",
    "training.gpu_hours",
    "training.html",
    "training.md",
    "lora.four_bit",
    "evaluation.md",
    "data.md",
    "classification.md",
    "partial.md",
}
# Read by a local run beside the settings of a platform.
LOCAL_VARIABLES = set(LOCAL_ONLY)

EVERYTHING = {**pages(), **notes()}
_FOLDERS = "|".join(map(re.escape, FOLDERS))
_OURS = re.compile(rf"(?<![\w./:@-])(?:{_FOLDERS})/[\w./*-]*")
_NAMED_FILE = re.compile(
    r"(?<![\w./*<>{}:@-])(?:[\w-]+/)*[\w-]+(?:\.html)?\.(?:py|md|ya?ml|toml|lock|jinja)\b(?![\w/])"
)
_TICKED = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_SYMBOL = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(?:\(.*\))?")
_SECTIONS = "|".join(RunConfig.model_fields)
_KEY = re.compile(rf"(?<![\w./-])((?:{_SECTIONS})\.[a-z_]+(?:\.[a-z_]+)*)(?![\w/(-])")


def symbols(text: str) -> list[str]:
    """What stands in backticks and is one name, dotted or called."""
    found = [_SYMBOL.fullmatch(ticked) for ticked in _TICKED.findall(text)]
    return [match[1] for match in found if match]


def there(path: str, page: str) -> bool:
    """Whether a path is of a file, a folder, or of some files, from the root or from beside the page."""
    for start in (ROOT, (ROOT / page).parent):
        place = start / path.rstrip("/.")
        if place.exists() or fnmatch.filter(files(), path) or list(place.parent.glob(f"{place.name}-*.md")):
            return True
    return "/" not in path and path in {Path(name).name for name in files()}


# ---- there is something to look at -----------------------------------------------------------------------------------


def test_there_are_pages_and_notes_and_every_kind_of_name_in_them():
    assert len(pages()) > 20
    assert len(notes()) > 250
    text = "\n".join(EVERYTHING.values())
    assert len(_OURS.findall(text)) > 200
    assert len(symbols(text)) > 600
    assert len(_KEY.findall(text)) > 40


# ---- paths -----------------------------------------------------------------------------------------------------------


def test_the_files_they_name_are_there():
    missing = [
        f"{name}: {path}"
        for name, text in EVERYTHING.items()
        for path in {*_OURS.findall(text), *_NAMED_FILE.findall(text)}
        if path not in FOREIGN_FILES and not there(path, name)
    ]
    assert missing == []


def test_links_lead_to_a_file_and_to_a_heading_of_it():
    links = [(name, link) for name, text in pages().items() for link in _LINK.findall(_TICKED.sub("", prose(text)))]
    own = [(name, *link.partition("#")[::2]) for name, link in links if "://" not in link]
    assert len(own) > 30
    broken = []
    for name, file, anchor in own:
        target = (ROOT / name).parent / file if file else ROOT / name
        if not target.exists() or (anchor and anchor not in headings(target)):
            broken.append(f"{name}: {file}#{anchor}")
    assert broken == []


def headings(page: Path) -> set[str]:
    """The anchors that the hub of code makes of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


# ---- symbols ---------------------------------------------------------------------------------------------------------


def test_the_symbols_they_name_are_in_the_code():
    foreign = frozenset().union(*FOREIGN.values())
    settings = {variable(name) for name in Platform.model_fields}
    missing = [
        f"{name}: {symbol}"
        for name, text in EVERYTHING.items()
        for symbol in symbols(prose(text))
        if not symbol.endswith((".go", ".cpp"))
        for word in symbol.split(".")
        if word not in words() | settings | foreign
    ]
    assert missing == []


def test_no_exception_is_one_no_more():
    """A name that went, or that the code has by now, needs none."""
    text = "\n".join(EVERYTHING.values())
    assert [path for path in FOREIGN_FILES if path not in text] == []
    assert [name for names in FOREIGN.values() for name in names if name not in text or name in words()] == []


def test_dotted_names_of_this_package_can_be_imported():
    named = {(name, dotted) for name, text in EVERYTHING.items() for dotted in symbols(text) if is_ours(dotted)}
    assert len(named) > 5
    assert [f"{name}: {dotted}" for name, dotted in sorted(named) if not resolves(dotted)] == []


def is_ours(dotted: str) -> bool:
    top, _, rest = dotted.partition(".")
    return top in PACKAGES and bool(rest) and rest not in ("py", "yaml")


def resolves(dotted: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


_IN_FILE = re.compile(r"`(\w+)`(?: \(| in | of |, in )`([\w./]+\.py)`")


def test_symbols_are_defined_in_the_file_that_is_named_with_them():
    """A table was said to be in a file that had none, and a format's name to be in thriftune/config/schema.py."""
    pairs = [(name, *pair) for name, text in EVERYTHING.items() for pair in _IN_FILE.findall(" ".join(text.split()))]
    assert len(pairs) >= 4
    assert [pair for pair in pairs if pair[2] in files() and pair[1] not in defined_in(pair[2])] == []


def test_a_paragraph_names_a_file_that_knows_the_symbols_it_names():
    """What a page says of a function, with the file to look in, is of no use once that is another file."""
    checked, wrong = 0, []
    for name, text in pages().items():
        for paragraph in re.split(r"\n\s*\n|\n(?=- |\* |\|)", prose(text)):
            named = [path for path in _TICKED.findall(paragraph) if path in files() and path.endswith(".py")]
            knows = "\n".join(files()[path].read_text(encoding="utf-8") for path in named)
            said = [s for s in symbols(paragraph) if re.search(r"_|[a-z][A-Z]", s) and s.split(".")[-1] in words()]
            if named and said:
                checked += 1
                wrong += [f"{name}: {s} ({', '.join(named)})" for s in said if s.split(".")[-1] not in knows]
    assert checked > 10
    assert wrong == []


# ---- keys, settings, codes, targets ----------------------------------------------------------------------------------


def is_key(dotted: str) -> bool:
    """Whether the run file has this key."""
    model: type[BaseModel] | None = RunConfig
    for part in dotted.split("."):
        if model is None or part not in model.model_fields:
            return False
        annotation = model.model_fields[part].annotation
        inner = [kind for kind in (annotation, *typing.get_args(annotation)) if isinstance(kind, type)]
        model = next((kind for kind in inner if issubclass(kind, BaseModel)), None)
    return True


def is_of_a_run(name: str, key: str) -> bool:
    """Whether a key is meant: code calls a plan `plan`, as a run file does its section of what a plan is made for."""
    return not (name.endswith(".py") and key.startswith("plan."))


def test_the_keys_they_name_are_keys_of_a_run_file():
    named = {
        (name, key) for name, text in EVERYTHING.items() for key in _KEY.findall(prose(text)) if is_of_a_run(name, key)
    }
    assert [f"{name}: {key}" for name, key in sorted(named) if key not in NO_KEYS and not is_key(key)] == []


def test_the_keys_that_messages_name_are_keys_of_a_run_file():
    """An error, or a remedy, that names a key which is not one sends people looking."""
    checked, wrong = 0, []
    for name, file in files().items():
        if name.partition("/")[0] in PACKAGES and file.suffix == ".py":
            texts = [
                n.value for n in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(n, ast.Constant)
            ]
            keys = [key for text in texts if isinstance(text, str) for key in _KEY.findall(text)]
            checked += len(keys)
            wrong += [f"{name}: {key}" for key in keys if key not in NO_KEYS and not is_key(key)]
    assert checked > 100
    assert wrong == []


def test_the_settings_they_name_are_settings():
    known = {variable(name) for name in Platform.model_fields} | LOCAL_VARIABLES
    named = {(name, s) for name, text in EVERYTHING.items() for s in re.findall(r"THRIFTUNE_[A-Z_]+[A-Z]", text)}
    assert len(named) > 40
    assert [f"{name}: {setting}" for name, setting in sorted(named) if setting not in known] == []


def test_the_findings_they_name_are_of_the_preflight():
    named = {(name, code) for name, text in pages().items() for code in re.findall(r"`\[([a-z-]+)\]`", text)}
    assert len(named) >= 4
    assert [f"{name}: {code}" for name, code in sorted(named) if code not in {*CODES, "code"}] == []


def test_the_make_targets_they_name_are_there():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    named = {
        (n, t) for n, text in EVERYTHING.items() for t in re.findall(r"(?:`|^ {3,4}|\$ )make ([a-z]+)", text, re.M)
    }
    assert len(named) > 15
    assert [f"{name}: make {target}" for name, target in sorted(named) if target not in targets] == []


def test_the_workflows_they_say_to_run_are_in_their_files():
    pattern = re.compile(r"pyflyte run (?:--[\w-]+(?: [\w:./-]+)? )*(workflows/\w+\.py) +(\w+)")
    named = {(name, *run) for name, text in EVERYTHING.items() for run in pattern.findall(text)}
    assert len(named) > 8
    assert [run for run in sorted(named) if run[2] not in defined_in(run[1])] == []


@pytest.mark.parametrize("key", ["training.learning_rat", "publish.repository.name", "lora.ranks"])
def test_a_key_that_is_none_is_seen(key):
    assert not is_key(key)
    assert is_key("data.sources.weight")
