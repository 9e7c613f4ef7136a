"""One tower of a checkpoint folder, read without torch: its modules and where they lie.

A folder in sentence-transformers' layout lists its modules in `modules.json`: a Transformer, then
Pooling, Dense, LayerNorm, Normalize. Queries and passages share them, unless the first module is a
Router: then `router_config.json` lists the modules of the routes `query` and `document`, each in a
subfolder of its own, and what follows the Router serves both.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from ance_cli.errors import BadInput

SETTINGS_FILE = "ance.json"
MODULES = "modules.json"
ROUTER_CONFIG = "router_config.json"
SENTENCE_BERT_CONFIG = "sentence_bert_config.json"
ST_CONFIG = "config_sentence_transformers.json"

QUERY_ROUTE, PASSAGE_ROUTE = "query", "document"
"""sentence-transformers' names of the two sides: `encode_query` and `encode_document` ask for
them."""

_KINDS = ("Transformer", "Pooling", "Dense", "LayerNorm", "Normalize")
_PADDED_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet")
"""Model types that count positions from 2."""

COPY_AGAIN = "copy the whole folder again"


@dataclass(frozen=True)
class Module:
    """A module's kind and folder; `shown` is the folder as the user named it."""

    kind: str
    folder: Path
    shown: Path


@dataclass(frozen=True)
class Tower:
    """The modules that make vectors of the texts of one side, in order, a Transformer first."""

    modules: tuple[Module, ...]

    @property
    def backbone(self) -> Path:
        """The folder of the Transformer and its tokenizer."""
        return self.modules[0].folder

    @property
    def shown(self) -> Path:
        """The backbone's folder as the user named it."""
        return self.modules[0].shown

    def has(self, kind: str) -> bool:
        """Whether one of the modules is of this kind."""
        return any(module.kind == kind for module in self.modules)

    @property
    def has_head(self) -> bool:
        """Whether the tower says how token vectors become one vector."""
        return self.has("Pooling")

    @property
    def dim(self) -> int:
        """The width of the vectors."""
        dense = [module.folder for module in self.modules if module.kind == "Dense"]
        path = (dense[-1] if dense else self.backbone) / "config.json"
        return whole_number(read_object(path), "out_features" if dense else "hidden_size", path)

    @property
    def max_positions(self) -> int:
        """The longest sequence that the backbone takes, in tokens."""
        path = self.backbone / "config.json"
        config = {"max_position_embeddings": 512, **read_object(path)}
        positions = whole_number(config, "max_position_embeddings", path)
        return positions - 2 if config.get("model_type") in _PADDED_POSITIONS else positions

    @property
    def max_length(self) -> int:
        """Where sentence-transformers cuts texts, in tokens.

        Its `max_seq_length`; version 6 and later keep it in the tokenizer's config.
        """
        length = self._sentence_bert_config.get("max_seq_length")
        config = self.backbone / "tokenizer_config.json"
        if not length and config.exists():
            length = read_object(config).get("model_max_length")
        return min(int(length or self.max_positions), self.max_positions)

    @property
    def lowercase(self) -> bool:
        """Whether sentence-transformers lower-cases texts first."""
        return bool(self._sentence_bert_config.get("do_lower_case", False))

    @property
    def _sentence_bert_config(self) -> dict[str, Any]:
        config = self.backbone / SENTENCE_BERT_CONFIG
        return read_object(config) if config.exists() else {}

    def files(self) -> list[tuple[int, Path]]:
        """(place of the module, file) of all that the vectors depend on: weights, configs,
        tokenizer.

        Not the files that say what the pins say.
        """
        known = (SETTINGS_FILE, MODULES, ST_CONFIG, SENTENCE_BERT_CONFIG)
        return [
            (place, path)
            for place, module in enumerate(self.modules)
            for path in sorted(module.folder.glob("*"))
            if path.suffix in (".safetensors", ".json", ".txt", ".model") and path.name not in known
        ]


def read_json(path: Path) -> Any:
    """The content of a checkpoint's JSON file."""
    try:
        return orjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise BadInput(
            f"{path}: no such file: the checkpoint is not whole", hint=COPY_AGAIN
        ) from None
    except orjson.JSONDecodeError as error:
        raise BadInput(f"{path}: not valid JSON ({error})", hint=COPY_AGAIN) from error


def read_object(path: Path) -> dict[str, Any]:
    """The object in a checkpoint's JSON file."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise BadInput(f"{path}: expected a JSON object", hint=COPY_AGAIN)
    return found


def whole_number(config: dict[str, Any], name: str, path: Path) -> int:
    """A setting of a checkpoint's config, which has to be a whole number greater than 0."""
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadInput(
            f"{path}: {name!r} should be a whole number from 1 on, found {value!r}",
            hint=COPY_AGAIN,
        )
    return value


