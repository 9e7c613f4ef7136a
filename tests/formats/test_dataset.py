"""The dataset is checked at the door: every broken line has a name and a reason."""

import gzip
import json

import numpy as np
import pytest
import zstandard

from ance_cli.call import SkippedLines
from ance_cli.errors import BadInput, UsageProblem
from ance_cli.formats.dataset import (
    Dataset,
    Passage,
    locate,
    positives_of,
    read_answers,
    read_corpus,
    read_qrels,
    read_queries,
    read_query_records,
    splits_of,
)
from ance_cli.formats.embeddings import read_ids, write_ids
from ance_cli.formats.merged import dataset_name_of, merged_id, owners, read_shares, write_shares
from ance_cli.formats.trec import read_run, write_hits


def written(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


# ---------------------------------------------------------------- passages


def test_joined_puts_the_title_first_if_there_is_one():
    assert Passage("d1", "Title", "Body").joined(" [SEP] ") == "Title [SEP] Body"
    assert Passage("d1", "", "Body").joined(" [SEP] ") == "Body"
    assert Passage("d1", "Title", "").joined(" ") == "Title "


def test_body_hash_folds_white_space_and_ignores_titles():
    one = Passage("d1", "A title", "two  words\n")
    assert one.body_hash() == Passage("d2", "Another", "\ttwo words").body_hash()
    assert one.body_hash() == Passage("d3", "", "two\u00a0words").body_hash()
    assert one.body_hash() != Passage("d4", "A title", "twowords").body_hash()
    assert one.body_hash() != Passage("d5", "A title", "Two words").body_hash()


def test_body_hash_of_a_passage_without_a_body_is_its_titles():
    assert Passage("d1", "two  words", "").body_hash() == Passage("d2", "", "two words").body_hash()
    assert Passage("d1", "one", "").body_hash() != Passage("d2", "two", "").body_hash()


# ---------------------------------------------------------------- the paths of the files


def test_locate_finds_the_files_of_a_folder(tmp_path):
    (tmp_path / "corpus.jsonl.zst").write_bytes(b"")
    (tmp_path / "queries.jsonl.gz").write_bytes(b"")
    written(tmp_path / "qrels" / "dev.tsv")
    assert locate(tmp_path, split="dev") == Dataset(
        tmp_path / "corpus.jsonl.zst",
        tmp_path / "queries.jsonl.gz",
        tmp_path / "qrels" / "dev.tsv",
        "dev",
    )


def test_locate_prefers_a_plain_file(tmp_path):
    for name in ("corpus.jsonl", "corpus.jsonl.gz"):
        (tmp_path / name).write_bytes(b"")
    assert locate(tmp_path).corpus == tmp_path / "corpus.jsonl"


def test_locate_prefers_files_that_the_caller_names(tmp_path):
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/dev.tsv"):
        written(tmp_path / name)
    own = [tmp_path / name for name in ("c", "q", "r")]
    found = locate(tmp_path, "dev", *own)
    assert [found.corpus, found.queries, found.qrels] == own


def test_locate_reads_only_the_split_that_was_named(tmp_path):
    written(tmp_path / "corpus.jsonl")
    written(tmp_path / "qrels" / "test.tsv")
    assert locate(tmp_path).qrels is None


def test_locate_names_the_existing_splits(tmp_path):
    written(tmp_path / "corpus.jsonl")
    with pytest.raises(BadInput) as caught:
        locate(tmp_path, split="dev")
    assert caught.value.what == f"{tmp_path}/qrels/dev.tsv: no such split"
    assert caught.value.hint == "the dataset has the splits: none"
    for name in ("train.tsv", "test.tsv.gz", "notes.txt"):
        written(tmp_path / "qrels" / name)
    with pytest.raises(BadInput) as caught:
        locate(tmp_path, split="dev")
    assert caught.value.hint == "the dataset has the splits: test, train"


def test_locate_without_a_folder_or_a_corpus(tmp_path):
    with pytest.raises(BadInput) as caught:
        locate(tmp_path / "none")
    assert caught.value.what == f"{tmp_path}/none: no such dataset folder"
    with pytest.raises(BadInput) as caught:
        locate(tmp_path)
    assert caught.value.what == f"{tmp_path}/corpus.jsonl: no such file"
    with pytest.raises(UsageProblem) as caught:
        locate(None)
    assert caught.value.what == "no corpus is named"
    assert caught.value.hint == "name a dataset folder with --data, or a file with --corpus"


@pytest.mark.parametrize(
    ("part", "flags"), [("queries", "--queries"), ("qrels", "--split or --qrels")]
)
def test_a_part_that_was_not_named_says_which_flag_names_it(tmp_path, part, flags):
    dataset = Dataset(tmp_path / "corpus.jsonl", None, None)
    with pytest.raises(UsageProblem) as caught:
        dataset.need(part)
    assert caught.value.what == f"this command needs {part}"
    assert caught.value.hint == f"name them with --data and {flags}"


def test_the_fingerprint_depends_on_the_content_of_the_named_parts_alone(tmp_path):
    def made(name, corpus, queries):
        folder = tmp_path / name
        written(folder / "corpus.jsonl", corpus)
        written(folder / "queries.jsonl", queries)
        return locate(folder)

    one, same = made("one", "c", "q"), made("same", "c", "q")
    other = made("other", "c", "other")
    assert one.fingerprint("corpus", "queries") == same.fingerprint("queries", "corpus")
    assert one.fingerprint("corpus") == other.fingerprint("corpus")
    assert one.fingerprint("queries") != other.fingerprint("queries")
    assert one.fingerprint("corpus") != one.fingerprint("corpus", "queries")


# ---------------------------------------------------------------- corpus


def test_the_corpus_in_file_order(tmp_path):
    path = written(
        tmp_path / "corpus.jsonl",
        '{"_id": "d2", "title": "T", "text": "two"}',
        '{"_id": "d1", "text": "one", "metadata": {"x": 1}}',
        '{"_id": "d3", "title": null, "text": ""}',
    )
    assert list(read_corpus(path)) == [
        Passage("d2", "T", "two"),
        Passage("d1", "", "one"),
        Passage("d3", "", ""),
    ]


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".zst", zstandard.compress)])
def test_the_corpus_may_be_compressed(tmp_path, ending, pack):
    path = tmp_path / f"corpus.jsonl{ending}"
    path.write_bytes(pack(b'{"_id": "d1", "text": "one"}\n'))
    assert list(read_corpus(path)) == [Passage("d1", "", "one")]


