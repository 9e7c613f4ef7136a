"""The encoder of one tower: a transformer, a pooling and a small head; read and written.

The paper's BERT-Siamese (ICLR Eq. 2, configured in the appendix) is: last layer's [CLS] ->
Linear -> LayerNorm, scored by dot product. Any sentence-transformers folder made of Transformer,
Pooling, Dense, LayerNorm and Normalize loads as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from ance_cli.config.sets import Side
from ance_cli.errors import BadInput, as_bad_input
from ance_cli.formats.checkpoint_folder import COPY_AGAIN, ModuleFolder, write_json
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.pretrained import load_pretrained
from ance_cli.models.tower import Tower, read_object, whole_number

WITHOUT_POOLER = ("bert", "roberta", "xlm-roberta", "camembert")
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "Identity": nn.Identity,
    "Tanh": nn.Tanh,
    "GELU": nn.GELU,
    "ReLU": nn.ReLU,
}


def _cls(hidden: Tensor, mask: Tensor | None) -> Tensor:
    return hidden[:, 0].float()


def _mean(hidden: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return hidden.float().mean(1)
    weights = mask.unsqueeze(-1).float()  # (B, L, 1)
    return (hidden.float() * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


_POOLINGS: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {"cls": _cls, "mean": _mean}
"""(B, L, hidden) token vectors and the mask, None if nothing is padded -> (B, hidden) float32."""


class Normalize(nn.Module):
    """Scale each vector to length one."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(x, dim=-1)


