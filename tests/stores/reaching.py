"""Asks a bucket through both libraries, as a task's process does that was given some variables and files."""

import sys

from tasks import settings
from thriftune.stores import access, object_stores, remote


def main() -> None:
    """Read a file with fsspec, and another with obstore."""
    assert settings.PLATFORM  # its import says how stores are reached
    bucket = sys.argv[1]
    assert remote.content(f"s3://{bucket}/by-fsspec") == b"1"
    store = object_stores.make(access.of(f"s3://{bucket}"), bucket)
    assert bytes(store.get("by-obstore").bytes()) == b"2"
    sys.stdout.write(f"{access.of(f's3://{bucket}').origin_of_keys}\n")


if __name__ == "__main__":
    main()
