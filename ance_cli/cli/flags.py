"""Every flag, once: its type, its names, its help and its panel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from ance_cli.cli.config_file import NONE, take_config
from ance_cli.config.presets import BASELINES, PRESETS
from ance_cli.formats.settings import FILE
from ance_cli.interop import FORMATS

Engine = StrEnum("Engine", ["lucene", "bm25s"])
SearchEngine = StrEnum("SearchEngine", ["dense", "lucene", "bm25s"])
Sampler = StrEnum("Sampler", ["uniform", "top", "weighted", "simans"])
Dtype = StrEnum("Dtype", ["auto", "fp32", "bf16", "fp16"])
OutputDtype = StrEnum("OutputDtype", ["float16", "float32"])
SideName = StrEnum("SideName", ["passage", "query"])
Optimizer = StrEnum("Optimizer", ["adamw", "lamb"])
Schedule = StrEnum("Schedule", ["linear", "cosine", "constant"])
SegmentationName = StrEnum("SegmentationName", ["first", "special", "slice"])
Preset = StrEnum("Preset", list(PRESETS))  # type: ignore[misc]
Baseline = StrEnum("Baseline", list(BASELINES))  # type: ignore[misc]
LossName = StrEnum("LossName", ["nll", "pairwise", "bce", "hinge"])
InBatch = StrEnum("InBatch", ["none", "all", "hardest", "random"])
Distill = StrEnum("Distill", ["margin-mse", "kl"])
Towers = StrEnum("Towers", ["shared", "two"])
SimilarityName = StrEnum("SimilarityName", ["dot", "cosine"])
Tracker = StrEnum("Tracker", ["tensorboard", "wandb"])
Mode = StrEnum("Mode", ["auto", "sync", "async"])
ImportFormat = StrEnum("ImportFormat", list(FORMATS))  # type: ignore[misc]
RefreshPolicy = StrEnum("RefreshPolicy", ["every", "auto"])

DATA, METHOD, TRAINING, RUNTIME = "Data", "Method", "Training", "Runtime"


@dataclass(frozen=True)
class Flag:
    """One flag: what it is called on the command line and what it says of itself."""

    type: Any
    help: str
    panel: str
    names: tuple[str, ...] = ()
    metavar: str | None = None
    callback: Callable[..., Any] | None = None
    """Called with the value before any other flag is looked at."""


FLAGS: dict[str, Flag] = {
    # data
    "data": Flag(Path, "Dataset folder in the BEIR layout: corpus.jsonl, queries.jsonl, "
                 "qrels/SPLIT.tsv (plain, .gz or .zst).", DATA, metavar="DIR"),
    "datas": Flag(list[str], "Dataset folder in the BEIR layout; several, each as DIR:SHARE, are "
                  "merged beside the output (ance merge).", DATA, ("--data",), metavar="DIR"),
    "split": Flag(str, "Which labels are read: qrels/SPLIT.tsv, and the queries they judge.", DATA,
                  metavar="NAME"),
    "corpus": Flag(Path, "Corpus file, instead of the one in --data.", DATA, metavar="FILE"),
    "queries": Flag(Path, "Queries file (JSON lines, or id TAB text where the name ends in .tsv), "
                    "instead of the one in --data.", DATA, metavar="FILE"),
    "qrels": Flag(Path, "Labels file, instead of --data and --split.", DATA, metavar="FILE"),
    "import_format": Flag(ImportFormat, "Form of the sources that name none; auto looks at each.",
                          DATA, ("--format",)),
    "splits": Flag(list[str], "Import only this split (repeatable); NEW=FOUND renames. A file "
                   "whose name says none is of it, else of train.", DATA, ("--split",), "NAME"),
    "corpora": Flag(list[Path], "File of documents, of any name.", DATA, ("--corpus",), "FILE"),
    "query_files": Flag(list[Path], "File of queries, the same.", DATA, ("--queries",), "FILE"),
    "qrels_files": Flag(list[Path], "File of labels, the same.", DATA, ("--qrels",), "FILE"),
    "with_url": Flag(bool, "Text is url<sep>title<sep>body, as released ANCE models saw it.", DATA),
    "min_rel": Flag(int, "A label of at least this makes a positive.", DATA),
    "skip_bad": Flag(bool, "Count and list broken input lines instead of stopping at the first.",
                     DATA),
    "ckpt": Flag(Path, "Checkpoint: a folder (Hugging Face, sentence-transformers, RUN/latest), or "
                 "ORG/NAME[@REVISION] on the hub.", DATA, metavar="DIR"),
    "embeddings": Flag(Path, "Embeddings folder, searched exactly.", DATA, metavar="DIR"),
    "index": Flag(Path, "FAISS index folder, searched as it was built.", DATA, metavar="DIR"),
    "run": Flag(Path, "TREC run whose ranking replaces BM25's.", DATA, metavar="FILE"),
    "history": Flag(Path, "Run folder: adds its training curve and the churn of its negatives.",
                    DATA, ("--run",), metavar="DIR"),
    "figures": Flag(Path, "Draw figures into this folder, PNG and SVG.", DATA, metavar="DIR"),
    "output": Flag(Path, "What to make; - is stdout where the output is text.", DATA,
                   names=("--output", "-o"), metavar="PATH"),
    "tokens": Flag(Path, "Token cache of the corpus, made first where there is none (default: in "
                   "the cache folder).", DATA, metavar="DIR"),
    "candidates": Flag(Path, "Where the candidates go (default: beside the output).", DATA,
                       metavar="DIR"),
    "overlap_with": Flag(Path, "Earlier negatives file: the audit reports the overlap.", DATA,
                         metavar="FILE"),
    "with_text": Flag(bool, "Add the texts of queries and passages to each line, for people.",
                      DATA),
    # method
    "engine": Flag(Engine, "lucene is the reference (pyserini), bm25s the fast one.", METHOD),
    "k1": Flag(float, "BM25's k1.", METHOD),
    "b": Flag(float, "BM25's b.", METHOD),
    "depth": Flag(int, "Documents ranked for each query.", METHOD),
    "negatives": Flag(int, "Negatives kept for each pair of query and positive; 0 = none.", METHOD),
    "mix": Flag(str, "Shares of the sources, for instance ann:0.7,bm25:0.2,random:0.1. mine and "
                "refresh: ann, bm25, random, previous (the generation before), lookahead "
                "(neighbours of the positive); bm25-negatives: bm25 or run, random.", METHOD),
    "sampler": Flag(Sampler, "How negatives are drawn from a ranking: uniformly, its top, by "
                    "exp(score / temperature), or near the positive's score (SimANS).", METHOD),
    "sampler_temperature": Flag(float, "Temperature of --sampler weighted.", METHOD),
    "simans_a": Flag(float, "a of --sampler simans: exp(-a (score - positive - b)^2).", METHOD),
    "simans_b": Flag(float, "b of --sampler simans: above the positive where it is greater than 0.",
                     METHOD),
    "range_min": Flag(int, "Pass over this many best-ranked candidates.", METHOD),
    "range_max": Flag(int, "Look no deeper than this rank.", METHOD),
    "max_score": Flag(float, "A negative scores at most this.", METHOD),
    "min_score": Flag(float, "A negative scores at least this.", METHOD),
    "absolute_margin": Flag(float, "A negative scores at least this much below the query's "
                            "lowest-scoring positive.", METHOD),
    "relative_margin": Flag(float, "The same as a share of that positive's score, 0.05 for 5 %.",
                            METHOD),
    "answers": Flag(bool, "No negative holds an answer of its query (OpenQA: the queries file "
                    "has answers).", METHOD),
    "teacher": Flag(Path, "Cross-encoder folder that scores what is drawn: for distillation, and "
                    "for the audit's estimate of false negatives.", METHOD, metavar="DIR"),
    "teacher_max": Flag(float, "Replace a negative that the teacher holds for a positive with more "
                        "than this probability.", METHOD),
    "teacher_pairs": Flag(int, "Pairs that the teacher scores, drawn at random; 0 = all.", METHOD),
    "pair_length": Flag(int, "Tokens of query and passage together that a cross-encoder reads.",
                        METHOD),
    "audit_bm25": Flag(bool, "The audit reports the overlap with BM25's top 100.", METHOD),
    "previous": Flag(Path, "Candidates of an earlier model, for the source previous.", DATA,
                     metavar="DIR"),
    "seed": Flag(int, "Seed of every draw.", METHOD),
    "probes": Flag(int, "Inverted lists that a query visits (IVF indexes).", METHOD),
    "factory": Flag(str, "faiss factory string: Flat, HNSW32, IVF1024,Flat, OPQ16,IVF1024,PQ16.",
                    METHOD),
    "index_factory": Flag(str, "Search an index of this factory string instead of searching "
                          "exactly.", METHOD),
    "recall_check": Flag(int, "Search with so many sampled passages as queries and report recall "
                         "against exact search; 0 = do not.", METHOD),
    "train_rows": Flag(int, "Rows, at most, from which a trained index learns.", METHOD),
    "side": Flag(SideName, "Encode passages (the corpus) or queries.", METHOD),
    "query_length": Flag(int, "Tokens of a query, special ones included.", METHOD),
    "passage_length": Flag(int, "Tokens of a passage or segment, special ones included.", METHOD),
    "separator": Flag(str, "What stands between title and text.", METHOD),
    "segmentation": Flag(SegmentationName, "first = FirstP; MaxP: special = every segment has its "
                         "own special tokens, slice = one sequence cut into pieces.", METHOD),
    "max_segments": Flag(int, "Segments of a document, at most (MaxP).", METHOD),
    "output_dtype": Flag(OutputDtype, "Number format of the stored vectors.", METHOD),
    "measures": Flag(str, "Measures in ir_measures' grammar, separated by spaces.", METHOD),
    "dev_split": Flag(str, "Labels that a refresh measures on, or none.", METHOD, metavar="NAME"),
    "dev_depth": Flag(int, "Documents ranked for each dev query.", METHOD),
    "tag": Flag(str, "Last column of the run.", METHOD),
    "per_query": Flag(Path, "Write every query's values to this TSV.", METHOD, metavar="FILE"),
    "cases": Flag(int, "Show that many wins and that many losses against the first run: the "
                  "queries that differ most by the first of --measures, with --data's texts.",
                  METHOD),
    "sample": Flag(int, "Queries to look at, each with one of its positives.", METHOD),
    "draws": Flag(int, "Negatives that each sampler draws for a pair, to differentiate.", METHOD),
    "suspects": Flag(int, "Unlabelled documents to show, the most like positives.", METHOD),
    # training
    "preset": Flag(Preset, "A named recipe; other flags override it.", TRAINING),
    "steps": Flag(int, "Optimizer steps that this call adds; 0 only prepares the run.", TRAINING),
    "total_steps": Flag(int, "Horizon of the learning-rate schedule (default: the first call's "
                        "--steps).", TRAINING),
    "batch_size": Flag(int, "Queries for each device and micro-batch.", TRAINING),
    "accumulation": Flag(int, "Micro-batches in an optimizer step.", TRAINING),
    "negatives_per_positive": Flag(int, "Negatives that a pair brings to a step.", TRAINING),
    "in_batch": Flag(InBatch, "Documents of the whole batch, of all devices, that join a query's "
                     "negatives: all, the hardest one (NCE), a random one. Known positives never "
                     "do.", TRAINING),
    "loss": Flag(LossName, "nll over all negatives at once, or pairwise, bce, hinge.", TRAINING),
    "margin": Flag(float, "Margin of the hinge loss.", TRAINING),
    "distill": Flag(Distill, "Learn from the cross-encoder's scores in the negatives, too "
                    "(mine --teacher).", TRAINING),
    "distill_weight": Flag(float, "Share of the distillation in the loss, 0 to 1.", TRAINING),
    "freeze_passages": Flag(bool, "ADORE: train the query tower alone, on negatives retrieved at "
                            "each step from --embeddings of the frozen passages.", TRAINING),
    "live_depth": Flag(int, "Documents retrieved for a query at each step (ADORE).", TRAINING),
    "towers": Flag(Towers, "One encoder for both sides, or two (default: as the checkpoint is).",
                   TRAINING),
    "similarity": Flag(SimilarityName, "Similarity of a fresh head.", TRAINING),
    "baseline": Flag(Baseline, "An arm of the paper's comparison; sets --mix, --in-batch and "
                     "their like.", TRAINING),
    "optimizer": Flag(Optimizer, "AdamW, or LAMB as the paper runs it.", TRAINING),
    "lr": Flag(float, "Peak learning rate.", TRAINING),
    "schedule": Flag(Schedule, "After the warm-up: decay to 0 at --total-steps in a line or half "
                     "a cosine, or constant.", TRAINING),
    "warmup_steps": Flag(int, "Steps of linear warm-up.", TRAINING),
    "weight_decay": Flag(float, "Weight decay (not of biases and norms).", TRAINING),
    "dropout": Flag(
        float, "Dropout in training (default: the checkpoint's); 0 for short runs.", TRAINING
    ),
    "max_grad_norm": Flag(float, "Gradient norm is clipped at this.", TRAINING),
    "scale": Flag(float, "Scores are multiplied by this in the loss: 1 / temperature (20 for "
                  "cosine).", TRAINING),
    "dim": Flag(int, "Dimensions of a fresh head (default: the hidden size).", TRAINING),
    "checkpoint_every": Flag(int, "Steps between checkpoints; 0 = only at the end.", TRAINING),
    "state_minutes": Flag(float, "Minutes between resume states.", TRAINING),
    "log_every": Flag(int, "Steps between lines of metrics.jsonl.", TRAINING),
    "follow": Flag(bool, "Take the run's generations as they are published (train-segment), or its "
                   "checkpoints (refresh), until the last step.", TRAINING),
    "until": Flag(int, "With --follow: the step whose generation is the last; 0 = none is.",
                  TRAINING),
    "refresh": Flag(RefreshPolicy, "every = from every new checkpoint; auto = when the model has "
                    "moved away from its negatives (--drift-threshold).", TRAINING),
    "drift_threshold": Flag(float, "Overlap of the probe's rankings under which --refresh auto "
                            "refreshes.", TRAINING),
    "keep": Flag(int, "Newest generations whose embeddings, index and candidates are kept.",
                 RUNTIME),
    "mode": Flag(Mode, "async = trainer and inferencer side by side, sync = in turn; auto = async "
                 "where each has GPUs of its own.", TRAINING),
    "patience": Flag(int, "Stop after so many generations without a better dev measure; 0 = "
                     "never.", TRAINING),
    "gpu_split": Flag(str, "GPUs (or, with --mode async on a CPU, cores) of trainer and "
                      "inferencer, as a ratio.", RUNTIME, metavar="A:B"),
    "max_staleness": Flag(int, "Wait for a generation where the negatives come from a checkpoint "
                          "so many steps ago; 0 = never wait.", TRAINING),
    "grad_cache": Flag(int, "Queries, and rows of passages, encoded at a time by gradient caching, "
                       "for batches larger than memory; 0 = off.", TRAINING),
    "gradient_checkpointing": Flag(bool, "Recompute activations in the backward pass: less memory, "
                                   "more time.", TRAINING),
    "refresh_every": Flag(int, "Steps between refreshes.", TRAINING),
    "segments": Flag(int, "Stretches of --refresh-every steps to train.", TRAINING),
    # runtime
    "gpus": Flag(str, "GPUs: 0-3, 0,2, all, or none for the CPU.", RUNTIME, metavar="LIST"),
    "train_gpus": Flag(str, "GPUs of the trainer.", RUNTIME, metavar="LIST"),
    "infer_gpus": Flag(str, "GPUs of the refreshes.", RUNTIME, metavar="LIST"),
    "cpu_workers": Flag(int, "Processes, where no GPU is used.", RUNTIME),
    "shard": Flag(str, "Encode part I of N, from 1: for N such calls side by side that share the "
                  "output's file system. The last one to end publishes.", RUNTIME, metavar="I/N"),
    "ray": Flag(str, "Work in the processes of a Ray cluster, HOST:PORT or auto, whose nodes share "
                "the files; local = one of this machine's own.", RUNTIME, metavar="ADDRESS"),
    "nnodes": Flag(int, "Machines that train together.", RUNTIME),
    "node_rank": Flag(int, "Which of them this is, from 0.", RUNTIME),
    "rdzv_endpoint": Flag(str, "HOST:PORT of node 0, where the machines meet.", RUNTIME,
                          metavar="HOST:PORT"),
    "track": Flag(Tracker, "Send the log to TensorBoard or W&B as well.", RUNTIME),
    "dtype": Flag(Dtype, "Number format of the computation; auto takes bf16 where it is native.",
                  RUNTIME),
    "encode_dtype": Flag(Dtype, "Number format of the encoder in refreshes.", RUNTIME),
    "batch_tokens": Flag(int, "Tokens in a batch of the encoder; 0 chooses by device.", RUNTIME),
    "threads": Flag(int, "Threads of this process; 0 = every core.", RUNTIME),
    "max_restarts": Flag(int, "How often a stage that died is started again.", RUNTIME),
    "config": Flag(Path, f"Settings file; {NONE} = read none (default: {FILE} in the working "
                   "folder, where there is one).", RUNTIME, metavar="FILE", callback=take_config),
    "cache_dir": Flag(Path, "Folder for caches (default: the user's).", RUNTIME, metavar="DIR"),
    "force": Flag(bool, "Make the output anew, whatever lies there.", RUNTIME,
                  names=("--force", "-f")),
    "dry_run": Flag(bool, "Say what would be made, and make nothing.", RUNTIME,
                    names=("--dry-run", "-n")),
    "quiet": Flag(bool, "No progress, no summary; only warnings and errors.", RUNTIME,
                  names=("--quiet", "-q")),
    "watch": Flag(bool, "Look again and again, until the loop has finished or Ctrl-C.", RUNTIME,
                  names=("--watch", "-w")),
    "interval": Flag(float, "Seconds between two looks of --watch.", RUNTIME),
    "bench": Flag(bool, "Measure matrix products, the ceiling of all training and encoding, too.",
                  RUNTIME),
    "json": Flag(bool, "Print the summary as one JSON object on stdout.", RUNTIME),
}  # fmt: skip
