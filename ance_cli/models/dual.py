"""The two encoders of a retriever as one model: loaded, started, frozen, saved.

The paper's BERT-Siamese is one encoder for queries and passages; its OpenQA models are two (DPR's
towers).
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ance_cli.config.sets import HeadName, PoolingName, Side, Towers
from ance_cli.config.training import ALL_LINEAR
from ance_cli.errors import BadInput, UsageProblem
from ance_cli.formats.checkpoint_folder import (
    CheckpointFolder,
    ModuleFolder,
    is_known,
    leads_out,
    read_checkpoint_json,
    repeats_settings,
    write_json,
)
from ance_cli.models.adapters import add_adapter
from ance_cli.models.checkpoint import Checkpoint, EncodingSettings, write_settings
from ance_cli.models.encoder import (
    Encoder,
    fresh_encoder,
    load_encoder,
    trainable_encoder,
    with_normalize,
)
from ance_cli.models.packing import Packing
from ance_cli.models.tower import ADAPTER, PASSAGE_ROUTE, SETTINGS_OF_TEXTS, Tower, read_object


@dataclass(frozen=True)
class Start:
    """What training adds to a start checkpoint.

    `towers` None keeps the checkpoint's towers; `two` starts both from a shared one. `head` to
    `seed` are a fresh head's (`fresh_encoder`); `normalize` also applies to a head that exists.
    With a `lora_rank` an adapter is added, and nothing else is trained but a fresh head.
    """

    towers: Towers | None = None
    head: HeadName | None = None
    pooling: PoolingName | None = None
    dim: int | None = None
    seed: int = 0
    normalize: bool = False
    lora_rank: int = 0
    lora_alpha: float = 32.0
    lora_dropout: float = 0.0
    lora_targets: str = ALL_LINEAR


class DualEncoder(nn.Module):
    """The encoders of queries and of passages: one object if they share their weights.

    `towers` holds each encoder once, so that parameters and state have no duplicates. Each gets its
    `side`, a shared one the passages'. The backbone's own pooler is frozen: nothing reads it, and a
    distributed step would wait for its gradients.
    """

    def __init__(self, query: Encoder, passage: Encoder) -> None:
        super().__init__()
        query.side, passage.side = "query", "passage"
        self.towers = nn.ModuleDict(
            {"shared": query} if query is passage else {"query": query, "passage": passage}
        )
        for name, parameter in self.named_parameters():
            if "pooler" in name:
                parameter.requires_grad_(False)

    @property
    def shared(self) -> bool:
        """Whether queries and passages go through the same encoder."""
        return "shared" in self.towers

    @property
    def query(self) -> Encoder:
        return cast(Encoder, self.towers["shared" if self.shared else "query"])

    @property
    def passage(self) -> Encoder:
        return cast(Encoder, self.towers["shared" if self.shared else "passage"])

    @property
    def dim(self) -> int:
        """The width of the vectors."""
        return self.query.dim

    def forward(
        self,
        query_ids: Tensor | None,
        query_mask: Tensor | Packing | None,
        passage_ids: Tensor | None,
        passage_mask: Tensor | Packing | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """(B, L) int64 token ids and masks of both sides -> (B, dim) float32 vectors of both.

        A side whose ids are None is skipped and returns None. Both sides are one call, because
        DistributedDataParallel wraps one call per step.
        """
        queries = passages = None
        if query_ids is not None:
            queries = self.query(query_ids, query_mask, "query")
        if passage_ids is not None:
            passages = self.passage(passage_ids, passage_mask, "passage")
        return queries, passages

    def train(self, mode: bool = True) -> DualEncoder:
        """As `nn.Module.train`, but a frozen tower stays in evaluation mode.

        With dropout its vectors would differ from those that its checkpoint makes.
        """
        super().train(mode)
        for tower in self.towers.values():
            if not _is_trained(tower):
                tower.eval()
        return self


def _is_trained(encoder: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in encoder.parameters())


def load_dual(checkpoint: Checkpoint, base_dtype: torch.dtype = torch.float32) -> DualEncoder:
    """Both encoders of a checkpoint for training (`trainable_encoder`)."""
    return _both(checkpoint, partial(trainable_encoder, base_dtype=base_dtype))


def load_merged(checkpoint: Checkpoint) -> DualEncoder:
    """Both encoders of a checkpoint, adapters merged into their bases (`load_encoder`)."""
    return _both(checkpoint, load_encoder)


def _both(checkpoint: Checkpoint, load: Callable[[Checkpoint, Side], Encoder]) -> DualEncoder:
    query = load(checkpoint, "query")
    return DualEncoder(query, query if checkpoint.shared else load(checkpoint, "passage"))


def start_dual(checkpoint: Checkpoint, start: Start) -> tuple[DualEncoder, bool]:
    """The encoders to train from, and whether their heads are fresh.

    A checkpoint without a head gets a fresh one, the same one on both sides (see `fresh_encoder`).
    Raises `UsageProblem` if two towers should become one.
    """
    if start.towers == "shared" and not checkpoint.shared:
        raise UsageProblem(
            f"--towers shared: {checkpoint.shown} has two towers, which cannot become one",
            hint="omit --towers, or start from one of the two encoders",
        )
    fresh = not checkpoint.has_head
    cosine = checkpoint.settings.similarity == "cosine"

    def encoder(side: Side) -> Encoder:
        if not fresh:
            found = trainable_encoder(checkpoint, side)
            return with_normalize(found) if start.normalize else found
        return fresh_encoder(
            checkpoint.tower(side), start.head or "pooled", start.pooling, start.dim, start.seed,
            cosine, start.normalize,
        )  # fmt: skip

    def adapted(side: Side) -> Encoder:
        found = encoder(side)
        if start.lora_rank:
            add_adapter(
                found.chain[0], start.lora_rank, start.lora_alpha, start.lora_dropout,
                start.lora_targets, start.seed,
            )  # fmt: skip
        return found

    if start.lora_rank and checkpoint.tower("query").base is not None:
        raise UsageProblem(
            f"--lora-rank: {checkpoint.shown} has an adapter already",
            hint="omit --lora-rank to go on with it, or merge it first: ance checkpoint convert "
            f"{checkpoint.shown} -o DIR",
        )
    query = adapted("query")
    if not checkpoint.shared:
        passage = adapted("passage")
    else:
        passage = copy.deepcopy(query) if start.towers == "two" else query
    if query.dim != passage.dim:
        raise UsageProblem(
            f"{checkpoint.shown}: its towers are {query.dim} and {passage.dim} wide",
            hint="set the width of both with --dim",
        )
    return DualEncoder(query, passage), fresh


def freeze_passages(dual: DualEncoder) -> DualEncoder:
    """The dual encoder with a separate passage tower that is not trained (ADORE's setting)."""
    passage = copy.deepcopy(dual.passage) if dual.shared else dual.passage
    return DualEncoder(dual.query, passage.requires_grad_(False).eval())


def enable_gradient_checkpointing(dual: DualEncoder) -> None:
    """Recompute the activations of each layer in the backward pass instead of keeping them."""
    for tower in dual.towers.values():
        backbone = cast(Encoder, tower).backbone
        if not getattr(backbone, "supports_gradient_checkpointing", False):
            raise UsageProblem(f"{type(backbone).__name__} cannot do gradient checkpointing")
        # newer versions of transformers have the first name, and warn about the second
        enable = getattr(backbone, "activation_checkpointing_enable", None)
        enable = enable or backbone.gradient_checkpointing_enable
        enable({"use_reentrant": False})  # type: ignore[operator]


def save_dual(
    dual: DualEncoder,
    settings: EncodingSettings,
    folder: Path,
    frozen_passage_from: Checkpoint | None = None,
    origin: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint into `folder`, which is being built, as sentence-transformers saves it.

    Two towers are under the library's Router. With `frozen_passage_from` the passage tower's files
    are copied from that checkpoint, so that the tower keeps its hash and the vectors made with it
    stay valid. `origin` describes what the checkpoint was converted from, for `ance.json`.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Router

    for encoder in dual.towers.values():
        _set_lengths(cast(Encoder, encoder), settings, dual.shared)
    towers: list[Any] = [list(encoder.chain) for encoder in (dual.query, dual.passage)]
    device = next(dual.parameters()).device
    model = SentenceTransformer(
        modules=towers[0] if dual.shared else [Router.for_query_document(*towers)],
        device=str(device),
        prompts={"query": settings.query_prefix, "document": settings.passage_prefix},
        similarity_fn_name=settings.similarity,
        truncate_dim=settings.truncate_dim,
        local_files_only=True,
    )
    model.save(str(folder), create_model_card=False)
    for card in folder.rglob(CheckpointFolder(folder).card.name):  # peft writes an empty one
        card.unlink()
    for path in folder.rglob(ADAPTER):  # peft writes a set in another order in each process
        config = read_object(path)
        if isinstance(config.get("target_modules"), list):
            write_json(path, config | {"target_modules": sorted(config["target_modules"])})
    if settings.lowercase:  # which the library reads, but does not save
        for path in folder.rglob(ModuleFolder(folder).sentence_bert_config.name):
            write_json(path, read_object(path) | {"do_lower_case": True})
    if dual.shared:
        _write_older_names(folder, settings)
    if frozen_passage_from is not None and not dual.shared:
        _copy_modules(frozen_passage_from.tower("passage"), folder)
    write_settings(folder, settings, origin)


def _set_lengths(encoder: Encoder, settings: EncodingSettings, shared: bool) -> None:
    """Tell the library the length of each side, and the case, so that it cuts texts alike."""
    first: Any = encoder.chain[0]
    if not hasattr(first, "query_length"):  # no Transformer: it cuts nothing
        return
    lengths = {"query": settings.query_length, "passage": settings.passage_length}
    first.query_length, first.document_length = lengths.values()
    first.max_seq_length = max(lengths.values()) if shared else lengths[encoder.side]
    first.do_lower_case = settings.lowercase


_OLDER_NAMES = {
    name: f"sentence_transformers.models.{name}"
    for name in ("Transformer", "Pooling", "Dense", "LayerNorm", "Normalize")
}
_OLDER_FLAGS = {
    "cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens", "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens", "lasttoken": "pooling_mode_lasttoken",
}  # fmt: skip


def _write_older_names(folder: Path, settings: EncodingSettings) -> None:
    """Give a shared tower's modules and settings the names of before sentence-transformers 5.4.

    The library reads both. Servers know the newer names late or not at all: older versions of vLLM
    pool otherwise, and text-embeddings-inference leaves out a Dense (`hub.servers`).
    """
    listing = CheckpointFolder(folder).modules
    modules = read_checkpoint_json(listing, list[dict[str, Any]])
    for module in modules:
        library, _, kind = module["type"].rpartition(".")
        if library.startswith("sentence_transformers."):
            module["type"] = _OLDER_NAMES.get(kind, module["type"])
        if kind == "Pooling":
            _write_older_flags(ModuleFolder(folder / module["path"]).config)
    write_json(listing, modules)
    texts = ModuleFolder(folder).sentence_bert_config
    if texts.exists():
        longest = max(settings.query_length, settings.passage_length)
        older = {"max_seq_length": longest, "do_lower_case": settings.lowercase}
        write_json(texts, read_object(texts) | older)


def _write_older_flags(path: Path) -> None:
    config = read_object(path)
    mode = config.get("pooling_mode")
    if isinstance(mode, str):
        flags = {flag: name == mode for name, flag in _OLDER_FLAGS.items()}
        width = config["embedding_dimension"]
        kept = {"word_embedding_dimension": width, "include_prompt": config["include_prompt"]}
        write_json(path, kept | flags)


def _copy_modules(tower: Tower, folder: Path) -> None:
    """Put a tower's own files in the place of its saved ones, and how it is loaded."""
    places = [
        folder / f"{PASSAGE_ROUTE}_{number}_{module.kind}"
        for number, module in enumerate(tower.modules)
    ]
    for place in places:
        for path in place.iterdir():
            if not repeats_settings(path):
                path.unlink()
    for place_name, path in tower.files():
        if place_name == "base":
            continue
        if not is_known(path) and leads_out(path, path.parent):
            raise BadInput(
                f"{path}: is a link to a file outside of the checkpoint, which would be copied",
                hint="remove the link, or put the file itself in its place",
            )
        shutil.copyfile(path, places[int(place_name)] / path.name)
    config = ModuleFolder(places[0]).sentence_bert_config
    if config.exists():
        saved = read_object(config)
        lengths = {"max_seq_length": saved["document_length"]}  # else the copied tokenizer's length
        lengths |= {name: saved[name] for name in SETTINGS_OF_TEXTS if name in saved}
        write_json(config, lengths | tower.loading)
