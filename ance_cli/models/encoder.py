"""The encoder of one tower: a chain of sentence-transformers modules, which the library loads.

The first module turns token rows into token vectors (a Transformer) or into one vector (a
StaticEmbedding); Pooling, Dense, LayerNorm, Normalize and others make one vector of a text from
them. The paper's BERT-Siamese (ICLR Eq. 2, configured in the appendix) is one such chain: last
layer's [CLS] -> Linear -> LayerNorm, scored by dot product.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ance_cli.call import trusts_remote_code
from ance_cli.config.sets import HeadName, PoolingName, Side
from ance_cli.errors import BadInput, as_bad_input
from ance_cli.formats.checkpoint_folder import COPY_AGAIN
from ance_cli.models.adapters import load_adapter, merge_adapter, need_peft
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.packing import Packing, features_of
from ance_cli.models.pretrained import keep_libraries_quiet, whole_weights
from ance_cli.models.tokens import Tokenizer
from ance_cli.models.tower import Module, Tower

if TYPE_CHECKING:
    from sentence_transformers.base.modules import Transformer

_VECTORS = ("token_embeddings", "sentence_embedding")
"""The features of the first module from which the head makes the vector."""


class Encoder(nn.Module):
    """The modules of a tower; `dim` is the width of its vectors.

    `truncate_dim` keeps the first dimensions. `cosine`: the vectors are scaled to length one at the
    end, so that an inner-product index ranks by cosine. `prompt_lengths` are the tokens that a
    pooling leaves out. `side` is the side that the encoder belongs to, if none is given in a call.
    `packs`: batches come packed, because `packing.use_packing` changed the backbone.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        cosine: bool = False,
        truncate_dim: int | None = None,
        prompt_lengths: dict[Side, int] | None = None,
        side: Side = "passage",
    ) -> None:
        super().__init__()
        self.chain = nn.ModuleList(modules)
        self.cosine, self.truncate_dim, self.side = cosine, truncate_dim, side
        self.prompt_lengths = prompt_lengths or {}
        self.packs = False
        self.register_buffer("token_types", _token_types(self.chain[0]), persistent=False)

    @property
    def backbone(self) -> nn.Module:
        """The transformers model, or the table of a StaticEmbedding."""
        first: Any = self.chain[0]
        backbone: nn.Module = first.embedding if _is_static(first) else first.model
        return backbone

    @property
    def head(self) -> list[nn.Module]:
        """The modules after the first one."""
        return list(self.chain)[1:]

    @property
    def dim(self) -> int:
        """The width of the vectors."""
        known = [m for m in self.chain if hasattr(m, "get_embedding_dimension")]
        width = int(known[-1].get_embedding_dimension())  # type: ignore[operator]
        return min(width, self.truncate_dim or width)

    def forward(
        self, token_ids: Tensor, mask: Tensor | Packing | None, side: Side | None = None
    ) -> Tensor:
        """(B, L) int64 token ids and mask, None if nothing is padded -> (B, dim) float32 vectors.

        A backbone that packs (`packing.use_packing`) takes (1, T) token ids and their packing.
        The head runs in float32 even if the first module runs in bf16: it costs nothing and the
        scores depend on it.
        """
        features = self.token_features(token_ids, mask, side)
        return self.pooled(features, token_ids.device.type)

    def token_features(
        self, token_ids: Tensor, mask: Tensor | Packing | None, side: Side | None = None
    ) -> dict[str, Any]:
        """The features after the first module: the head's input, with `token_embeddings` (B, L, h)
        where the module is a Transformer."""
        features: dict[str, Any] = self.chain[0](self._features(token_ids, mask, side or self.side))
        if isinstance(mask, Packing):  # the head gets the batch as if it had been padded
            features["token_embeddings"] = mask.padded(features["token_embeddings"])
            features["attention_mask"] = mask.mask
            del features["cu_seq_lens_q"]
        return features

    def pooled(self, features: dict[str, Any], device_type: str) -> Tensor:
        """(B, dim) float32 vectors of what the first module made."""
        with torch.autocast(device_type, enabled=False):
            for name in _VECTORS:
                if name in features:
                    features[name] = features[name].float()
            for module in self.head:
                features = module(features)
            vectors: Tensor = features["sentence_embedding"][:, : self.truncate_dim]
            return functional.normalize(vectors, dim=-1) if self.cosine else vectors

    def _features(
        self, token_ids: Tensor, mask: Tensor | Packing | None, side: Side
    ) -> dict[str, Any]:
        """What the library's `preprocess` makes of a text."""
        if _is_static(self.chain[0]):
            assert not isinstance(mask, Packing)
            rows, width = token_ids.shape
            lengths = token_ids.new_full((rows,), width) if mask is None else mask.sum(1)
            flat = token_ids.flatten() if mask is None else token_ids[mask.bool()]
            return {"input_ids": flat, "offsets": lengths.cumsum(0) - lengths}
        features: dict[str, Any] = {"input_ids": token_ids, "modality": "text"}
        if isinstance(mask, Packing):
            features |= features_of(mask, self.backbone)
        elif mask is not None:
            features["attention_mask"] = mask
        if isinstance(self.token_types, Tensor):
            features["token_type_ids"] = self.token_types[token_ids]
        if self.prompt_lengths.get(side):
            features["prompt_length"] = self.prompt_lengths[side]
        return features


