"""Why a store or a server did not do what it was asked, and one message for each reason, wherever it is asked."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from thriftune import disk
from thriftune.errors import TransientError, UserError, chain_of, in_a_line
from thriftune.stores import access
from thriftune.urls import bucket_of, is_remote

Failure = Literal["missing", "forbidden", "unreachable", "unusable"]

# By name, so that the stores' libraries (aiohttp, botocore, gcsfs, obstore) are not imported by runs that do not use
# them.
_UNREACHABLE = frozenset({
    "ConnectionError", "TimeoutError", "gaierror", "ClientConnectionError", "ClientPayloadError", "HTTPClientError",
    "TransportError", "ServerDisconnectedError",
})  # fmt: skip
_FORBIDDEN = frozenset({
    "PermissionError", "NoCredentialsError", "PartialCredentialsError", "RefreshError", "PermissionDeniedError",
    "UnauthenticatedError",
})  # fmt: skip
_STATUSES: dict[int, Failure] = {401: "forbidden", 403: "forbidden", 404: "missing", 410: "missing"}
_BUSY = (408, 425, 429)
_SERVER_ERROR = 500
# What obstore says of an answer, with the server's own words.
_OBSTORE_STATUS = re.compile(r"status code: (?P<words>(?P<status>\d{3})[\w ]*)")
_SERVER_S_WORDS = re.compile(r"<Code>(?P<code>[^<]*)</Code>.*?<Message>(?P<message>[^<]*)</Message>", re.DOTALL)
# Codes and texts of S3, Google and Azure.
_REFUSED = re.compile(
    r"\b(ExpiredToken(Exception)?|InvalidToken|TokenRefreshRequired|InvalidAccessKeyId|SignatureDoesNotMatch"
    r"|RequestTimeTooSkewed|AuthorizationHeaderMalformed|PermanentRedirect|IllegalLocationConstraintException)\b"
)
_NO_BUCKET = re.compile(r"NoSuchBucket|specified (bucket|container) does not exist|ContainerNotFound")
# Where keys are looked for, in this order, by protocol.
_KEYS_OF = {
    "s3": "FLYTE_AWS_ACCESS_KEY_ID and FLYTE_AWS_SECRET_ACCESS_KEY, FSSPEC_S3_KEY and FSSPEC_S3_SECRET, "
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE and ~/.aws, the role of the pod or machine",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, the login of gcloud, the service account of the pod or machine",
    "abfs": "FLYTE_AZURE_STORAGE_ACCOUNT_NAME and FLYTE_AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_ACCOUNT_NAME and "
    "AZURE_STORAGE_ACCOUNT_KEY, the identity of the pod or machine",
}
_SERVER_OF = {"s3": " (FLYTE_AWS_ENDPOINT or AWS_ENDPOINT_URL names the server)"}


@dataclass(frozen=True)
class Refusal:
    """What a store refused.

    Attributes:
        message: Why, with the bucket.
        remedy: What to set or do.
    """

    message: str
    remedy: str


@contextmanager
def explained(
    field: str, place: str, error_class: type[UserError], missing: str = "no such file.", *, code: str = ""
) -> Iterator[None]:
    """Turn what the libraries of the stores raise into errors that say what to do.

    Args:
        field: The configuration key that names the path.
        place: Path or URL.
        error_class: What to raise for the user's own mistakes.
        missing: The message if nothing is there.
        code: Code for all of the user's own mistakes; if empty, the codes of the class.

    Raises:
        UserError: As `error_class`: nothing is there, access is denied, or it is not a path that can be read.
        TransientError: The store or the server cannot be reached, or is busy.
    """
    try:
        yield
    except (TransientError, UserError):
        raise
    except Exception as error:  # each store's library has its own errors; all others are raised unchanged
        failure = failure_of(error)
        is_refused = is_remote(place) and type(error).__module__ == "builtins" and disk.reason_of(error) is not None
        if failure is None or is_refused or disk.is_full(error):  # an error of this disk, not of the store
            raise
        if failure == "unreachable":
            raise TransientError(f"{field} = {place}: {unreachable(place, error)}") from error
        refused = refusal(place, error, missing)
        code = code or (error_class.missing if failure == "missing" else "")
        raise error_class.single(field, place, refused.message, refused.remedy, code=code) from error


def raise_if_definite(error: Exception) -> None:
    """Raise an error again that trying again would not resolve: of this disk, or what a store refuses."""
    is_changed = _is_of_obstore(error) and type(error).__name__ == "PreconditionError"
    if is_changed or disk.reason_of(error) is not None or failure_of(error) in ("missing", "forbidden"):
        raise error


def refusal(place: str, error: BaseException, missing: str = "no such file.") -> Refusal:
    """What a store refused, in the words of every message about it.

    Args:
        place: Path or URL that was asked for.
        error: An error that is not about a store that cannot be reached.
        missing: The message if the bucket is there, and what was asked for is not.
    """
    failure, words = failure_of(error), in_words(error)
    if failure == "missing":
        if is_remote(place) and is_without_bucket(error):
            named = _SERVER_OF.get(access.protocol_of(place), "")
            remedy = f"Create it, or name one that exists{named}."
            return Refusal(f"there is no bucket {bucket_of(place)}{_at(place)}.", remedy)
        return Refusal(missing, "Check the path, and that the file still exists.")
    if failure == "forbidden":
        names = _KEYS_OF.get(access.protocol_of(place))
        if names is None:
            return Refusal(f"access is denied: {words}.", "Grant read access; a signature may have expired.")
        origin = access.of(place).origin_of_keys
        used = f"with keys from {origin}" if origin else "and no keys were found"
        message = f"access is denied to {bucket_of(place)}{_at(place)}, {used} ({words})."
        named = _SERVER_OF.get(access.protocol_of(place), "")
        return Refusal(message, f"Give keys that may read and write there{named}. They are looked for in: {names}.")
    return Refusal(f"cannot be read: {words}.", "Give a path, s3://, gs:// or https:// URL.")


def unreachable(place: str, error: BaseException) -> str:
    """What is said of a store or a server that does not answer.

    Args:
        place: URL that was asked for.
        error: The last error.
    """
    message = f"the store cannot be reached or does not answer ({in_words(error)})."
    asked = _at(place)
    return f"{message} It was asked{asked}{_SERVER_OF.get(access.protocol_of(place), '')}." if asked else message


def failure_of(error: BaseException) -> Failure | None:
    """Why something could not be read from a store; None for an error that does not tell."""
    for link in chain_of(error):
        # Keys that have expired are answered with 400, and the bucket of another region with 301.
        status = 403 if _REFUSED.search(str(link)) else _status_of(link)
        if status is not None:
            return "unreachable" if status in _BUSY or status >= _SERVER_ERROR else _STATUSES.get(status, "unusable")
        names = {kind.__name__ for kind in type(link).__mro__}
        if names & _UNREACHABLE or (_is_of_obstore(link) and names & {"GenericError", "JoinError"}):
            return "unreachable"
        if names & _FORBIDDEN or str(link).startswith("Forbidden"):  # gcsfs says 403 with a plain OSError
            return "forbidden"
    is_missing = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
    if is_missing or (_is_of_obstore(error) and type(error).__name__ == "NotFoundError"):
        return "missing"
    if isinstance(error, ImportError | ValueError | RecursionError) or disk.is_circle(error):
        return "unusable"
    return "unreachable" if isinstance(error, OSError) else None


def status_of(error: BaseException) -> int | None:
    """The HTTP status by which a store or a server refused; None for an error that has none."""
    return next((status for link in chain_of(error) if (status := _status_of(link)) is not None), None)


def in_words(error: BaseException) -> str:
    """The innermost cause in one line; it says more than the errors wrapped around it."""
    cause = list(chain_of(error))[-1]
    if said := _SERVER_S_WORDS.search(str(cause)):
        return f"{said['code']}: {said['message']}"
    if answered := _OBSTORE_STATUS.search(str(cause)) if _is_of_obstore(cause) else None:
        return f"HTTP {answered['words']}"
    answer = getattr(cause, "response", None)  # of botocore, whose own text says what it was doing first
    told = answer.get("Error", {}) if isinstance(answer, dict) else {}
    return f"{told['Code']}: {told['Message']}" if told.get("Code") and told.get("Message") else in_a_line(cause)


def is_without_bucket(error: BaseException) -> bool:
    """Whether a store said that there is no such bucket."""
    return any(_NO_BUCKET.search(str(link)) for link in chain_of(error))


def _is_of_obstore(error: BaseException) -> bool:
    # What is refused while it sends a file it raises as a plain OSError, with the same words.
    is_plain = type(error) is OSError and _OBSTORE_STATUS.search(str(error)) is not None
    return is_plain or type(error).__module__.startswith("obstore")


def _at(place: str) -> str:
    """Which server was asked; empty for a web server, which the place names, and for stores that have only one."""
    if access.protocol_of(place) != "s3":
        return ""
    return f" at {access.of(place).endpoint or 'Amazon S3'}"


def _status_of(error: BaseException) -> int | None:
    """The HTTP status in an error of aiohttp, gcsfs, botocore or obstore."""
    response = getattr(error, "response", None)
    told = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    found = told or getattr(error, "status", None) or getattr(error, "code", None)
    if found is None and _is_of_obstore(error) and (said := _OBSTORE_STATUS.search(str(error))):
        found = said["status"]
    try:
        return int(found) if found is not None and int(found) >= 300 else None
    except (TypeError, ValueError):
        return None
