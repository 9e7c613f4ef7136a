"""One tower of a checkpoint folder, read without torch: its modules and their folders.

A folder in sentence-transformers' layout lists its modules in `modules.json`: a Transformer or a
StaticEmbedding, then Pooling, Dense, LayerNorm, Normalize and others. Queries and passages share
them, unless the first module is a Router: then `router_config.json` lists the modules of the routes
`query` and `document`, each in a subfolder of its own, and what follows the Router serves both.

A Transformer's folder may hold an adapter (peft) instead of weights; its base model lies elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ance_cli.call import trusts_remote_code
from ance_cli.config.sets import Side
from ance_cli.errors import BadInput, as_bad_input
from ance_cli.formats.checkpoint_folder import (
    COPY_AGAIN,
    CheckpointFolder,
    ModuleFolder,
    read_checkpoint_json,
    repeats_settings,
)
from ance_cli.models.hub import fetched

QUERY_ROUTE, PASSAGE_ROUTE = "query", "document"
"""sentence-transformers' names of the two sides, which `encode_query` and `encode_document` use."""

_FIRST = ("Transformer", "StaticEmbedding")
"""The modules whose inputs are the token rows that `encode` and `train-segment` make."""

_WITH_WEIGHTS = ("Dense", "LayerNorm", "StaticEmbedding")
_WITHOUT_CONFIG = ("Normalize", "StaticEmbedding")
_LIBRARY = "sentence_transformers."
"""Where the types of the library's own modules begin; others are code of the checkpoint."""

ADAPTER_WEIGHTS = "adapter_model.safetensors"
PICKLED = "pytorch_model.bin"
PICKLED_ADAPTER = "adapter_model.bin"

_UNLIMITED = 1 << 30
_PADDED_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet")
"""Model types that count positions from 2."""


@dataclass(frozen=True)
class Module:
    """A module's kind and folder; `shown` is the folder as the user named it, `type` the class that
    `modules.json` names."""

    kind: str
    folder: Path
    shown: Path
    type: str = ""


SETTINGS_OF_TEXTS = ("max_seq_length", "do_lower_case", "query_length", "document_length")
"""The fields of a `sentence_bert_config.json` that repeat the encoding settings."""

ADAPTER = "adapter_config.json"
"""What peft writes next to the weights of an adapter."""

_LAYER_KEYS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
WIDTH_KEYS = ("hidden_size", "dim", "d_model", "n_embd")
"""The keys that models use for the width of their token vectors in their configs."""


