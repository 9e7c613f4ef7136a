"""A checkpoint folder, read without torch: its modules, its tokenisation pins, its towers' hashes.

The layout is sentence-transformers' (`modules.json`: Transformer, Pooling, Dense, LayerNorm,
Normalize) plus `ance.json`, which pins what the vectors depend on beside the weights: lengths,
case, prefixes, separator, segmentation, similarity. A plain Hugging Face encoder has neither; it
can start a training run, where it is given a fresh head.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import orjson

from ance_cli.errors import BadInput
from ance_cli.formats.hashing import hash_file, hash_json

PINS = "ance.json"
MODULES = "modules.json"
SENTENCE_BERT_CONFIG = "sentence_bert_config.json"
ST_CONFIG = "config_sentence_transformers.json"

Side = Literal["query", "passage"]
Similarity = Literal["dot", "cosine"]
Segmentation = Literal["first", "special"]

_PADDED_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet")
"""Model types that count positions from 2."""

COSINE_SCALE = 20.0
"""Cosines lie in [-1, 1]; a softmax over them learns nothing without a scale of about this."""


@dataclass(frozen=True)
class Pins:
    """What vectors depend on beside the weights, and the step at which the weights were taken.

    Lengths are in tokens, special ones included. `segmentation` is `first` (FirstP) or `special`
    (MaxP: up to `max_segments` segments, each with its own special tokens). `scale` multiplies
    scores in the training loss only.
    """

    query_length: int = 64
    passage_length: int = 512
    query_prefix: str = ""
    passage_prefix: str = ""
    separator: str = " "
    lowercase: bool = False
    segmentation: Segmentation = "first"
    max_segments: int = 4
    similarity: Similarity = "dot"
    scale: float = 1.0
    training_step: int = 0

    def shaping(self, side: Side) -> dict[str, Any]:
        """The pins that shape the vectors of one side."""
        if side == "query":
            names = ["query_length", "query_prefix", "lowercase"]
        else:
            names = ["passage_length", "passage_prefix", "lowercase", "separator", "segmentation"]
            if self.segmentation != "first":
                names.append("max_segments")
        return {name: getattr(self, name) for name in names}

    @property
    def segments(self) -> int:
        """The most rows that one passage can have."""
        return 1 if self.segmentation == "first" else self.max_segments


def _read_json(path: Path) -> Any:
    try:
        return orjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file: the checkpoint is not whole") from None
    except orjson.JSONDecodeError as error:
        raise BadInput(f"{path}: not valid JSON ({error})") from error


class Checkpoint:
    """A checkpoint folder whose files were found to be there; no weight has been read yet."""

    def __init__(self, path: Path) -> None:
        """Raises `BadInput` where the folder, its weights, its tokenizer or a module is missing."""
        if not path.is_dir():
            raise BadInput(
                f"{path}: no such checkpoint folder",
                hint="--ckpt names a Hugging Face or sentence-transformers folder, or RUN/latest",
            )
        self.path = path.resolve()  # `latest` may move while we work: stay with what it names now
        self.shown = path
        self.modules = self._read_modules()
        self.backbone = self.path / self.modules[0]["path"]
        self._check_backbone()
        self.pins = self._read_pins()

    def _read_modules(self) -> list[dict[str, str]]:
        if not (self.path / MODULES).exists():
            return [{"path": "", "type": "Transformer"}]
        modules = []
        for entry in _read_json(self.path / MODULES):
            if not isinstance(entry, dict) or not {"type", "path"} <= set(entry):
                raise BadInput(f"{self.shown / MODULES}: expected objects with 'type' and 'path'")
            kind = str(entry["type"]).rsplit(".", 1)[-1]
            if kind not in ("Transformer", "Pooling", "Dense", "LayerNorm", "Normalize"):
                raise BadInput(
                    f"{self.shown / MODULES}: cannot use a {kind} module",
                    hint="known here: Transformer, Pooling, Dense, LayerNorm, Normalize",
                )
            folder = self.path / entry["path"]
            if kind != "Normalize" and not (folder / "config.json").exists():
                raise BadInput(
                    f"{self.shown / entry['path']}: the checkpoint's {kind} module is missing, "
                    f"though {MODULES} names it",
                    hint="copy the whole folder again",
                )
            if kind in ("Dense", "LayerNorm") and not (folder / "model.safetensors").exists():
                raise BadInput(
                    f"{self.shown / entry['path']}/model.safetensors: the weights of the head's "
                    f"{kind} are missing",
                    hint="copy the whole folder again",
                )
            modules.append({"path": entry["path"], "type": kind})
        if not modules or modules[0]["type"] != "Transformer":
            raise BadInput(f"{self.shown / MODULES}: the first module should be a Transformer")
        return modules

    def _check_backbone(self) -> None:
        shown = self.shown / self.modules[0]["path"]
        if not (self.backbone / "config.json").exists():
            raise BadInput(
                f"{shown}/config.json: no such file: not a checkpoint folder",
                hint="--ckpt names a Hugging Face or sentence-transformers folder, or RUN/latest",
            )
        if not list(self.backbone.glob("*.safetensors")):
            raise BadInput(
                f"{shown}: there are no weights in safetensors format",
                hint="pickled weights are never loaded; save the model with safetensors",
            )
        tokenizers = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model")
        if not any((self.backbone / name).exists() for name in tokenizers):
            raise BadInput(
                f"{shown}: the checkpoint has no tokenizer (looked for {', '.join(tokenizers)})",
                hint="copy the tokenizer's files into the folder, as save_pretrained writes them",
            )

    @property
    def has_head(self) -> bool:
        """Whether the folder says how token vectors become one vector."""
        return any(module["type"] == "Pooling" for module in self.modules)

    @property
    def is_cosine(self) -> bool:
        if any(module["type"] == "Normalize" for module in self.modules):
            return True
        if (self.path / ST_CONFIG).exists():
            named = _read_json(self.path / ST_CONFIG).get("similarity_fn_name")
            return bool(named == "cosine" or (named is None and not (self.path / PINS).exists()))
        return False

    def _read_pins(self) -> Pins:
        if (self.path / PINS).exists():
            found = _read_json(self.path / PINS)
            names = {field.name for field in fields(Pins)}
            return Pins(**{name: value for name, value in found.items() if name in names})
        length = self.max_positions
        known: dict[str, Any] = {}
        prompts: dict[str, str] = {}
        if self.has_head:
            config = self.backbone / SENTENCE_BERT_CONFIG
            known = _read_json(config) if config.exists() else {}
            length = min(known.get("max_seq_length") or self._tokenizer_length, length)
            if (self.path / ST_CONFIG).exists():
                prompts = _read_json(self.path / ST_CONFIG).get("prompts") or {}
        cosine = self.has_head and self.is_cosine
        plain = Pins()
        return Pins(
            query_length=min(plain.query_length, length),
            passage_length=min(plain.passage_length, length),
            query_prefix=prompts.get("query") or "",
            passage_prefix=prompts.get("document") or prompts.get("passage") or "",
            lowercase=bool(known.get("do_lower_case", False)),
            similarity="cosine" if cosine else "dot",
            scale=COSINE_SCALE if cosine else 1.0,
        )

    @property
    def _tokenizer_length(self) -> int:
        """Where sentence-transformers 6 and later keeps its `max_seq_length`."""
        config = self.backbone / "tokenizer_config.json"
        length = _read_json(config).get("model_max_length") if config.exists() else None
        return min(int(length or self.max_positions), self.max_positions)

    @property
    def max_positions(self) -> int:
        """The longest sequence that the backbone takes, in tokens."""
        config = _read_json(self.backbone / "config.json")
        positions = int(config.get("max_position_embeddings", 512))
        return positions - 2 if config.get("model_type") in _PADDED_POSITIONS else positions

    @property
    def dim(self) -> int:
        """The width of the vectors."""
        dense = [module["path"] for module in self.modules if module["type"] == "Dense"]
        if dense:
            return int(_read_json(self.path / dense[-1] / "config.json")["out_features"])
        return int(_read_json(self.backbone / "config.json")["hidden_size"])

    def with_pins(self, **changes: Any) -> Checkpoint:
        """The same checkpoint with some pins overridden (None leaves a pin as it is)."""
        given = {name: value for name, value in changes.items() if value is not None}
        for name in ("query_length", "passage_length"):
            if given.get(name, 0) > self.max_positions:
                raise BadInput(
                    f"{self.shown}: takes at most {self.max_positions} tokens, "
                    f"--{name.replace('_', '-')} asks for {given[name]}"
                )
        changed = copy.copy(self)
        changed.pins = replace(self.pins, **given)
        return changed

    def tower_hash(self, side: Side) -> str:
        """Hash of everything that the vectors of one side depend on: weights, tokenizer, pins.

        It is computed from the files, so a checkpoint cannot declare a wrong one.
        """
        folders = {module["path"]: self.path / module["path"] for module in self.modules}
        files = {}
        for name, folder in folders.items():
            for path in sorted(folder.glob("*")) if folder.is_dir() else []:
                if path.name in (PINS, MODULES, ST_CONFIG, SENTENCE_BERT_CONFIG, "README.md"):
                    continue
                if path.suffix in (".safetensors", ".json", ".txt", ".model"):
                    files[f"{name}/{path.name}"] = hash_file(path)
        modules = [module["type"] for module in self.modules]
        pins = {"cosine": self.is_cosine, **self.pins.shaping(side)}
        return hash_json({"modules": modules, "files": files, "pins": pins})


def write_pins(folder: Path, pins: Pins) -> None:
    """Write `ance.json` into a checkpoint that is being built."""
    (folder / PINS).write_bytes(orjson.dumps(asdict(pins), option=orjson.OPT_INDENT_2))
