"""One tower of a checkpoint folder, read without torch: its modules and their folders.

A folder in sentence-transformers' layout lists its modules in `modules.json`: a Transformer, then
Pooling, Dense, LayerNorm, Normalize. Queries and passages share them, unless the first module is a
Router: then `router_config.json` lists the modules of the routes `query` and `document`, each in a
subfolder of its own, and what follows the Router serves both.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ance_cli.errors import BadInput
from ance_cli.formats.checkpoint_folder import (
    COPY_AGAIN,
    CheckpointFolder,
    ModuleFolder,
    read_checkpoint_json,
    repeats_settings,
)

QUERY_ROUTE, PASSAGE_ROUTE = "query", "document"
"""sentence-transformers' names of the two sides, which `encode_query` and `encode_document` use."""

_KINDS = ("Transformer", "Pooling", "Dense", "LayerNorm", "Normalize")
_PADDED_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet")
"""Model types that count positions from 2."""


@dataclass(frozen=True)
class Module:
    """A module's kind and folder; `shown` is the folder as the user named it."""

    kind: str
    folder: Path
    shown: Path


ADAPTER = "adapter_config.json"
"""What peft writes next to the weights of an adapter; without it the base alone would be used."""

WIDTH_KEYS = ("hidden_size", "dim", "d_model", "n_embd")
"""The keys that models use for the width of their token vectors in their configs."""


@dataclass(frozen=True)
class Tower:
    """The modules that turn texts of one side into vectors, in order; the first is a
    Transformer."""

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
        """Whether the tower defines how token vectors become one vector."""
        return self.has("Pooling")

    @property
    def dim(self) -> int:
        """The width of the vectors."""
        dense = [module.folder for module in self.modules if module.kind == "Dense"]
        path = ModuleFolder(dense[-1] if dense else self.backbone).config
        config = read_object(path)
        widths = ("out_features",) if dense else WIDTH_KEYS
        key = next((key for key in widths if key in config), widths[0])
        return whole_number(config, key, path)

    @property
    def max_positions(self) -> int:
        """The longest sequence that the backbone takes, in tokens."""
        path = ModuleFolder(self.backbone).config
        config = {"max_position_embeddings": 512, **read_object(path)}
        positions = whole_number(config, "max_position_embeddings", path)
        return positions - 2 if config.get("model_type") in _PADDED_POSITIONS else positions

    @property
    def max_length(self) -> int:
        """The length to which sentence-transformers cuts texts, in tokens.

        Its `max_seq_length`; version 6 and later keep it in the tokenizer's config.
        """
        length = self._sentence_bert_config.get("max_seq_length")
        config = ModuleFolder(self.backbone).tokenizer_config
        if not length and config.exists():
            length = read_object(config).get("model_max_length")
        if not length:
            return self.max_positions
        if isinstance(length, bool) or not isinstance(length, int | float) or not length >= 1:
            raise BadInput(
                f"{self.shown}: the longest sequence (max_seq_length or model_max_length) should "
                f"be a number from 1 on, found {length!r}",
                hint=COPY_AGAIN,
            )
        return int(min(length, self.max_positions))

    @property
    def lowercase(self) -> bool:
        """Whether sentence-transformers lower-cases texts first."""
        return bool(self._sentence_bert_config.get("do_lower_case", False))

    @property
    def _sentence_bert_config(self) -> dict[str, Any]:
        config = ModuleFolder(self.backbone).sentence_bert_config
        return read_object(config) if config.exists() else {}

    def files(self) -> list[tuple[int, Path]]:
        """(place of the module, file) of all that the vectors depend on: weights, configs,
        tokenizer.

        Leaves out the files that repeat the encoding settings.
        """
        return [
            (place, path)
            for place, module in enumerate(self.modules)
            for path in sorted(module.folder.glob("*"))
            if path.suffix in (".safetensors", ".json", ".txt", ".model")
            and not repeats_settings(path)
        ]


@dataclass(frozen=True)
class _ListedModule:
    """A module in `modules.json`."""

    type: str
    path: str


@dataclass(frozen=True)
class _Router:
    """The routes of a Router: for each the names of its modules, which are their folders too."""

    types: dict[str, str]
    structure: dict[str, list[str]]
    parameters: dict[str, Any] | None = None


def read_object(path: Path) -> dict[str, Any]:
    """The object in a checkpoint's JSON file."""
    return read_checkpoint_json(path, dict[str, Any])


def whole_number(config: dict[str, Any], name: str, path: Path) -> int:
    """A setting of a checkpoint's config that must be a whole number greater than 0."""
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadInput(
            f"{path}: {name!r} should be a whole number of at least 1, found {value!r}",
            hint=COPY_AGAIN,
        )
    return value


