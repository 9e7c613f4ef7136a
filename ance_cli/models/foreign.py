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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ance_cli.config.sets import Side, SimilarityName
from ance_cli.errors import BadInput, UsageProblem, as_bad_input
from ance_cli.formats.checkpoint_folder import CheckpointFolder, ModuleFolder
from ance_cli.models.checkpoint import COSINE_SCALE, Checkpoint, EncodingSettings, override_settings
from ance_cli.models.dual import DualEncoder, load_dual
from ance_cli.models.encoder import (
    WITHOUT_POOLER,
    Encoder,
    Normalize,
    hidden_size,
    load_backbone,
)
from ance_cli.models.tower import Module, Tower, read_object

Weights = dict[str, Tensor]

PICKLED = "pytorch_model.bin"

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
_COPY_AGAIN = "fetch the checkpoint again, as its authors released it"


@dataclass
class Foreign:
    """A converted checkpoint, as `save_dual` takes it.

    It is also a `TokenizerSource`.
    """

    layout: str
    dual: DualEncoder
    settings: EncodingSettings
    towers: dict[Side, Tower]

    @property
    def shared(self) -> bool:
        """Whether queries and passages go through the same tower."""
        return self.towers["query"] is self.towers["passage"]

    def tower(self, side: Side) -> Tower:
        """The tower with the tokenizer of one side."""
        return self.towers[side]

    def override(self, shown: Path, **changes: Any) -> None:
        """Override some of the settings, as `Checkpoint.with_settings` does."""
        self.settings = override_settings(self.settings, self.towers, shown, **changes)


def load_foreign(
    sources: Sequence[Path],
    scratch: Path,
    backbone: Path | None = None,
    pooling: str | None = None,
    similarity: SimilarityName | None = None,
) -> Foreign:
    """Load one checkpoint, or the two folders of DPR's question and context encoder.

    `backbone` is a folder with config and tokenizer, needed if a source is a single file. `pooling`
    (`cls` or `mean`) and `similarity` (None = dot) define how the token vectors of a plain encoder
    become one vector, which none of its files defines. `scratch` is a folder for temporary files.

    Raises `BadInput` if a weight is missing, unknown or of another shape, or if the norm of an ANCE
    model has its initial value; `UsageProblem` if an argument is missing or does not apply.
    """
    first = sources[0]
    if len(sources) == 1 and CheckpointFolder(first).modules.exists():
        _refuse_pooling(pooling, similarity, first)
        checkpoint = Checkpoint(_in_safetensors(first, scratch))
        return Foreign(
            "sentence-transformers", load_dual(checkpoint), checkpoint.settings,
            {side: checkpoint.tower(side) for side in _DPR_PREFIXES},
        )  # fmt: skip
    weights = {source: read_weights(_weights_in(source)) for source in sources}
    names = [name for each in weights.values() for name in each]
    if any(name.startswith(prefix) for name in names for prefix in sum(_DPR_PREFIXES.values(), ())):
        _refuse_pooling(pooling, similarity, first)
        return _dpr(weights, backbone)
    if len(sources) > 1:
        raise UsageProblem(
            f"{first} and {sources[1]}: two sources must be the question and the context encoder "
            "of DPR",
            hint="convert one checkpoint at a time",
        )
    if _is_ance(first, names):
        _refuse_pooling(pooling, similarity, first)
        return _ance(first, weights[first], backbone)
    return _plain(first, scratch, pooling, similarity)


def _refuse_pooling(pooling: str | None, similarity: SimilarityName | None, source: Path) -> None:
    if pooling is not None or similarity is not None:
        raise UsageProblem(
            f"{source}: defines its pooling and similarity itself",
            hint="omit --pooling and --similarity, which apply to plain encoders",
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
        path for path in source.rglob(PICKLED) if not ModuleFolder(path.parent).weights.exists()
    ]
    if not pickled:
        return source
    copy = scratch / source.resolve().name
    unwanted = shutil.ignore_patterns("*.bin", "*.h5", "*.msgpack", "*.onnx", "*.pt", ".git")
    shutil.copytree(source, copy, ignore=unwanted)
    for path in pickled:
        tensors = {name: each.clone() for name, each in read_weights(path).items()}
        target = ModuleFolder(copy / path.relative_to(source).parent)
        save_file(tensors, target.weights, metadata={"format": "pt"})
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


