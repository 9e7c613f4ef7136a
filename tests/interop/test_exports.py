"""Rows for the neighbours: what an import reads of them is what went out."""

import json

import pytest

from ance_cli.call import Call
from ance_cli.config import ExportConfig
from ance_cli.errors import BadInput, UsageProblem
from ance_cli.formats.dataset import locate, read_corpus, read_queries
from ance_cli.interop import ance, arrow
from ance_cli.interop.export import export_negatives, export_run
from ance_cli.progress import Silent
from tests.world import jsonl, tree, write_jsonl

PAIRS = [
    {"query_id": "q0", "positive_id": "d0", "negative_ids": ["d1", "d2", "d4"],
     "teacher_scores": [0.5, -1.0, 2.0], "teacher_positive_score": 3.0},
    {"query_id": "q0", "positive_id": "d8", "negative_ids": ["d5", "d2"]},
    {"query_id": "q1", "positive_id": "d1", "negative_ids": []},
    {"query_id": "q2", "positive_id": "d2", "negative_ids": ["d7", "d0", "d3"]},
]  # fmt: skip


@pytest.fixture
def export(tmp_path, dataset):
    write_jsonl(tmp_path / "ann.jsonl", PAIRS)

    def run(form, output, **config):
        return export_negatives(
            form, tmp_path / "ann.jsonl", locate(dataset, "train"), tmp_path / output,
            ExportConfig(**config),
        )  # fmt: skip

    return run


@pytest.fixture
def texts(dataset):
    """Passages and queries of the dataset by id."""
    found = locate(dataset)
    passages = {passage.doc_id: passage for passage in read_corpus(found.corpus)}
    return passages, read_queries(found.queries)


TRAINED = [pair for pair in PAIRS if pair["negative_ids"]]
NAMES = ("query_id", "positive_id", "negative_ids")


def ids(pairs):
    return [[pair[name] for name in NAMES] for pair in pairs]


def test_tevatron_rows_come_back(export, imported, texts):
    found = export("tevatron", "rows.jsonl.gz")
    assert (found["pairs"], found["negatives"], found["pairs_left_out"]) == (3, 8, 1)
    passages, queries = texts
    back = imported("rows.jsonl.gz")
    assert ids(back.negatives()) == ids(TRAINED)
    for doc_id, content in back.corpus.items():
        assert content == passages[doc_id][1:]
    assert back.queries == {name: queries[name] for name in ("q0", "q2")}


def test_tevatrons_second_form_is_rows_beside_a_corpus(export, imported, texts, tmp_path):
    export("tevatron-v2", "tev", separator=" | ")
    back = imported("tevatron:tev")
    passages, _ = texts
    assert ids(back.negatives()) == ids(TRAINED)
    assert back.corpus == {name: ("", each.joined(" | ")) for name, each in passages.items()}
    assert jsonl(tmp_path / "tev" / "train.jsonl")[0] == {
        "query_id": "q0", "query_text": "river word0", "positive_document_ids": ["d0"],
        "negative_document_ids": ["d1", "d2", "d4"],
    }  # fmt: skip


def test_flagembedding_rows_come_back_with_the_teachers_scores(export, imported, texts, tmp_path):
    export("flagembedding", "rows.jsonl", separator=": ")
    passages, queries = texts
    rows = jsonl(tmp_path / "rows.jsonl")
    for row, pair in zip(rows, TRAINED, strict=True):
        assert row["query"] == queries[pair["query_id"]]
        assert row["pos"] == [passages[pair["positive_id"]].joined(": ")]
        assert row["neg"] == [passages[doc_id].joined(": ") for doc_id in pair["negative_ids"]]
    assert (rows[0]["pos_scores"], rows[0]["neg_scores"]) == ([3.0], [0.5, -1.0, 2.0])
    assert "pos_scores" not in rows[1]
    back = imported("rows.jsonl")
    first, *_ = back.negatives()
    assert [back.corpus[doc_id][1] for doc_id in first["negative_ids"]] == rows[0]["neg"]
    assert (first["teacher_scores"], first["teacher_positive_score"]) == ([0.5, -1.0, 2.0], 3.0)


