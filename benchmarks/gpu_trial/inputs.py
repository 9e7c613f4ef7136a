"""What the parts work on: encoders with random weights, docstrings with BM25 negatives, and
passages of random words with the lengths of MS MARCO's."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
)

from ance_cli.config import DemoConfig
from ance_cli.encoding.tokenize import corpus_tokens
from ance_cli.formats.dataset import read_corpus, read_queries
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.dual import Start, save_dual, start_dual
from ance_cli.progress import Silent
from ance_cli.setup.docstrings import docstring_dataset
from benchmarks.gpu_trial.places import Inputs
from benchmarks.gpu_trial.sizes import Shape, Sizes
from benchmarks.gpu_trial.trial import Trial
from benchmarks.synthetic import passage_lengths

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_SPREAD = 0.55
"""Of the random weights, over the square root of the width: BERT-base has 0.02. In a narrow encoder
that would leave the [CLS] vectors of all texts much alike, so that they would agree whatever a
kernel computes."""


def run(trial: Trial) -> None:
    """Make every input; the parts cannot run without them."""
    inputs, sizes = Inputs(trial.work), trial.sizes
    with _timed(trial, "docstrings and negatives"):
        config = DemoConfig(passages=sizes.docstrings, packages=sizes.packages)
        docstring_dataset(inputs.docstrings, config, Silent())
        trial.ance("bm25-negatives", "--data", inputs.docstrings, "--engine", "bm25s", "--depth",
                   sizes.mined_depth, "-o", inputs.negatives, "--quiet")  # fmt: skip
    with _timed(trial, "models"):
        tokenizer = _tokenizer(inputs, sizes)
        for folder, shape in ((inputs.base, sizes.base), (inputs.small, sizes.small)):
            _encoder(folder, shape, sizes, tokenizer)
        tokenizer.save_pretrained(inputs.cross_encoder)
        one_label = _config(sizes.small, sizes, num_labels=1)
        BertForSequenceClassification(one_label).save_pretrained(inputs.cross_encoder)
    with _timed(trial, "passages"):
        _write_passages(inputs.passages, sizes, tokenizer)
    started = time.perf_counter()
    checkpoint = inputs.checkpoint(inputs.base, sizes)
    cache = corpus_tokens(checkpoint, inputs.corpus, inputs.tokens)
    trial.record("tokenizing", cache.num_docs / (time.perf_counter() - started))
    trial.record("tokens per passage", cache.num_tokens / cache.num_docs)


@contextmanager
def _timed(trial: Trial, name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    trial.record(name, time.perf_counter() - started)


def _tokenizer(inputs: Inputs, sizes: Sizes) -> Any:
    """WordPieces of the docstrings, lower-cased, with BERT's special tokens."""
    texts = [passage.text for passage in read_corpus(inputs.docstrings / "corpus.jsonl")]
    texts += read_queries(inputs.docstrings / "queries.jsonl").values()
    fast = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    fast.normalizer = normalizers.BertNormalizer(lowercase=True)
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=sizes.vocabulary, special_tokens=_SPECIAL, show_progress=False
    )
    fast.train_from_iterator(texts, trainer)
    fast.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, fast.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )  # fmt: skip
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=fast, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def _config(shape: Shape, sizes: Sizes, **more: Any) -> BertConfig:
    return BertConfig(
        vocab_size=sizes.vocabulary, hidden_size=shape.width, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, intermediate_size=shape.intermediate,
        max_position_embeddings=512, initializer_range=_SPREAD / math.sqrt(shape.width), **more,
    )  # fmt: skip


def _encoder(folder: Path, shape: Shape, sizes: Sizes, tokenizer: Any) -> None:
    """A checkpoint with the paper's head and random weights."""
    plain = folder.with_name(f"{folder.name}-plain")
    tokenizer.save_pretrained(plain)
    torch.manual_seed(0)
    BertModel(_config(shape, sizes), add_pooling_layer=False).save_pretrained(plain)
    start = Checkpoint(plain).with_settings(
        query_length=sizes.query_length, passage_length=sizes.passage_length
    )
    dual, _ = start_dual(start, Start(head="paper"))
    save_dual(dual, replace(start.settings, similarity="dot"), folder)


def _write_passages(path: Path, sizes: Sizes, tokenizer: Any) -> None:
    """Passages whose words are one token each, so that their lengths are those that were drawn."""
    words = np.array([word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha()])
    words.sort()  # the vocabulary has no order of its own
    rng = np.random.default_rng(0)
    lengths = passage_lengths(rng, sizes.passages, sizes.longest)
    with open(path, "wb") as handle:
        for number, length in enumerate(lengths.tolist()):
            text = " ".join(words[rng.integers(0, len(words), max(1, length - 2))])
            handle.write(orjson.dumps({"_id": f"d{number}", "title": "", "text": text}) + b"\n")
