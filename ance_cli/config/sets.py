"""Every closed set of names that a setting can have, once."""

from __future__ import annotations

from typing import Literal

Engine = Literal["lucene", "bm25s"]
SearchEngine = Literal["dense", "lucene", "bm25s"]
SamplerName = Literal["uniform", "top", "weighted", "simans"]
Dtype = Literal["auto", "fp32", "bf16", "fp16"]
OutputDtype = Literal["float16", "float32", "int8", "binary"]
Side = Literal["passage", "query"]
OptimizerName = Literal["adamw", "adamw-8bit", "lamb"]
Schedule = Literal["linear", "cosine", "constant"]
Segmentation = Literal["first", "special", "slice"]
LossName = Literal["nll", "pairwise", "bce", "hinge"]
InBatch = Literal["none", "all", "hardest", "random"]
Distill = Literal["margin-mse", "kl"]
Towers = Literal["shared", "two"]
SimilarityName = Literal["dot", "cosine"]
PoolingName = Literal["cls", "mean", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens"]
HeadName = Literal["pooled", "paper"]
Sharding = Literal["none", "full"]
Tracker = Literal["tensorboard", "wandb"]
Mode = Literal["auto", "sync", "async"]
RefreshPolicy = Literal["every", "auto"]
OnGuard = Literal["warn", "stop"]
FusionMethod = Literal["rrf", "sum"]
Norm = Literal["minmax", "z", "none"]
Action = Literal["inspect", "convert", "merge", "push"]
PresetName = Literal[
    "warmup", "ance-passage", "ance-doc-firstp", "ance-doc-maxp", "ance-openqa", "modern", "small"
]
BaselineName = Literal["rand", "rand-batch", "nce", "bm25", "bm25+rand", "ance"]
ImportFormat = Literal[
    "auto", "table", "documents", "hf", "beir", "msmarco-passage", "msmarco-doc", "trec", "dpr",
    "tevatron", "flagembedding", "ir-datasets",
]  # fmt: skip
NegativesForm = Literal[
    "tevatron", "tevatron-v2", "flagembedding", "sentence-transformers", "ann-training-data"
]
RunForm = Literal["dpr-reader", "msmarco-run"]
VectorForm = Literal[
    "qdrant", "milvus", "lancedb", "pgvector", "opensearch", "elasticsearch", "vespa"
]
ExportForm = Literal[
    "tevatron", "tevatron-v2", "flagembedding", "sentence-transformers", "ann-training-data",
    "dpr-reader", "msmarco-run", "onnx", "qdrant", "milvus", "lancedb", "pgvector", "opensearch",
    "elasticsearch", "vespa",
]  # fmt: skip
