"""Dividing queries without leaks."""

import itertools
import json
import random

import pytest

from ance_cli.config.interop import SplitConfig
from ance_cli.errors import BadInput, Mismatch, UsageProblem
from ance_cli.interop.split import assigned, groups_of, is_shares, parse_shares, split


def parent(doc_id):
    """The document that a passage was cut out of, as an import writes it; `issue#1` is none."""
    return {"parent_id": "long"} if doc_id.startswith("long#") else {}


def write(folder, queries, documents, labels, name="train"):
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    (folder / "corpus.jsonl").write_text(
        "".join(
            json.dumps({"_id": key, "text": text, **parent(key)}) + "\n"
            for key, text in documents.items()
        )
    )
    (folder / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": key, "text": text}) + "\n" for key, text in queries.items())
    )
    rows = "".join(f"{query}\t{doc}\t{grade}\n" for query, doc, grade in labels)
    (folder / "qrels" / f"{name}.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)


@pytest.fixture
def data(tmp_path):
    """40 queries: pairs share a document, some are copies, some documents are cut in two."""
    draw = random.Random(3)
    words = [f"w{number}" for number in range(400)]
    documents = {f"d{n}": " ".join(draw.sample(words, 30)) for n in range(40)}
    queries = {f"q{n}": " ".join(draw.sample(words, 8)) for n in range(40)}
    labels = [(f"q{n}", f"d{n}", 1) for n in range(40)]
    labels.append(("q0", "d1", 1))  # q0 and q1 share d1
    labels.append(("q2", "d3", 0))  # no positive
    queries["q5"] = queries["q4"].upper() + "?"  # a copy but for case
    documents["d7"] = documents["d6"] + " more"  # nearly a copy
    for n in (8, 9):
        documents[f"long#{n - 7}"] = documents.pop(f"d{n}")
        labels[n] = (f"q{n}", f"long#{n - 7}", 1)
    for n in (10, 11):  # ids of others that look like passages of one document
        documents[f"issue#{n}"] = documents.pop(f"d{n}")
        labels[n] = (f"q{n}", f"issue#{n}", 1)
    write(tmp_path / "data", queries, documents, labels)
    return tmp_path / "data"


def read(folder, name):
    _, *lines = (folder / "qrels" / f"{name}.tsv").read_text().splitlines()
    return [tuple(line.split("\t")) for line in lines]


def test_what_belongs_together_stays_together(data, tmp_path):
    out = tmp_path / "out"
    found = split(data, out, SplitConfig())
    split_of = {query: name for name in ("train", "dev", "test") for query, _, _ in read(out, name)}
    assert len(split_of) == 40
    for one, other in (("q0", "q1"), ("q4", "q5"), ("q6", "q7"), ("q8", "q9")):
        assert split_of[one] == split_of[other], (one, other)
    assert found["queries"] == {"train": 32, "dev": 4, "test": 4}
    assert found["groups"] == 36 and found["largest_group"] == 2
    assert found["kept_together"] == {
        "same_positive": 2, "similar_queries": 1, "similar_positives": 1,
    }  # fmt: skip
    labels = sorted(itertools.chain(*(read(out, name) for name in ("train", "dev", "test"))))
    assert labels == sorted(read(data, "train"))
    assert (out / "corpus.jsonl").read_bytes() == (data / "corpus.jsonl").read_bytes()


def test_groups_are_the_connected_components(data):
    """Against a brute-force twin: labels and exact Jaccard similarities."""
    from ance_cli.formats.dataset import locate, read_corpus, read_qrels, read_queries
    from ance_cli.interop.split import _shingles

    dataset = locate(data, "train")
    queries, qrels = read_queries(dataset.queries), read_qrels(dataset.qrels)
    texts = {p.doc_id: _shingles(p.text, 3, 3) for p in read_corpus(dataset.corpus)}
    asked = {name: _shingles(text, 1, 2) for name, text in queries.items()}
    positives = {q: {d for d, grade in judged.items() if grade} for q, judged in qrels.items()}

    def alike(one, other):
        return len(one & other) >= 0.8 * len(one | other)

    together = {query: {query} for query in qrels}
    for one, other in itertools.combinations(qrels, 2):
        pairs = itertools.product(positives[one], positives[other])
        is_near = alike(asked[one], asked[other]) or any(
            a == b or parent(a) == parent(b) != {} or alike(texts[a], texts[b]) for a, b in pairs
        )
        if is_near and together[one] is not together[other]:
            together[one] |= together[other]
            for query in together[other]:
                together[query] = together[one]
    groups, _ = groups_of(qrels, queries, dataset, 0.8)
    assert {frozenset(group) for group in groups} == {frozenset(x) for x in together.values()}


def test_without_comparing_texts(data):
    from ance_cli.formats.dataset import locate, read_qrels, read_queries

    dataset = locate(data, "train")
    groups, why = groups_of(read_qrels(dataset.qrels), read_queries(dataset.queries), dataset, 1)
    assert len(groups) == 38 and why["similar_queries"] == why["similar_positives"] == 0


def test_the_seed_decides_and_the_result_repeats():
    groups = [[f"q{n}"] for n in range(100)]
    shares = {"train": 0.8, "dev": 0.2}
    one, other = assigned(groups, shares, 1), assigned(groups, shares, 2)
    assert one == assigned(groups, shares, 1) != other
    assert [*one.values()].count("dev") == 20


def test_negatives_and_runs_follow_their_queries(data, tmp_path):
    for kind, lines in (
        ("negatives/train.jsonl", [json.dumps({"query_id": f"q{n}"}) for n in range(40)]),
        ("runs/train.trec", [f"q{n} Q0 d1 1 1.0 x" for n in range(40)]),
    ):
        (data / kind).parent.mkdir()
        (data / kind).write_text("\n".join(lines) + "\n")
    out = tmp_path / "out"
    split(data, out, SplitConfig(shares="50/50"))
    for name in ("train", "dev"):
        queries = {query for query, _, _ in read(out, name)}
        lines = (out / "negatives" / f"{name}.jsonl").read_text().splitlines()
        assert {json.loads(line)["query_id"] for line in lines} == queries
        lines = (out / "runs" / f"{name}.trec").read_text().splitlines()
        assert {line.split()[0] for line in lines} == queries


def test_other_splits_stay(data, tmp_path):
    (data / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq39\td39\t1\n")
    with pytest.raises(UsageProblem, match="has 2 splits: test, train"):
        split(data, tmp_path / "out", SplitConfig())
    with pytest.raises(UsageProblem, match="has the split 'test' already"):
        split(data, tmp_path / "out", SplitConfig(split="train"))
    split(data, tmp_path / "out", SplitConfig(split="train", shares="90/10"))
    assert read(tmp_path / "out", "test") == [("q39", "d39", "1")]
    with pytest.raises(Mismatch):
        split(data, tmp_path / "out", SplitConfig(split="train", shares="80/20"))


def test_too_few_groups(tmp_path):
    write(tmp_path / "data", {"q1": "a b c", "q2": "d e f"}, {"d": "x"},
          [("q1", "d", 1), ("q2", "d", 1)])  # fmt: skip
    with pytest.raises(BadInput, match="1 groups of queries .* nothing is left for"):
        split(tmp_path / "data", tmp_path / "out", SplitConfig())
    assert not (tmp_path / "out").exists()


def test_shares():
    assert parse_shares("80/10/10") == {"train": 0.8, "dev": 0.1, "test": 0.1}
    assert parse_shares("90/10") == {"train": 0.9, "dev": 0.1}
    for text in ("80/10", "100", "100/0", "50/25/20/5", "x"):
        with pytest.raises(UsageProblem, match="add up to 100"):
            parse_shares(text)
    assert is_shares("70/20/10") and not is_shares("train") and not is_shares("a=b/c")