def _is_static(module: nn.Module) -> bool:
    return type(module).__name__ == "StaticEmbedding"


def _token_types(first: Any) -> Tensor | None:
    """(V,) int64 the type of each token as the tokenizer sets it for a single text.

    None if the tokenizer has no types, or the model reads none.
    """
    if (
        _is_static(first)
        or "token_type_ids" not in inspect.signature(first.model.forward).parameters
    ):
        return None
    found = first.tokenizer("a")
    if "token_type_ids" not in found:
        return None
    types = torch.zeros(max(first.tokenizer.get_vocab().values()) + 1, dtype=torch.int64)
    for token, kind in zip(found["input_ids"], found["token_type_ids"], strict=True):
        types[token] = kind
    return types


# ---------------------------------------------------------------- load


def load_modules(tower: Tower, dtype: torch.dtype = torch.float32) -> list[nn.Module]:
    """The modules of a tower on the CPU in evaluation mode, the first one in `dtype`, the others in
    float32.

    Raises `BadInput` if a module does not load, or a weight of it is missing.
    """
    return [
        _load_module(module, dtype if place == 0 else torch.float32).eval()
        for place, module in enumerate(tower.modules)
    ]


def _load_module(module: Module, dtype: torch.dtype) -> nn.Module:
    keep_libraries_quiet()
    from sentence_transformers.util.misc import import_module_class

    name = module.type or "sentence_transformers.base.modules.transformer.Transformer"
    trusts, folder = trusts_remote_code(), str(module.folder)
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trusts}
    if module.kind == "Transformer":
        options["model_kwargs"] = {"dtype": dtype}
    hint = COPY_AGAIN
    if not trusts and "auto_map" in _config_text(module.folder):
        hint = (
            "the model has code of its own: read it, and if you trust it, add --trust-remote-code"
        )
    with (
        as_bad_input(f"{module.shown}: the {module.kind} does not load", hint=hint),
        whole_weights(module.shown),
    ):
        loader: Any = import_module_class(name, folder, trust_remote_code=trusts)
        loaded: nn.Module = loader.load(folder, **options)
    if module.kind == "Transformer" and not hasattr(loaded, "model"):
        raise BadInput(
            f"{module.shown}: {name} makes its own token rows, which ance does not",
            hint="use sentence-transformers to encode with this model",
        )
    return loaded if module.kind == "Transformer" else loaded.to(dtype)


def _config_text(folder: Path) -> str:
    path = folder / "config.json"
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def load_encoder(
    checkpoint: Checkpoint, side: Side = "passage", dtype: torch.dtype = torch.float32
) -> Encoder:
    """The encoder of one side of a checkpoint for inference, on the CPU, its first module in
    `dtype`; an adapter is merged into its base.

    Raises `BadInput` if the folder has no pooling and head: the vectors of a raw language model
    mean nothing yet.
    """
    encoder = _encoder(checkpoint, side, dtype)
    tower = checkpoint.tower(side)
    if tower.base is not None:
        merge_adapter(encoder.chain[0], tower.shown)
    return encoder.eval()


def trainable_encoder(
    checkpoint: Checkpoint, side: Side, base_dtype: torch.dtype = torch.float32
) -> Encoder:
    """As `load_encoder` in float32, but an adapter is not merged: it alone is trained, and its base
    is in `base_dtype`."""
    tower = checkpoint.tower(side)
    encoder = _encoder(checkpoint, side, base_dtype if tower.base else torch.float32)
    if tower.base is not None:
        load_adapter(encoder.chain[0], tower.backbone, tower.shown)
    return encoder.eval()


def _encoder(checkpoint: Checkpoint, side: Side, dtype: torch.dtype) -> Encoder:
    checkpoint.need_head()
    tower = checkpoint.tower(side)
    if tower.base is not None:
        need_peft()
    encoder = Encoder(
        load_modules(tower, dtype),
        checkpoint.settings.similarity == "cosine",
        checkpoint.settings.truncate_dim,
        _prompt_lengths(checkpoint, tower),
        side,
    )
    if "cls" in _modes(encoder) and is_causal(encoder.backbone):
        raise BadInput(
            f"{tower.shown}: a causal decoder: its first token sees no other token, so that the "
            "vector of a text would depend on its first token alone",
            hint="use a checkpoint with last-token pooling, or start from the raw decoder, which "
            "gets it",
        )
    return encoder


