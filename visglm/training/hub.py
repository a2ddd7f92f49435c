"""Results → a model hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError  # of the HTTP library it uses: no connection, no answer in time

from ..errors import VisGLMError

# What a run needs to go on, and nobody to answer.
LEFT_OUT = ["checkpoint-*", "partial/*", "runs/*", ".*.part"]


def push(folder: str | Path, repository: str, *, private: bool = True, token: str | None = None) -> str:
    """Upload a result and its model card; the address of the commit.

    Args:
        folder: of a fine-tuning run, or of `save_pretrained`.
        repository: `owner/name`; made if it is not there.
        token: of the hub; by default the one that `hf auth login` left.

    Raises:
        VisGLMError: the hub cannot be reached, or refused.
    """
    api = HfApi(token=token)
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=str(folder), ignore_patterns=LEFT_OUT, commit_message="visglm"
        )
    except (HTTPError, OSError, ValueError) as error:  # huggingface_hub's errors are one of these
        raise VisGLMError(
            f"{repository} cannot be written: {error} Check the network, and that you are logged in (hf auth login)."
        ) from error
    return str(commit.commit_url)
