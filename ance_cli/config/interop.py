"""Datasets and checkpoints from elsewhere and to elsewhere."""
# fmt: off

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ance_cli.config.data import MIN_REL, EncoderChoices, MinRel
from ance_cli.config.retrieval import SEED, Depth, Seed
from ance_cli.config.sets import Action, ExportForm, ImportFormat, PoolingName, SimilarityName
from ance_cli.config.setting import DATA, METHOD, RUNTIME, Config, Setting

Form = Annotated[ExportForm, Setting(
    "What to write. From negatives: tevatron, tevatron-v2, flagembedding, sentence-transformers, "
    "ann-training-data; from a run: dpr-reader, msmarco-run; from embeddings, for a vector "
    "database: qdrant, milvus, lancedb, pgvector, opensearch, elasticsearch, vespa; from a "
    "checkpoint: onnx.", DATA, positional=True)]
Source = Annotated[Path, Setting(
    "Negatives file, TREC run, embeddings folder or checkpoint folder.", DATA, positional=True)]
Place = Annotated[Path, Setting(
    "Checkpoint, or run folder (its newest checkpoint).", DATA, positional=True)]
ModelName = Annotated[str, Setting(
    "Name of the model in the card, ORG/NAME on the hub (default: the folder's name).", METHOD,
    flags=("--name",), metavar="NAME")]


@dataclass(frozen=True, kw_only=True)
class ImportConfig(Config):
    """What `ance import` reads."""

    sources: Annotated[list[str], Setting(
        "What to read: PATH, FORMAT:PATH, hf:ORG/NAME[:SUBSET][@REVISION] or ir-datasets:ID; a "
        "file, or a folder of files that belong together. Several sources make one dataset.",
        DATA, positional=True)] | None = None
    format: Annotated[ImportFormat, Setting(
        "Format of the sources that name none; auto recognises each.", DATA)] = "auto"
    splits: Annotated[list[str], Setting(
        "Import only this split (repeatable); NEW=FOUND renames it. A file whose name says no "
        "split belongs to this one, or to train. 80/10/10 divides the queries into train, dev "
        "and test instead, as ance split does.", DATA, flags=("--split",),
        metavar="NAME")] | None = None
    columns: Annotated[str, Setting(
        "Columns of tables whose names are not known, as ROLE=COLUMN,...; the roles are query, "
        "query_id, positive, negative, doc_id, negative_id, score, title, text and answers. A file "
        "without header has the columns 1, 2, ...", DATA)] | None = None
    min_score: Annotated[float, Setting(
        "Lowest score with which a scored pair is a positive; without it, scores must be whole "
        "numbers and become the labels.", DATA)] | None = None
    chunk: Annotated[int, Setting(
        "Most characters of a passage that documents are cut into (default: 1000 for .txt, .md, "
        ".html and .pdf files; rows of tables stay whole).", DATA, at_least=50)] | None = None
    seed: Seed = SEED
    corpora: Annotated[list[Path], Setting(
        "File of documents, of any name (repeatable).", DATA, flags=("--corpus",),
        metavar="FILE")] | None = None
    queries: Annotated[list[Path], Setting(
        "File of queries, of any name (repeatable).", DATA, metavar="FILE")] | None = None
    qrels: Annotated[list[Path], Setting(
        "File of labels, of any name (repeatable).", DATA, metavar="FILE")] | None = None
    with_url: Annotated[bool, Setting(
        "Build texts as `url<sep>title<sep>body`, as the released ANCE models expect.",
        DATA)] = False


@dataclass(frozen=True, kw_only=True)
class SplitConfig(Config):
    """How the labels of a dataset are divided."""

    split: Annotated[str, Setting(
        "Split to divide (default: the only one).", DATA, metavar="NAME")] | None = None
    shares: Annotated[str, Setting(
        "Percentages of queries: train/dev/test, or train/dev.", DATA)] = "80/10/10"
    near: Annotated[float, Setting(
        "Similarity (Jaccard, of words and short runs of words) from which two queries, or two "
        "positives, are near-duplicates and stay on one side; 1 compares no texts.", DATA,
        above=0, at_most=1)] = 0.8
    seed: Seed = SEED


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Config):
    """What is taken from negatives and runs into the rows of other tools."""

    min_rel: MinRel = MIN_REL
    negatives: Annotated[int, Setting(
        "Negatives to export per pair, from the first on (default: all); 0 writes pairs alone, to "
        "sentence-transformers.", METHOD, at_least=0)] | None = None
    depth: Depth = 100
    separator: Annotated[str, Setting("Text between title and body.", METHOD)] = " "


@dataclass(frozen=True, kw_only=True)
class VectorStoreConfig(Config):
    """Where in a vector database embeddings are written."""

    url: Annotated[str, Setting(
        "Vector database to write to, instead of a file: its address, or the folder or file of "
        "Qdrant's local mode, LanceDB and Milvus Lite.", DATA, metavar="URL",
        only_asked=True)] | None = None
    collection: Annotated[str, Setting(
        "Collection, table or index to write to; Vespa's schema.", DATA,
        metavar="NAME")] | None = None


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(EncoderChoices):
    """What `ance checkpoint` does, and with which checkpoint."""

    action: Annotated[Action, Setting(
        "inspect: show what a checkpoint is. convert: write a checkpoint of another layout in "
        "ours (-o). merge: write a checkpoint whose adapter is part of its weights (-o). push: "
        "upload a checkpoint or a dataset folder to the Hugging Face hub.", DATA, positional=True)]
    sources: Annotated[list[Path], Setting(
        "Checkpoint folder, file or hub id. For DPR's two folders: the question encoder, then the "
        "context encoder. For push: a checkpoint, a run folder (its newest checkpoint) or a "
        "dataset folder, then ORG/NAME.", DATA, positional=True)]
    output: Annotated[Path, Setting(
        "Checkpoint folder to write.", DATA, flags=("--output", "-o"), metavar="DIR",
        is_output=True)] | None = None
    backbone: Annotated[Path, Setting(
        "Folder with config and tokenizer, for a source that is a single file (DPR: "
        "bert-base-uncased).", DATA, metavar="DIR")] | None = None
    pooling: Annotated[PoolingName, Setting(
        "How a plain encoder's token vectors become one vector (default: lasttoken for a causal "
        "decoder); other layouts name their own.", METHOD)] | None = None
    similarity: Annotated[SimilarityName, Setting(
        "Similarity of the converted checkpoint (default: what its layout says).",
        METHOD)] | None = None
    normalize: Annotated[bool, Setting(
        "Scale vectors to length one by a Normalize module at the end.", METHOD)] = False
    public: Annotated[bool, Setting(
        "Create the model or dataset on the hub as public; without it, as private (push).", RUNTIME,
        only_asked=True)] = False