@dataclass(frozen=True)
class Tower:
    """The modules that turn texts of one side into vectors, in order; the first is a
    Transformer."""

    modules: tuple[Module, ...]

    @property
    def backbone(self) -> Path:
        """The folder of the first module and its tokenizer."""
        return self.modules[0].folder

    @property
    def shown(self) -> Path:
        """The backbone's folder as the user named it."""
        return self.modules[0].shown

    @property
    def base(self) -> Path | None:
        """The folder of the model that the Transformer's adapter changes; None without an adapter.

        Raises `BadInput` if it is not there.
        """
        if not _has_adapter(self.backbone):
            return None
        named = read_object(self.backbone / ADAPTER).get("base_model_name_or_path")
        base = fetched(Path(str(named)))
        if not ModuleFolder(base).config.exists():
            raise BadInput(
                f"{self.shown / ADAPTER}: the base model {named!r} is not there",
                hint="put it there, or correct base_model_name_or_path",
            )
        return base

    @property
    def config(self) -> Path:
        """The config of the model's architecture."""
        own = ModuleFolder(self.backbone).config
        base = None if own.exists() else self.base
        return own if base is None else ModuleFolder(base).config

    @property
    def is_static(self) -> bool:
        """Whether a text's vector is the mean of its tokens' embeddings, without a Transformer."""
        return self.modules[0].kind == "StaticEmbedding"

    def has(self, kind: str) -> bool:
        """Whether one of the modules is of this kind."""
        return any(module.kind == kind for module in self.modules)

    @property
    def has_head(self) -> bool:
        """Whether the tower defines how token vectors become one vector."""
        named = self._sentence_bert_config.get("module_output_name")
        return self.has("Pooling") or self.is_static or named == "sentence_embedding"

    @property
    def dim(self) -> int:
        """The width of the vectors."""
        for module in reversed(self.modules):
            path = ModuleFolder(module.folder).config
            if module.kind == "Dense":
                return whole_number(read_object(path), "out_features", path)
            if module.kind == "Pooling":
                return _pooled_width(path)
            if module.kind == "StaticEmbedding":
                return _embedding_shape(ModuleFolder(module.folder).weights)[1]
        config = read_object(self.config)
        projection = ("projection_dim",) if self.has_head else ()
        key = next((key for key in (*projection, *WIDTH_KEYS) if key in config), WIDTH_KEYS[0])
        return whole_number(config, key, self.config)

    @property
    def num_tokens(self) -> int | None:
        """The tokens that have an embedding; None if the config does not say it."""
        if self.is_static:
            return _embedding_shape(ModuleFolder(self.backbone).weights)[0]
        rows = read_object(self.config).get("vocab_size")
        return rows if isinstance(rows, int) else None

    @property
    def _text_config(self) -> dict[str, Any]:
        config = read_object(self.config)
        text = config.get("text_config")
        return {**config, **text} if isinstance(text, dict) else config

    @property
    def num_layers(self) -> int:
        """The layers of the backbone; 0 if the config does not say it."""
        return self._count(_LAYER_KEYS)

    @property
    def width(self) -> int:
        """The width of the backbone's token vectors; 0 if the config does not say it."""
        return self._count(WIDTH_KEYS)

    def _count(self, keys: tuple[str, ...]) -> int:
        config = self._text_config
        key = next((key for key in keys if key in config), None)
        return whole_number(config, key, self.config) if key else 0

    @property
    def max_positions(self) -> int:
        """The longest sequence that the backbone takes, in tokens."""
        if self.is_static:
            return _UNLIMITED
        config = self._text_config
        if config.get("max_position_embeddings", -1) == -1:  # relative positions
            return _UNLIMITED
        positions = whole_number(config, "max_position_embeddings", self.config)
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
        return self._checked_length(length) if length else self.max_positions

    def _checked_length(self, length: Any) -> int:
        if isinstance(length, bool) or not isinstance(length, int | float) or not length >= 1:
            raise BadInput(
                f"{self.shown}: the longest sequence (max_seq_length or model_max_length) should "
                f"be a number from 1 on, found {length!r}",
                hint=COPY_AGAIN,
            )
        return int(min(length, self.max_positions))

    def length_of(self, side: Side) -> int:
        """The length to which sentence-transformers cuts the texts of one side, in tokens."""
        name = "query_length" if side == "query" else "document_length"
        length = self._sentence_bert_config.get(name)
        return self._checked_length(length) if length is not None else self.max_length

    @property
    def lowercase(self) -> bool:
        """Whether sentence-transformers lower-cases texts first."""
        return bool(self._sentence_bert_config.get("do_lower_case", False))

    @property
    def leaves_prompt_out(self) -> bool:
        """Whether the tokens of a prompt are left out of the pooling."""
        return any(
            read_object(ModuleFolder(module.folder).config).get("include_prompt", True) is False
            for module in self.modules
            if module.kind == "Pooling"
        )

    @property
    def loading(self) -> dict[str, Any]:
        """How sentence-transformers is told to load and to call the Transformer, apart from lengths
        and case."""
        return {
            name: value
            for name, value in self._sentence_bert_config.items()
            if name not in SETTINGS_OF_TEXTS and value
        }

    @property
    def _sentence_bert_config(self) -> dict[str, Any]:
        config = ModuleFolder(self.backbone).sentence_bert_config
        return read_object(config) if config.exists() else {}

    def files(self) -> list[tuple[str, Path]]:
        """(place of the module, file) of all that the vectors depend on: weights, configs,
        tokenizer, an adapter's base.

        Leaves out the files that repeat the encoding settings.
        """
        folders = {str(place): module.folder for place, module in enumerate(self.modules)}
        if self.base:
            folders["base"] = self.base
        return [
            (place, path)
            for place, folder in folders.items()
            for path in sorted(folder.glob("*"))
            if path.suffix in (".safetensors", ".json", ".txt", ".model", ".py")
            and not repeats_settings(path)
        ]


def _pooled_width(path: Path) -> int:
    """The width of a Pooling's vectors: that of a token, once for each of its modes."""
    config = read_object(path)
    names = ("embedding_dimension", "word_embedding_dimension")
    width = whole_number(config, next((name for name in names if name in config), names[0]), path)
    modes = config.get("pooling_mode")
    if isinstance(modes, list):
        return width * len(modes)
    old = sum(name.startswith("pooling_mode_") and bool(on) for name, on in config.items())
    return width if modes else width * max(1, old)