@pytest.mark.parametrize(
    "record", [{"docid": 7, "contents": "x"}, {"pid": "7", "body": "x"}, {"id": "7", "text": "x"}]
)
def test_other_names_of_the_fields_are_known(tmp_path, record):
    path = written(tmp_path / "corpus.jsonl", json.dumps(record))
    assert list(read_corpus(path)) == [Passage("7", "", "x")]


BROKEN_PASSAGES = [
    (
        '{"title": "T", "text": "x"}',
        "no document id (looked for _id, doc_id, docid, id, passage_id, pid, corpus-id); "
        "the record has title, text",
    ),
    (
        '{"_id": "d9"}',
        "no text (looked for text, contents, body); the record has _id",
    ),
    ("{}", "no document id (looked for _id, doc_id, docid, id, passage_id, pid, corpus-id); "
           "the record has no fields"),
    ('{"_id": 1.5, "text": "x"}', "'_id' should be a string, found float"),
    ('{"_id": true, "text": "x"}', "'_id' should be a string, found bool"),
    ('{"_id": "d9", "text": 5}', "'text' should be a string, found int"),
    ('{"_id": "d9", "text": ["x"]}', "'text' should be a string, found list"),
    ('{"_id": "d9", "title": 5, "text": "x"}', "'title' should be a string, found int"),
    ('{"_id": "", "text": "x"}', "'' cannot be an id: it is empty or contains white space"),
    ('{"_id": "d 9", "text": "x"}', "'d 9' cannot be an id: it is empty or contains white space"),
    ('{"_id": "d\\n", "text": "x"}', "'d\\n' cannot be an id: it is empty or contains white space"),
    ('{"_id": "\\u0000", "text": "x"}', "'\\x00' cannot be an id: it contains a control character"),
    ('{"_id": "d1", "text": "x"}', "document id 'd1' is also on line 1"),
    ("[]", "expected one JSON object per line, found list"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "reason"), BROKEN_PASSAGES)
def test_a_broken_passage_is_named(tmp_path, line, reason):
    path = written(
        tmp_path / "corpus.jsonl",
        '{"_id": "d1", "text": "one"}', line, '{"_id": "d3", "text": "three"}',
    )  # fmt: skip
    with pytest.raises(BadInput) as caught:
        list(read_corpus(path))
    assert caught.value.what == f"{path}:2: {reason}"
    skipped = SkippedLines()
    assert [passage.doc_id for passage in read_corpus(path, skipped)] == ["d1", "d3"]
    assert list(skipped.reasons) == [f"{path}:2: {reason}"]


