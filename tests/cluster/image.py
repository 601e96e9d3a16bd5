"""The container image's stand-in: this environment's libraries without this project.

A file that is missing in the upload would go unnoticed if pods could import the checkout. `pip install -e` makes it
importable through a .pth file in site-packages, and Python reads such files only there: a virtual environment whose own
site-packages name that folder in a .pth file of theirs has every library, and not the project. Nothing is installed;
it costs a tenth of a second.
"""

import os
import sys
import sysconfig
import venv
from pathlib import Path

PROJECT = "thriftune"
# What a pod imports, without flytekit itself, which keeps what the pod's environment says when it is imported.
OF_FLYTEKIT = (
    "aiohttp", "cachetools", "click", "croniter", "dataclasses_json", "docker", "docstring_parser",
    "flyteidl.core.dynamic_job_pb2", "flyteidl.core.errors_pb2", "flyteidl.service.admin_pb2_grpc",
    "flyteidl.service.auth_pb2_grpc", "flyteidl.service.dataproxy_pb2_grpc", "flyteidl.service.signal_pb2_grpc",
    "fsspec.implementations.http", "google.protobuf.json_format", "grpc", "joblib", "jsonlines", "keyring",
    "markdown_it", "marshmallow_enum", "marshmallow_jsonschema", "mashumaro.codecs.json", "mashumaro.codecs.msgpack",
    "mashumaro.jsonschema", "mashumaro.mixins.json", "pydantic.json_schema", "pythonjsonlogger", "requests",
    "rich.logging", "rich.progress", "rich.traceback", "rich.tree", "s3fs", "statsd", "yaml",
)  # fmt: skip
OF_TRAINING = (
    *OF_FLYTEKIT, "accelerate", "bitsandbytes", "datasets", "deepspeed", "kubernetes.client", "obstore", "pandas",
    "peft", "pyarrow", "torch.distributed.run", "transformers.trainer",
)  # fmt: skip
# Interpreters and activation scripts belong to an environment itself.
_OWN = ("python", "pip", "activate", "Activate")


def build(directory: Path) -> Path:
    """Make the environment.

    Args:
        directory: Where; it may not exist.

    Returns:
        Its bin directory.
    """
    libraries = Path(sysconfig.get_path("purelib"))
    assert not (libraries / PROJECT).exists(), f"install {PROJECT} with pip install -e: pods would see it"
    venv.EnvBuilder(symlinks=True, with_pip=False).create(directory)
    own = directory / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (own / "libraries.pth").write_text(f"{libraries}\n")
    programs = directory / "bin"
    for script in Path(sys.executable).parent.iterdir():
        if not script.name.startswith(_OWN) and not (programs / script.name).exists():
            _copy(script, programs / script.name, programs / "python")
    return programs


def path(programs: Path) -> str:
    """Where the image finds programs."""
    return f"{programs}:/usr/local/bin:/usr/bin:/bin"


def _copy(script: Path, copy: Path, python: Path) -> None:
    """A console script for another interpreter; what is no script (ninja) is linked."""
    content = script.read_bytes() if script.is_file() else b""
    first, _, rest = content.partition(b"\n")
    if first.startswith(b"#!") and b"python" in first:
        copy.write_bytes(b"#!" + os.fsencode(python) + b"\n" + rest)
        copy.chmod(0o755)
    else:
        copy.symlink_to(script)
