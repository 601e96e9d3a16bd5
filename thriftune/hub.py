"""The Hugging Face hub: everything that can go wrong there has its own clear error."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from thriftune.errors import DataError, TransientError, UserError

if TYPE_CHECKING:
    from huggingface_hub import DatasetInfo, ModelInfo
    from huggingface_hub.errors import HfHubHTTPError

# HTTP statuses with which the hub says "not now".
_BUSY = (408, 429)
_SERVER_ERROR = 500
_NO_TOKEN, _FORBIDDEN = 401, 403
_REFUSED = "hub-token-refused"

Access = Literal["read", "write"]
_TOKEN_REMEDIES: dict[Access, str] = {
    "read": "Give a valid token with read access, or none for a public repository.",
    "write": "Give a valid token with write access to it.",
}


@contextmanager
def explained_errors(
    field: str, repository: str, error_class: type[UserError], access: Access = "read"
) -> Iterator[None]:
    """Turn what the hub's libraries raise into errors that say what to do.

    Args:
        field: The configuration key that named the repository.
        repository: The hub id.
        error_class: What to raise for the user's own mistakes.
        access: The access that is needed.

    Raises:
        UserError: As `error_class`: gated, missing, unknown revision, bad token.
        TransientError: The hub is unreachable or busy.
    """
    import httpx2 as httpx
    from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError
    from huggingface_hub import errors as hub_errors

    try:
        yield
    except hub_errors.HFValidationError as error:
        raise error_class.single(
            field,
            repository,
            "is neither a path that exists nor a hub id.",
            "Check the path, or write owner/name.",
            code=error_class.missing,
        ) from error
    except hub_errors.GatedRepoError as error:
        raise error_class.single(
            field,
            repository,
            "is gated, and access was not granted.",
            "Accept its licence on the hub, and give a token of that account (secret or HF_TOKEN).",
            code=error_class.gated,
        ) from error
    except hub_errors.RevisionNotFoundError as error:
        raise error_class.single(
            field.replace("source", "revision"),
            repository,
            "has no such revision.",
            "Name a commit, tag or branch.",
            code=error_class.no_revision,
        ) from error
    except (hub_errors.RepositoryNotFoundError, DatasetNotFoundError, DataFilesNotFoundError) as error:
        raise error_class.single(
            field,
            repository,
            "is not on the hub, or is private and the token cannot see it.",
            "Check the spelling, or give a token with access (secret or HF_TOKEN).",
            code=error_class.missing,
        ) from error
    except hub_errors.HfHubHTTPError as error:
        raise _explain_status(error, field, repository, error_class, access) from error
    except (httpx.LocalProtocolError, UnicodeEncodeError):
        # Its text quotes the header with the token: neither the text nor the chain of causes may be shown.
        raise error_class.single(
            field,
            repository,
            "the token holds characters that no token has.",
            "Copy the token again.",
            code=_REFUSED,
        ) from None
    except (
        hub_errors.LocalEntryNotFoundError,
        hub_errors.OfflineModeIsEnabled,
        httpx.TransportError,
        ConnectionError,
        TimeoutError,
    ) as error:
        raise TransientError(
            f"{field} = {repository}: the hub cannot be reached ({type(error).__name__}). Check the network, or give "
            f"{'files of your own' if issubclass(error_class, DataError) else 'a local directory'}."
        ) from error


def permitted(
    repository: str,
    revision: str | None,
    token: str | None,
    *,
    field: str,
    error_class: type[UserError],
    repo_type: Literal["model", "dataset"],
) -> "ModelInfo | DatasetInfo":
    """Ask the hub about a repository that this token may download, without downloading it.

    Args:
        repository: Hub id.
        revision: Commit, tag or branch.
        token: Hub token.
        field: The configuration key that named the repository.
        error_class: What to raise for the user's own mistakes.
        repo_type: Kind of repository.

    Returns:
        Its commit, tags and files.

    Raises:
        UserError: As `error_class`: missing, or gated (the hub describes a gated repository to everybody, but gives its
            files only to accounts with access).
        TransientError: The hub did not answer.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with explained_errors(field, repository, error_class):
        if repo_type == "model":
            info: ModelInfo | DatasetInfo = api.model_info(repository, revision=revision)
        else:
            info = api.dataset_info(repository, revision=revision)
        if info.gated:
            api.auth_check(repository, repo_type=repo_type)
    return info


def commit_of(
    repository: str, revision: str | None, token: str | None, *, repo_type: Literal["model", "dataset"]
) -> str:
    """The commit that a revision stands for now.

    Args:
        repository: Hub id.
        revision: Commit, tag or branch; the default branch when None.
        token: Hub token.
        repo_type: Kind of repository.

    Returns:
        The commit's full hash.
    """
    from huggingface_hub import HfApi

    sha = HfApi(token=token).repo_info(repository, revision=revision, repo_type=repo_type).sha
    return str(sha)


def _explain_status(
    error: "HfHubHTTPError", field: str, repository: str, error_class: type[UserError], access: Access
) -> Exception:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (_NO_TOKEN, _FORBIDDEN):
        return error_class.single(
            field,
            repository,
            f"the hub refused the token (HTTP {status}).",
            _TOKEN_REMEDIES[access],
            # 403 refuses a token that lacks the permission: for writing, the class's own code is more exact.
            code=_REFUSED if access == "read" or status == _NO_TOKEN else "",
        )
    if status is None or status in _BUSY or status >= _SERVER_ERROR:
        return TransientError(f"{field} = {repository}: the hub did not answer (HTTP {status}).")
    answer = f"the hub answered HTTP {status}" + (f" ({error.server_message})" if error.server_message else "")
    remedy = "Check the name and revision." if access == "read" else "Check what the hub says about it."
    return error_class.single(field, repository, f"{answer}.", remedy)
