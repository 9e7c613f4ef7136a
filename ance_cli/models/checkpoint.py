"""A checkpoint folder, read without torch: its towers, its encoding settings, its towers' hashes.

The layout is sentence-transformers' (see `tower`) plus `ance.json`, which fixes what the vectors
depend on in addition to the weights: lengths, case, prefixes, separator, segmentation and
similarity. A plain Hugging Face encoder has neither; it can start a training run, which adds a
fresh head.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ance_cli.config.sets import Segmentation, Side, SimilarityName
from ance_cli.config.setting import flag_of
from ance_cli.errors import BadInput, UsageProblem
from ance_cli.formats.checkpoint_folder import CheckpointFolder, check_seal, write_json
from ance_cli.formats.dataset import Passage
from ance_cli.formats.hashing import hash_file, hash_json
from ance_cli.formats.records import check_record, parse_record
from ance_cli.models.hub import fetched
from ance_cli.models.tower import Tower, read_object, read_towers

_LEAST = {"query_length": 3, "passage_length": 3, "max_segments": 1, "truncate_dim": 1}
_PROMPTS: dict[Side, tuple[str, ...]] = {
    "query": ("query", "search_query"),
    "passage": ("document", "passage", "corpus", "search_document"),
}
"""The names of a side's prompt in sentence-transformers' config; the first that is there counts.

The library itself looks for neither `search_query` nor `search_document`, by which Nomic's models
name the prompts that a caller must give.
"""
_FIX_SETTINGS = "fix the value, or restore the file"

ORIGIN = "converted_from"
"""The field of `ance.json` that names the layout and the files of a converted checkpoint."""

COSINE_SCALE = 20.0
"""Cosines are between -1 and 1; a softmax over them learns nothing without a scale of about this
size."""


_FIELD = re.compile(r"\{(title|text)(?:\|([^{}|]*))?\}")


def check_template(template: str) -> None:
    """Raise `UsageProblem` if a passage template has no `{text}`, or braces around another word."""
    if template and (
        "text" not in (field[1] for field in _FIELD.finditer(template))
        or any(brace in _FIELD.sub("", template) for brace in "{}")
    ):
        raise UsageProblem(
            f"--passage-template {template!r}: expected {{text}}, and {{title}} if it is wanted",
            hint="for instance --passage-template 'title: {title|none} | text: {text}'",
        )


@dataclass(frozen=True)
class EncodingSettings:
    """What vectors depend on in addition to the weights, and the training step of the weights.

    Lengths are in tokens, including special tokens. `segmentation` is `first` (FirstP), `special`
    (MaxP: up to `max_segments` segments, each with its own special tokens) or `slice` (MaxP as in
    the released ANCE models: one sequence with special tokens at its two ends, cut into up to
    `max_segments` pieces). `passage_template` replaces title, separator and text: `{title}` and
    `{text}` stand for a passage's own, `{title|none}` for `none` if it has no title. `truncate_dim`
    keeps the first dimensions of each vector. `scale` multiplies scores in the training loss only.
    """

    query_length: int = 64
    passage_length: int = 512
    query_prefix: str = ""
    passage_prefix: str = ""
    separator: str = " "
    passage_template: str = ""
    lowercase: bool = False
    segmentation: Segmentation = "first"
    max_segments: int = 4
    truncate_dim: int | None = None
    similarity: SimilarityName = "dot"
    scale: float = 1.0
    training_step: int = 0

    def __post_init__(self) -> None:
        check_template(self.passage_template)

    def text_of(self, passage: Passage) -> str:
        """The text of a passage without its prompt: by the template, or title, separator, text."""
        if not self.passage_template:
            return passage.joined(self.separator)
        values = {"title": passage.title, "text": passage.text}
        return _FIELD.sub(lambda m: values[m[1]] or m[2] or "", self.passage_template)

    def prefix(self, side: Side) -> str:
        """The prompt of one side."""
        return self.query_prefix if side == "query" else self.passage_prefix

    def shaping(self, side: Side) -> dict[str, Any]:
        """The settings that shape the vectors of one side."""
        if side == "query":
            names = ["query_length", "query_prefix", "lowercase"]
        else:
            names = ["passage_length", "passage_prefix", "lowercase", "separator", "segmentation"]
            if self.segmentation != "first":
                names.append("max_segments")
            if self.passage_template:
                names.append("passage_template")
        if self.truncate_dim is not None:
            names.append("truncate_dim")
        return {name: getattr(self, name) for name in names}

    @property
    def segments(self) -> int:
        """The largest number of rows of one passage."""
        return 1 if self.segmentation == "first" else self.max_segments


@dataclass
class _LibraryConfig:
    """What sentence-transformers' config says of the texts and of the vectors."""

    prompts: dict[str, str | None] | None = None
    default_prompt_name: str | None = None
    truncate_dim: int | None = None
    similarity_fn_name: str | None = None