def _filled_backbone(weights: Weights, tower: Tower, shown: Path) -> nn.Module:
    """The backbone that the config names with exactly these weights, float32."""
    from transformers import AutoConfig, AutoModel, BertConfig

    path = ModuleFolder(tower.backbone).config
    if read_object(path).get("model_type") == "dpr":  # a BERT under another name
        config = BertConfig.from_json_file(path)
    else:
        config = AutoConfig.from_pretrained(tower.backbone, trust_remote_code=False)
    extra = {"add_pooling_layer": False} if config.model_type in WITHOUT_POOLER else {}
    backbone: nn.Module = AutoModel.from_config(  # type: ignore[no-untyped-call]
        config, dtype=torch.float32, **extra
    )
    wanted = backbone.state_dict()
    found = {
        name: tensor
        for name, tensor in weights.items()
        if not name.startswith("pooler.") and not name.endswith("position_ids")
    }
    _compare(found, wanted, shown)
    backbone.load_state_dict(
        found, strict=False
    )  # only a pooler may be missing, which nothing reads
    return backbone


def _compare(found: Weights, wanted: Weights, shown: Path) -> None:
    needed = {name for name in wanted if "pooler" not in name and "position_ids" not in name}
    if missing := sorted(needed - found.keys()):
        raise BadInput(
            f"{shown}: {len(missing)} weights are not in the file, for instance {missing[0]}: they "
            "would keep their initial values",
            hint=_COPY_AGAIN,
        )
    if unknown := sorted(found.keys() - wanted.keys()):
        raise BadInput(
            f"{shown}: {len(unknown)} weights belong to no part of the model, for instance "
            f"{unknown[0]}: the file does not match its config.json",
            hint=_COPY_AGAIN,
        )
    for name, tensor in found.items():
        if tensor.shape != wanted[name].shape:
            raise BadInput(
                f"{shown}: {name} has shape {tuple(tensor.shape)}, expected "
                f"{tuple(wanted[name].shape)} by its config.json"
            )


def _linear(weights: Weights, name: str, hidden: int, shown: Path) -> nn.Linear:
    weight = weights.get(f"{name}.weight")
    linear = nn.Linear(hidden, hidden if weight is None else len(weight))
    _fill(linear, weights, name, shown)
    return linear


def _fill(module: nn.Module, weights: Weights, name: str, shown: Path) -> None:
    """Load a part of the head from the weights whose names begin with `name`."""
    wanted = {f"{name}.{part}": tensor for part, tensor in module.state_dict().items()}
    found = {full: weights[full] for full in wanted if full in weights}
    _compare(found, wanted, shown)
    module.load_state_dict({full.removeprefix(f"{name}."): each for full, each in found.items()})


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


def _ance(source: Path, found: Weights, backbone: Path | None) -> Foreign:
    """Embedding = norm(embeddingHead(h[:, 0])), by one tower."""
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
    filled = _filled_backbone(body, tower, source)
    linear = _linear(weights, "embeddingHead", hidden_size(filled), source)
    norm = nn.LayerNorm(linear.out_features)
    _fill(norm, weights, "norm", source)
    encoder = Encoder(filled, "cls", nn.Sequential(linear, norm), linear.out_features).eval()
    towers: dict[Side, Tower] = {"query": tower, "passage": tower}
    return Foreign("ANCE", DualEncoder(encoder, encoder), _within(ANCE_SETTINGS, towers), towers)


def _dpr(weights: dict[Path, Weights], backbone: Path | None) -> Foreign:
    """Embedding = h[:, 0], mapped by `encode_proj` if the file has one; two towers."""
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
            filled = _filled_backbone(body, tower, source)
            head, dim = nn.Sequential(), hidden_size(filled)
            if projection:
                head.append(_linear(projection, "encode_proj", dim, source))
                dim = int(head[0].out_features)  # type: ignore[arg-type]
            encoders[side] = Encoder(filled, "cls", head, dim).eval()
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
    source: Path, scratch: Path, pooling: str | None, similarity: SimilarityName | None
) -> Foreign:
    if pooling is None:
        raise UsageProblem(
            f"{source}: is a plain encoder: it does not define how token vectors become one vector",
            hint="use --pooling cls or mean if the encoder was trained for retrieval; otherwise "
            "train it first: ance train-segment adds a fresh head",
        )
    if not source.is_dir():
        raise UsageProblem(f"{source}: expected the folder of an encoder, found a file")
    tower = Checkpoint(_in_safetensors(source, scratch)).tower("passage")
    body = load_backbone(tower)
    cosine = similarity == "cosine"
    head = nn.Sequential(*([Normalize()] if cosine else []))
    encoder = Encoder(body, pooling, head, hidden_size(body)).eval()
    towers: dict[Side, Tower] = {"query": tower, "passage": tower}
    similar = (
        EncodingSettings(similarity="cosine", scale=COSINE_SCALE) if cosine else EncodingSettings()
    )
    return Foreign("plain", DualEncoder(encoder, encoder), _within(similar, towers), towers)