def _prompt_lengths(checkpoint: Checkpoint, tower: Tower) -> dict[Side, int]:
    if not tower.leaves_prompt_out:
        return {}
    settings = checkpoint.settings
    if settings.segments > 1 and settings.passage_prefix:
        raise BadInput(
            f"{tower.shown}: leaves the prompt out of the pooling, and only the first segment of a "
            "passage has the prompt",
            hint="use --segmentation first",
        )
    tokenizer = Tokenizer(checkpoint)
    return {side: tokenizer.prompt_length_of(side) for side in ("query", "passage")}


def _modes(encoder: Encoder) -> tuple[str, ...]:
    modes = [getattr(module, "pooling_mode", ()) for module in encoder.head]
    return tuple(mode for each in modes for mode in ([each] if isinstance(each, str) else each))


@torch.no_grad()
def is_causal(backbone: nn.Module) -> bool:
    """Whether the first token sees no token after it."""
    device = next(backbone.parameters()).device
    was_training = backbone.training
    backbone.eval()
    states = [
        backbone(input_ids=torch.tensor([ids], device=device)).last_hidden_state[:, 0]
        for ids in ([3, 4, 5], [3, 5, 5])
    ]
    backbone.train(was_training)
    return torch.equal(*states)


# ---------------------------------------------------------------- fresh heads


def fresh_encoder(
    tower: Tower,
    head: HeadName = "pooled",
    pooling: PoolingName | None = None,
    dim: int | None = None,
    seed: int = 0,
    cosine: bool = False,
    normalize: bool = False,
) -> Encoder:
    """The backbone of a tower with a new head.

    `pooled` is what inference servers apply: a pooling, for another `dim` than the backbone's a
    linear map without bias, Normalize for `cosine` or `normalize`. `paper` is [CLS] ->
    Linear(hidden, dim) -> LayerNorm(dim). Linear maps are drawn from N(0, 0.02) and depend on
    `seed` alone. `pooling` None is the last token for a causal decoder, which alone sees the whole
    text; otherwise the mean, for `paper` the first token.
    """
    from sentence_transformers.sentence_transformer.modules import (
        Dense,
        LayerNorm,
        Normalize,
        Pooling,
    )

    if others := [module.kind for module in tower.modules[1:]]:
        raise BadInput(
            f"{tower.shown}: has a {others[0]} and no pooling, so its vectors are not defined",
            hint="save the checkpoint with a Pooling, or start from its Transformer alone",
        )
    first: Transformer = load_modules(tower)[0]  # type: ignore[assignment]
    if tower.base is not None:
        need_peft()
        merge_adapter(first, tower.shown)
    with as_bad_input(f"{tower.shown}: does not read texts alone", hint="name a text encoder"):
        causal = is_causal(first.model)
    if causal and pooling == "cls":
        raise BadInput(
            f"{tower.shown}: a causal decoder: its first token sees no other token",
            hint="use --pooling lasttoken",
        )
    width = int(first.get_embedding_dimension())
    default = "cls" if head == "paper" else "mean"
    modules: list[nn.Module] = [
        first,
        Pooling(width, pooling or ("lasttoken" if causal else default)),
    ]
    if head == "paper" or dim not in (None, width):
        dense = Dense(width, dim or width, bias=head == "paper", activation_function=nn.Identity())
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            dense.linear.weight.normal_(0.0, 0.02, generator=generator)
            if dense.linear.bias is not None:
                dense.linear.bias.zero_()
        modules.append(dense)
    if head == "paper":
        modules.append(LayerNorm(dim or width))
    if cosine or normalize:
        modules.append(Normalize())
    return Encoder(modules, cosine).eval()


def with_normalize(encoder: Encoder) -> Encoder:
    """The encoder with a Normalize at its end, if it has none."""
    from sentence_transformers.sentence_transformer.modules import Normalize

    if not isinstance(encoder.head[-1] if encoder.head else None, Normalize):
        encoder.chain.append(Normalize())
    return encoder


def described(encoder: Encoder) -> str:
    """The head in a few words: mean -> Dense -> Normalize."""
    return " -> ".join(
        "+".join(_modes(encoder)) if type(module).__name__ == "Pooling" else type(module).__name__
        for module in encoder.head
    )


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


def hidden_size(backbone: nn.Module) -> int:
    """The width of the backbone's token vectors."""
    config: Any = backbone.config
    return int(config.get_text_config().hidden_size)