@pytest.mark.parametrize(("lines", "collector"), [([], None), (["{}", "[]"], SkippedLines())])
def test_a_corpus_without_a_passage_is_refused(tmp_path, lines, collector):
    path = written(tmp_path / "corpus.jsonl", *lines)
    with pytest.raises(BadInput) as caught:
        list(read_corpus(path, collector))
    assert caught.value.what == f"{path}: the corpus is empty"
    assert caught.value.hint == 'expected lines like {"_id": "d1", "text": "..."}'


@pytest.mark.parametrize("space", ["\x0b", "\x0c", "\x1c", "\x85", "\xa0", "\u2028", "\u3000"])
def test_an_accepted_id_survives_every_format(tmp_path, space):
    path = written(tmp_path / "c.jsonl", json.dumps({"_id": f"a{space}b", "text": "x"}))
    try:
        ids = [passage.doc_id for passage in read_corpus(path)]
    except BadInput:
        return  # refused: as good
    write_ids(tmp_path / "ids.txt", ids)
    with open(tmp_path / "run", "wb") as handle:
        write_hits(handle, "q1", [(name, 1.0) for name in ids], "ance")
    assert read_ids(tmp_path / "ids.txt") == ids
    assert list(read_run(tmp_path / "run")["q1"]) == ids


# ---------------------------------------------------------------- queries


def test_queries_as_json_lines_and_as_columns(tmp_path):
    as_json = written(
        tmp_path / "queries.jsonl", '{"_id": "q2", "text": "two"}', '{"qid": 1, "query": "one"}'
    )
    as_columns = written(tmp_path / "queries.tsv", "q2\ttwo", "1\tone\tmore")
    packed = tmp_path / "queries.tsv.gz"
    packed.write_bytes(gzip.compress(as_columns.read_bytes()))
    for path in (as_json, as_columns, packed):
        assert list(read_queries(path).items()) == [("q2", "two"), ("1", "one")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"_id": "q9", "text": " \\n"}', "query 'q9' is empty"),
        ('{"_id": "q1", "text": "x"}', "query id 'q1' is also on line 1"),
        ('{"_id": "q9"}', "no text (looked for text, query, contents); the record has _id"),
        (
            '{"text": "x"}',
            "no query id (looked for _id, query_id, qid, id, query-id); the record has text",
        ),
        (
            '{"_id": "q 9", "text": "x"}',
            "'q 9' cannot be an id: it is empty or contains white space",
        ),
    ],
)
def test_a_broken_query_is_named(tmp_path, line, reason):
    path = written(tmp_path / "queries.jsonl", '{"_id": "q1", "text": "one"}', line)
    with pytest.raises(BadInput) as caught:
        read_queries(path)
    assert caught.value.what == f"{path}:2: {reason}"
    skipped = SkippedLines()
    assert read_queries(path, skipped) == {"q1": "one"}
    assert list(skipped.reasons) == [f"{path}:2: {reason}"]


def test_a_query_line_with_one_column_is_named(tmp_path):
    path = written(tmp_path / "queries.tsv", "q1\tone", "q2 two")
    with pytest.raises(BadInput) as caught:
        read_queries(path)
    assert caught.value.what == f"{path}:2: expected `id <tab> text`, found one column"
    assert read_queries(path, SkippedLines()) == {"q1": "one"}


def test_a_file_without_a_query_is_refused(tmp_path):
    path = written(tmp_path / "queries.jsonl")
    with pytest.raises(BadInput) as caught:
        read_queries(path)
    assert caught.value.what == f"{path}: there is no query"


# ---------------------------------------------------------------- answers


