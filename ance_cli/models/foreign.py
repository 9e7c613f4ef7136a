"""Checkpoints in other layouts, recognised by the names of their weights.

Original ANCE (and castorini/ance-*): one RoBERTa for both sides, with `embeddingHead` and `norm`.
DPR: two BERTs, in one file (`question_model`, `ctx_model`) or in the folders of the Hugging Face
classes (`question_encoder`, `ctx_encoder`). sentence-transformers' folders and plain encoders, in
safetensors or in PyTorch's older files. The older files are read by torch's weights-only loader,
which builds tensors and plain values and nothing else; safetensors is preferred.

Every weight that a model needs must be in the file, and every weight in the file must be known.
transformers would leave missing weights at their initial values, and the vectors would mean
nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ance_cli.config.sets import PoolingName, Side, SimilarityName
from ance_cli.errors import BadInput, UsageProblem, as_bad_input
from ance_cli.formats.checkpoint_folder import CheckpointFolder, ModuleFolder, write_json
from ance_cli.models.checkpoint import COSINE_SCALE, Checkpoint, EncodingSettings, override_settings
from ance_cli.models.dual import DualEncoder, load_merged
from ance_cli.models.encoder import (
    Encoder,
    fresh_encoder,
    hidden_size,
    is_causal,
    load_modules,
    with_normalize,
)
from ance_cli.models.tower import (
    ADAPTER,
    ADAPTER_WEIGHTS,
    PICKLED,
    PICKLED_ADAPTER,
    Module,
    Tower,
    read_object,
)

Weights = dict[str, Tensor]

ANCE_SETTINGS = EncodingSettings(
    query_length=64, passage_length=512, separator="<sep>", lowercase=True
)
"""The released RoBERTa models: lower-cased texts, `<sep>` between url, title and body."""

DPR_SETTINGS = EncodingSettings(query_length=256, passage_length=256, separator=" [SEP] ")
"""DPR passes title and text to its tokenizer as a pair, without segment ids: [SEP] separates
them."""

_ANCE_HEAD = ("embeddingHead.weight", "embeddingHead.bias", "norm.weight", "norm.bias")
_ANCE_UNUSED = ("classifier.", "lm_head.", "roberta.pooler.")
_ANCE_CLASSES = ("RobertaDot", "AnceEncoder")
_DPR_PREFIXES: dict[Side, tuple[str, ...]] = {
    "query": ("question_model.", "question_encoder."),
    "passage": ("ctx_model.", "ctx_encoder."),
}
_SAFE_NAMES = {PICKLED: "model.safetensors", PICKLED_ADAPTER: ADAPTER_WEIGHTS}
"""Files of PyTorch's own format -> the same in safetensors."""
_COPY_AGAIN = "fetch the checkpoint again, as its authors released it"


@dataclass
class Foreign:
    """A converted checkpoint, as `save_dual` takes it."""

    layout: str
    dual: DualEncoder
    settings: EncodingSettings
    towers: dict[Side, Tower]


def load_foreign(
    sources: Sequence[Path],
    scratch: Path,
    backbone: Path | None = None,
    pooling: PoolingName | None = None,
    similarity: SimilarityName | None = None,
    normalize: bool = False,
    changes: Mapping[str, Any] = {},
) -> Foreign:
    """Load one checkpoint, or the two folders of DPR's question and context encoder.

    `backbone` is a folder with config and tokenizer, needed if a source is a single file. `pooling`
    and `similarity` (None = dot) define how the token vectors of a plain encoder become one vector,
    which none of its files defines; `similarity` may also replace that of a sentence-transformers
    folder. `normalize` scales every vector to length one. `changes`
    overrides some of the encoding settings. `scratch` is a folder for temporary files.

    Raises `BadInput` if a weight is missing, unknown or of another shape, or if the norm of an ANCE
    model has its initial value; `UsageProblem` if an argument is missing or does not apply.
    """
    found = _load(sources, scratch, backbone, pooling, similarity, changes)
    found.settings = override_settings(found.settings, found.towers, sources[0], **changes)
    if normalize:
        for encoder in found.dual.towers.values():
            with_normalize(encoder)  # type: ignore[arg-type]
    return found


