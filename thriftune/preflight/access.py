"""Whether a token may download a repository of the hub, asked without downloading it."""

from typing import TYPE_CHECKING, Literal

from thriftune import hub
from thriftune.errors import UserError

if TYPE_CHECKING:
    from huggingface_hub import DatasetInfo, ModelInfo


def permitted(
    repository: str,
    revision: str | None,
    token: str | None,
    *,
    field: str,
    error_class: type[UserError],
    repo_type: Literal["model", "dataset"],
) -> "ModelInfo | DatasetInfo":
    """What the hub says of a repository that this token may download.

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
        UserError: As `error_class`: missing, or gated; the hub tells everybody about a gated repository, and gives its
            files to few.
        TransientError: The hub did not answer.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with hub.explained_errors(field, repository, error_class):
        if repo_type == "model":
            info: ModelInfo | DatasetInfo = api.model_info(repository, revision=revision)
        else:
            info = api.dataset_info(repository, revision=revision)
        if info.gated:
            api.auth_check(repository, repo_type=repo_type)
    return info