def test_answers_of_the_queries_that_have_any(tmp_path):
    path = written(
        tmp_path / "queries.jsonl",
        '{"_id": "q3", "text": "x", "metadata": {"answers": ["1973", "October"], "year": 1}}',
        '{"_id": "q1", "text": "x", "answers": ["one"]}',
        '{"qid": 2, "query": "x", "answer": "two"}',
        '{"_id": "q4", "text": "x", "metadata": {"answer": "four"}}',
        '{"_id": "q5", "text": "x"}',
        '{"_id": "q6", "text": "x", "metadata": null}',
        '{"_id": "q7", "text": "x", "metadata": {"answers": []}}',
        '{"_id": "q8", "text": "x", "answers": null, "metadata": ["x"]}',
        '{"_id": "q9", "text": "x", "answers": [" ", "nine", ""]}',
        '{"_id": "q10", "text": "x", "answer": "\\n"}',
    )
    assert list(read_answers(path).items()) == [
        ("q3", ["1973", "October"]),
        ("q1", ["one"]),
        ("2", ["two"]),
        ("q4", ["four"]),
        ("q9", ["nine"]),
    ]


LIST = "should be a string or a list of strings, found"
BROKEN_ANSWERS = [
    ('{"_id": "q2", "metadata": {"answers": {"text": ["x"]}}}', f"'metadata.answers' {LIST} dict"),
    ('{"_id": "q2", "answers": 5}', f"'answers' {LIST} int"),
    ('{"_id": "q2", "answer": true}', f"'answer' {LIST} bool"),
    ('{"_id": "q2", "answers": ["x", 5]}', "'answers' should contain strings, found int"),
    (
        '{"_id": "q2", "metadata": {"answer": [null]}}',
        "'metadata.answer' should contain strings, found NoneType",
    ),
    ('{"_id": "q1", "answers": ["x"]}', "query id 'q1' is also on line 1"),
    (
        '{"answers": ["x"]}',
        "no query id (looked for _id, query_id, qid, id, query-id); the record has answers",
    ),
    (
        '{"_id": "q 2", "answers": ["x"]}',
        "'q 2' cannot be an id: it is empty or contains white space",
    ),
]


@pytest.mark.parametrize(("line", "reason"), BROKEN_ANSWERS)
def test_a_broken_answer_is_named(tmp_path, line, reason):
    path = written(tmp_path / "queries.jsonl", '{"_id": "q1", "answers": ["one"]}', line)
    with pytest.raises(BadInput) as caught:
        read_answers(path)
    assert caught.value.what == f"{path}:2: {reason}"
    skipped = SkippedLines()
    assert read_answers(path, skipped) == {"q1": ["one"]}
    assert list(skipped.reasons) == [f"{path}:2: {reason}"]


@pytest.mark.parametrize(
    ("name", "line"), [("queries.jsonl", '{"_id": "q1", "text": "x"}'), ("queries.tsv", "q1\tx")]
)
def test_a_file_without_an_answer_is_refused(tmp_path, name, line):
    path = written(tmp_path / name, line)
    with pytest.raises(BadInput) as caught:
        read_answers(path)
    assert caught.value.what == f"{path}: no query has an answer"
    assert '"metadata": {"answers": [' in caught.value.hint


@pytest.mark.realdata
@pytest.mark.parametrize(("name", "count"), [("squad", 10_570), ("covidqa", 1_380)])
def test_answers_of_real_questions(test_data, name, count):
    answers = read_answers(test_data / name / "queries.jsonl")
    assert len(answers) == count
    assert list(answers) == list(read_queries(test_data / name / "queries.jsonl"))


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize(
    "header", ["query-id\tcorpus-id\tscore", "query_id\tdoc_id\trel", "QID docid label", None]
)
def test_labels_with_and_without_a_header(tmp_path, header):
    lines = ["q1\td2\t1", "q1\td1\t0", "q2\td2\t3"]
    path = written(tmp_path / "dev.tsv", *([header] if header else []), *lines)
    qrels = read_qrels(path)
    assert qrels == {"q1": {"d2": 1, "d1": 0}, "q2": {"d2": 3}}
    assert list(qrels["q1"]) == ["d2", "d1"]


