"""The image: the Dockerfile says what the lock files and the package say, and keeps the rules of a Dockerfile.

It is not built here, which takes a Docker engine and gigabytes; docs/image.md says what was built without one.
"""

import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml
from docker.utils.build import exclude_paths
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import thriftune
from pod_templates import security

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = {name.rstrip("*") for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
IGNORED = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]


@dataclass(frozen=True)
class Instruction:
    keyword: str
    words: str


def instructions() -> list[Instruction]:
    """Without comments, and with continued lines joined."""
    text = "\n".join(line for line in DOCKERFILE.splitlines() if not line.startswith("#"))
    lines = [line for line in re.sub(r"\s*\\\n\s*", " ", text).splitlines() if line.strip()]
    return [Instruction(*line.split(None, 1)) for line in lines]


def of(keyword: str) -> list[str]:
    return [i.words for i in instructions() if i.keyword == keyword]


def arguments() -> dict[str, str]:
    return dict(words.split("=", 1) for words in of("ARG"))


def labels() -> dict[str, str]:
    return dict(re.findall(r'opencontainers\.image\.(\w+)="(.*?)"', " ".join(of("LABEL"))))


def lock(file: str) -> dict[str, str]:
    """Versions by name."""
    lines = [line for line in (ROOT / file).read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def from_context() -> set[str]:
    copied = [words.split() for words in of("COPY") if "--from" not in words]
    return {source for words in copied for source in words[:-1]}


# ---- versions --------------------------------------------------------------------------------------------------------


def test_every_dependency_is_in_the_lock_at_a_version_that_it_allows():
    locked = lock("requirements.lock")
    lists = [PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"].values()]
    wanted = [Requirement(line) for lines in lists for line in lines]
    assert len(wanted) > 30
    versions = {wish: locked.get(canonicalize_name(wish.name), "none") for wish in wanted}
    assert [str(wish) for wish, version in versions.items() if version == "none" or version not in wish.specifier] == []


def test_the_two_locks_part_what_only_a_gpu_build_of_torch_needs():
    everywhere, gpu = lock("requirements.lock"), lock("requirements-gpu.lock")
    is_gpu = re.compile("nvidia-(cu|n)|cuda-|triton$")
    assert len(gpu) > 15
    assert [name for name in everywhere if is_gpu.match(name)] == []
    assert [name for name in gpu if not is_gpu.match(name)] == []


def test_versions_that_the_dockerfile_names_are_those_of_the_lock():
    named = re.findall(r"\b([a-z][\w.-]*)==([\w.${}]+)", " ".join(of("RUN")))
    assert named == [("uv", "${UV_VERSION}")]
    assert arguments()["UV_VERSION"] == lock("requirements.lock")["uv"]


def test_libraries_are_installed_as_the_locks_say_and_the_rest_without_dependencies():
    installs = re.findall(r"uv pip install (.*?)(?: && |$)", " ".join(of("RUN")))
    assert len(installs) == 4
    of_cpus, libraries, *others = installs
    for chosen in (of_cpus, libraries):
        assert "--requirements pyproject.toml" in chosen
    assert "--constraints requirements.lock --constraints requirements-gpu.lock" in libraries
    assert "--torch-backend cpu" in of_cpus
    assert "--constraints requirements.lock" in of_cpus
    assert "requirements-gpu.lock" not in of_cpus, "a build of torch without CUDA has none of them"
    assert all("--no-deps" in other for other in others)


def test_python_is_that_of_the_lock_of_the_tests_and_of_the_package():
    version = arguments()["PYTHON_VERSION"]
    (locked,) = re.findall(r"uv pip compile .*--python-version (\S+)", (ROOT / "Makefile").read_text())
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    steps = workflow["jobs"]["check-and-test"]["steps"]
    (tested,) = [step["with"]["python-version"] for step in steps if "setup-python" in step.get("uses", "")]
    assert minor(version) == locked == tested
    assert version in SpecifierSet(PROJECT["project"]["requires-python"])
    assert set(re.findall(r"lib/python([\d.]+)/", DOCKERFILE)) == {locked}


def test_cuda_is_the_minor_version_that_torch_is_compiled_with():
    # DeepSpeed stops at any other, unless DS_SKIP_CUDA_CHECK tells it not to look.
    version = minor(arguments()["CUDA_VERSION"])
    assert version == minor(lock("requirements-gpu.lock")["cuda-toolkit"])
    assert f"--from=cuda /usr/local/cuda-{version} /usr/local/cuda" in of("COPY")
    assert "DS_SKIP_CUDA_CHECK" not in " ".join(i.words for i in instructions())


def test_labels_are_the_packages_metadata():
    project = PROJECT["project"]
    assert arguments()["VERSION"] == thriftune.__version__
    assert labels() == {
        "title": project["name"],
        "description": project["description"],
        "licenses": project["license"],
        "version": "${VERSION}",
        "revision": "${REVISION}",
        "source": "${SOURCE}",
    }


def test_make_image_tags_with_the_release():
    done = subprocess.run(["make", "--dry-run", "image"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"--tag thriftune:{thriftune.__version__} ." in done.stdout


def test_an_image_for_cpus_is_built_from_the_stage_of_that_name_and_needs_no_cuda():
    assert arguments()["TORCH"] == "gpu"
    stages = {words.split(" AS ")[1]: words.split(" AS ")[0] for words in of("FROM")}
    assert stages["builder"] == "builder-${TORCH}"
    assert {"builder-cpu", "builder-gpu"} <= set(stages)
    text = DOCKERFILE.partition("FROM base AS builder-cpu")[2].partition("\nFROM ")[0]
    assert "cuda" not in "".join(line for line in text.splitlines() if not line.startswith("#"))
    (check,) = [words for words in of("RUN") if "installed_ops" in words]
    assert check.startswith('test "${TORCH}" = cpu || ')
    done = subprocess.run(["make", "--dry-run", "sandbox"], cwd=ROOT, capture_output=True, text=True, check=True)
    image = f"localhost:30000/thriftune:{thriftune.__version__}"
    assert "--build-arg TORCH=cpu" in done.stdout
    assert f"--tag {image} ." in done.stdout
    assert f"docker push {image}" in done.stdout
    assert f"export FLYTE_IMAGE={image}\n" in (ROOT / "configs" / "sandbox.env").read_text()


# ---- DeepSpeed's operators -------------------------------------------------------------------------------------------


def test_what_is_changed_and_switched_on_in_deepspeed_exists_in_its_locked_version():
    # A renamed switch would be ignored, and each pod compile the operator; an edit that finds nothing does nothing.
    deepspeed = distribution("deepspeed")
    assert deepspeed.version == lock("requirements.lock")["deepspeed"]
    builders = Path(str(deepspeed.locate_file("deepspeed/ops/op_builder")))
    (edit,) = re.findall(r"sed --in-place '(.*?)' op_builder/builder.py", DOCKERFILE)
    replaced = re.findall(r"s/(.*?)/.*?/", edit)
    assert len(replaced) == 2
    assert [text for text in replaced if text not in (builders / "builder.py").read_text()] == []
    switches = set(re.findall(r"(DS_BUILD_\w+)=\S+ ", " ".join(of("RUN"))))
    assert switches == {"DS_BUILD_CPU_ADAM", "DS_BUILD_UTILS", "DS_BUILD_AIO"}
    sources = "".join(file.read_text() for file in builders.rglob("*.py"))
    assert switches <= set(re.findall(r'BUILD_VAR = "(\w+)"', sources))


def test_architectures_and_async_io_are_build_arguments():
    (build,) = [words for words in of("RUN") if "uv build" in words]
    assert {"CUDA_ARCHITECTURES": "7.5", "WITH_ASYNC_IO": "0"}.items() <= arguments().items()
    assert "DS_ACCELERATOR=cuda" in build
    assert 'TORCH_CUDA_ARCH_LIST="${CUDA_ARCHITECTURES}"' in build
    assert "DS_BUILD_AIO=${WITH_ASYNC_IO}" in build


# ---- what is in it ---------------------------------------------------------------------------------------------------


def test_every_package_is_copied_and_the_context_holds_what_is_copied_and_no_more():
    assert from_context() >= PACKAGES | {"configs"}
    assert from_context() == {line[1:] for line in IGNORED if line.startswith("!")}


def test_the_code_comes_after_every_layer_that_takes_long():
    order = [i.words for i in instructions()]
    code = min(order.index(f"{name} ./{name}") for name in PACKAGES)
    assert code > max(n for n, words in enumerate(order) if "uv build" in words or "--requirements" in words)
    libraries = order.index("--from=builder /opt/venv /opt/venv")
    assert order.index("--from=code /code /opt/venv/lib/python3.11/site-packages") > libraries


@pytest.mark.parametrize(
    "name",
    [".git/config", ".venv/bin/python", "outputs/run/model.safetensors", "build/lib/x.py", "my-data.jsonl", ".env",
     "thriftune/.env", "configs/.env.prod", "thriftune/cache.bin", "tasks/__pycache__/plan.pyc", "key.pem",
     "tests/a.py"],
)  # fmt: skip
def test_environments_weights_outputs_and_secrets_do_not_reach_docker(name, tmp_path):
    for file in (name, "thriftune/planning/planner.py", "thriftune/data/report.html.jinja"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("")
    context = exclude_paths(str(tmp_path), IGNORED)
    assert {"thriftune/planning/planner.py", "thriftune/data/report.html.jinja"} <= context
    assert name not in context


# ---- rules -----------------------------------------------------------------------------------------------------------


def test_hadolint_finds_nothing():
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_finding_that_is_not_followed_has_its_reason():
    ignored = re.findall(r"hadolint ignore=\w+(.*)", DOCKERFILE)
    assert ignored
    assert all(re.fullmatch(r" # \w.*", reason) for reason in ignored)


def test_base_images_are_releases_and_files_come_from_stages_of_this_file():
    versions = arguments()
    images = [re.sub(r"\$\{(\w+)\}", lambda name: versions[name[1]], words.split(" AS ")[0]) for words in of("FROM")]
    stages = [words.split(" AS ")[1] for words in of("FROM")]
    outside = [image for image in images if image not in stages]
    assert len(outside) == 3
    assert all(re.search(r":\d+\.\d+\.\d+-[\w.-]+$", image) for image in outside)
    assert set(re.findall(r"--from=(\w+)", DOCKERFILE)) <= set(stages)
    assert of("ADD") == []


def test_the_last_user_is_the_number_that_pods_run_as():
    assert of("USER")[-1] == f"{security.USER}:{security.USER}"
    assert security.USER >= 1000
    assert not re.search(r"\bsudo\b|\bsu -", DOCKERFILE)


def test_nothing_secret_is_named_or_mounted():
    secret = re.compile(r"token|secret|passw|credential|api_?key|_key\b|netrc|\.env\b", re.IGNORECASE)
    assert [i for i in instructions() if secret.search(i.words)] == []


def test_system_packages_leave_nothing_behind_and_bring_nothing_unasked():
    installs = [words for words in of("RUN") if "apt-get" in words]
    assert len(installs) == 2
    for words in installs:
        assert words.startswith("apt-get update && apt-get install --yes --no-install-recommends ")
        assert words.endswith(" && rm -rf /var/lib/apt/lists/*")


def test_no_search_path_or_device_list_is_set_that_pods_would_inherit():
    # Flyte appends the uploaded code to PYTHONPATH; CUDA's images give every container all GPUs of its node.
    environment = " ".join(of("ENV"))
    assert "PYTHONPATH" not in environment
    assert "NVIDIA_VISIBLE_DEVICES" not in environment
