"""Results → a model hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError  # of the HTTP library it uses: no connection, no answer in time

from ..adapters import FILES
from ..errors import VisGLMError
from .saving import BASE_NAME

# What answers, and its card: of a whole model or of an adapter. Reports stay here, with the pictures and paths in them.
UPLOADED = (
    *FILES, "README.md", "config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json",
    "processor_config.json", "preprocessor_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json",
    "ice_text.model",
)  # fmt: skip


def push(folder: str | Path, repository: str, *, private: bool = True, token: str | None = None) -> str:
    """Upload a result and its model card, and nothing else that lies in the folder; the address of the commit.

    Args:
        folder: of a fine-tuning run, or of `save_pretrained`.
        repository: `owner/name`; made if it is not there.
        token: of the hub; by default the one that `hf auth login` left.

    Raises:
        VisGLMError: the hub cannot be reached, or refused.
    """
    api = HfApi(token=token)
    patterns = [start + name for start in ("", f"{BASE_NAME}/") for name in UPLOADED]
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=str(folder), allow_patterns=patterns, commit_message="visglm"
        )
    except (HTTPError, OSError, ValueError) as error:  # huggingface_hub's errors are one of these
        raise VisGLMError(
            f"{repository} cannot be written: {error} Check the network, and that you are logged in (hf auth login)."
        ) from error
    return str(commit.commit_url)