def test_labels_in_trecs_four_columns(tmp_path):
    path = written(tmp_path / "qrels.txt", "301 0 FR94-1 1", "301  0\tFR94-2 -1")
    assert read_qrels(path) == {"301": {"FR94-1": 1, "FR94-2": -1}}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("q1\td1", "expected 3 columns (query-id corpus-id score) or TREC's 4, found 2"),
        ("q1 0 d1 1 x", "expected 3 columns (query-id corpus-id score) or TREC's 4, found 5"),
        ("q1\td1\t0.5", "the label should be a whole number, found '0.5'"),
        ("q1\td1\tyes", "the label should be a whole number, found 'yes'"),
        ("q9\td1\t1", "query 'q9' is not among the queries"),
        ("q1\td9\t1", "document 'd9' is not in the corpus"),
        ("q1\tcaf\udce9\t1", "not valid UTF-8"),
        ("q1\td2\t0", "document 'd2' has the label 0 for query 'q1', and 1 on an earlier line"),
    ],
)
def test_a_broken_label_is_named(tmp_path, line, reason):
    path = tmp_path / "dev.tsv"
    path.write_bytes(f"q1\td2\t1\n{line}\n".encode(errors="surrogateescape"))
    with pytest.raises(BadInput) as caught:
        read_qrels(path, {"q1"}, {"d1", "d2"})
    assert caught.value.what == f"{path}:2: {reason}"
    skipped = SkippedLines()
    assert read_qrels(path, {"q1"}, {"d1", "d2"}, skipped) == {"q1": {"d2": 1}}
    assert list(skipped.reasons) == [f"{path}:2: {reason}"]


def test_a_label_may_be_repeated(tmp_path):
    path = written(tmp_path / "dev.tsv", "q1\td1\t1", "q2\td1\t0", "q1\td1\t1")
    assert read_qrels(path) == {"q1": {"d1": 1}, "q2": {"d1": 0}}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("q1\td 1\t1", "'d 1' cannot be an id: it contains white space"),
        ("q1\td1\t1_0", "the label should be a whole number, found '1_0'"),
        ("q1\td1\t99999999999999999999", "the label should be a whole number below 2147483648"),
        ("q1\td1\t\N{ARABIC-INDIC DIGIT ONE}", "the label should be a whole number"),
        ("q1 d1 " + "9" * 5000, "the label should be a whole number"),
    ],
)
def test_labels_that_another_tool_would_read_otherwise_are_refused(tmp_path, line, problem):
    with pytest.raises(BadInput) as caught:
        read_qrels(written(tmp_path / "dev.tsv", line))
    assert caught.value.what.startswith(f"{tmp_path / 'dev.tsv'}:1: ")
    assert problem in caught.value.what and len(caught.value.what) < 400


def test_labels_separated_by_tabs_and_blanks(tmp_path):
    path = written(tmp_path / "dev.tsv", "q1\t0\td1\t1\t", "q1 \t d2 \t 2", "q1\t\td3\t+1")
    assert read_qrels(path) == {"q1": {"d1": 1, "d2": 2, "d3": 1}}


def test_labels_are_not_checked_without_known_ids(tmp_path):
    assert read_qrels(written(tmp_path / "dev.tsv", "q9\td9\t1")) == {"q9": {"d9": 1}}


def test_a_file_without_a_label_is_refused(tmp_path):
    path = written(tmp_path / "dev.tsv", "query-id\tcorpus-id\tscore")
    with pytest.raises(BadInput) as caught:
        read_qrels(path)
    assert caught.value.what == f"{path}: the file has no label"


def test_labels_whose_first_line_is_white_space(tmp_path):
    path = written(tmp_path / "dev.tsv", "  ", "q1\td1\t1")
    assert read_qrels(path) == {"q1": {"d1": 1}}


def test_positives_are_the_labels_from_min_relevance_on():
    qrels = {
        "q1": {"d3": 1, "d1": 0, "d2": 2},
        "q2": {"d1": 0, "d2": -1},
        "q3": {"d1": 3, "d2": 2, "d3": 1},
    }
    assert positives_of(qrels, 1) == {"q1": ["d3", "d2"], "q3": ["d1", "d2", "d3"]}
    assert positives_of(qrels, 2) == {"q1": ["d2"], "q3": ["d1", "d2"]}
    with pytest.raises(BadInput, match="there is no positive: no label is at least 4"):
        positives_of(qrels, 4)
    assert list(positives_of(qrels, 0)) == ["q1", "q2", "q3"]


def test_splits_are_named_by_their_files(tmp_path):
    for name in ("dev.small.tsv", "test.tsv.gz", "test.tsv", "train.tsv.zst", "notes.txt"):
        written(tmp_path / "qrels" / name)
    assert splits_of(tmp_path) == ["dev.small", "test", "train"]
    assert splits_of(tmp_path / "none") == []


def test_the_metadata_of_a_query_is_kept(tmp_path):
    path = written(
        tmp_path / "queries.jsonl",
        '{"_id": "q1", "text": "one", "metadata": {"answers": ["x"]}}',
        '{"_id": "q2", "text": "two"}',
    )
    first, second = read_query_records(path)
    assert (first.query_id, first.text, first.metadata) == ("q1", "one", {"answers": ["x"]})
    assert second.metadata is None


