"""Checkpoints by their name on the Hugging Face hub: `ORG/NAME` or `ORG/NAME@REVISION`.

A download is stored in the hub's cache under its commit, so the path that a run notes as its start
fixes the revision. Only safetensors weights are downloaded; `ance checkpoint convert` is the only
command that downloads pickled ones.
"""

from __future__ import annotations

import re
from pathlib import Path

from ance_cli.call import trusts_remote_code
from ance_cli.errors import BadInput, system_failure

SUFFIXES = (".safetensors", ".json", ".txt", ".model", ".jinja")
"""Suffixes of the files that make a checkpoint: weights, configs, tokenizer."""

_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w.-]+))?", re.ASCII)
_SNAPSHOT = re.compile(r"/models--([\w.-]+)--([\w.-]+)/snapshots/([0-9a-f]{40})$", re.ASCII)


def fetched(name: Path, suffixes: tuple[str, ...] = SUFFIXES) -> Path:
    """The folder `name` on disk, or the folder of the hub's model of this name.

    `name` is a hub id if neither it nor its first part exists on disk; a name that cannot be an id
    is returned unchanged. Only files with one of the `suffixes` are downloaded. Raises `BadInput`
    if the download fails.
    """
    if trusts_remote_code():
        suffixes = (*suffixes, ".py")
    found = _ID.fullmatch(str(name))
    if not found or name.exists() or name.parent.exists():
        return name
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            found["repo"],
            revision=found["revision"],
            allow_patterns=[f"*{suffix}" for suffix in suffixes],
        )
    except (OSError, ValueError) as error:  # refused, not found, no network, not an id
        if isinstance(error, OSError) and system_failure(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(
            f"{name}: no such checkpoint folder, and the model hub returned no model of that name "
            f"({reason})",
            hint="name a folder, or ORG/NAME or ORG/NAME@REVISION if the hub can be reached; "
            "set HF_TOKEN for a private model",
        ) from error
    return Path(folder)


def origin(folder: Path) -> tuple[str, str] | None:
    """(hub id, commit) of a folder in the hub's cache; None for any other folder."""
    found = _SNAPSHOT.search(folder.as_posix())
    return (f"{found[1]}/{found[2]}", found[3]) if found else None
