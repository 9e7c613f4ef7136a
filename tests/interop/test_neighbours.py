"""The neighbours' own code on what we write, where it is installed (docs/contributing.md, "Tests").

BEIR, Tevatron (0.1, its first form; the second has no release) and FlagEmbedding are not in the
`test` extra: their requirements are large and hold other packages back.
"""

import numpy as np
import pytest
import torch

from ance_cli.config import ExportConfig
from ance_cli.formats.dataset import locate, read_corpus, read_qrels, read_queries
from ance_cli.hub.convert import convert
from ance_cli.interop.export import export_negatives
from tests.models.test_encoder import our_vectors
from tests.world import FILLER, TOPICS, make_tokenizer, write_jsonl

PAIRS = [
    {"query_id": "q0", "positive_id": "d0", "negative_ids": ["d1", "d2", "d4"],
     "teacher_scores": [0.5, -1.0, 2.0], "teacher_positive_score": 3.0},
    {"query_id": "q2", "positive_id": "d2", "negative_ids": ["d7", "d0", "d3"],
     "teacher_scores": [1.5, 0.25, -3.0], "teacher_positive_score": 1.0},
]  # fmt: skip


@pytest.fixture
def export(tmp_path, dataset):
    """Writes the pairs in a form; gives the file."""
    write_jsonl(tmp_path / "ann.jsonl", PAIRS)

    def run(form, name):
        export_negatives(form, tmp_path / "ann.jsonl", locate(dataset, "train"), tmp_path / name,
                         ExportConfig())  # fmt: skip
        return tmp_path / name

    return run


@pytest.fixture
def texts(dataset):
    """Passages (title and text joined) and queries by id."""
    found = locate(dataset)
    passages = {passage.doc_id: passage.joined(" ") for passage in read_corpus(found.corpus)}
    return passages, read_queries(found.queries)


def rows_of(path, tmp_path, kind="json"):
    datasets = pytest.importorskip("datasets")
    return datasets.load_dataset(
        kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )


def test_beir_loads_an_imported_dataset(imported, write):
    loader = pytest.importorskip("beir.datasets.data_loader")
    write("ms/collection.tsv", "1\tGout is caused by crystals.", "2\tA cramp hurts.")
    write("ms/queries.dev.tsv", "10\twhat causes gout", "11\tcramps")
    write("ms/qrels.dev.tsv", "10\t0\t1\t1", "11\t0\t2\t1")
    found = imported("ms")
    corpus, queries, qrels = loader.GenericDataLoader(str(found.folder)).load(split="dev")
    ours = locate(found.folder, "dev")
    assert {name: (each["title"] or "", each["text"]) for name, each in corpus.items()} == {
        passage.doc_id: (passage.title, passage.text) for passage in read_corpus(ours.corpus)
    }
    assert queries == read_queries(ours.queries) and qrels == read_qrels(ours.qrels)