class Checkpoint:
    """A checkpoint folder whose files exist; no weight has been read yet."""

    def __init__(self, path: Path) -> None:
        """`path` may be the name of a model on the hub (`hub.fetched`).

        Raises `BadInput` if the folder, its weights, its tokenizer or a module is missing, or if
        its two towers do not belong together, or if a file differs from its hash in `ance.json`.
        """
        folder = fetched(path)
        if not folder.is_dir():
            raise BadInput(
                f"{path}: no such checkpoint folder",
                hint="name a Hugging Face or sentence-transformers folder, RUN/latest, or "
                "ORG/NAME on the hub",
            )
        self.files = CheckpointFolder(folder.resolve())
        self.path = self.files.path  # `latest` may move later: keep the folder that it names now
        self.shown = path
        query, passage = read_towers(self.path, path)
        self._towers: dict[Side, Tower] = {"query": query, "passage": passage}
        if query.has_head != passage.has_head:
            headless = passage if query.has_head else query
            raise BadInput(
                f"{headless.shown}: this tower has no pooling and head, but the other tower has"
            )
        if query.has_head and query.dim != passage.dim:
            raise BadInput(
                f"{path}: query vectors of {query.dim} dimensions and passage vectors of "
                f"{passage.dim}: they cannot be compared"
            )
        self._unclear: BadInput | None = None
        self._settings = self._read_settings()
        self._check_library()
        if self.is_pinned:
            check_seal(self.path, path)

    @property
    def _library_config(self) -> _LibraryConfig:
        path = self.files.sentence_transformers_config
        if not path.exists():
            return _LibraryConfig()
        shown = str(self._shown_library_config)
        return check_record(read_object(path), _LibraryConfig, shown, _FIX_SETTINGS)

    @property
    def _shown_library_config(self) -> Path:
        return CheckpointFolder(self.shown).sentence_transformers_config

    def _check_library(self) -> None:
        config = self._library_config
        if config.truncate_dim is not None and config.truncate_dim < 1:
            raise BadInput(
                f"{self._shown_library_config}: truncate_dim is {config.truncate_dim}, expected at "
                "least 1",
                hint=_FIX_SETTINGS,
            )
        named = config.similarity_fn_name
        if named not in (None, "cosine", "dot"):
            raise BadInput(
                f"{self._shown_library_config}: the similarity is {named}, and an index ranks by "
                "dot product or cosine",
                hint="use cosine or dot if the model was trained for it",
            )

    @property
    def settings(self) -> EncodingSettings:
        """What vectors depend on in addition to the weights.

        Raises `BadInput` if the checkpoint has prompts, and no name says for which side they are.
        """
        if self._unclear is not None:
            raise self._unclear
        return self._settings

    @settings.setter
    def settings(self, settings: EncodingSettings) -> None:
        self._settings, self._unclear = settings, None

    def tower(self, side: Side) -> Tower:
        """The tower of one side; the same object for both sides if the tower is shared."""
        return self._towers[side]

    @property
    def shared(self) -> bool:
        """Whether queries and passages go through the same tower."""
        return self._towers["query"] is self._towers["passage"]

    @property
    def has_head(self) -> bool:
        """Whether the folder defines how token vectors become one vector."""
        return self._towers["query"].has_head

    def need_head(self) -> None:
        """Raises `BadInput` for a raw language model: its vectors mean nothing yet."""
        if not self.has_head:
            raise BadInput(
                f"{self.shown}: has no pooling and head: a plain encoder's vectors are not trained "
                "for retrieval",
                hint="train it first: ance train-segment NEGATIVES --ckpt "
                f"{self.shown} adds a fresh head",
            )

    @property
    def has_lengths(self) -> bool:
        """Whether the folder says how long its texts are. A raw language model says only how many
        tokens it takes."""
        return self.has_head or self.is_pinned

    @property
    def dim(self) -> int:
        """The width of the vectors."""
        whole = self._towers["query"].dim
        return min(whole, self._settings.truncate_dim or whole)

    @property
    def max_positions(self) -> int:
        """The longest sequence that both towers take, in tokens."""
        return min(tower.max_positions for tower in self._towers.values())

    @property
    def is_cosine(self) -> bool:
        """Whether the vectors are compared by their angle: they have, or will be scaled to, length
        one."""
        return self._settings.similarity == "cosine" or self._has_normalize

    @property
    def scales_vectors(self) -> bool:
        """Whether vectors get length one although no module of the checkpoint does that."""
        return self._settings.similarity == "cosine" and not self._has_normalize

    @property
    def _has_normalize(self) -> bool:
        return all(tower.has("Normalize") for tower in self._towers.values())

    @property
    def _similarity(self) -> SimilarityName:
        """What sentence-transformers says, whose default is cosine."""
        named = self._library_config.similarity_fn_name
        if named is None:
            there = self.files.sentence_transformers_config.exists()
            return "cosine" if there or self._has_normalize else "dot"
        return "cosine" if named == "cosine" else "dot"

    @property
    def is_pinned(self) -> bool:
        """Whether the folder holds encoding settings of its own."""
        return self.files.settings.exists()

    def _read_settings(self) -> EncodingSettings:
        if self.is_pinned:
            return self._read_own_settings()
        query, passage = self._towers["query"], self._towers["passage"]
        lengths: dict[str, Any] = {
            "query_length": query.length_of("query"),
            "passage_length": passage.length_of("passage"),
        }
        if not self.has_head:
            return EncodingSettings(**lengths)
        if query.lowercase != passage.lowercase:
            raise BadInput(
                f"{self.shown}: one tower lower-cases its texts and the other does not",
                hint="set do_lower_case to the same value in both sentence_bert_config.json files",
            )
        similarity = self._similarity
        cosine = similarity == "cosine" or self._has_normalize
        return EncodingSettings(
            **lengths,
            query_prefix=self._prompt("query"),
            passage_prefix=self._prompt("passage"),
            lowercase=query.lowercase,
            truncate_dim=self._library_config.truncate_dim,
            similarity=similarity,
            scale=COSINE_SCALE if cosine else 1.0,
        )

    def _prompt(self, side: Side) -> str:
        """The prompt of one side, by its names or as the default of both."""
        config = self._library_config
        prompts = {k: text for k, text in (config.prompts or {}).items() if text is not None}
        for name in (*_PROMPTS[side], config.default_prompt_name):
            if name in prompts:
                return prompts[name]
        others = [repr(name) for name, text in prompts.items() if text]
        if others and not any(name in prompts for names in _PROMPTS.values() for name in names):
            self._unclear = BadInput(
                f"{self._shown_library_config}: has the prompts {', '.join(others)}, "
                "and none of their names says whether it is for queries or for passages",
                hint="name the two that you mean 'query' and 'document' in the file, or write a "
                f"checkpoint with both: ance checkpoint convert {self.shown} --query-prompt TEXT "
                "--passage-prompt TEXT -o DIR",
            )
        return ""

    def _read_own_settings(self) -> EncodingSettings:
        shown = CheckpointFolder(self.shown).settings
        settings = parse_record(
            self.files.settings.read_bytes(), EncodingSettings, str(shown), _FIX_SETTINGS
        )
        for name, least in _LEAST.items():
            if (value := getattr(settings, name)) is not None and value < least:
                raise BadInput(
                    f"{shown}: {name!r} is {value}, expected at least {least}",
                    hint=_FIX_SETTINGS,
                )
        return settings

    def with_settings(self, **changes: Any) -> Checkpoint:
        """This checkpoint with other settings (None keeps a setting)."""
        changed = copy.copy(self)
        chosen = [changes.get(name) for name in ("query_prefix", "passage_prefix")]
        settings = self.settings if None in chosen else self._settings
        changed.settings = override_settings(settings, self._towers, self.shown, **changes)
        return changed

    def tower_hash(self, side: Side) -> str:
        """Hash of everything that the vectors of one side depend on: weights, tokenizer, settings.

        The hash is computed from the files, so a checkpoint cannot declare a wrong one. The names
        of the folders are not in the hash: a shared tower keeps its hash when the other side gets a
        tower of its own.
        """
        tower = self._towers[side]
        files = {f"{place}/{path.name}": hash_file(path) for place, path in tower.files()}
        modules = [module.kind for module in tower.modules]
        settings = {"cosine": self.is_cosine, **self._settings.shaping(side)}
        parts = {"modules": modules, "files": files, "pins": settings}
        return hash_json(parts | ({"loading": tower.loading} if tower.loading else {}))