class Encoder(nn.Module):
    """Backbone, pooling (a name in `_POOLINGS`) and head; `dim` is the width of its vectors."""

    def __init__(self, backbone: nn.Module, pooling: str, head: nn.Sequential, dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooling = pooling
        self.head = head
        self.dim = dim

    def forward(self, token_ids: Tensor, mask: Tensor | None) -> Tensor:
        """(B, L) int64 token ids and mask, None if nothing is padded -> (B, dim) float32 vectors.

        Pooling and head run in float32 even if the backbone runs in bf16: they cost nothing and the
        scores depend on them.
        """
        hidden = self.backbone(input_ids=token_ids, attention_mask=mask).last_hidden_state
        with torch.autocast(hidden.device.type, enabled=False):
            vectors: Tensor = self.head(_POOLINGS[self.pooling](hidden, mask))
            return vectors


_WITH_DECODER = {"t5", "mt5", "umt5"}
"""Model types of which an encoder is one half; its folder has no weights of the other."""


def load_backbone(tower: Tower) -> nn.Module:
    """The Transformer of a tower in float32; `BadInput` if a weight is missing from its file."""
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding

    with as_bad_input(f"{tower.shown}: the backbone does not load", hint=COPY_AGAIN):
        config = AutoConfig.from_pretrained(tower.backbone, trust_remote_code=False)
    extra = {"add_pooling_layer": False} if config.model_type in WITHOUT_POOLER else {}
    backbone: nn.Module = load_pretrained(
        AutoModelForTextEncoding if config.model_type in _WITH_DECODER else AutoModel,
        tower.backbone,
        tower.shown,
        "backbone",
        "the checkpoint does not match its config.json, or is cut short",
        unread="pooler",
        config=config,
        dtype=torch.float32,
        **extra,
    )
    return backbone


def _load_weights(folder: Path, module: nn.Module, prefix: str) -> None:
    path = ModuleFolder(folder).weights
    with as_bad_input(f"{path}: not a whole safetensors file", hint=COPY_AGAIN):
        found = load_file(path)
    wanted = module.state_dict()
    for name, tensor in wanted.items():
        if f"{prefix}.{name}" not in found:
            raise BadInput(
                f"{path}: has no {prefix}.{name}: the head would keep random values",
                hint=COPY_AGAIN,
            )
        if found[f"{prefix}.{name}"].shape != tensor.shape:
            raise BadInput(
                f"{path}: {prefix}.{name} has shape {tuple(found[f'{prefix}.{name}'].shape)}, "
                f"expected {tuple(tensor.shape)}",
                hint=COPY_AGAIN,
            )
    module.load_state_dict({name: found[f"{prefix}.{name}"].float() for name in wanted})


def _load_dense(folder: Path) -> list[nn.Module]:
    path = ModuleFolder(folder).config
    config = read_object(path)
    name = str(config.get("activation_function", "Tanh")).rsplit(".", 1)[-1]
    if name not in _ACTIVATIONS:
        raise BadInput(f"{path}: cannot use the activation {name!r}")
    width = whole_number(config, "in_features", path)
    dim = whole_number(config, "out_features", path)
    linear = nn.Linear(width, dim, bool(config.get("bias", True)))
    _load_weights(folder, linear, "linear")
    return [linear] if name == "Identity" else [linear, _ACTIVATIONS[name]()]


def _load_layer_norm(folder: Path) -> list[nn.Module]:
    path = ModuleFolder(folder).config
    norm = nn.LayerNorm(whole_number(read_object(path), "dimension", path))
    _load_weights(folder, norm, "norm")
    return [norm]


_HEAD_MODULES: dict[str, Callable[[Path], list[nn.Module]]] = {
    "Dense": _load_dense,
    "LayerNorm": _load_layer_norm,
    "Normalize": lambda folder: [Normalize()],
}
"""Kind of a module after the pooling -> what loads it from its folder."""


def _load_head(tower: Tower) -> list[nn.Module]:
    return [
        part
        for module in tower.modules[1:]
        if module.kind != "Pooling"
        for part in _HEAD_MODULES[module.kind](module.folder)
    ]


def _pooling_config(tower: Tower) -> Path:
    folder = next(module.folder for module in tower.modules if module.kind == "Pooling")
    return ModuleFolder(folder).config


def _pooling_of(tower: Tower) -> str:
    path = _pooling_config(tower)
    config = read_object(path)
    modes = [name for name, on in config.items() if name.startswith("pooling_mode_") and on]
    mode = config.get("pooling_mode") or (modes[0] if len(modes) == 1 else ",".join(modes))
    known = {
        "cls": "cls",
        "mean": "mean",
        "pooling_mode_cls_token": "cls",
        "pooling_mode_mean_tokens": "mean",
    }
    if mode not in known:
        raise BadInput(f"{path}: cannot use the pooling {mode!r}, only cls and mean")
    return known[mode]


def load_encoder(checkpoint: Checkpoint, side: Side = "passage") -> Encoder:
    """The encoder of one side of a checkpoint, float32, in evaluation mode, on the CPU.

    Raises `BadInput` if the folder has no pooling and head: the vectors of a raw language model
    mean nothing yet.
    """
    checkpoint.need_head()
    tower = checkpoint.tower(side)
    pooling = _pooling_of(tower)
    _refuse_prompt_exclusion(tower, checkpoint, side)
    backbone = load_backbone(tower)
    if pooling == "cls":
        _refuse_causal(backbone, tower)
    head = _load_head(tower)
    if checkpoint.is_cosine and not tower.has("Normalize"):
        head.append(Normalize())  # so that an inner-product index ranks by cosine
    return Encoder(backbone, pooling, nn.Sequential(*head), tower.dim).eval()


def _refuse_prompt_exclusion(tower: Tower, checkpoint: Checkpoint, side: Side) -> None:
    """Refuse a pooling that leaves the prompt's tokens out, where the side has a prompt."""
    settings = checkpoint.settings
    prompt = settings.query_prefix if side == "query" else settings.passage_prefix
    path = _pooling_config(tower)
    if prompt and read_object(path).get("include_prompt", True) is False:
        raise BadInput(
            f"{path}: include_prompt is false: the model leaves the tokens of its prompt "
            f"{prompt!r} out of the pooling, and ance cannot",
            hint="use sentence-transformers to encode with this model, or another checkpoint",
        )


@torch.no_grad()
def _refuse_causal(backbone: nn.Module, tower: Tower) -> None:
    """Refuse to read the first token's vector of a model whose first token sees no other token."""
    first, second = torch.tensor([[3, 4, 5]]), torch.tensor([[3, 5, 5]])
    was_training = backbone.training
    backbone.eval()
    states = [backbone(input_ids=ids).last_hidden_state[:, 0] for ids in (first, second)]
    backbone.train(was_training)
    if torch.equal(*states):
        raise BadInput(
            f"{tower.shown}: a causal decoder: its first token sees no other token, so that the "
            "vector of a text would depend on its first token alone",
            hint="start from an encoder (BERT, RoBERTa, MiniLM, MPNet, T5's encoder)",
        )


def fresh_encoder(tower: Tower, dim: int | None, seed: int, cosine: bool) -> Encoder:
    """The backbone of a tower with the paper's head: [CLS] -> Linear(hidden, dim) ->
    LayerNorm(dim), for `cosine` scaled to length one.

    The linear map is drawn from N(0, 0.02) and depends on `seed` alone. `dim` None is the
    backbone's width.
    """
    backbone = load_backbone(tower)
    _refuse_causal(backbone, tower)
    hidden = hidden_size(backbone)
    dim = dim or hidden
    linear = nn.Linear(hidden, dim)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        linear.weight.normal_(0.0, 0.02, generator=generator)
        linear.bias.zero_()
    head = [linear, nn.LayerNorm(dim), *([Normalize()] if cosine else [])]
    return Encoder(backbone, "cls", nn.Sequential(*head), dim).eval()


def set_dropout(model: nn.Module, probability: float) -> None:
    """Set every dropout of one encoder or of both, modules and plain attributes alike.

    The checkpoint's config keeps its own value: dropout belongs to a training run, not to the
    model.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        for name in ("attention_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, probability)


def write_modules(
    encoder: Encoder, folder: Path, place: Callable[[int, str], str]
) -> list[tuple[str, str]]:
    """Write the encoder's modules (float32 safetensors) into subfolders of `folder`.

    `place(number, kind)` names the subfolder of each; returns (subfolder, kind) in order. The
    tokenizer is not written.
    """
    backbone = place(0, "Transformer")
    encoder.backbone.save_pretrained(folder / backbone, safe_serialization=True)  # type: ignore[operator]
    modules = [(backbone, "Transformer")]
    for kind, config, weights in (_described_pooling(encoder), *_described_head(encoder.head)):
        name = place(len(modules), kind)
        modules.append((name, kind))
        _write_module(folder / name, kind, config, weights)
    return modules


_Described = tuple[str, dict[str, Any], nn.Module | None]
"""Kind, config and weights of a module, as sentence-transformers stores it."""


def _write_module(
    folder: Path, kind: str, config: dict[str, Any], weights: nn.Module | None
) -> None:
    folder.mkdir(exist_ok=True)
    files = ModuleFolder(folder)
    write_json(files.config, config)
    if weights is not None:
        prefix = "norm" if kind == "LayerNorm" else "linear"
        tensors = {
            f"{prefix}.{key}": value.detach().cpu().contiguous()
            for key, value in weights.state_dict().items()
        }
        save_file(tensors, files.weights, metadata={"format": "pt"})


def _described_pooling(encoder: Encoder) -> _Described:
    config = {
        "word_embedding_dimension": hidden_size(encoder.backbone),
        "pooling_mode_cls_token": encoder.pooling == "cls",
        "pooling_mode_mean_tokens": encoder.pooling == "mean",
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    return "Pooling", config, None


def _described_head(head: nn.Sequential) -> Iterator[_Described]:
    """The modules of a head. A linear map and the activation after it are one module, a Dense."""
    parts = list(head)
    for part, after in zip_longest(parts, parts[1:]):
        if isinstance(part, nn.Linear):
            known = type(after) in _ACTIVATIONS.values()
            config = {
                "in_features": part.in_features,
                "out_features": part.out_features,
                "bias": part.bias is not None,
                "activation_function": _activation_name(type(after) if known else nn.Identity),
            }
            yield "Dense", config, part
        elif isinstance(part, nn.LayerNorm):
            yield "LayerNorm", {"dimension": part.normalized_shape[0]}, part
        elif isinstance(part, Normalize):
            yield "Normalize", {}, None


def _activation_name(activation: type) -> str:
    home = "linear" if activation is nn.Identity else "activation"
    return f"torch.nn.modules.{home}.{activation.__name__}"


def hidden_size(backbone: nn.Module) -> int:
    """The width of the backbone's token vectors."""
    return int(backbone.config.hidden_size)  # type: ignore[union-attr,arg-type]