def rows_of(path):
    """The rows of a file as `datasets` reads them."""
    if path.suffix == ".jsonl":
        return jsonl(path)
    datasets = pytest.importorskip("datasets")
    if path.suffix == ".arrow":
        return datasets.Dataset.from_file(str(path)).to_list()
    cache = str(path.with_name("cache"))
    return datasets.load_dataset("parquet", data_files=str(path), split="train",
                                 cache_dir=cache).to_list()  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "width", "rows"), [(None, 3, 2), (2, 2, 3), (1, 1, 3), (0, 0, 4)]
)
@pytest.mark.parametrize("output", ["rows.jsonl", "rows.arrow", "rows.parquet"])
def test_columns_have_one_width(export, texts, tmp_path, asked, width, rows, output):
    found = export("sentence-transformers", output, negatives=asked)
    assert (found["pairs"], found["pairs_left_out"]) == (rows, 4 - rows)
    read = rows_of(tmp_path / output)
    columns = ["anchor", "positive", *(f"negative_{n + 1}" for n in range(width))]
    assert all(list(row) == columns for row in read)
    passages, queries = texts
    kept = [pair for pair in PAIRS if len(pair["negative_ids"]) >= width]
    for row, pair in zip(read, kept, strict=True):
        assert row["anchor"] == queries[pair["query_id"]]
        listed = [pair["positive_id"], *pair["negative_ids"][:width]]
        assert [row[name] for name in columns[1:]] == [passages[doc].joined(" ") for doc in listed]


@pytest.mark.parametrize("output", ["rows.jsonl", "rows.parquet"])
def test_columns_have_the_teachers_scores_if_each_row_has_them(
    dataset, tmp_path, monkeypatch, output
):
    second = {**PAIRS[3], "teacher_scores": [0.25, -3.0, None], "teacher_positive_score": 1.0}
    write_jsonl(tmp_path / "ann.jsonl", [PAIRS[0], second])

    noted = []
    reporter = Silent()
    monkeypatch.setattr(reporter, "warn", noted.append)

    def run(negatives):
        return export_negatives(
            "sentence-transformers", tmp_path / "ann.jsonl", locate(dataset, "train"),
            tmp_path / output, ExportConfig(negatives=negatives),
            Call(reporter, force=True),
        )  # fmt: skip

    run(2)
    labels = [row["label"] for row in rows_of(tmp_path / output)]
    assert labels == [[3.0, 0.5, -1.0], [1.0, 0.25, -3.0]] and not noted
    found = run(3)
    assert found["pairs_without_scores"] == 1
    assert "1 of 2 pairs lack a score of the teacher" in noted[0]
    run(0)
    assert [list(row) for row in rows_of(tmp_path / output)] == [["anchor", "positive"]] * 2
    assert len(noted) == 1


def test_a_table_has_many_batches_and_one_reading_of_them(export, texts, tmp_path, monkeypatch):
    pq = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(arrow, "_BATCH", 1)
    export("sentence-transformers", "rows.parquet", negatives=2)
    assert pq.ParquetFile(tmp_path / "rows.parquet").num_row_groups == 3
    assert [row["anchor"] for row in rows_of(tmp_path / "rows.parquet")] == [
        texts[1][pair["query_id"]] for pair in TRAINED
    ]


def ances_own_offsets(ids, kept=lambda each: True):
    """Its preprocessing, line by line: 32 files, of which the i-th has the lines with
    `index % 32 == i`, read one after the other."""
    files = [[] for _ in range(32)]
    for index, each in enumerate(ids):
        files[index % 32].append(each)
    offsets, at = {}, 0
    for file in files:
        for each in file:
            if kept(each):
                offsets[each] = at
                at += 1
    return offsets


