"""How this process reaches blob stores: endpoint, keys, time limits and retries, for every library that asks one.

Two libraries ask: fsspec (s3fs, gcsfs, adlfs) lists and reads small files, obstore moves large ones. Both get what the
orchestrator is configured with (`use`). What that leaves open, each store's own names say: AWS_* and ~/.aws,
GOOGLE_APPLICATION_CREDENTIALS, AZURE_*, or the role of the pod.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from thriftune.urls import is_remote

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem
    from obstore.store import AzureConfig, ObjectStore, S3Config

Options = Mapping[str, Any]

# Timeouts in seconds for a request without an answer, and for a connection that is not accepted.
READ_S = 30
CONNECT_S = 10
# A failed request is repeated at once, so that a 503 for one of many parts does not restart a whole file. botocore
# repeats what the store refuses (500, 503, SlowDown), s3fs what breaks off, obstore both.
S3_BOTOCORE_TRIES = 2
S3_S3FS_TRIES = 2
OBSTORE_RETRIES = 3
# Parts of 50 MiB that s3fs transfers at once when another library asks it to move a file.
_S3_PARTS_AT_ONCE = 4

_LOCAL = ("file", "local")
# The names of each store's protocol, by the one that options are kept under.
_ALIASES = {"s3a": "s3", "gcs": "gs", "abfss": "abfs", "az": "abfs"}
_DEFAULT_REGION = "us-east-1"  # of S3 servers that are not Amazon's

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
    def moves_in_parts(self) -> bool:
        """Whether obstore has a client for the store."""
        return self.protocol in ("s3", "gs", "abfs")

    def object_store(self, bucket: str) -> "ObjectStore":
        """The obstore client of a bucket.

        Args:
            bucket: Name of the bucket, or of the container for Azure.
        """
        client = {
            "allow_http": True,
            "connect_timeout": timedelta(seconds=CONNECT_S),
            "read_timeout": timedelta(seconds=READ_S),
            # The default of 30 s counts from the first to the last byte of a part.
            "timeout": timedelta(hours=1),
        }
        retries = {"max_retries": OBSTORE_RETRIES, "retry_timeout": timedelta(seconds=(OBSTORE_RETRIES + 1) * READ_S)}
        make = {"s3": _s3_store, "gs": _google_store, "abfs": _azure_store}[self.protocol]
        return make(bucket, self.options, client_options=client, retry_config=retries)

    @property
    def endpoint(self) -> str:
        """The S3 server that is asked, if it is not Amazon's; empty otherwise."""
        named = self.options.get("endpoint_url")
        return str(named or (_configured_endpoint() if self.protocol == "s3" else ""))

    @property
    def origin_of_keys(self) -> str:
        """Where the keys come from that are used, in words; empty if there are none, or it is not known."""
        if self.protocol != "s3":
            return "the configuration" if self.options.get("account_key") or self.options.get("token") else ""
        if self.options.get("key"):
            is_of_fsspec = self.options["key"] == _of_fsspec("s3").get("key")
            return "the configuration of fsspec" if is_of_fsspec else "FLYTE_AWS_ACCESS_KEY_ID or Flyte's configuration"
        found = _session().get_credentials()
        if found is None:
            return ""
        return "AWS_ACCESS_KEY_ID" if found.method == "env" else str(found.method)


def _limits(protocol: str) -> Options:
    if protocol == "file":
        return {"auto_mkdir": True}
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


def _session() -> Any:
    import botocore.session

    return botocore.session.get_session()


def _configured_endpoint() -> str:
    """The S3 server that AWS's own variables and files name; empty for Amazon's."""
    from botocore.configprovider import ConfiguredEndpointProvider

    session = _session()
    named = ConfiguredEndpointProvider(
        full_config=session.full_config, scoped_config=session.get_scoped_config(), client_name="s3"
    )
    return str(named.provide() or "")


def _s3_store(bucket: str, options: Options, **limits: Any) -> "ObjectStore":
    from obstore.store import S3Store

    access = Access("s3", options)
    client, s3 = options.get("client_kwargs", {}), options.get("config_kwargs", {}).get("s3", {})
    config: S3Config = {"region": client.get("region_name") or _region(bucket, access)}
    if access.endpoint:
        config["endpoint"] = access.endpoint
    config["virtual_hosted_style_request"] = s3.get("addressing_style") == "virtual"
    if options.get("anon"):
        config["skip_signature"] = True
    elif options.get("key"):
        config |= {"access_key_id": options["key"], "secret_access_key": options.get("secret", "")}
        if options.get("token"):
            config["session_token"] = options["token"]
    else:
        limits["credential_provider"] = _credentials_of_botocore
    return S3Store(bucket, config=config, **limits)


def _credentials_of_botocore() -> Any:
    """Keys for obstore, which reads no ~/.aws itself. botocore exchanges keys ten minutes before they expire."""
    from datetime import UTC, datetime

    from botocore.exceptions import NoCredentialsError

    found = _session().get_credentials()
    if found is None:
        raise NoCredentialsError
    frozen = found.get_frozen_credentials()
    expires = datetime.now(UTC) + timedelta(minutes=10)
    keys = {"access_key_id": frozen.access_key, "secret_access_key": frozen.secret_key, "expires_at": expires}
    return keys | ({"token": frozen.token} if frozen.token else {})


@functools.cache
def _region_of_amazon(bucket: str) -> str:
    """The region of a bucket of Amazon's, which refuses requests that are signed for another one."""
    filesystem, _ = of(f"s3://{bucket}").opened(f"s3://{bucket}")
    answer: Mapping[str, Any] = filesystem.call_s3("head_bucket", Bucket=bucket)
    return str(answer.get("BucketRegion") or _DEFAULT_REGION)


def _region(bucket: str, access: Access) -> str:
    if access.endpoint:
        return str(_session().get_config_variable("region") or _DEFAULT_REGION)
    return _region_of_amazon(bucket)


def _google_store(bucket: str, options: Options, **limits: Any) -> "ObjectStore":
    from obstore.store import GCSStore

    named = str(options.get("token") or "")  # of gcsfs: a file with keys, or one of several words
    if named == "anon":
        limits["config"] = {"skip_signature": True}
    elif named.endswith(".json"):
        limits["config"] = {"application_credentials": named}
    return GCSStore(bucket, **limits)


def _azure_store(bucket: str, options: Options, **limits: Any) -> "ObjectStore":
    from obstore.store import AzureStore

    # abfs://container@account.dfs.core.windows.net/path names the account too.
    name, _, host = bucket.partition("@")
    names = ("account_name", "account_key", "client_id", "client_secret", "tenant_id", "sas_token")
    config = {key: str(options[key]) for key in names if options.get(key)}
    if host:
        config["account_name"] = host.partition(".")[0]
    return AzureStore(name, config=cast("AzureConfig", config), **limits)
