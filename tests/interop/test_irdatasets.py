"""Through the library ir_datasets, with datasets registered from files of the test."""

import sys

import pytest

from ance_cli.errors import BadInput, UsageProblem


@pytest.fixture
def registered(write):
    """`tiny-NAME`, `tiny-NAME/train` and `tiny-NAME/dev`; returns the name of the first."""
    ir_datasets = pytest.importorskip("ir_datasets")
    from ir_datasets.datasets.base import Dataset

    docs = write("docs.tsv", "d1\tcaused by crystals", "d2\ta cramp")
    name = f"tiny-{id(docs)}"
    corpus = ir_datasets.create_dataset(docs_tsv=str(docs))
    ir_datasets.registry.register(name, corpus)
    for split, query, doc in (("train", "q1\twhat causes gout", "d1"), ("dev", "q2\tcramp", "d2")):
        queries = write(f"{split}.queries.tsv", query)
        qrels = write(f"{split}.qrels", f"{query[:2]} 0 {doc} 1")
        own = ir_datasets.create_dataset(queries_tsv=str(queries), qrels_trec=str(qrels))
        ir_datasets.registry.register(f"{name}/{split}", Dataset(corpus, own))
    return name


def test_splits_of_one_corpus(imported, registered):
    found = imported(f"ir-datasets:{registered}/train", f"ir-datasets:{registered}/dev")
    assert found.corpus == {"d1": ("", "caused by crystals"), "d2": ("", "a cramp")}
    assert found.queries == {"q1": "what causes gout", "q2": "cramp"}
    assert found.labels() == [("q1", "d1", "1")] and found.labels("dev") == [("q2", "d2", "1")]
    assert found.summary["repeated"] == 0  # the corpus was read once


def test_an_unknown_id(imported):
    pytest.importorskip("ir_datasets")
    with pytest.raises(BadInput, match="ir-datasets:nowhere/train: ir_datasets has no such"):
        imported("ir-datasets:nowhere/train")


def test_what_cannot_be_fetched_is_bad_input(imported, registered, tmp_path):
    (tmp_path / "docs.tsv").unlink()
    with pytest.raises(BadInput, match="cannot be downloaded or read") as caught:
        imported(f"ir-datasets:{registered}/train")
    assert "https://ir-datasets.com" in caught.value.hint


def test_a_document_with_fields_and_url(monkeypatch):
    from collections import namedtuple

    from ance_cli.interop.irdatasets import _passage

    web = namedtuple("web", "doc_id url title body")("D1", "https://a.example", "Gout", "crystals")
    assert _passage(web, "x", with_url=False) == ("D1", "Gout", "crystals")
    assert _passage(web, "x", with_url=True).text == "https://a.example<sep>Gout<sep>crystals"
    plain = namedtuple("plain", "doc_id text")("d1", "crystals")
    with pytest.raises(BadInput, match="x: the document has no url"):
        _passage(plain, "x", with_url=True)


def test_without_the_library_the_command_that_installs_it_is_named(imported, monkeypatch):
    monkeypatch.setitem(sys.modules, "ir_datasets", None)
    with pytest.raises(UsageProblem, match="needs the library ir_datasets") as caught:
        imported("ir-datasets:msmarco-passage/train")
    assert caught.value.hint == "pip install 'ance-cli[datasets]'"