def test_places_are_those_of_ances_preprocessing(export, texts, tmp_path):
    export("ann-training-data", "ann_data")
    passages, queries = texts
    docs = ances_own_offsets(passages)
    judged = {f"q{number}" for number in range(24)}
    of_query = ances_own_offsets(queries, lambda query_id: query_id in judged)
    lines = (tmp_path / "ann_data" / "ann_training_data_0").read_text().splitlines()
    for line, pair in zip(lines, TRAINED, strict=True):
        query, positive, negatives = line.split("\t")
        assert int(query) == of_query[pair["query_id"]]
        assert int(positive) == docs[pair["positive_id"]]
        assert [*map(int, negatives.split(","))] == [docs[name] for name in pair["negative_ids"]]
    beside = json.loads((tmp_path / "ann_data" / "ann_ndcg_0").read_text())
    assert beside == {"ndcg": 0.0, "checkpoint": "checkpoint-0"}
    # its trainer takes the number of every file whose name begins so
    names = [path.name for path in (tmp_path / "ann_data").iterdir()]
    assert all(name.rsplit("_", 1)[1].isdigit() for name in names if name.startswith("ann_"))


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 100])
def test_every_line_is_dealt_once(count):
    ids = [str(number) for number in range(count)]
    ordered = ance.preprocessed_order(ids)
    assert {each: position for position, each in enumerate(ordered)} == ances_own_offsets(ids)


def test_what_does_not_fit_is_refused_and_nothing_is_left(export, dataset, tmp_path):
    write_jsonl(tmp_path / "ann.jsonl", [{**PAIRS[1], "negative_ids": ["d99"]}])
    for form, output in (("tevatron", "o.jsonl"), ("tevatron-v2", "o"), ("flagembedding", "o.zst")):
        with pytest.raises(BadInput, match=r"ann.jsonl:1: document 'd99' is not in the corpus"):
            export(form, output)
    write_jsonl(tmp_path / "ann.jsonl", [PAIRS[2]])
    for form, output in (("tevatron", "o.jsonl"), ("ann-training-data", "o")):
        with pytest.raises(BadInput, match="each of the 1 pairs has fewer negatives than a row"):
            export(form, output)
    for output in ("o.arrow", "o.parquet"):
        with pytest.raises(BadInput, match="each of the 1 pairs"):
            export("sentence-transformers", output)
    assert sorted(path.name for path in tmp_path.iterdir() if "lease" not in path.name) == [
        "ann.jsonl", dataset.name,
    ]  # fmt: skip


@pytest.mark.parametrize("output", ["ann.jsonl", "data", ".", "data/corpus.jsonl"])
def test_no_output_replaces_a_source(export, output):
    with pytest.raises(UsageProblem, match="which this command reads"):
        export("tevatron-v2", output)


def test_a_failed_export_leaves_the_old_one(dataset, tmp_path):
    def run(*pairs):
        write_jsonl(tmp_path / "ann.jsonl", list(pairs))
        export_negatives("tevatron", tmp_path / "ann.jsonl", locate(dataset, "train"),
                         tmp_path / "out.jsonl", call=Call(force=True))  # fmt: skip

    run(*PAIRS)
    before = tree(tmp_path)
    with pytest.raises(BadInput, match="ann.jsonl:2: document 'd99'"):
        run(PAIRS[0], {**PAIRS[1], "negative_ids": ["d99"]})
    after = tree(tmp_path)
    assert {name: data for name, data in after.items() if name != "ann.jsonl"} == {
        name: data for name, data in before.items() if name != "ann.jsonl"
    }


@pytest.mark.parametrize("output", ["rows.arrow", "rows.parquet"])
def test_only_columns_are_written_as_a_table(export, output):
    with pytest.raises(UsageProblem, match="as Arrow or Parquet, not flagembedding"):
        export("flagembedding", output)


def test_a_table_that_cannot_be_written_is_refused(export):
    with pytest.raises(UsageProblem, match="Parquet is compressed inside the file"):
        export("sentence-transformers", "rows.parquet.gz")


@pytest.mark.parametrize("form", ["tevatron", "flagembedding", "ann-training-data"])
def test_only_columns_are_written_without_negatives(export, form):
    with pytest.raises(UsageProblem, match=f"a row of {form} needs negatives"):
        export(form, "rows", negatives=0)


# ---------------------------------------------------------------- runs


