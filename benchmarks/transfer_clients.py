"""One transfer by one client, for benchmarks/transfer.py, in a process of its own. Prints its seconds and GiB."""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

_BUCKET = "transfers"


def main() -> None:
    """Move the files that the command line names: client, direction, folder, prefix, and the program of s5cmd."""
    client, direction, folder, prefix, s5cmd = sys.argv[1:]
    move = CLIENTS[client](direction, Path(folder), prefix, s5cmd)
    began = time.perf_counter()
    move()
    seconds = time.perf_counter() - began
    held = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(seconds, held / 2**20)


def flytekit(direction: str, folder: Path, prefix: str, _s5cmd: str) -> Callable[[], object]:
    """What flytekit does with a FlyteDirectory: s3fs, every file at once."""
    from flytekit import FlyteContextManager
    from flytekit.core.data_persistence import FileAccessProvider

    context = FlyteContextManager.current_context()
    access = FileAccessProvider(str(folder.parent / "sandbox"), f"s3://{_BUCKET}", context.file_access.data_config)
    if direction == "up":
        return lambda: access.put_data(str(folder), f"s3://{_BUCKET}/{prefix}", is_multipart=True)
    return lambda: access.get_data(f"s3://{_BUCKET}/{prefix}", str(folder), is_multipart=True)


def boto3(direction: str, folder: Path, prefix: str, _s5cmd: str) -> Callable[[], object]:
    """boto3's managed transfer, one file after another."""
    import boto3 as library

    client = library.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])

    def up() -> None:
        for file in sorted(folder.iterdir()):
            client.upload_file(str(file), _BUCKET, f"{prefix}/{file.name}")

    def down() -> None:
        folder.mkdir(exist_ok=True)
        for entry in client.list_objects_v2(Bucket=_BUCKET, Prefix=f"{prefix}/")["Contents"]:
            client.download_file(_BUCKET, entry["Key"], str(folder / entry["Key"].rpartition("/")[2]))

    return up if direction == "up" else down


def thriftune(direction: str, folder: Path, prefix: str, _s5cmd: str) -> Callable[[], object]:
    """This package, as its tasks do it: the checksums of a finished directory are known, and compared on arrival."""
    import botocore.session  # noqa: F401 - what a task has loaded by then
    import obstore  # noqa: F401
    import s3fs  # noqa: F401

    from thriftune.digests import sha256_of
    from thriftune.stores import transfer

    url = f"s3://{_BUCKET}/{prefix}"
    if direction == "up":
        known = {file.name: sha256_of(file) for file in folder.iterdir()}  # in the manifest, since the files were made
        return lambda: transfer.upload(folder, url, known)
    return lambda: transfer.download(url, folder)


def without_checksums(direction: str, folder: Path, prefix: str, s5cmd: str) -> Callable[[], object]:
    """This package with files that came from elsewhere, and carry no checksum to compare."""
    return boto3(direction, folder, prefix, s5cmd) if direction == "up" else thriftune(direction, folder, prefix, s5cmd)


def s5cmd(direction: str, folder: Path, prefix: str, program: str) -> Callable[[], object]:
    """s5cmd, a program of its own."""
    there, here = f"s3://{_BUCKET}/{prefix}/", f"{folder}/"
    places = (here, there) if direction == "up" else (f"{there}*", here)
    return lambda: subprocess.run([program, "cp", *places], check=True, stdout=subprocess.DEVNULL)


CLIENTS = {
    "flytekit": flytekit,
    "boto3": boto3,
    "s5cmd": s5cmd,
    "thriftune": thriftune,
    "thriftune-without-checksums": without_checksums,
}

if __name__ == "__main__":
    main()
