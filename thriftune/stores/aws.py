"""What Amazon's own variables and files say: endpoint, keys and regions, as botocore finds them."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from thriftune.errors import chain_of

# Options of s3fs.
Options = Mapping[str, Any]

_DEFAULT_REGION = "us-east-1"  # of S3 servers that are not Amazon's
_REGION_HEADER = "x-amz-bucket-region"
# How long keys of a role are used before botocore is asked again, which exchanges them ten minutes before they expire.
_ASKED_AGAIN = timedelta(minutes=5)

# Where each bucket of Amazon's is, which does not change.
_regions: dict[str, str] = {}


def session(options: Options) -> Any:
    """A botocore session of the profile that is asked for.

    Args:
        options: Options of s3fs.
    """
    import botocore.session

    return botocore.session.Session(profile=options.get("profile"))


def endpoint(options: Options) -> str:
    """The S3 server that Amazon's variables and files name; empty for Amazon's own.

    Args:
        options: Options of s3fs.
    """
    from botocore.configprovider import ConfiguredEndpointProvider

    found = session(options)
    named = ConfiguredEndpointProvider(
        full_config=found.full_config, scoped_config=found.get_scoped_config(), client_name="s3"
    )
    return str(named.provide() or "")


def keys_for_obstore(options: Options) -> Callable[[], Any]:
    """What obstore asks for keys: those that are given, else those that botocore finds.

    Without it, obstore would read AWS_* by itself, and mix a session token of there with keys of Flyte's.

    Args:
        options: Options of s3fs.
    """
    if options.get("key"):
        given = _keys(str(options["key"]), str(options.get("secret", "")), options.get("token"))
        return lambda: {**given, "expires_at": None}
    credentials = session(options).get_credentials()

    def found() -> Any:
        from botocore.exceptions import NoCredentialsError

        if credentials is None:
            raise NoCredentialsError
        frozen = credentials.get_frozen_credentials()
        is_of_a_role = hasattr(credentials, "refresh_needed")
        expires = datetime.now(UTC) + _ASKED_AGAIN if is_of_a_role else None
        return {**_keys(frozen.access_key, frozen.secret_key, frozen.token), "expires_at": expires}

    return found


def region(bucket: str, options: Options, ask: Callable[[], Mapping[str, Any]], *, is_amazon: bool) -> str:
    """The region of a bucket: Amazon refuses requests that are signed for another one.

    Args:
        bucket: Name of the bucket.
        options: Options of s3fs.
        ask: Asks for the bucket's head. Keys that may not list it are refused, with the region in the answer.
        is_amazon: Whether Amazon has it.
    """
    named = options.get("client_kwargs", {}).get("region_name")
    if named or not is_amazon:
        return str(named or session(options).get_config_variable("region") or _DEFAULT_REGION)
    if bucket not in _regions:
        _regions[bucket] = _asked(ask)
    return _regions[bucket]


def _asked(ask: Callable[[], Mapping[str, Any]]) -> str:
    try:
        return str(ask().get("BucketRegion") or _DEFAULT_REGION)
    except OSError as error:
        for link in chain_of(error):
            answer = getattr(link, "response", None)
            headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}) if isinstance(answer, dict) else {}
            if _REGION_HEADER in headers:
                return str(headers[_REGION_HEADER])
        raise


def _keys(key: str, secret: str, token: object) -> dict[str, str]:
    named = {"access_key_id": key, "secret_access_key": secret}
    return named | ({"token": str(token)} if token else {})
