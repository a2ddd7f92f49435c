"""A name is a folder here, or a repository on the Hugging Face hub that is downloaded once."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from ..adapters import Home
from ..errors import CheckpointError
from .writer import finish

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
# Never code: nothing that a repository brings along is run.
WANTED = ["*.json", "*.safetensors", "*.bin", "*.model", "*.pt", "latest"]


def find_folder(name_or_path: str | Path) -> Path:
    """The folder called `name_or_path`, or that of a hub id's snapshot, downloaded if it is not here yet.

    Raises:
        CheckpointError: there is no such folder and the hub cannot be reached or does not have it.
    """
    return find(name_or_path)[0]


def find(name_or_path: str | Path, revision: str | None = None, download: bool = True) -> tuple[Path, Home]:
    """A folder, and where it can be found again: by its absolute path, or by hub id and revision.

    Args:
        revision: of a hub id. download: whether one may be fetched that is not here yet; only what a user named may.

    Raises:
        CheckpointError: as `find_folder`.
    """
    path = Path(name_or_path).expanduser()
    if path.exists() or not HUB_ID.fullmatch(str(name_or_path)):
        finish(path)
        return path, Home(str(path.resolve()))
    try:
        found = Path(
            snapshot_download(
                str(name_or_path), revision=revision, allow_patterns=WANTED, local_files_only=not download
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            name_or_path,
            [f"there is no such folder here, and the hub did not give it: {reason}"],
            "Check the spelling and the network. A machine without network needs the folder itself: download it "
            "elsewhere with `hf download`, copy it here, and name it by its path.",
        ) from error
    return found, Home(str(name_or_path), revision=found.name)  # the cache calls a snapshot by its commit