def _embedding_shape(path: Path) -> tuple[int, int]:
    """(tokens, dim) of a StaticEmbedding's table, which the library also reads as model2vec writes
    it: `embeddings`, to whose rows a `mapping` may lead."""
    from safetensors import safe_open

    with (
        as_bad_input(f"{path}: not a whole safetensors file", hint=COPY_AGAIN),
        safe_open(path, framework="numpy") as found,
    ):
        names = set(found.keys())
        table = "embedding.weight" if "embedding.weight" in names else "embeddings"
        rows, dim = found.get_slice(table).get_shape()
        if "mapping" in names:
            rows = found.get_slice("mapping").get_shape()[0]
    return int(rows), int(dim)


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


def _has_adapter(folder: Path) -> bool:
    return (folder / ADAPTER).exists()


def _module(listed: _ListedModule, root: Path, listing: Path) -> Module:
    kind = _kind(listed.type)
    if not listed.type.startswith(_LIBRARY) and not trusts_remote_code():
        raise BadInput(
            f"{listing}: {listed.type} is code of the checkpoint, which is not run",
            hint="read the code; if you trust it, add --trust-remote-code",
        )
    folder, shown = ModuleFolder(root / listed.path), ModuleFolder(listing.parent / listed.path)
    if kind not in _WITHOUT_CONFIG and not (folder.config.exists() or _has_adapter(folder.path)):
        raise BadInput(
            f"{shown.path}: the checkpoint's {kind} module is missing, but {listing.name} names it",
            hint=COPY_AGAIN,
        )
    if folder.config.exists():
        read_checkpoint_json(folder.config, dict[str, Any])  # refuses what is no JSON object
    pickled = kind != "Transformer" and (folder.path / PICKLED).exists()
    if (kind in _WITH_WEIGHTS or pickled) and not folder.weights.exists():
        raise BadInput(
            f"{shown.weights}: the weights of the {kind} are missing",
            hint=f"pickled weights are never loaded; {COPY_AGAIN}, or convert the checkpoint: ance "
            f"checkpoint convert {listing.parent} -o DIR",
        )
    return Module(kind, folder.path, shown.path, listed.type)


def _tower(modules: list[Module], listing: Path) -> Tower:
    if not modules or modules[0].kind not in _FIRST:
        found = f"a {modules[0].kind}" if modules else "nothing"
        raise BadInput(
            f"{listing}: the first module should be a {' or a '.join(_FIRST)}, found {found}",
            hint="ance makes the token rows that these two read, and no other inputs",
        )
    tower = Tower(tuple(modules))
    folder, shown = ModuleFolder(modules[0].folder), ModuleFolder(modules[0].shown)
    if not tower.is_static:
        _check_transformer(tower, folder, shown)
    if not any(path.exists() for path in folder.tokenizers):
        names = ", ".join(path.name for path in folder.tokenizers)
        raise BadInput(
            f"{shown.path}: the checkpoint has no tokenizer (looked for {names})",
            hint="copy the tokenizer's files into the folder, as save_pretrained writes them",
        )
    return tower


def _check_transformer(tower: Tower, folder: ModuleFolder, shown: ModuleFolder) -> None:
    if not tower.config.exists():
        raise BadInput(
            f"{shown.config}: no such file: not a checkpoint folder",
            hint="name a Hugging Face or sentence-transformers folder, or RUN/latest, with --ckpt",
        )
    weights = ADAPTER_WEIGHTS if _has_adapter(folder.path) else "*.safetensors"
    if not list(folder.path.glob(weights)):
        raise BadInput(
            f"{shown.path}: holds no weights in safetensors format",
            hint="pickled weights are never loaded; save the model with safetensors, or convert an "
            f"encoder: ance checkpoint convert {shown.path} -o DIR",
        )
    loading = tower.loading
    modalities = loading.get("modality_config")
    if isinstance(modalities, dict) and "message" in modalities:
        raise BadInput(
            f"{shown.sentence_bert_config}: the model renders texts with its chat template",
            hint="ance reads plain texts: remove modality_config if its prompts are plain texts",
        )
    if unknown := [name for name in ("processing_kwargs", "query_expansion") if loading.get(name)]:
        raise BadInput(
            f"{shown.sentence_bert_config}: {unknown[0]} changes how texts become tokens, and ance "
            "does not apply it",
            hint=f"remove {unknown[0]} if the vectors without it are right",
        )
