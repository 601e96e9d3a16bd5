"""Where a run publishes to: find out before training whether the token may write there."""

import logging
from collections.abc import Iterator
from typing import Any

from thriftune import hub
from thriftune.config import PublishConfig
from thriftune.errors import Problem, PublishError
from thriftune.models import publishing
from thriftune.preflight.outcome import attempt

logger = logging.getLogger(__name__)

_FIELD = "publish.repository"
_UNAUTHORIZED, _FORBIDDEN = 401, 403
_WRITES = ("write", "admin")
_WRITING_ROLES = ("write", "contributor", "admin")
_WRITING_PERMISSION = "repo.write"


def check(publish: PublishConfig | None, token: str | None) -> Iterator[Problem]:
    """The problems of the target; none if a run does not publish, or only does a dry run.

    Args:
        publish: The publish section.
        token: Hub token.
    """
    if publish is None or publish.dry_run:
        return
    logger.info("Preflight: write access to %s", publish.repository)
    missing = attempt(lambda: publishing.require_token(publish, token), _FIELD, publish.repository)
    if missing.failed or token is None:
        yield from missing.findings
        return
    refused = attempt(lambda: _require_write_access(publish.repository, token), _FIELD, publish.repository)
    yield from refused.findings


def _require_write_access(repository: str, token: str) -> None:
    """Refuse a token that may not write to a repository, or not create one that does not exist yet.

    Raises:
        PublishError: It may not, or it is no valid token.
        TransientError: The hub did not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    api = HfApi(token=token)
    with hub.explained_errors(_FIELD, repository, PublishError, access="write"):
        try:
            api.auth_check(repository, write=True)
        except RepositoryNotFoundError:
            _require_may_create(api.whoami(), repository)
        except HfHubHTTPError as error:
            if error.response.status_code != _FORBIDDEN:
                raise
            message = "this token may not write there."
            raise PublishError.single(_FIELD, repository, message, "Give a token with write access to it.") from error


def _require_may_create(account: dict[str, Any], repository: str) -> None:
    """Refuse an account that may not create a repository with this token.

    Args:
        account: The hub's answer about the token.
        repository: As owner/name.

    Raises:
        PublishError: The owner is somebody else, or the token only reads.
    """
    owner, name = repository.split("/", 1)[0], str(account.get("name"))
    roles = {str(org.get("name")): org.get("roleInOrg") for org in account.get("orgs") or ()}
    is_own = owner.lower() == name.lower()
    if not is_own and roles.get(owner) not in _WRITING_ROLES:
        raise PublishError.single(
            _FIELD,
            repository,
            f"is not there, and {name} may not create it for {owner}.",
            f"Publish to {name}/..., or be given a role that writes in {owner}.",
        )
    if not _token_writes(account, owner):
        raise PublishError.single(
            _FIELD, repository, "is not there, and the token only reads.", "Give a token with write access."
        )


def _token_writes(account: dict[str, Any], owner: str) -> bool:
    """Whether a token may write to its owner's repositories; assumed if the hub does not say."""
    token = (account.get("auth") or {}).get("accessToken") or {}
    role = token.get("role")
    if role != "fineGrained":
        return role is None or role in _WRITES
    scopes = (token.get("fineGrained") or {}).get("scoped") or ()
    return any(
        _WRITING_PERMISSION in (scope.get("permissions") or ())
        and str((scope.get("entity") or {}).get("name")).lower() == owner.lower()
        for scope in scopes
    )
