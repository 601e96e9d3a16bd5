"""A process of its own, which uses every GPU of this machine once and prints as JSON what happened.

So no CUDA context, half a GiB of each GPU, stays in the process that asks (thriftune/gpu_readings.py), and a driver
that crashes or hangs ends only this one.
"""

import json
from typing import Any

_SIDE = 64


def trial() -> dict[str, Any]:
    """What torch is, and what became of a small product on each GPU.

    Returns:
        The fields of `thriftune.gpu_readings.Trial`.
    """
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library of CUDA that torch loads by itself
        return {"torch": "", "error": f"{type(error).__name__}: {error}", "is_importable": False}
    found: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda or ""}
    if not found["cuda"]:
        return found
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return found | {"error": str(error)}
    count = torch.cuda.device_count()
    return found | {"architectures": torch.cuda.get_arch_list(), "gpus": [_tried(index) for index in range(count)]}


def _tried(index: int) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(index)
    error = ""
    try:
        ones = torch.ones(_SIDE, _SIDE, device=f"cuda:{index}")
        total = float((ones @ ones).sum())
        if total != _SIDE**3:
            error = f"a sum of products of ones is {total:g} in place of {_SIDE**3}"
    except RuntimeError as failure:
        error = str(failure)
    return {
        "name": properties.name,
        "memory_gib": properties.total_memory / 2**30,
        "capability": [properties.major, properties.minor],
        "error": error,
    }


if __name__ == "__main__":
    print(json.dumps(trial()))  # noqa: T201 - to the process that started this one