def _load(
    sources: Sequence[Path],
    scratch: Path,
    backbone: Path | None,
    pooling: PoolingName | None,
    similarity: SimilarityName | None,
    changes: Mapping[str, Any],
) -> Foreign:
    first = sources[0]
    if len(sources) == 1 and CheckpointFolder(first).modules.exists():
        _refuse_pooling(pooling, None, first)
        checkpoint = Checkpoint(_in_safetensors(first, scratch))
        checkpoint = checkpoint.with_settings(similarity=similarity, **changes)
        dual = load_merged(checkpoint)
        return Foreign(
            "sentence-transformers", dual, checkpoint.settings,
            {side: checkpoint.tower(side) for side in _DPR_PREFIXES},
        )  # fmt: skip
    if len(sources) == 1 and (first / ADAPTER).exists():  # the weights are its base's
        return _plain(first, scratch, pooling, similarity)
    weights = {source: read_weights(_weights_in(source)) for source in sources}
    names = [name for each in weights.values() for name in each]
    if any(name.startswith(prefix) for name in names for prefix in sum(_DPR_PREFIXES.values(), ())):
        _refuse_pooling(pooling, similarity, first)
        return _dpr(weights, backbone, scratch)
    if len(sources) > 1:
        raise UsageProblem(
            f"{first} and {sources[1]}: two sources must be the question and the context encoder "
            "of DPR",
            hint="convert one checkpoint at a time",
        )
    if _is_ance(first, names):
        _refuse_pooling(pooling, similarity, first)
        return _ance(first, weights[first], backbone, scratch)
    return _plain(first, scratch, pooling, similarity)


def _refuse_pooling(pooling: str | None, similarity: SimilarityName | None, source: Path) -> None:
    if pooling is not None or similarity is not None:
        raise UsageProblem(
            f"{source}: defines its pooling and similarity itself",
            hint="omit --pooling; --similarity is for plain encoders and sentence-transformers'",
        )


# -------------------------------------------------------------------- files


def _weights_in(source: Path) -> Path:
    if not source.is_dir():
        return source
    weights = ModuleFolder(source).weights
    for path in (weights, source / PICKLED):
        if path.exists():
            return path
    raise BadInput(
        f"{source}: holds no weights (looked for {weights.name} and {PICKLED})",
        hint="if the weights are in several parts, save the model again as one safetensors file",
    )


def read_weights(path: Path) -> Weights:
    """The tensors of a file by name, from safetensors or from PyTorch's format by the weights-only
    loader.

    The tensors of a training checkpoint are under `model_dict` or `state_dict`.
    """
    what = f"{path}: its weights cannot be read without running code from it"
    with as_bad_input(what, hint=_COPY_AGAIN):
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        found = torch.load(path, map_location="cpu", weights_only=True)
    for name in ("model_dict", "state_dict"):
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    if not isinstance(found, dict) or not found:
        raise BadInput(f"{path}: expected tensors by name, found {type(found).__name__}")
    for name, tensor in found.items():
        if not isinstance(tensor, Tensor):
            raise BadInput(f"{path}: {name!r} should be a tensor, found {type(tensor).__name__}")
    return found


def _in_safetensors(source: Path, scratch: Path) -> Path:
    """The folder itself, or a copy with its weights in safetensors."""
    pickled = [
        (path, path.with_name(name))
        for old, name in _SAFE_NAMES.items()
        for path in source.rglob(old)
        if not path.with_name(name).exists()
    ]
    if not pickled:
        return source
    copy = scratch / source.resolve().name
    unwanted = shutil.ignore_patterns("*.bin", "*.h5", "*.msgpack", "*.onnx", "*.pt", ".git")
    shutil.copytree(source, copy, ignore=unwanted)
    for path, safe in pickled:
        tensors = {name: each.clone() for name, each in read_weights(path).items()}
        save_file(tensors, copy / safe.relative_to(source), metadata={"format": "pt"})
    return copy


