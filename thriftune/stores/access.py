"""How this process reaches blob stores: endpoint, keys, time limits and retries, for every library that asks one.

Two libraries ask: fsspec (s3fs, gcsfs, adlfs) lists and reads small files, obstore moves large ones. Both get what the
orchestrator is configured with (`use`). What that leaves open, each store's own names say: AWS_* and ~/.aws,
GOOGLE_APPLICATION_CREDENTIALS, AZURE_*, or the role of the pod.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from thriftune.stores import aws
from thriftune.urls import is_remote

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

Options = Mapping[str, Any]

# Timeouts in seconds for a request without an answer, and for a connection that is not accepted.
READ_S = 30
CONNECT_S = 10
# A failed request is repeated at once, so that a 503 for one of many parts does not restart a whole file: botocore
# repeats what the store refuses (500, 503, SlowDown), s3fs what breaks off.
S3_BOTOCORE_TRIES = 2
S3_S3FS_TRIES = 2
# Parts of 50 MiB that s3fs transfers at once when another library asks it to move a file.
_S3_PARTS_AT_ONCE = 4

_LOCAL = ("file", "local")
# The names of each store's protocol, by the one that options are kept under.
_ALIASES = {"s3a": "s3", "gcs": "gs", "abfss": "abfs", "az": "abfs"}

# What `use` was last given, by protocol.
_used: dict[str, Options] = {}


def use(options: Mapping[str, Options]) -> None:
    """Reach stores with these options from now on, in this process.

    Args:
        options: Options of fsspec by protocol (s3, gs, abfs), such as key, secret and client_kwargs of s3fs.
    """
    _used.clear()
    _used.update(options)


def protocol_of(url: str) -> str:
    """The protocol of a URL, the same for all of its names; `file` for a path."""
    scheme = url.partition("://")[0] if is_remote(url) else "file"
    return "file" if scheme in _LOCAL else _ALIASES.get(scheme, scheme)


def of(url: str) -> "Access":
    """How to reach the store of a URL, as configured now.

    Args:
        url: URL or path.
    """
    protocol = protocol_of(url)
    used = _used.get(protocol, {})
    if protocol == "s3":
        used = _with_one_endpoint(used)
    return Access(protocol, _merged(_limits(protocol), _of_fsspec(protocol), used))


def opened(url: str) -> "tuple[AbstractFileSystem, str]":
    """The fsspec filesystem of a URL, and the path in it.

    Args:
        url: URL or path.
    """
    return of(url).opened(url)


def has_files(url: str) -> bool:
    """Whether a URL is one of files, not of a table in a warehouse such as bq://.

    Args:
        url: URL or path.
    """
    from fsspec import get_filesystem_class

    try:
        get_filesystem_class(protocol_of(url))
    except (ImportError, ValueError):
        return False
    return True


@dataclass(frozen=True)
class Access:
    """How to reach the stores of one protocol. It can be pickled: processes that are spawned know no configuration.

    Attributes:
        protocol: As `protocol_of` gives it.
        options: Options of fsspec; they contain keys.
    """

    protocol: str
    options: Options = field(repr=False)

    def opened(self, url: str, **more: Any) -> "tuple[AbstractFileSystem, str]":
        """The fsspec filesystem of a URL, and the path in it.

        Args:
            url: URL or path.
            **more: Further options of fsspec.

        Raises:
            ValueError: There is no such protocol.
            ImportError: Its library is not installed.
        """
        from fsspec.core import url_to_fs

        filesystem, path = url_to_fs(url, **{**self.options, **more})
        if self.protocol == "s3":
            filesystem.retries = S3_S3FS_TRIES
        return filesystem, str(path)

    @property
    def endpoint(self) -> str:
        """The S3 server that is asked, if it is not Amazon's; empty otherwise."""
        named = self.options.get("endpoint_url")
        return str(named or (aws.endpoint(self.options) if self.protocol == "s3" else ""))

    @property
    def origin_of_keys(self) -> str:
        """Where the keys come from that are used, in words; empty if there are none, or it is not known."""
        if self.protocol != "s3":
            return "the configuration" if self.options.get("account_key") or self.options.get("token") else ""
        if self.options.get("key"):
            is_of_fsspec = self.options["key"] == _of_fsspec("s3").get("key")
            return "the configuration of fsspec" if is_of_fsspec else "FLYTE_AWS_ACCESS_KEY_ID or Flyte's configuration"
        found = aws.session(self.options).get_credentials()
        if found is None:
            return ""
        return "AWS_ACCESS_KEY_ID" if found.method == "env" else str(found.method)


def _limits(protocol: str) -> Options:
    if protocol == "file":
        return {"auto_mkdir": True}
    if protocol in ("http", "https"):  # aiohttp's own limit is five minutes for a whole file
        from aiohttp import ClientTimeout

        return {"client_kwargs": {"timeout": ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=READ_S)}}
    if protocol != "s3":
        return {}
    retries = {"mode": "standard", "total_max_attempts": S3_BOTOCORE_TRIES}
    config = {"connect_timeout": CONNECT_S, "read_timeout": READ_S, "retries": retries}
    return {"max_concurrency": _S3_PARTS_AT_ONCE, "config_kwargs": config}


def _of_fsspec(protocol: str) -> Options:
    """What fsspec is configured with for everybody, in its own files and variables."""
    import fsspec

    found: Options = fsspec.config.conf.get(protocol, {})
    return _with_one_endpoint(found) if protocol == "s3" else found


def _with_one_endpoint(options: Options) -> Options:
    """Options of s3fs with the endpoint in the first of the two places that it may be in: with both, s3fs fails.

    fsspec adds what is missing from its own configuration, so the second place is there too, if only empty.
    """
    client = dict(options.get("client_kwargs", {}))
    named = client.pop("endpoint_url", None)
    endpoint = options.get("endpoint_url") or named
    return {**options, "client_kwargs": client, **({"endpoint_url": endpoint} if endpoint else {})}


def _merged(*several: Options) -> dict[str, Any]:
    """Options put together: later ones win, and mappings in them are merged."""
    merged: dict[str, Any] = {}
    for options in several:
        for name, value in options.items():
            both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
            merged[name] = {**merged[name], **value} if both else value
    return merged