RUN = ["q0 Q0 d0 1 2.5 x", "q0 Q0 d9 2 1.25 x", "q1 Q0 d9 1 9 x", "q1 Q0 d3 2 8 x",
       "q1 Q0 d4 3 7 x"]  # fmt: skip


@pytest.fixture
def questions(tmp_path):
    folder = tmp_path / "qa"
    write_jsonl(folder / "corpus.jsonl", [
        {"_id": "d0", "title": "Gout", "text": "Gout is caused by uric acid."},
        {"_id": "d3", "title": "Uric acid", "text": "It is a chemical."},
        {"_id": "d4", "title": "", "text": "URIC   acid, again"},
        {"_id": "d9", "text": "Cramps hurt."},
    ])  # fmt: skip
    write_jsonl(folder / "queries.jsonl", [
        {"_id": "q0", "text": "what causes gout?", "metadata": {"answers": ["uric acid"]}},
        {"_id": "q1", "text": "what is it?", "metadata": {"answers": ["Uric Acid", "x"]}},
        {"_id": "q2", "text": "unanswered"},
    ])  # fmt: skip
    (tmp_path / "run.trec").write_text("".join(f"{line}\n" for line in RUN))
    return locate(folder)


def test_rows_of_dprs_reader(questions, tmp_path):
    found = export_run("dpr-reader", tmp_path / "run.trec", tmp_path / "reader.json", questions,
                       ExportConfig(depth=3))  # fmt: skip
    rows = json.loads((tmp_path / "reader.json").read_text())
    assert rows[0] == {
        "question": "what causes gout?", "answers": ["uric acid"],
        "ctxs": [
            {"id": "d0", "title": "Gout", "text": "Gout is caused by uric acid.", "score": "2.5",
             "has_answer": True},
            {"id": "d9", "title": "", "text": "Cramps hurt.", "score": "1.25", "has_answer": False},
        ],
    }  # fmt: skip
    has_answer = [context["has_answer"] for context in rows[1]["ctxs"]]
    assert has_answer == [False, False, True], "a title is not looked at, case is folded"
    assert found["queries_with_an_answer_found"] == 2 and found["queries_without_answers"] == 0


def test_has_answer_is_that_of_dprs_own_test(questions, tmp_path):
    from pyserini.eval.evaluate_dpr_retrieval import SimpleTokenizer, has_answers

    export_run("dpr-reader", tmp_path / "run.trec", tmp_path / "reader.json", questions)
    for row in json.loads((tmp_path / "reader.json").read_text()):
        for context in row["ctxs"]:
            theirs = has_answers(context["text"], row["answers"], SimpleTokenizer())
            assert context["has_answer"] == theirs


@pytest.mark.parametrize(
    ("line", "words"),
    [("q9 Q0 d0 1 2 x", "query 'q9' is not among"), ("q0 Q0 d8 1 2 x", "document 'd8'")],
)
def test_a_run_of_another_dataset_is_refused(questions, tmp_path, line, words):
    (tmp_path / "run.trec").write_text(f"{line}\n")
    with pytest.raises(BadInput, match=words):
        export_run("dpr-reader", tmp_path / "run.trec", tmp_path / "out.json", questions)
    assert not (tmp_path / "out.json").exists()


def test_msmarcos_columns_come_back(imported, tmp_path):
    (tmp_path / "run.trec").write_text("".join(f"{line}\n" for line in RUN))
    export_run("msmarco-run", tmp_path / "run.trec", tmp_path / "run.dev.tsv",
               config=ExportConfig(depth=2))  # fmt: skip
    assert (tmp_path / "run.dev.tsv").read_text() == (
        "q0\td0\t1\nq0\td9\t2\nq1\td9\t1\nq1\td3\t2\n"
    )
    (tmp_path / "queries.dev.tsv").write_text("q0\tone\nq1\ttwo\n")
    back = imported("msmarco-passage:run.dev.tsv", "msmarco-passage:queries.dev.tsv")
    lines = (back.folder / "runs" / "dev.trec").read_text().split("\n")
    assert lines[1].split()[:4] == ["q0", "Q0", "d9", "2"]