def _tower_of(source: Path, backbone: Path | None) -> Tower:
    """A tower with the config and the tokenizer of a source."""
    folder = backbone or source
    if not ModuleFolder(folder).config.exists():
        raise UsageProblem(
            f"{source}: has no config.json and no tokenizer next to its weights",
            hint="name a folder with both by --backbone; for DPR, use bert-base-uncased",
        )
    return Tower((Module("Transformer", folder, folder),))


# -------------------------------------------------------------------- models


def _transformer(
    weights: Weights, tower: Tower, scratch: Path, shown: Path, lowercase: bool = False
) -> Any:
    """The library's Transformer that the config names, with exactly these weights, float32."""
    folder = ModuleFolder(scratch / f"{len(list(scratch.glob('*')))}")
    folder.path.mkdir(parents=True)
    for path in tower.backbone.iterdir():
        if path.suffix in (".json", ".txt", ".model"):
            shutil.copyfile(path, folder.path / path.name)
    config = read_object(folder.config)
    if config.get("model_type") == "dpr":  # a BERT under another name
        write_json(folder.config, {**config, "model_type": "bert", "architectures": ["BertModel"]})
    found = {
        name: tensor.contiguous()
        for name, tensor in weights.items()
        if not name.startswith("pooler.") and not name.endswith("position_ids")
    }
    save_file(found, folder.weights, metadata={"format": "pt"})
    write_json(folder.sentence_bert_config, {"do_lower_case": lowercase})
    loaded: Any = load_modules(Tower((Module("Transformer", folder.path, shown),)))[0]
    wanted = loaded.model.state_dict()
    if unknown := sorted(found.keys() - wanted.keys()):
        raise BadInput(
            f"{shown}: {len(unknown)} weights belong to no part of the model, for instance "
            f"{unknown[0]}: the file does not match its config.json",
            hint=_COPY_AGAIN,
        )
    return loaded


def _dense(weights: Weights, name: str, width: int, shown: Path) -> Any:
    """The linear map of a head, without an activation."""
    from sentence_transformers.sentence_transformer.modules import Dense

    weight = weights.get(f"{name}.weight")
    out = width if weight is None else len(weight)
    dense = Dense(width, out, activation_function=nn.Identity())
    _fill(dense.linear, weights, name, shown)
    return dense


def _fill(module: nn.Module, weights: Weights, name: str, shown: Path) -> None:
    """Load a part of the head from the weights whose names begin with `name`."""
    for part, wanted in module.state_dict().items():
        full = f"{name}.{part}"
        if full not in weights:
            raise BadInput(
                f"{shown}: {full} is not in the file: it would keep its initial value",
                hint=_COPY_AGAIN,
            )
        if weights[full].shape != wanted.shape:
            raise BadInput(
                f"{shown}: {full} has shape {tuple(weights[full].shape)}, expected "
                f"{tuple(wanted.shape)}"
            )
    module.load_state_dict({part: weights[f"{name}.{part}"] for part in module.state_dict()})


def _within(start: EncodingSettings, towers: dict[Side, Tower]) -> EncodingSettings:
    """The settings, with lengths that the towers support."""
    return replace(
        start,
        query_length=min(start.query_length, towers["query"].max_positions),
        passage_length=min(start.passage_length, towers["passage"].max_positions),
    )


def _is_ance(source: Path, names: Sequence[str]) -> bool:
    if any(_bare(name) in _ANCE_HEAD for name in names):
        return True
    config = ModuleFolder(source).config
    classes = (read_object(config).get("architectures") or []) if config.exists() else []
    return any(str(name).startswith(_ANCE_CLASSES) for name in classes)


def _bare(name: str) -> str:
    return name.removeprefix("ance_encoder.")


