"""The two encoders of a retriever as one model: loaded, started, frozen, saved.

The paper's BERT-Siamese is one encoder for queries and passages; its OpenQA models are two (DPR's
towers).
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from ance_cli.config.sets import Side, SimilarityName, Towers
from ance_cli.errors import BadInput, UsageProblem
from ance_cli.formats.checkpoint_folder import (
    CheckpointFolder,
    ModuleFolder,
    is_known,
    leads_out,
    write_json,
)
from ance_cli.models.checkpoint import Checkpoint, EncodingSettings, write_settings
from ance_cli.models.encoder import (
    Encoder,
    fresh_encoder,
    load_encoder,
    write_modules,
)
from ance_cli.models.tokens import Tokenizer
from ance_cli.models.tower import PASSAGE_ROUTE, QUERY_ROUTE, Tower


class DualEncoder(nn.Module):
    """The encoders of queries and of passages: one object if they share their weights.

    `towers` holds each encoder once, so that parameters and state have no duplicates. The
    backbone's own pooler is frozen: nothing reads it, and a distributed step would wait for its
    gradients.
    """

    def __init__(self, query: Encoder, passage: Encoder) -> None:
        super().__init__()
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
        query_mask: Tensor | None,
        passage_ids: Tensor | None,
        passage_mask: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """(B, L) int64 token ids and masks of both sides -> (B, dim) float32 vectors of both.

        A side whose ids are None is skipped and returns None. Both sides are one call, because
        DistributedDataParallel wraps one call per step.
        """
        queries = passages = None
        if query_ids is not None:
            queries = self.query(query_ids, query_mask)
        if passage_ids is not None:
            passages = self.passage(passage_ids, passage_mask)
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


def load_dual(checkpoint: Checkpoint) -> DualEncoder:
    """Both encoders of a checkpoint, as `load_encoder` loads one of them."""
    query = load_encoder(checkpoint, "query")
    return DualEncoder(query, query if checkpoint.shared else load_encoder(checkpoint, "passage"))


def start_dual(
    checkpoint: Checkpoint,
    dim: int | None,
    seed: int,
    towers: Towers | None = None,
    similarity: SimilarityName | None = None,
) -> tuple[DualEncoder, bool]:
    """The encoders to train from, and whether their heads are fresh.

    A checkpoint without a head gets the paper's head, the same one on both sides; with
    `similarity` cosine its vectors have length one (see `fresh_encoder`). The caller then stores
    `similarity` in the settings, with the scale `COSINE_SCALE` if the user gave no scale. `towers`
    None keeps the checkpoint's towers; `two` starts both from a shared one. Raises `UsageProblem`
    if two towers should become one, or if `similarity` is not that of the existing head.
    """
    if towers == "shared" and not checkpoint.shared:
        raise UsageProblem(
            f"--towers shared: {checkpoint.shown} has two towers, which cannot become one",
            hint="omit --towers, or start from one of the two encoders",
        )
    fresh = not checkpoint.has_head
    found = "cosine" if checkpoint.is_cosine else "dot"
    if not fresh and similarity not in (None, found):
        raise UsageProblem(
            f"--similarity {similarity}: {checkpoint.shown} has a head for {found}",
            hint="omit --similarity, or start from a checkpoint without a head",
        )

    def start(side: Side) -> Encoder:
        if fresh:
            return fresh_encoder(checkpoint.tower(side), dim, seed, similarity == "cosine")
        return load_encoder(checkpoint, side)

    query = start("query")
    if not checkpoint.shared:
        passage = start("passage")
    else:
        passage = copy.deepcopy(query) if towers == "two" else query
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
    tokenizer: Tokenizer,
    settings: EncodingSettings,
    folder: Path,
    frozen_passage_from: Checkpoint | None = None,
    origin: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint into `folder`, which is being built.

    A shared tower is at the top of the folder, two towers are under sentence-transformers' Router.
    With `frozen_passage_from` the passage tower's files are copied from that checkpoint, so that
    the tower keeps its hash and the vectors made with it stay valid. `origin` describes what the
    checkpoint was converted from, for `ance.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if dual.shared:
        modules = _save_shared(dual, tokenizer, settings, folder)
    else:
        modules = _save_two(dual, tokenizer, settings, folder, frozen_passage_from)
    write_json(
        CheckpointFolder(folder).modules,
        [
            {"idx": number, "name": str(number), "path": path, "type": _full_type(kind)}
            for number, (path, kind) in enumerate(modules)
        ],
    )
    write_json(
        CheckpointFolder(folder).sentence_transformers_config,
        {
            "__version__": {"sentence_transformers": "2.2.0"},
            "prompts": {"query": settings.query_prefix, "document": settings.passage_prefix},
            "default_prompt_name": None,
            "similarity_fn_name": settings.similarity,
        },
    )
    write_settings(folder, settings, origin)


def _save_shared(
    dual: DualEncoder, tokenizer: Tokenizer, settings: EncodingSettings, folder: Path
) -> list[tuple[str, str]]:
    """Write the shared tower at the top of the folder; returns (subfolder, kind) of its modules."""
    modules = write_modules(dual.query, folder, lambda n, kind: f"{n}_{kind}" if n else "")
    tokenizer.save(str(folder), "passage")
    _write_length(folder, max(settings.query_length, settings.passage_length), settings)
    return modules


def _save_two(
    dual: DualEncoder,
    tokenizer: Tokenizer,
    settings: EncodingSettings,
    folder: Path,
    frozen_passage_from: Checkpoint | None,
) -> list[tuple[str, str]]:
    """Write both towers and a Router between them, which is the checkpoint's only module."""
    query = write_modules(dual.query, folder, lambda n, kind: f"{QUERY_ROUTE}_{n}_{kind}")
    tokenizer.save(str(folder / query[0][0]), "query")
    if frozen_passage_from is not None:
        passage = _copy_modules(frozen_passage_from.tower("passage"), folder)
    else:
        passage = write_modules(dual.passage, folder, lambda n, kind: f"{PASSAGE_ROUTE}_{n}_{kind}")
        tokenizer.save(str(folder / passage[0][0]), "passage")
    _write_length(folder / query[0][0], settings.query_length, settings)
    _write_length(folder / passage[0][0], settings.passage_length, settings)
    _write_router(folder, query, passage)
    return [("", "Router")]