def read_towers(path: Path, shown: Path) -> tuple[Tower, Tower]:
    """The query tower and the passage tower of a checkpoint folder: one object where shared.

    A plain Hugging Face folder is a tower without a head. Raises `BadInput` where a module, its
    weights or a tokenizer is missing.
    """
    if not (path / MODULES).exists():
        tower = _tower([Module("Transformer", path, shown)], shown)
        return tower, tower
    entries = read_json(path / MODULES)
    named = isinstance(entries, list) and all(
        isinstance(entry, dict) and {"type", "path"} <= set(entry) for entry in entries
    )
    if not named:
        raise BadInput(f"{shown / MODULES}: expected objects with 'type' and 'path'")
    if not entries or _kind(entries[0]["type"]) != "Router":
        modules = [_module(entry["type"], entry["path"], path, shown, MODULES) for entry in entries]
        tower = _tower(modules, shown / MODULES)
        return tower, tower
    both = [_module(entry["type"], entry["path"], path, shown, MODULES) for entry in entries[1:]]
    router, router_shown = path / entries[0]["path"], shown / entries[0]["path"]
    query, passage = _read_routes(router, router_shown)
    query_tower = _tower(query + both, router_shown / ROUTER_CONFIG)
    if query == passage:
        return query_tower, query_tower
    return query_tower, _tower(passage + both, router_shown / ROUTER_CONFIG)


def _read_routes(folder: Path, shown: Path) -> tuple[list[Module], list[Module]]:
    """The modules of a Router's two routes."""
    config = read_json(folder / ROUTER_CONFIG)
    listing = shown / ROUTER_CONFIG
    types, structure = (
        config.get(name) if isinstance(config, dict) else None for name in ("types", "structure")
    )
    if (
        not isinstance(types, dict)
        or not isinstance(structure, dict)
        or not all(isinstance(route, list) for route in structure.values())
    ):
        raise BadInput(f"{listing}: expected 'types' and, in 'structure', a list for each route")
    if not {QUERY_ROUTE, PASSAGE_ROUTE} <= set(structure):
        raise BadInput(
            f"{listing}: has the routes {', '.join(structure)}; "
            f"expected {QUERY_ROUTE} and {PASSAGE_ROUTE}"
        )
    if (config.get("parameters") or {}).get("route_mappings"):
        raise BadInput(
            f"{listing}: cannot use route_mappings",
            hint=f"name the routes themselves {QUERY_ROUTE} and {PASSAGE_ROUTE}",
        )
    routes = []
    for route in (QUERY_ROUTE, PASSAGE_ROUTE):
        if unknown := [name for name in structure[route] if name not in types]:
            raise BadInput(f"{listing}: route {route!r} names {unknown[0]}, 'types' does not")
        routes.append(
            [_module(types[name], name, folder, shown, ROUTER_CONFIG) for name in structure[route]]
        )
    return routes[0], routes[1]


def _kind(module_type: str) -> str:
    return str(module_type).rsplit(".", 1)[-1]


def _module(module_type: str, place: str, root: Path, root_shown: Path, listing: str) -> Module:
    kind = _kind(module_type)
    if kind not in _KINDS:
        raise BadInput(
            f"{root_shown / listing}: cannot use a {kind} module",
            hint=f"known here: {', '.join(_KINDS)}",
        )
    folder, shown = root / place, root_shown / place
    if kind != "Normalize" and not (folder / "config.json").exists():
        raise BadInput(
            f"{shown}: the checkpoint's {kind} module is missing, though {listing} names it",
            hint=COPY_AGAIN,
        )
    if kind in ("Dense", "LayerNorm") and not (folder / "model.safetensors").exists():
        raise BadInput(
            f"{shown}/model.safetensors: the weights of the head's {kind} are missing",
            hint=COPY_AGAIN,
        )
    return Module(kind, folder, shown)


def _tower(modules: list[Module], listing: Path) -> Tower:
    if not modules or modules[0].kind != "Transformer":
        raise BadInput(f"{listing}: the first module should be a Transformer")
    folder, shown = modules[0].folder, modules[0].shown
    if not (folder / "config.json").exists():
        raise BadInput(
            f"{shown}/config.json: no such file: not a checkpoint folder",
            hint="--ckpt names a Hugging Face or sentence-transformers folder, or RUN/latest",
        )
    if not list(folder.glob("*.safetensors")):
        raise BadInput(
            f"{shown}: there are no weights in safetensors format",
            hint="pickled weights are never loaded; save the model with safetensors",
        )
    tokenizers = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model")
    if not any((folder / name).exists() for name in tokenizers):
        raise BadInput(
            f"{shown}: the checkpoint has no tokenizer (looked for {', '.join(tokenizers)})",
            hint="copy the tokenizer's files into the folder, as save_pretrained writes them",
        )
    return Tower(tuple(modules))