def override_settings(
    settings: EncodingSettings, towers: Mapping[Side, Tower], shown: Path, **changes: Any
) -> EncodingSettings:
    """Settings with some of them overridden (None keeps a setting), checked against the towers."""
    given = {name: value for name, value in changes.items() if value is not None}
    for name, least in _LEAST.items():
        if given.get(name, least) < least:
            raise UsageProblem(f"{flag_of(name)} must be at least {least}")
    width = min(tower.dim for tower in towers.values())
    if given.get("truncate_dim", 1) > width:
        raise UsageProblem(
            f"--truncate-dim {given['truncate_dim']}: the vectors of {shown} have {width} "
            "dimensions"
        )
    for side, tower in towers.items():
        name = f"{side}_length"
        if given.get(name, 0) > tower.max_positions:
            raise BadInput(
                f"{shown}: takes at most {tower.max_positions} tokens, "
                f"--{side}-length asks for {given[name]}",
                hint=f"use --{side}-length {tower.max_positions} or less",
            )
    return replace(settings, **given)


def write_settings(folder: Path, settings: EncodingSettings, origin: Any = None) -> None:
    """Write `ance.json` into a checkpoint that is being built; `origin` describes what it was
    converted from."""
    facts = asdict(settings) if origin is None else {**asdict(settings), ORIGIN: origin}
    write_json(CheckpointFolder(folder).settings, facts)
