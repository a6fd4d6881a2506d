"""Pushing files to a repository of the hub. The token is HF_TOKEN's or that of `hf auth login`; it is read by the library and never kept here."""

import re
from collections.abc import Mapping
from pathlib import Path

from ..errors import ConfigError, RunError

REPO = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}")
CARD = "README.md"


def check_repo(name: str, option: str = "output.hub_repo") -> None:
    """Raise ConfigError for what is no name of a repository."""
    if not REPO.fullmatch(name) or ".." in name or "--" in name:
        raise ConfigError(f"{option} = {name!r}: use owner/name, or a name, with letters, digits, - _ and .")


def token_note() -> str:
    """A line for the log where nothing can be pushed as things are; "" if all is well."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set: nothing will be pushed to the hub"
    return (
        "" if get_token() else "there is no token for the hub: set HF_TOKEN or run hf auth login, before the run ends"
    )


def push(repo: str, files: Mapping[str, Path], card: str, *, private: bool, message: str) -> str:
    """Push files, given as {path in the repository: file}, in one commit; returns the repository's address.

    The repository is made if there is none. A card that is there already stays, for its owner may have written into it. Raises RunError.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    try:
        api = HfApi()
        made = api.create_repo(repo, private=private, exist_ok=True)
        operations: list[CommitOperationAdd] = []
        if not api.file_exists(made.repo_id, CARD):
            operations.append(CommitOperationAdd(CARD, card.encode()))
        operations += [CommitOperationAdd(place, str(path)) for place, path in sorted(files.items())]
        api.create_commit(made.repo_id, operations, commit_message=message)
    except Exception as error:
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise RunError(
            f"could not push to {repo} ({said}): check the connection and the token (HF_TOKEN or hf auth login)"
        ) from error
    return str(made)