# ---------------------------------------------------------------- merged datasets


def test_ids_of_a_merged_dataset_name_their_dataset():
    assert merged_id("nq", "a/7") == "nq/a/7"
    assert dataset_name_of("nq/a/7") == "nq"


def test_owners_of_documents():
    found = owners(["b/1", "a/2", "b/a/3"], ["a", "b"])
    assert found.tolist() == [1, 0, 1] and found.dtype == np.int16
    assert owners([], {"a": 1.0}).tolist() == []
    with pytest.raises(BadInput) as caught:
        owners(["a/1", "c/1"], ["a", "b"])
    assert caught.value.what == "the id 'c/1' belongs to none of the datasets a, b"


def test_shares_are_written_and_read_again(tmp_path):
    dataset = Dataset(tmp_path / "corpus.jsonl", None, None)
    assert read_shares(dataset) is None
    write_shares(tmp_path, {"a": 0.75, "b": 0.25})
    assert read_shares(dataset) == {"a": 0.75, "b": 0.25}
    written(tmp_path / "datasets.json", '[{"name": "b", "share": 3}, {"name": "a", "share": 0}]')
    assert read_shares(dataset) == {"b": 1.0, "a": 0.0}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[", "not valid JSON"),
        ('{"a": 1}', "expected a list, found object"),
        ("[]", "lists no dataset"),
        ('["a"]', "'[0]': expected a JSON object, found str"),
        ('[{"share": 1}]', "has no [0].name"),
        ('[{"name": "a/b", "share": 1}]', "'a/b' cannot be the name of a dataset: it contains a /"),
        ('[{"name": "a b", "share": 1}]', "'a b' cannot be an id"),
        ('[{"name": "a", "share": 1}, {"name": "a", "share": 2}]',
         "lists the dataset 'a' twice"),
        ('[{"name": "a"}]', "has no [0].share"),
        ('[{"name": "a", "share": "1"}]', "'[0].share': expected float, found str"),
        ('[{"name": "a", "share": -1}]', "the share of 'a' is -1, expected 0 or more"),
        ('[{"name": "a", "share": true}]', "'[0].share': expected float, found bool"),
        ('[{"name": "a", "share": 0}]', "the shares add up to 0"),
    ],
)  # fmt: skip
def test_broken_shares_are_named(tmp_path, text, reason):
    written(tmp_path / "datasets.json", text)
    with pytest.raises(BadInput) as caught:
        read_shares(Dataset(tmp_path / "corpus.jsonl", None, None))
    assert caught.value.what.startswith(f"{tmp_path}/datasets.json: ")
    assert reason in caught.value.what


# ---------------------------------------------------------------- queries from elsewhere


@pytest.mark.parametrize("name", ["questions.txt", "63", "queries.tsv.jsonl"])
def test_queries_of_json_lines_may_have_a_byte_order_mark(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b'\xef\xbb\xbf{"_id": 7, "query": "gout"}\n')
    assert read_queries(path) == {"7": "gout"}


def test_a_file_of_another_name_may_have_any_kind_of_line(tmp_path):
    path = written(tmp_path / "questions.txt", "what is gout", "", "q2\tuser", '{"text": "acid"}')
    assert read_queries(path) == {"1": "what is gout", "q2": "user", "4": "acid"}


@pytest.mark.parametrize("header", ["qid\tquery", "query_id\ttext", "_id\ttext", "id\tquestion"])
@pytest.mark.parametrize("name", ["queries.tsv", "questions.txt"])
def test_a_header_is_no_query(tmp_path, name, header):
    path = written(tmp_path / name, header, "q1\tgout", "q2\tid")
    assert read_queries(path) == {"q1": "gout", "q2": "id"}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"_id": "q1", "text": null}', "no text"),
        ('{"_id": true, "text": "gout"}', "'_id' should be a string, found bool"),
        ('{"_id": null, "text": "gout"}', "no query id"),
        ('{"_id": "q1", "text"', "not valid JSON"),
        (b"\xff\xfe", "not valid UTF-8"),
    ],
)
def test_a_line_that_is_no_query_is_named(tmp_path, line, problem):
    path = tmp_path / "questions.txt"
    path.write_bytes(line if isinstance(line, bytes) else line.encode())
    with pytest.raises(BadInput, match=f"questions.txt:1: .*{problem}"):
        read_queries(path)
