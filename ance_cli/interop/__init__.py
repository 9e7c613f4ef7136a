"""Files of other tools: read as documents, queries, labels and negatives, and written."""

from typing import get_args

from ance_cli.config.sets import ExportForm, ImportFormat, NegativesForm, RunForm, VectorForm

AUTO = "auto"
IR_DATASETS, HUGGING_FACE, DOCUMENTS, TABLE = "ir-datasets", "hf", "documents", "table"
FORMATS: tuple[str, ...] = get_args(ImportFormat)
"""The formats that an import reads, as the command line spells them."""

TEVATRON, TEVATRON_V2, FLAGEMBEDDING = "tevatron", "tevatron-v2", "flagembedding"
SENTENCE_TRANSFORMERS, ANN_TRAINING_DATA = "sentence-transformers", "ann-training-data"
DPR_READER, MSMARCO_RUN, ONNX = "dpr-reader", "msmarco-run", "onnx"
QDRANT, MILVUS, LANCEDB, PGVECTOR = "qdrant", "milvus", "lancedb", "pgvector"
OPENSEARCH, ELASTICSEARCH, VESPA = "opensearch", "elasticsearch", "vespa"
NEGATIVES_FORMS: tuple[str, ...] = get_args(NegativesForm)
RUN_FORMS: tuple[str, ...] = get_args(RunForm)
VECTOR_FORMS: tuple[str, ...] = get_args(VectorForm)
EXPORT_FORMATS: tuple[str, ...] = get_args(ExportForm)
"""The formats that an export writes: from negatives, from a run, from embeddings, from a
checkpoint."""