def test_tevatron_prepares_exported_rows(export, texts, tmp_path):
    preprocessor = pytest.importorskip("tevatron.datasets.preprocessor")
    passages, queries = texts
    tokenizer = make_tokenizer()
    rows = rows_of(export("tevatron", "rows.jsonl"), tmp_path)
    found = rows.map(preprocessor.TrainPreProcessor(tokenizer), remove_columns=rows.column_names)

    def tokens(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    for row, pair in zip(found, PAIRS, strict=True):
        assert row["query"] == tokens(queries[pair["query_id"]])
        assert row["positives"] == [tokens(passages[pair["positive_id"]])]
        assert row["negatives"] == [tokens(passages[doc_id]) for doc_id in pair["negative_ids"]]


def test_tevatrons_second_form_as_its_training_set_reads_it(export, texts, tmp_path):
    """`tevatron.retriever.dataset.TrainDataset`, which has no release: rows and corpus by the JSON
    loader, documents by their place, of which a passage is the `text` alone, without the title."""
    passages, queries = texts
    folder = export("tevatron-v2", "tev")
    rows, corpus = (rows_of(folder / name, tmp_path) for name in ("train.jsonl", "corpus.jsonl"))
    place_of = {doc_id: place for place, doc_id in enumerate(corpus["docid"])}
    assert len(place_of) == len(passages)
    for row, pair in zip(rows, PAIRS, strict=True):
        assert row["query_text"] == queries[pair["query_id"]] and row["query_id"]
        ids = [*row["positive_document_ids"], *row["negative_document_ids"]]
        assert ids == [pair["positive_id"], *pair["negative_ids"]]
        assert [corpus[place_of[doc_id]]["text"] for doc_id in ids] == [
            passages[doc_id] for doc_id in ids
        ]


@pytest.mark.parametrize("distilled", [False, True])
def test_flagembedding_takes_exported_rows(export, texts, tmp_path, distilled):
    module = pytest.importorskip("FlagEmbedding.abc.finetune.embedder.AbsDataset")
    from FlagEmbedding.abc.finetune.embedder.AbsArguments import AbsEmbedderDataArguments

    arguments = AbsEmbedderDataArguments(
        train_data=[str(export("flagembedding", "rows.jsonl"))],
        cache_path=str(tmp_path / "cache"),
        train_group_size=4,
        knowledge_distillation=distilled,
    )
    tokenizer = make_tokenizer()
    taken = module.AbsEmbedderTrainDataset(arguments, tokenizer)
    passages, queries = texts
    assert len(taken) == len(PAIRS)
    for (query, group, scores), pair in zip(map(taken.__getitem__, (0, 1)), PAIRS, strict=True):
        assert query == queries[pair["query_id"]]
        assert group[0] == passages[pair["positive_id"]]
        assert set(group[1:]) == {passages[doc_id] for doc_id in pair["negative_ids"]}
        if distilled:
            taught = dict(zip(pair["negative_ids"], pair["teacher_scores"], strict=True))
            of_text = {passages[doc_id]: score for doc_id, score in taught.items()}
            expected = [pair["teacher_positive_score"], *(of_text[text] for text in group[1:])]
            assert scores == expected
        else:
            assert scores is None
    batch = module.AbsEmbedderCollator(tokenizer)([taken[0], taken[1]])
    assert batch["passages"]["input_ids"].shape[0] == 2 * 4


@pytest.mark.parametrize("loss", ["MultipleNegativesRankingLoss", "MarginMSELoss",
                                  "DistillKLDivLoss"])  # fmt: skip
def test_sentence_transformers_trains_on_exported_columns(export, checkpoint, tmp_path, loss):
    """The label has the scores of the positive and of the negatives: of MarginMSELoss the one form
    of four that DistillKLDivLoss takes too, and a loss without a teacher leaves it unused."""
    pytest.importorskip("accelerate")
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer import losses

    rows = rows_of(export("sentence-transformers", "rows.parquet"), tmp_path, "parquet")
    assert rows.column_names[-1] == "label"
    model = SentenceTransformer(str(checkpoint), device="cpu")
    before = model.encode("river")
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=2, learning_rate=1e-2,
        report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    SentenceTransformerTrainer(
        model, arguments, train_dataset=rows, loss=getattr(losses, loss)(model)
    ).train()
    assert np.abs(model.encode("river") - before).max() > 1e-3


@pytest.mark.long
@pytest.mark.java
def test_pyserinis_ance_encoder_gives_the_vectors_of_what_was_converted(tmp_path, monkeypatch):
    """The class that castorini's checkpoints are of; it asks for a JVM and an API key on import."""
    import transformers

    from ance_cli.retrieval import bm25

    monkeypatch.setenv("OPENAI_API_KEY", "unused")
    bm25._autoclass()
    from pyserini.encode import AnceEncoder

    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    model = AnceEncoder(
        transformers.RobertaConfig(
            vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=24, max_position_embeddings=66, pad_token_id=0,
            initializer_range=0.5, architectures=["AnceEncoder"],
        )
    ).eval()  # fmt: skip
    torch.nn.init.normal_(model.norm.weight)
    torch.nn.init.normal_(model.norm.bias)
    source = tmp_path / "castorini"
    tokenizer.save_pretrained(source)
    model.config.save_pretrained(source)
    torch.save(model.state_dict(), source / "pytorch_model.bin")
    found = convert([source], tmp_path / "ours")
    assert found["layout"] == "ANCE" and found["dim"] == 768
    lines = [f"{TOPICS[0]} {FILLER[0]}", f"{TOPICS[1]} and word3", FILLER[1]]
    inputs = tokenizer(lines, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(inputs["input_ids"], inputs["attention_mask"])
    np.testing.assert_allclose(our_vectors(tmp_path / "ours", lines), expected, atol=1e-4)
