"""Files under a prefix of the blob store or of a local disk, with retries for short failures."""

import errno
import logging
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from thriftune.disk import DiskFullError, is_circle, is_full, reason_of
from thriftune.errors import UserError
from thriftune.stores import access, failures, local_files, remote
from thriftune.stores.clients import Client, client_of
from thriftune.stores.local_files import PARTIAL
from thriftune.stores.meter import Meter
from thriftune.stores.retrying import PAUSES_S, retried

logger = logging.getLogger(__name__)
T = TypeVar("T")

# The worst case of one request to S3 is 615 s, for a store that accepts connections and never answers. A store that
# does not exist is given up after about 20 s. For gs:// gcsfs repeats inside each attempt, for about a minute.
WORST_CASE_S = sum(PAUSES_S) + (len(PAUSES_S) + 1) * access.S3_BOTOCORE_TRIES * access.S3_S3FS_TRIES * access.READ_S

# How a store answers a conditional write: there is such a file; it does not know conditions.
_EXISTS, _NOT_IMPLEMENTED = 412, 501


# Seconds between two lines about a file that is moved beside a training.
_METER_EVERY_S = 30.0


class Store:
    """Files under a prefix: a local directory, s3://, gs:// or memory://. Safe in threads, after a fork, and pickled.

    Endpoint and keys are those that `thriftune.stores.access` knows when it is made.

    Every operation raises TransientError if the store still fails at the last attempt, and at once UserError if it
    refuses access, or DiskFullError if a local disk is full.

    Args:
        prefix: The prefix, which all names are relative to.
        pauses: Seconds to wait between the attempts at one operation.
    """

    def __init__(self, prefix: str, *, pauses: Sequence[float] = PAUSES_S) -> None:
        self.prefix = prefix if prefix.endswith("://") else prefix.rstrip("/")
        self.pauses = tuple(pauses)
        self._access = access.of(prefix)
        self._opened: tuple[int, Any, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}  # connections and event loops belong to one process

    def __repr__(self) -> str:
        return f"Store({self.prefix!r})"

    @property
    def _is_local(self) -> bool:
        return self._access.protocol == "file"

    def put_bytes(self, name: str, content: bytes) -> None:
        """Write a small file. Readers see the whole new content, or until then the old one.

        Args:
            name: Its name, relative to the prefix.
            content: The new content.
        """

        def put(filesystem: Any, path: str) -> None:
            if not self._is_local:  # in blob stores an object appears only when it is complete
                filesystem.pipe_file(path, content)
                return
            # A unique name, as other threads and processes may be writing the same file.
            partial = Path(f"{path}.{os.getpid()}.{threading.get_ident()}{PARTIAL}")
            partial.parent.mkdir(parents=True, exist_ok=True)
            try:
                partial.write_bytes(content)
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)

        self._writing(name, put)

    def create(self, name: str, content: bytes) -> bool:
        """Write a small file unless there is one of that name. Of several processes that try, one succeeds.

        A store that does not know conditional writes (HTTP 501) is asked first, which leaves a moment between.

        Args:
            name: Its name, relative to the prefix.
            content: The content.

        Returns:
            Whether it was written; if not, there is one already.
        """

        def make(filesystem: Any, path: str) -> bool:
            if self._is_local:
                return local_files.create(path, content)
            try:
                filesystem.pipe_file(path, content, mode="create")
            except Exception as error:
                status = failures.status_of(error)
                if isinstance(error, FileExistsError) or status == _EXISTS:
                    return False
                if status != _NOT_IMPLEMENTED:
                    raise
                if filesystem.exists(path):
                    return False
                filesystem.pipe_file(path, content)
            return True

        return self._writing(name, make)

    def get_bytes(self, name: str) -> bytes | None:
        """Read a small file; None if there is none.

        Args:
            name: Its name, relative to the prefix.
        """
        try:
            return self._retried(name, lambda filesystem, path: bytes(filesystem.cat_file(path)))
        except FileNotFoundError:
            return None

    def upload(self, file: Path, name: str, sha256: str = "") -> None:
        """Copy a local file to the store. On a local disk readers may see a part of it before it is complete.

        Args:
            file: The local file.
            name: Its name in the store.
            sha256: Its checksum, hexadecimal; computed if left out.
        """
        if not file.is_file():
            raise FileNotFoundError(f"{file} cannot be uploaded to {self.prefix}: it does not exist.")
        meter = Meter(f"Uploading {name}", file.stat().st_size, every_s=_METER_EVERY_S)
        self._writing(name, lambda *_: self._client().put(file, f"{self.prefix}/{name}", sha256, meter))

    def download(self, name: str, file: Path) -> None:
        """Copy a file of the store to the local disk, where it appears only when it is complete.

        Whether it is still what was saved, the checksums in a checkpoint's manifest say.

        Args:
            name: Its name in the store.
            file: Where to write it.

        Raises:
            FileNotFoundError: The store has no such file.
        """
        meter = Meter(f"Fetching {name}", 0, every_s=_METER_EVERY_S)
        self._retried(name, lambda *_: self._client().get(f"{self.prefix}/{name}", file, meter, check=False), disk=file)

    def names(self, under: str = "") -> list[str]:
        """Names of all files below a folder, sorted.

        Args:
            under: The folder, relative to the prefix; empty for the prefix itself.
        """
        return sorted(self.sizes(under))

    def sizes(self, under: str = "") -> dict[str, int]:
        """Names of all files below a folder, with their sizes in bytes.

        Args:
            under: The folder, relative to the prefix; empty for the prefix itself.
        """

        def find(filesystem: Any, path: str) -> dict[str, int]:
            if self._is_local:
                return local_files.sizes_below(path)
            found = remote.found_below(filesystem, path)
            return {n: int(info["size"]) for n, info in found.items() if f"{n}/".startswith(f"{path}/")}

        start = len(self._path("")) + 1
        try:
            found = self._retried(under, find)
        except FileNotFoundError as error:  # not an empty folder: there is no bucket
            raise self._refused(error) from error
        return {name[start:]: size for name, size in found.items()}

    def remove(self, under: str) -> None:
        """Remove a file, or all files below a folder, if there are any.

        Args:
            under: The file or folder, relative to the prefix.
        """
        if not under.strip("/"):
            raise ValueError(f"{self.prefix}: a whole prefix is never removed.")
        for name in self.names(under):
            with suppress(FileNotFoundError):  # another node may be removing the same
                self._retried(name, lambda filesystem, path: filesystem.rm_file(path))
        if self._is_local:
            self._retried(under, lambda _, path: local_files.remove_empty_folders(path))

    def without_retries(self) -> "Store":
        """The same prefix, without retries."""
        store = Store(self.prefix, pauses=())
        store._opened = self._opened
        return store

    def _path(self, name: str) -> str:
        root = self._filesystem()[1].rstrip("/")
        return f"{root}/{name.strip('/')}" if name else root

    def _filesystem(self) -> tuple[Any, str]:
        """The filesystem and the root path of this process: an event loop does not survive a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                opened = self._access.opened(self.prefix, skip_instance_cache=True, use_listings_cache=False)
            except (ValueError, ImportError) as error:
                raise self._unusable(error, "Give a directory, or an s3:// or gs:// URL.") from error
            self._opened = (os.getpid(), *opened)
        return self._opened[1], self._opened[2]

    def _writing(self, name: str, call: Callable[[Any, str], T]) -> T:
        disk = Path(self._path("")) if self._is_local else None
        try:
            return self._retried(name, call, disk)
        except FileNotFoundError as error:
            raise self._refused(error) from error

    def _retried(self, name: str, call: Callable[[Any, str], T], disk: Path | None = None) -> T:
        """Call with the filesystem and a path until it succeeds.

        Args:
            name: The file or folder, relative to the prefix.
            call: The operation, which gets the filesystem and the path.
            disk: A path on the local disk that it writes to; None if it writes elsewhere.
        """

        def ask() -> T:
            filesystem, path = self._filesystem()[0], self._path(name)
            filesystem.invalidate_cache()  # another process writes here too
            return call(filesystem, path)

        return retried(
            ask,
            self.prefix,
            name or "its listing",
            pauses=self.pauses,
            raise_definite=lambda error: self._raise_definite(error, disk),
        )

    def _client(self) -> Client:
        """What moves one file; this store itself repeats what fails."""
        return client_of(self._access, 1, pauses=())

    def _raise_definite(self, error: Exception, disk: Path | None) -> None:
        """Raise an error that trying again would not resolve."""
        if disk is not None and is_full(error):
            raise DiskFullError.at(disk, what="writing a checkpoint") from error
        if is_circle(error):
            raise self._unusable(error, "Give a directory whose links do not form a circle.") from error
        is_definite = isinstance(error, NotADirectoryError | IsADirectoryError) or reason_of(error) == errno.EROFS
        if self._is_local and (is_definite or isinstance(error, PermissionError)):
            raise self._unusable(error, "Let this user read, write and remove there.") from error
        if is_definite or failures.failure_of(error) == "forbidden":
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> UserError:
        refused = failures.refusal(self.prefix, error)
        return self._error(refused.message, refused.remedy)

    def _unusable(self, error: Exception, remedy: str) -> UserError:
        return self._error(f"cannot be used ({type(error).__name__}: {error}).", remedy)

    def _error(self, message: str, remedy: str) -> UserError:
        return UserError.single("checkpoints", self.prefix, message, remedy, code="checkpoint-not-found")
