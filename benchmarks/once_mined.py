"""What people do today, in sentence-transformers' own words: `mine_hard_negatives` once, then
MultipleNegativesRankingLoss (see `today.py`). Each public function is what one process does.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ance_cli.config import EncodeConfig
from ance_cli.config.presets import train_config
from ance_cli.config.sets import Side
from ance_cli.formats.dataset import locate, positives_of, read_corpus, read_qrels, read_queries
from ance_cli.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch
    from datasets import Dataset as Rows
    from sentence_transformers import SentenceTransformer

RECIPE = train_config("small", {})
"""What both sides of the comparison train with."""

MINING: dict[str, dict[str, Any]] = {
    # the tip in the documentation of mine_hard_negatives: TopK-PercPos (95 %) of NV-Retriever
    "margin": {"relative_margin": 0.05, "num_negatives": 5, "sampling_strategy": "top"},
    # as its authors mined the negatives that they publish (natural-questions-hard-negatives on the
    # hub): a window of ranks, nothing above the positive
    "ranks": {"range_min": 10, "range_max": 50, "absolute_margin": 0.0, "num_negatives": 5,
              "sampling_strategy": "random"},
    # the same window from its first rank on
    "head": {"range_max": 50, "absolute_margin": 0.0, "num_negatives": 5,
             "sampling_strategy": "random"},
}  # fmt: skip
"""Arguments of `mine_hard_negatives`."""

_COMPARED = 128


@dataclass(frozen=True)
class Setting:
    """What all arms share."""

    data: Path
    ckpt: Path
    steps: int
    seed: int
    threads: int


def mine(setting: Setting, how: str, folder: Path) -> None:
    """Mine from the whole corpus with the start; `folder` receives the rows.

    Searched by torch, `faiss_batch_size` queries at a time: with `use_faiss` it crashes where
    faiss-gpu meets no GPU (faiss's index over no GPUs).
    """
    from sentence_transformers.util import mine_hard_negatives

    random.seed(setting.seed)
    model = _load(setting.ckpt, setting.threads)
    model.forward = _number_format(model.device)[1](model.forward)  # the encoder alone, no scores
    passages = _passages(setting)
    rows = mine_hard_negatives(
        _pairs(setting, model, passages), model, corpus=list(passages.values()),
        batch_size=128, faiss_batch_size=1024, **MINING[how],
    )  # fmt: skip
    rows.save_to_disk(folder)


def train(setting: Setting, rows: Path | None, steps: int, folder: Path) -> float:
    """Train on mined rows, or on pairs alone, and save the model as `folder`/model.

    The loss is on the checkpoint's own similarity and scale, as ours is. Returns the seconds of the
    steps alone.
    """
    from datasets import load_from_disk
    from sentence_transformers import (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
        losses,
        util,
    )
    from sentence_transformers.base.sampler import BatchSamplers

    model = _load(setting.ckpt, setting.threads)
    checkpoint = Checkpoint(setting.ckpt)
    dtype, _ = _number_format(model.device)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder / "trainer"), max_steps=steps, seed=setting.seed,
        per_device_train_batch_size=RECIPE.batch_size, learning_rate=RECIPE.lr,
        lr_scheduler_type=RECIPE.schedule, warmup_steps=RECIPE.warmup_steps,
        weight_decay=RECIPE.weight_decay, max_grad_norm=RECIPE.max_grad_norm,
        bf16=dtype == "bf16", fp16=dtype == "fp16", use_cpu=model.device.type == "cpu",
        batch_sampler=BatchSamplers.NO_DUPLICATES,  # which the loss's documentation recommends
        save_strategy="no", report_to="none",
    )  # fmt: skip
    loss = losses.MultipleNegativesRankingLoss(
        model,
        scale=checkpoint.settings.scale,
        similarity_fct=util.cos_sim if checkpoint.is_cosine else util.dot_score,
    )
    found = load_from_disk(rows) if rows else _pairs(setting, model, _passages(setting))
    trainer = SentenceTransformerTrainer(model, arguments, train_dataset=found, loss=loss)
    seconds = float(trainer.train().metrics["train_runtime"])
    model.save(str(folder / "model"), create_model_card=False)
    return seconds


def least_cosine(setting: Setting, theirs: Path, ours: Path) -> float:
    """Between the vectors of two folders for the same texts, in float32: `theirs` loaded by
    sentence-transformers, `ours` by ance. Of the longest queries, which are cut, and of passages.
    """
    import numpy as np

    from ance_cli.models.texts import TextEncoder

    model = _load(theirs, setting.threads)
    checkpoint = Checkpoint(ours).with_settings(
        query_length=RECIPE.query_length, passage_length=RECIPE.passage_length
    )
    queries = sorted(read_queries(locate(setting.data).need("queries")).values(), key=len)
    longest = queries[-_COMPARED:]
    passages = list(_passages(setting).values())[:_COMPARED]
    texts: dict[Side, tuple[list[str], list[str]]] = {
        "query": (longest, _as_queries(model, longest)),
        "passage": (passages, passages),
    }
    least = 1.0
    for side, (whole, cut) in texts.items():
        xs, _ = TextEncoder(checkpoint, side, EncodeConfig(dtype="fp32"))(whole)  # (n, d)
        ys = model.encode(cut, show_progress_bar=False)  # (n, d)
        cosines = (xs * ys).sum(1) / np.linalg.norm(xs, axis=1) / np.linalg.norm(ys, axis=1)
        least = min(least, float(cosines.min()))
    return least


def _load(folder: Path, threads: int) -> SentenceTransformer:
    """A checkpoint as sentence-transformers loads it, with the recipe's length and dropout."""
    from sentence_transformers import SentenceTransformer

    from ance_cli.models.devices import set_threads
    from ance_cli.models.encoder import set_dropout

    set_threads(threads)
    model = SentenceTransformer(str(folder))
    model.max_seq_length = RECIPE.passage_length
    if RECIPE.dropout is not None:
        set_dropout(model, RECIPE.dropout)
    return model


def _number_format(device: torch.device) -> tuple[str, torch.autocast]:
    """What `--dtype auto` takes on this device, and the context in which torch computes in it."""
    import torch

    from ance_cli.models.devices import choose_dtype, torch_dtype

    name = choose_dtype("auto", device)
    return name, torch.autocast(device.type, torch_dtype(name), enabled=name != "fp32")


def _as_queries(model: SentenceTransformer, texts: list[str]) -> list[str]:
    """Each text up to the last token that a query may have.

    A model of sentence-transformers has one length for both sides.
    """
    found = model.tokenizer(
        texts, truncation=True, max_length=RECIPE.query_length, return_offsets_mapping=True
    )
    ends = [max(end for _, end in offsets) for offsets in found["offset_mapping"]]
    return [text[:end] for text, end in zip(texts, ends, strict=True)]


def _passages(setting: Setting) -> dict[str, str]:
    """doc_id -> the text that an encoder sees."""
    separator = Checkpoint(setting.ckpt).settings.separator
    corpus = read_corpus(locate(setting.data).corpus)
    return {passage.doc_id: passage.joined(separator) for passage in corpus}


def _pairs(setting: Setting, model: SentenceTransformer, passages: Mapping[str, str]) -> Rows:
    """Query and positive of each train label."""
    from datasets import Dataset

    split = locate(setting.data, "train")
    queries = read_queries(split.need("queries"))
    positives = positives_of(read_qrels(split.need("qrels")), min_relevance=1)
    texts = _as_queries(model, [queries[query_id] for query_id in positives])
    return Dataset.from_list(
        [
            {"anchor": text, "positive": passages[doc_id]}
            for text, doc_ids in zip(texts, positives.values(), strict=True)
            for doc_id in doc_ids
        ]
    )
