"""What the neighbours write: their files as documents, queries, labels and negatives."""

AUTO = "auto"
IR_DATASETS = "ir-datasets"
FORMATS = (
    AUTO, "beir", "msmarco-passage", "msmarco-doc", "trec", "dpr", "tevatron", "flagembedding",
    IR_DATASETS,
)  # fmt: skip
"""The forms that an import reads, as they are called on the command line."""
