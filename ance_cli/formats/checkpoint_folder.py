"""The names of the files in a checkpoint folder.

The layout is sentence-transformers', and `ance.json` is ours. Each module of the checkpoint has a
folder of its own; the first one may be the checkpoint's own folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import orjson

from ance_cli.errors import BadInput
from ance_cli.formats.hashing import hash_file, hash_new_file
from ance_cli.formats.records import HASH, check_hash, read_record, with_hash

T = TypeVar("T")

COPY_AGAIN = "copy the whole folder again"

_FILES = "files_xxh3"
"""The field of `ance.json` that has the hash of each other file but the model card's."""


_KNOWN = (
    "*.safetensors", "*.safetensors.index.json", "config.json", "ance.json", "modules.json",
    "config_sentence_transformers.json", "sentence_*_config.json", "router_config.json",
    "tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt", "*.model",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "README.md",
)  # fmt: skip
"""Names of the files that make a checkpoint. Anything else in its folder is the user's own."""


def is_known(path: Path) -> bool:
    """Whether a file has a name that a checkpoint's files have."""
    return any(fnmatchcase(path.name, pattern) for pattern in _KNOWN)


def leads_out(path: Path, folder: Path) -> bool:
    """Whether a path in a checkpoint folder is a link to a place outside of it. The hub's cache
    has its files beside `snapshots/`, and counts as inside."""
    inside = folder.resolve()
    if inside.parent.name == "snapshots":
        inside = inside.parent.parent
    return not path.resolve().is_relative_to(inside)


@dataclass(frozen=True)
class CheckpointFolder:
    """The files at the top of a checkpoint folder."""

    path: Path

    @property
    def settings(self) -> Path:
        """What vectors depend on in addition to the weights (`EncodingSettings`)."""
        return self.path / "ance.json"

    @property
    def modules(self) -> Path:
        """The list of modules; a plain Hugging Face model has none."""
        return self.path / "modules.json"

    @property
    def sentence_transformers_config(self) -> Path:
        """Prompts and similarity."""
        return self.path / "config_sentence_transformers.json"

    @property
    def card(self) -> Path:
        """The model card."""
        return self.path / "README.md"


@dataclass(frozen=True)
class ModuleFolder:
    """The files in the folder of one module: a Transformer, a Dense layer, a Router and so on."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def weights(self) -> Path:
        """The weights of a Dense or LayerNorm; a Transformer's may be in several files."""
        return self.path / "model.safetensors"

    @property
    def router_config(self) -> Path:
        """The modules of a Router's routes."""
        return self.path / "router_config.json"

    @property
    def sentence_bert_config(self) -> Path:
        """A Transformer's maximum length and case."""
        return self.path / "sentence_bert_config.json"

    @property
    def tokenizer_config(self) -> Path:
        return self.path / "tokenizer_config.json"

    @property
    def tokenizers(self) -> tuple[Path, ...]:
        """The files of which a tokenizer needs at least one."""
        names = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model")
        return tuple(self.path / name for name in names)


def repeats_settings(path: Path) -> bool:
    """Whether a checkpoint's file only repeats what its encoding settings say."""
    top, module = CheckpointFolder(path.parent), ModuleFolder(path.parent)
    return path in (
        top.settings, top.modules, top.sentence_transformers_config, module.sentence_bert_config,
    )  # fmt: skip


def read_checkpoint_json(path: Path, kind: type[T], hint: str = COPY_AGAIN) -> T:
    """The record in one of a checkpoint's JSON files, of the declared type.

    Raises `BadInput` if the file is missing or holds something else.
    """
    try:
        return read_record(path, kind, hint)
    except FileNotFoundError:
        raise BadInput(
            f"{path}: no such file; the checkpoint is incomplete", hint=COPY_AGAIN
        ) from None


def seal(folder: Path) -> None:
    """Add the hashes of a finished checkpoint to its `ance.json`, before it takes its name."""
    files = CheckpointFolder(folder)
    hashes = {
        path.relative_to(folder).as_posix(): hash_new_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path not in (files.settings, files.card)
    }
    settings = read_checkpoint_json(files.settings, dict[str, Any])
    write_json(files.settings, with_hash({**settings, _FILES: hashes}))


def check_seal(folder: Path, shown: Path) -> None:
    """Raise `BadInput` if a checkpoint differs from the hashes in its `ance.json`, if it has any.

    A file whose size and modification time are known is not read again.
    """
    settings = CheckpointFolder(shown).settings
    own = (
        f"restore the file, or, if the change was meant, remove {_FILES!r} and {HASH!r} from "
        f"{settings}: then it is a checkpoint of your own"
    )
    record = read_checkpoint_json(CheckpointFolder(folder).settings, dict[str, Any])
    check_hash(settings, record, own)
    hashes = record.get(_FILES, {})
    for name, noted in hashes.items() if isinstance(hashes, dict) else ():
        if not (folder / name).is_file():
            raise BadInput(f"{shown / name}: no such file; the checkpoint is incomplete", hint=own)
        if hash_file(folder / name) != noted:
            raise BadInput(
                f"{shown / name}: is damaged: its hash differs from the one in {settings.name}",
                hint=own,
            )


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file into a checkpoint that is being built."""
    path.write_bytes(orjson.dumps(value, option=orjson.OPT_INDENT_2))
