"""What the neighbours write: their files as documents, queries, labels and negatives."""

AUTO = "auto"
IR_DATASETS = "ir-datasets"
FORMATS = (
    AUTO, "beir", "msmarco-passage", "msmarco-doc", "trec", "dpr", "tevatron", "flagembedding",
    IR_DATASETS,
)  # fmt: skip
"""The forms that an import reads, as they are called on the command line."""

TEVATRON, TEVATRON_V2, FLAGEMBEDDING = "tevatron", "tevatron-v2", "flagembedding"
SENTENCE_TRANSFORMERS, ANN_TRAINING_DATA = "sentence-transformers", "ann-training-data"
DPR_READER, MSMARCO_RUN, ONNX = "dpr-reader", "msmarco-run", "onnx"
NEGATIVES_FORMS = (
    TEVATRON, TEVATRON_V2, FLAGEMBEDDING, SENTENCE_TRANSFORMERS, ANN_TRAINING_DATA,
)  # fmt: skip
RUN_FORMS = (DPR_READER, MSMARCO_RUN)
EXPORT_FORMATS = (*NEGATIVES_FORMS, *RUN_FORMS, ONNX)
"""The forms that an export writes: from negatives, from a run, from a checkpoint."""
