"""The GPUs of this machine: as the driver shows them (NVML), and as torch can use them (a short process of its own)."""

import importlib
import json
import logging
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thriftune import gpu_trial

logger = logging.getLogger(__name__)

_GIB = 2**30
_SCRIPT = Path(gpu_trial.__file__)
# Importing torch takes seconds, and a driver that keeps no state between processes needs as many for each of 8 GPUs.
_TRIAL_SECONDS = 180.0
# Files of NVIDIA's driver, on Linux and under WSL.
_DRIVER_FILES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
_LAST_WORDS = 300


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        name: The driver's name for it.
        memory_gib: All of its memory, in GiB; 0 if the driver does not say.
        capability: Compute capability.
    """

    name: str
    memory_gib: float
    capability: tuple[int, int]


@dataclass(frozen=True)
class DrivenGpu(Gpu):
    """A GPU as the driver shows it, before this pod uses it.

    Attributes:
        held_gib: GiB that are held.
        holders: Processes that hold them, as far as they can be seen from here.
        is_divided: Whether its MIG mode is on: a pod has a part of it.
    """

    held_gib: float = 0.0
    holders: tuple[str, ...] = ()
    is_divided: bool = False


@dataclass(frozen=True)
class TriedGpu(Gpu):
    """A GPU that torch has used.

    Attributes:
        error: What torch said; empty if it works.
    """

    error: str = ""


@dataclass(frozen=True)
class Driver:
    """What NVML says.

    Attributes:
        version: Version of the driver; empty if NVML does not answer.
        cuda: The newest CUDA that it can run.
        gpus: The GPUs that this container can see, without those that do not answer.
        error: Why NVML, or a GPU of it, does not answer.
        is_broken: Whether that is because the driver or a GPU does not work, not because there is none.
    """

    version: str = ""
    cuda: tuple[int, int] = (0, 0)
    gpus: tuple[DrivenGpu, ...] = ()
    error: str = ""
    is_broken: bool = False


@dataclass(frozen=True)
class Trial:
    """What torch says.

    Attributes:
        torch: Version of torch; empty if its process did not end well.
        cuda: The CUDA that it is built for; empty for none.
        architectures: GPUs that it has code for, such as sm_75.
        gpus: The GPUs that it can see.
        error: Why it can see none.
        is_importable: Whether it could be imported, which is the image's affair and not the node's.
    """

    torch: str = ""
    cuda: str = ""
    architectures: tuple[str, ...] = ()
    gpus: tuple[TriedGpu, ...] = ()
    error: str = ""
    is_importable: bool = True

    @property
    def least_capability(self) -> tuple[int, int]:
        """The oldest compute capability that torch has code for; (0, 0) if it does not say."""
        digits = ["".join(filter(str.isdigit, name)) for name in self.architectures if name.startswith("sm_")]
        return min(((int(text[:-1]), int(text[-1])) for text in digits), default=(0, 0))


def has_driver_files() -> bool:
    """Whether a driver of NVIDIA is there: without its files, there is no GPU to try."""
    return any(file.exists() for file in _DRIVER_FILES)


def read_driver() -> Driver:
    """Ask NVML, which needs no context on a GPU."""
    nvml: Any = importlib.import_module("pynvml")  # it has no types
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        is_missing = error.value in (nvml.NVML_ERROR_LIBRARY_NOT_FOUND, nvml.NVML_ERROR_DRIVER_NOT_LOADED)
        return Driver(error=str(error), is_broken=not is_missing)
    number = _asked(nvml, 0, "nvmlSystemGetCudaDriverVersion")
    version, cuda = str(_asked(nvml, "", "nvmlSystemGetDriverVersion")), (number // 1000, number % 1000 // 10)
    try:
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as error:
        return Driver(version, cuda, error=str(error), is_broken=True)
    gpus, lost = [], []
    for index in range(count):
        try:
            gpus.append(_driven(nvml, nvml.nvmlDeviceGetHandleByIndex(index)))
        except nvml.NVMLError as error:  # it fell off the bus; the others may go on
            lost.append(f"GPU {index}: {error}")
    return Driver(version, cuda, tuple(gpus), error="; ".join(lost), is_broken=bool(lost))


def _driven(nvml: Any, handle: Any) -> DrivenGpu:
    # Version 2 does not count what the driver itself holds of an idle GPU.
    memory = _asked(nvml, None, "nvmlDeviceGetMemoryInfo", handle, nvml.nvmlMemory_v2)
    current, _ = _asked(nvml, (0, 0), "nvmlDeviceGetMigMode", handle)  # not supported before A100
    return DrivenGpu(
        name=str(_asked(nvml, "a GPU", "nvmlDeviceGetName", handle)),
        memory_gib=memory.total / _GIB if memory else 0.0,
        capability=_asked(nvml, (0, 0), "nvmlDeviceGetCudaComputeCapability", handle),
        held_gib=memory.used / _GIB if memory else 0.0,
        holders=tuple(map(_holder, _asked(nvml, [], "nvmlDeviceGetComputeRunningProcesses", handle))),
        is_divided=bool(current),
    )


def _holder(process: Any) -> str:
    held = f" ({process.usedGpuMemory / _GIB:.1f} GiB)" if process.usedGpuMemory else ""
    return f"process {process.pid}{held}"


def _asked(nvml: Any, otherwise: Any, question: str, *arguments: Any) -> Any:
    """What NVML answers; another value where this GPU, or the rights of this container, do not allow the question."""
    try:
        return getattr(nvml, question)(*arguments)
    except nvml.NVMLError as error:
        logger.debug("%s: %s", question, error)
        return otherwise


def try_gpus(script: Path = _SCRIPT, seconds: float = _TRIAL_SECONDS) -> Trial:
    """Let torch use each GPU once.

    Args:
        script: What does it, and prints a trial as a line of JSON. Libraries may print lines before and after it.
        seconds: How long it may take.

    Returns:
        What happened; how the process ended, if it did not end well.
    """
    # -P: this folder has modules that must not be taken for those of others.
    command = [sys.executable, "-P", str(script)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        output, words = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()  # and not waited for: a process that hangs in the driver does not end
        return Trial(error=f"it did not answer within {seconds:g} s")
    if process.returncode:
        last = " ".join(words.strip().splitlines()[-1:])[:_LAST_WORDS]
        return Trial(error=f"its process ended with {_end(process.returncode)}{last and f': {last}'}")
    found = next(filter(None, map(_object_in, reversed(output.splitlines()))), None)
    if found is None:
        return Trial(error="its process printed no result")
    gpus = [TriedGpu(**{**gpu, "capability": tuple(gpu["capability"])}) for gpu in found.get("gpus", ())]
    return Trial(**{**found, "architectures": tuple(found.get("architectures", ())), "gpus": tuple(gpus)})


def _object_in(line: str) -> dict[str, Any]:
    """The trial that a line of its process holds; empty if it is a line of something else."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) and "torch" in found else {}


def _end(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"
