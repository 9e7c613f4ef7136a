"""Checkpoints by their name on the Hugging Face hub: `ORG/NAME` or `ORG/NAME@REVISION`.

What is downloaded lies in the hub's cache under the commit it is of, so the path that a run notes
as its start pins the revision. Weights come as safetensors only: no pickle is fetched, but by
`ance checkpoint convert`.
"""

from __future__ import annotations

import re
from pathlib import Path

from ance_cli.errors import BadInput

SUFFIXES = (".safetensors", ".json", ".txt", ".model", ".jinja")
"""Endings of the files that a checkpoint is made of: weights, configs, tokenizer."""

_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w.-]+))?", re.ASCII)
_SNAPSHOT = re.compile(r"/models--([\w.-]+)--([\w.-]+)/snapshots/([0-9a-f]{40})$", re.ASCII)


def fetched(name: Path, suffixes: tuple[str, ...] = SUFFIXES) -> Path:
    """The folder `name` where it lies on disk, or that of the hub's model of this name.

    `name` is taken for a hub id where neither it nor its first part lies here; what is no id is
    returned as it is. Files with other endings than `suffixes` stay on the hub. Raises `BadInput`
    where the hub does not give the model.
    """
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
    except (OSError, ValueError) as error:  # refused, not there, no network, not an id
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(
            f"{name}: no such checkpoint folder, and the model hub gave no model of that name "
            f"({reason})",
            hint="name a folder, or ORG/NAME or ORG/NAME@REVISION where the hub can be reached; "
            "a private model needs HF_TOKEN",
        ) from error
    return Path(folder)


def origin(folder: Path) -> tuple[str, str] | None:
    """(hub id, commit) of a folder in the hub's cache; None for any other folder."""
    found = _SNAPSHOT.search(folder.as_posix())
    return (f"{found[1]}/{found[2]}", found[3]) if found else None
