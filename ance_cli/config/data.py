"""Which data, which model and which artifacts a command reads and writes."""
# fmt: off

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ance_cli.config.sets import Segmentation, SimilarityName
from ance_cli.config.setting import DATA, METHOD, Config, Setting

MIN_REL = 1

Data = Annotated[Path, Setting(
    "Dataset folder in the BEIR layout: corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv (plain, "
    ".gz or .zst); or what `ance import` reads, such as pairs.csv or hf:ORG/NAME, which is then "
    "imported into the cache folder.", DATA, metavar="DIR")]
Datas = Annotated[list[str], Setting(
    "Dataset folder in the BEIR layout, or what `ance import` reads. Repeat the flag as DIR:SHARE "
    "to merge several dataset folders next to the output (see ance merge).", DATA,
    flags=("--data",), metavar="DIR")]
Split = Annotated[str, Setting(
    "Split to use: reads qrels/SPLIT.tsv and the queries judged there.", DATA, metavar="NAME")]
Corpus = Annotated[Path, Setting(
    "Corpus file that replaces the corpus of --data.", DATA, metavar="FILE")]
Queries = Annotated[Path, Setting(
    "Queries file that replaces the queries of --data: JSON lines, id TAB text, or one query "
    "per line.", DATA, metavar="FILE")]
Qrels = Annotated[Path, Setting(
    "Labels file that replaces --data and --split.", DATA, metavar="FILE")]
MinRel = Annotated[int, Setting("Lowest label that makes a document a positive.", DATA)]
Ckpt = Annotated[Path, Setting(
    "Checkpoint: a folder (Hugging Face, sentence-transformers, RUN/best), or a model on the "
    "Hugging Face hub as ORG/NAME[@REVISION].", DATA, metavar="DIR")]
Embeddings = Annotated[Path, Setting("Embeddings folder to search exactly.", DATA, metavar="DIR")]
Index = Annotated[Path, Setting("FAISS index folder to search.", DATA, metavar="DIR")]
Output = Annotated[Path, Setting(
    "Output path; - for stdout (text outputs only).", DATA, flags=("--output", "-o"),
    metavar="PATH", is_output=True)]
OutputFolder = Annotated[Path, Setting(
    "Folder to write.", DATA, flags=("--output", "-o"), metavar="DIR", is_output=True)]
RunFile = Annotated[Path, Setting("TREC run; - for stdin.", DATA, positional=True)]
RunFiles = Annotated[list[Path], Setting("TREC runs; - for stdin.", DATA, positional=True)]
RunPath = Annotated[Path, Setting("Run folder.", DATA, positional=True)]
Datasets = Annotated[list[str], Setting(
    "Dataset folders, as DIR or DIR:SHARE; without shares each counts by its number of train "
    "pairs.", DATA, positional=True)]
DatasetPath = Annotated[Path, Setting("Dataset folder in the BEIR layout.", DATA, positional=True)]


@dataclass(frozen=True, kw_only=True)
class CorpusFiles(Config):
    """A corpus alone."""

    data: Data | None = None
    corpus: Corpus | None = None


@dataclass(frozen=True, kw_only=True)
class PassageFiles(CorpusFiles):
    """A corpus and queries, without labels."""

    queries: Queries | None = None


@dataclass(frozen=True, kw_only=True)
class DataFiles(PassageFiles):
    """A dataset: a folder and its split, or single files."""

    split: Split | None = None
    qrels: Qrels | None = None


@dataclass(frozen=True, kw_only=True)
class TrainFiles(DataFiles):
    """A dataset whose default split is `train`."""

    split: Split | None = "train"


@dataclass(frozen=True, kw_only=True)
class DevFiles(DataFiles):
    """A dataset whose default split is `dev`."""

    split: Split | None = "dev"


@dataclass(frozen=True, kw_only=True)
class RunStart(Config):
    """What a new training run starts from; several datasets are merged into one."""

    datas: Datas | None = None
    split: Split = "train"
    corpus: Corpus | None = None
    queries: Queries | None = None
    qrels: Qrels | None = None
    ckpt: Ckpt | None = None


@dataclass(frozen=True, kw_only=True)
class PassageOverrides(Config):
    """Settings of the passage encoder that override those of the checkpoint; None keeps them."""

    passage_length: Annotated[int, Setting(
        "Tokens of a passage or segment, including special tokens (default: the checkpoint's, else "
        "by the texts).", METHOD, at_least=3)] | None = None
    separator: Annotated[str, Setting(
        "Text between title and body (default: the checkpoint's).", METHOD)] | None = None
    segmentation: Annotated[Segmentation, Setting(
        "How long documents are split. first: only the first --passage-length tokens (FirstP). "
        "special: segments with special tokens of their own (MaxP). slice: one sequence cut into "
        "pieces (MaxP).", METHOD)] | None = None
    max_segments: Annotated[int, Setting(
        "Most segments per document (MaxP).", METHOD, at_least=1)] | None = None


@dataclass(frozen=True, kw_only=True)
class EncodingOverrides(PassageOverrides):
    """Settings of both encoders that override those of the checkpoint; None keeps them."""

    query_length: Annotated[int, Setting(
        "Tokens of a query, including special tokens (default: the checkpoint's, else by the "
        "texts).", METHOD, at_least=3)] | None = None


Similarity = Annotated[SimilarityName, Setting(
    "Similarity of the vectors (default: the checkpoint's; of a new head cosine, with --head paper "
    "dot).", METHOD)]


@dataclass(frozen=True, kw_only=True)
class EncoderChoices(EncodingOverrides):
    """What a plain checkpoint does not say of its encoders; it is saved into the new checkpoint."""

    query_prefix: Annotated[str, Setting(
        "Text before each query (default: the checkpoint's).", METHOD,
        flags=("--query-prompt",))] | None = None
    passage_prefix: Annotated[str, Setting(
        "Text before each passage (default: the checkpoint's).", METHOD,
        flags=("--passage-prompt",))] | None = None
    passage_template: Annotated[str, Setting(
        "How title and text make a passage, instead of --separator: 'title: {title|none} | text: "
        "{text}', where none replaces a missing title (default: the checkpoint's).",
        METHOD)] | None = None
    truncate_dim: Annotated[int, Setting(
        "Dimensions of a vector that are kept, from the first on (default: the checkpoint's).",
        METHOD, at_least=1)] | None = None