def read_towers(path: Path, shown: Path) -> tuple[Tower, Tower]:
    """The query tower and the passage tower of a checkpoint folder; one object if it is shared.

    A plain Hugging Face folder is a tower without a head. Raises `BadInput` if a module, its
    weights or a tokenizer is missing.
    """
    listing = CheckpointFolder(path).modules
    shown_listing = CheckpointFolder(shown).modules
    if not listing.exists():
        tower = _tower([Module("Transformer", path, shown)], shown)
        return tower, tower
    entries = read_checkpoint_json(listing, list[_ListedModule])
    if not entries or _kind(entries[0].type) != "Router":
        modules = [_module(entry, path, shown_listing) for entry in entries]
        tower = _tower(modules, shown_listing)
        return tower, tower
    both = [_module(entry, path, shown_listing) for entry in entries[1:]]
    router, router_shown = path / entries[0].path, shown / entries[0].path
    router_listing = ModuleFolder(router_shown).router_config
    query, passage = _read_routes(router, router_listing)
    query_tower = _tower(query + both, router_listing)
    if query == passage:
        return query_tower, query_tower
    return query_tower, _tower(passage + both, router_listing)


def _read_routes(folder: Path, listing: Path) -> tuple[list[Module], list[Module]]:
    """The modules of a Router's two routes; `listing` is the path of its config as shown."""
    router = read_checkpoint_json(ModuleFolder(folder).router_config, _Router)
    if not {QUERY_ROUTE, PASSAGE_ROUTE} <= set(router.structure):
        raise BadInput(
            f"{listing}: has the routes {', '.join(router.structure)}; "
            f"expected {QUERY_ROUTE} and {PASSAGE_ROUTE}"
        )
    if (router.parameters or {}).get("route_mappings"):
        raise BadInput(
            f"{listing}: cannot use route_mappings",
            hint=f"name the routes themselves {QUERY_ROUTE} and {PASSAGE_ROUTE}",
        )
    routes = []
    for route in (QUERY_ROUTE, PASSAGE_ROUTE):
        names = router.structure[route]
        if unknown := [name for name in names if name not in router.types]:
            raise BadInput(f"{listing}: route {route!r} names {unknown[0]}, 'types' does not")
        modules = [_ListedModule(router.types[name], name) for name in names]
        routes.append([_module(module, folder, listing) for module in modules])
    return routes[0], routes[1]


def _kind(module_type: str) -> str:
    return module_type.rsplit(".", 1)[-1]


def _module(listed: _ListedModule, root: Path, listing: Path) -> Module:
    kind = _kind(listed.type)
    if kind not in _KINDS:
        raise BadInput(
            f"{listing}: cannot use a {kind} module",
            hint=f"supported modules: {', '.join(_KINDS)}",
        )
    folder, shown = ModuleFolder(root / listed.path), ModuleFolder(listing.parent / listed.path)
    if kind == "Transformer":
        _refuse_adapter(folder.path, shown.path)
    if kind != "Normalize" and not folder.config.exists():
        raise BadInput(
            f"{shown.path}: the checkpoint's {kind} module is missing, but {listing.name} names it",
            hint=COPY_AGAIN,
        )
    if kind in ("Dense", "LayerNorm") and not folder.weights.exists():
        raise BadInput(
            f"{shown.weights}: the weights of the head's {kind} are missing",
            hint=COPY_AGAIN,
        )
    return Module(kind, folder.path, shown.path)


def _refuse_adapter(folder: Path, shown: Path) -> None:
    if (folder / ADAPTER).exists():
        raise BadInput(
            f"{shown}: holds an adapter ({ADAPTER}), which ance does not apply",
            hint="merge it into its base model: peft's merge_and_unload(), then save_pretrained()",
        )


def _tower(modules: list[Module], listing: Path) -> Tower:
    if not modules or modules[0].kind != "Transformer":
        raise BadInput(f"{listing}: the first module should be a Transformer")
    folder, shown = ModuleFolder(modules[0].folder), ModuleFolder(modules[0].shown)
    _refuse_adapter(folder.path, shown.path)
    if not folder.config.exists():
        raise BadInput(
            f"{shown.config}: no such file: not a checkpoint folder",
            hint="name a Hugging Face or sentence-transformers folder, or RUN/latest, with --ckpt",
        )
    if not list(folder.path.glob("*.safetensors")):
        raise BadInput(
            f"{shown.path}: holds no weights in safetensors format",
            hint="pickled weights are never loaded; save the model with safetensors, or convert an "
            f"encoder: ance checkpoint convert {shown.path} -o DIR",
        )
    if not any(path.exists() for path in folder.tokenizers):
        names = ", ".join(path.name for path in folder.tokenizers)
        raise BadInput(
            f"{shown.path}: the checkpoint has no tokenizer (looked for {names})",
            hint="copy the tokenizer's files into the folder, as save_pretrained writes them",
        )
    return Tower(tuple(modules))