def _ance(source: Path, found: Weights, backbone: Path | None, scratch: Path) -> Foreign:
    """Embedding = norm(embeddingHead(h[:, 0])), by one tower."""
    from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling

    weights = {_bare(name): tensor.float() for name, tensor in found.items()}
    for name in _ANCE_HEAD:
        if name not in weights:
            raise BadInput(
                f"{source}: has no {name}: the head of this ANCE model is not in the file, and the "
                "vectors of a fresh head would mean nothing",
                hint=_COPY_AGAIN,
            )
    if bool((weights["norm.weight"] == 1).all()):
        raise BadInput(
            f"{source}: every norm.weight is 1, its initial value: the file was saved without "
            "loading the head",
            hint=_COPY_AGAIN,
        )
    known = (*_ANCE_HEAD, *_ANCE_UNUSED, "roberta.")
    if unknown := [name for name in weights if not name.startswith(known)]:
        raise BadInput(f"{source}: {unknown[0]} is not a weight of an ANCE model", hint=_COPY_AGAIN)
    tower = _tower_of(source, backbone)
    prefix = "roberta."
    body = {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}
    first = _transformer(body, tower, scratch, source, ANCE_SETTINGS.lowercase)
    width = hidden_size(first.model)
    dense = _dense(weights, "embeddingHead", width, source)
    norm = LayerNorm(dense.out_features)
    _fill(norm.norm, weights, "norm", source)
    encoder = Encoder([first, Pooling(width, "cls"), dense, norm]).eval()
    towers: dict[Side, Tower] = {"query": tower, "passage": tower}
    return Foreign("ANCE", DualEncoder(encoder, encoder), _within(ANCE_SETTINGS, towers), towers)


def _dpr(weights: dict[Path, Weights], backbone: Path | None, scratch: Path) -> Foreign:
    """Embedding = h[:, 0], mapped by `encode_proj` if the file has one; two towers."""
    from sentence_transformers.sentence_transformer.modules import Pooling

    encoders: dict[Side, Encoder] = {}
    towers: dict[Side, Tower] = {}
    for source, found in weights.items():
        for side, prefix in _dpr_parts(found):
            if side in encoders:
                raise UsageProblem(f"{source}: holds a second {side} encoder")
            body = {
                name.removeprefix(prefix).removeprefix("bert_model."): tensor.float()
                for name, tensor in found.items()
                if name.startswith(prefix)
            }
            projected = [name for name in body if name.startswith("encode_proj.")]
            projection = {name: body.pop(name) for name in projected}
            tower = towers[side] = _tower_of(source, backbone)
            first = _transformer(body, tower, scratch, source)
            width = hidden_size(first.model)
            modules = [first, Pooling(width, "cls")]
            if projection:
                modules.append(_dense(projection, "encode_proj", width, source))
            encoders[side] = Encoder(modules).eval()
    for side, what in (("query", "question"), ("passage", "context")):
        if side not in encoders:
            raise BadInput(
                f"{', '.join(map(str, weights))}: has no {what} encoder",
                hint="name the folders of both encoders: ance checkpoint convert QUESTION CONTEXT",
            )
    return Foreign(
        "DPR", DualEncoder(encoders["query"], encoders["passage"]), _within(DPR_SETTINGS, towers),
        towers,
    )  # fmt: skip


def _dpr_parts(found: Weights) -> Iterator[tuple[Side, str]]:
    for side, prefixes in _DPR_PREFIXES.items():
        for prefix in prefixes:
            if any(name.startswith(prefix) for name in found):
                yield side, prefix


def _plain(
    source: Path,
    scratch: Path,
    pooling: PoolingName | None,
    similarity: SimilarityName | None,
) -> Foreign:
    """The token vectors of a plain encoder, pooled; a causal decoder needs no `pooling`."""
    if not source.is_dir():
        raise UsageProblem(f"{source}: expected the folder of an encoder, found a file")
    tower = Checkpoint(_in_safetensors(source, scratch)).tower("passage")
    settings = EncodingSettings(
        query_length=tower.length_of("query"), passage_length=tower.length_of("passage")
    )
    cosine = similarity == "cosine"
    if cosine:
        settings = replace(settings, similarity="cosine", scale=COSINE_SCALE)
    encoder = fresh_encoder(tower, pooling=pooling, cosine=cosine)
    if pooling is None and not is_causal(encoder.backbone):
        raise UsageProblem(
            f"{source}: is a plain encoder: it does not define how token vectors become one vector",
            hint="use --pooling cls or mean if the encoder was trained for retrieval; otherwise "
            "train it first: ance train-segment adds a fresh head",
        )
    towers: dict[Side, Tower] = {"query": tower, "passage": tower}
    return Foreign("plain", DualEncoder(encoder, encoder), settings, towers)