def _copy_modules(tower: Tower, folder: Path) -> list[tuple[str, str]]:
    modules = []
    for number, module in enumerate(tower.modules):
        modules.append((f"{PASSAGE_ROUTE}_{number}_{module.kind}", module.kind))
        (folder / modules[-1][0]).mkdir()
    for number, path in tower.files():
        if not is_known(path) and leads_out(path, path.parent):
            raise BadInput(
                f"{path}: is a link to a file outside of the checkpoint, which would be copied",
                hint="remove the link, or put the file itself in its place",
            )
        shutil.copyfile(path, folder / modules[number][0] / path.name)
    return modules


def _write_length(backbone: Path, length: int, settings: EncodingSettings) -> None:
    write_json(
        ModuleFolder(backbone).sentence_bert_config,
        {"max_seq_length": length, "do_lower_case": settings.lowercase},
    )


def _write_router(
    folder: Path, query: list[tuple[str, str]], passage: list[tuple[str, str]]
) -> None:
    write_json(
        ModuleFolder(folder).router_config,
        {
            "types": {name: _full_type(kind) for name, kind in (*query, *passage)},
            "structure": {
                QUERY_ROUTE: [name for name, _ in query],
                PASSAGE_ROUTE: [name for name, _ in passage],
            },
            "parameters": {"default_route": PASSAGE_ROUTE, "allow_empty_key": True},
        },
    )


def _full_type(kind: str) -> str:
    return f"sentence_transformers.models.{kind}"
