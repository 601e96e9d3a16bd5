"""obstore's client of a bucket, made from the options of fsspec."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from thriftune.stores import aws
from thriftune.stores.access import CONNECT_S, READ_S, Access

if TYPE_CHECKING:
    from obstore.store import AzureConfig, GCSConfig, ObjectStore, S3Config

# obstore repeats a failed request, for two minutes at most.
RETRIES = 3
_RETRY_S = (RETRIES + 1) * READ_S
# The limit of a request that sends a part counts from its start: sixteen parts of 8 MiB at once need 9 Mbit/s.
WRITE_S = 120
_MOST_S = 3600

# Options that a client can be made of; with any other, fsspec moves the files.
_UNDERSTOOD = {
    "s3": {
        "key", "secret", "token", "anon", "profile", "endpoint_url", "client_kwargs", "config_kwargs", "cache_regions",
        "max_concurrency", "requester_pays", "s3_additional_kwargs",
    },
    "gs": {"token", "project"},
    "abfs": {
        "account_name", "account_key", "client_id", "client_secret", "tenant_id", "sas_token", "anon",
    },
}  # fmt: skip
_UNDERSTOOD_INSIDE = {
    "client_kwargs": {"region_name"},
    "config_kwargs": {"connect_timeout", "read_timeout", "retries", "s3"},
    "s3_additional_kwargs": {"ServerSideEncryption", "SSEKMSKeyId"},
}
PROTOCOLS = frozenset(_UNDERSTOOD)
_ANONYMOUS = "anon"


def why_not(how: Access) -> str:
    """Why obstore cannot reach a store as fsspec is told to; empty if it can.

    Args:
        how: How the store is reached.
    """
    if how.protocol not in _UNDERSTOOD:
        return "it has no client for it"
    other = sorted(set(how.options) - _UNDERSTOOD[how.protocol])
    for name, understood in _UNDERSTOOD_INSIDE.items():
        other += sorted(f"{name}.{inner}" for inner in set(how.options.get(name, {})) - understood)
    if other:
        return f"it does not know {', '.join(other)}"
    is_plain = how.endpoint.startswith("http://")
    if how.protocol == "s3" and not is_plain and aws.session(how.options).get_config_variable("ca_bundle"):
        return "it does not know AWS_CA_BUNDLE"
    token = how.options.get("token")
    if how.protocol == "gs" and token and token != _ANONYMOUS and not str(token).endswith(".json"):
        return "it does not know this token"
    return ""


def make(how: Access, bucket: str, *, writing: bool = False) -> "ObjectStore":
    """The client of a bucket.

    Args:
        how: How the store is reached; one that `why_not` says nothing against.
        bucket: Name of the bucket, or of the container for Azure.
        writing: Whether it is for sending parts, which takes longer until there is an answer.
    """
    client = {
        "allow_http": True,
        "connect_timeout": timedelta(seconds=CONNECT_S),
        "read_timeout": timedelta(seconds=WRITE_S if writing else READ_S),
        "timeout": timedelta(seconds=_MOST_S),  # from the first to the last byte; the default is 30 s
    }
    limits = {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=_RETRY_S)}
    makers: Mapping[str, Callable[..., ObjectStore]] = {"s3": _s3, "gs": _google, "abfs": _azure}
    return makers[how.protocol](how, bucket, client_options=client, retry_config=limits)


def _s3(how: Access, bucket: str, **limits: Any) -> "ObjectStore":
    from obstore.store import S3Store

    options, endpoint = how.options, how.endpoint

    def head() -> Mapping[str, Any]:
        answer: Mapping[str, Any] = how.opened(f"s3://{bucket}")[0].call_s3("head_bucket", Bucket=bucket)
        return answer

    style = options.get("config_kwargs", {}).get("s3", {}).get("addressing_style")
    config: S3Config = {"region": aws.region(bucket, options, head, is_amazon=not endpoint)}
    config["virtual_hosted_style_request"] = style == "virtual"
    if endpoint:
        config["endpoint"] = endpoint
    if options.get("requester_pays"):
        config["request_payer"] = True
    encryption = options.get("s3_additional_kwargs", {})
    if encryption.get("ServerSideEncryption"):
        config["server_side_encryption"] = encryption["ServerSideEncryption"]
    if encryption.get("SSEKMSKeyId"):
        config["sse_kms_key_id"] = encryption["SSEKMSKeyId"]
    if options.get("anon"):
        config["skip_signature"] = True
    else:
        limits["credential_provider"] = aws.keys_for_obstore(options)
    return S3Store(bucket, config=config, **limits)


def _google(how: Access, bucket: str, **limits: Any) -> "ObjectStore":
    from obstore.store import GCSStore

    token = str(how.options.get("token") or "")
    config: GCSConfig = {}
    if token == _ANONYMOUS:
        config["skip_signature"] = True
    elif token:
        config["application_credentials"] = token
    return GCSStore(bucket, config=config, **limits)


def _azure(how: Access, bucket: str, **limits: Any) -> "ObjectStore":
    from obstore.store import AzureStore

    # abfs://container@account.dfs.core.windows.net/path names the account too.
    name, _, host = bucket.partition("@")
    config = {key: str(value) for key, value in how.options.items() if value and key != _ANONYMOUS}
    if host:
        config["account_name"] = host.partition(".")[0]
    return AzureStore(name, config=cast("AzureConfig", config), **limits)
