"""`ance merge`: what it writes, what it refuses, and what a kill leaves.

Each way that it ends goes through the binary once; more of the same kind is asked of the stage.
"""

import gzip
import json
import shutil
import signal
from pathlib import Path

import pytest

from ance_cli.call import Call, SkippedLines
from ance_cli.errors import BadInput, UsageProblem
from ance_cli.formats.dataset import locate, read_corpus, read_qrels, read_queries
from ance_cli.formats.merged import read_shares
from ance_cli.interop.merge import merge, parse_source
from tests.world import jsonl, make_dataset, tree


@pytest.fixture
def two(tmp_path):
    """`a`, with metadata in its queries, and `b`: half the train labels, compressed, with test."""
    a, b = make_dataset(tmp_path / "a"), make_dataset(tmp_path / "b")
    queries = jsonl(a / "queries.jsonl")
    queries[0]["metadata"] = {"answers": ["river"]}
    (a / "queries.jsonl").write_text("".join(json.dumps(record) + "\n" for record in queries))
    train = (b / "qrels" / "train.tsv").read_text().splitlines()
    (b / "qrels" / "train.tsv").write_text("\n".join(train[: 1 + 3 * 12]) + "\n")
    (b / "qrels" / "dev.tsv").rename(b / "qrels" / "test.tsv")
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/train.tsv"):
        (b / f"{name}.gz").write_bytes(gzip.compress((b / name).read_bytes()))
        (b / name).unlink()
    return a, b


@pytest.fixture
def there(two, tmp_path, monkeypatch):
    """The folder that holds both, as the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sources(*texts):
    return [parse_source(text) for text in texts]


def contents(folder):
    return {name: data for name, data in tree(folder).items() if name != "manifest.json"}


def test_a_merged_dataset_has_both(ance, two):
    found = json.loads(ance("merge", "a:0.7", "b:0.3", "-o", "both", "--json").stdout)
    assert found["kind"] == "dataset" and found["up_to_date"] is False
    assert found["datasets"]["b"] == {
        "share": 0.3, "passages": 64, "queries": 32, "train_pairs": 24,
    }  # fmt: skip
    both = ance.cwd / "both"
    assert sorted(tree(both)) == [
        "corpus.jsonl", "datasets.json", "manifest.json", "qrels/dev.tsv", "qrels/test.tsv",
        "qrels/train.tsv", "queries.jsonl",
    ]  # fmt: skip
    merged = locate(both, "train")
    assert read_shares(merged) == {"a": 0.7, "b": 0.3}
    corpus, queries, qrels = [], {}, {}
    for folder in two:
        own, name = locate(folder, "train"), folder.name
        corpus += [p._replace(doc_id=f"{name}/{p.doc_id}") for p in read_corpus(own.corpus)]
        queries |= {f"{name}/{q}": text for q, text in read_queries(own.queries).items()}
        for query_id, judged in read_qrels(own.qrels).items():
            qrels[f"{name}/{query_id}"] = {f"{name}/{doc}": grade for doc, grade in judged.items()}
    assert list(read_corpus(merged.corpus)) == corpus
    assert list(read_queries(merged.queries).items()) == list(queries.items())
    assert read_qrels(merged.qrels, queries, {p.doc_id for p in corpus}) == qrels
    records = jsonl(both / "queries.jsonl")
    assert records[0]["metadata"] == {"answers": ["river"]} and "metadata" not in records[1]
    dev = (both / "qrels" / "dev.tsv").read_text().splitlines()
    assert dev[0] == "query-id\tcorpus-id\tscore"
    assert len(dev) == 1 + 24 and all(line.startswith("a/") for line in dev[1:])


def test_later_stages_work_on_it(ance, two):
    ance("merge", "a:0.7", "b:0.3", "-o", "both")
    ance("bm25-negatives", "--data", "both", "--engine", "bm25s", "--depth", 12, "-o", "bm25.jsonl")
    pairs = jsonl(ance.cwd / "bm25.jsonl")
    assert len(pairs) == 48 + 24
    assert all(pair["query_id"][:2] == pair["positive_id"][:2] for pair in pairs)


def test_shares_default_to_the_train_pairs(there):
    merge(sources("a", "b/"), Path("both"))
    assert read_shares(locate(Path("both"))) == pytest.approx({"a": 2 / 3, "b": 1 / 3})


def test_shares_are_weights(there):
    merge(sources("a:3", "b:1"), Path("both"))
    assert read_shares(locate(Path("both"))) == {"a": 0.75, "b": 0.25}


def test_a_folder_with_a_colon_in_its_name(there):
    Path("a").rename("a:2")
    merge(sources("a:2", "b"), Path("both"))
    assert list(read_shares(locate(Path("both")))) == ["a:2", "b"]
    merge(sources("a:2:0.5", "b:0.5"), Path("weighted"))
    assert read_shares(locate(Path("weighted"))) == {"a:2": 0.5, "b": 0.5}
    assert next(read_corpus(Path("both/corpus.jsonl"))).doc_id == "a:2/d0"


def test_a_folder_is_called_as_it_is_named(there, monkeypatch):
    Path("link").symlink_to("b")
    monkeypatch.chdir(there / "a")
    merge(sources(".", "../link"), Path("../both"))
    assert list(read_shares(locate(there / "both"))) == ["a", "link"]


def test_up_to_date_other_settings_and_force(ance, two):
    merge = ["merge", "a:0.7", "b:0.3", "-o", "both"]
    assert "would make dataset both" in ance(*merge, "--dry-run").stderr
    assert not (ance.cwd / "both").exists()
    ance(*merge)
    before = tree(ance.cwd / "both")
    assert "both: up to date" in ance(*merge).stderr
    assert tree(ance.cwd / "both") == before
    found = ance("merge", "a:0.5", "b:0.5", "-o", "both", code=4)
    assert "exists with other settings: shares" in found.stderr
    assert "exists with other settings" in ance("merge", "b", "a", "-o", "both", code=4).stderr
    (two[0] / "qrels" / "more.tsv").write_text("q1\td1\t1\n")
    assert "exists with other settings: a " in ance(*merge, code=4).stderr
    assert tree(ance.cwd / "both") == before
    ance(*merge, "--force")
    assert (ance.cwd / "both" / "qrels" / "more.tsv").exists()


def test_the_same_bytes_twice(ance, two):
    ance("merge", "a", "b", "-o", "one", PYTHONHASHSEED="1")
    ance("merge", "a", "b", "-o", "other", PYTHONHASHSEED="2")
    assert contents(ance.cwd / "one") == contents(ance.cwd / "other")


@pytest.mark.parametrize(
    ("texts", "output", "words"),
    [
        (["a"], "c", "ance merge needs at least two datasets"),
        (["a:0.5", "b"], "c", "b has no share, and other datasets have one"),
        (["a:0", "b:1"], "c", "'a:0': no such folder, and '0' is not a share"),
        (["a:nan", "b:1"], "c", "'nan' is not a share"),
        (["a:half", "b:half"], "c", "'half' is not a share"),
        (["a", "a"], "c", "a and a have the same name 'a'"),
        (["a", "sub/a/"], "c", "a and sub/a have the same name 'a'"),
        (["a", "two words"], "c", "the folder's name 'two words' cannot be part of an id"),
        (["a", "/"], "c", "the folder's name '' cannot be part of an id"),
        (["a", "b"], "b", "b: contains b, which would be merged into it"),
        (["a", "b"], ".", ".: contains a, which would be merged into it"),
        (["a", "b"], "-", "a dataset folder cannot be written to stdout"),
    ],
)
def test_what_cannot_be_merged_is_a_usage_problem(there, texts, output, words):
    before = tree(there)
    with pytest.raises(UsageProblem) as caught:
        merge(sources(*texts), Path(output), call=Call(force=True))
    assert words in caught.value.what and caught.value.hint
    assert tree(there) == before


def test_shares_need_train_pairs(ance, two):
    for folder in two:
        for path in (folder / "qrels").glob("train.*"):
            path.unlink()
    before = tree(ance.cwd)
    found = ance("merge", "a", "b", "-o", "both", code=2)
    assert "no dataset has a positive in qrels/train.tsv, so" in found.stderr
    assert tree(ance.cwd) == before
    found = ance("merge", "a:1", "b:1", "-o", "both")
    assert "warning: a has a share of 0.5 and no train pairs" in found.stderr


BROKEN = [
    ("corpus.jsonl", lambda lines: [*lines[:60], lines[60][:20], *lines[61:]],
     "a/corpus.jsonl:61: not valid JSON"),
    ("corpus.jsonl", lambda lines: [*lines, lines[3]],
     "a/corpus.jsonl:65: document id 'd3' is also on line 4"),
    ("queries.jsonl", lambda lines: [*lines, '{"_id": "q99", "text": " "}'],
     "a/queries.jsonl:33: query 'q99' is empty"),
    ("qrels/dev.tsv", lambda lines: [*lines, "q1\tnowhere\t1"],
     "a/qrels/dev.tsv:26: document 'nowhere' is not in the corpus"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "words"), BROKEN)
def test_a_broken_line_is_named_and_nothing_is_left(there, name, change, words):
    path = there / "a" / name
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    before = tree(there)
    for names in (["a", "b"], ["b", "a"]):  # also where a whole dataset was written before
        with pytest.raises(BadInput, match=words):
            merge(sources(*names), Path("both"))
        assert tree(there) == before and not list(there.glob("*both*"))
    skipped = SkippedLines()
    found = merge(sources("a", "b"), Path("both"), call=Call(skipped=skipped))
    assert skipped.count == 1
    assert found["datasets"]["a"]["passages"] == 64 - ("not valid" in words)
    assert found["datasets"]["a"]["queries"] == 32


def test_a_broken_line_through_the_binary(ance, two):
    with open(two[0] / "queries.jsonl", "a") as handle:
        handle.write("{}\n")
    found = ance("merge", "a", "b", "-o", "both", code=3)
    assert "a/queries.jsonl:33: no query id" in found.stderr
    found = ance("merge", "a", "b", "-o", "both", "--skip-bad")
    assert "skipped 1 broken lines" in found.stderr


def test_a_missing_file_is_named(there):
    with pytest.raises(BadInput, match="none: no such dataset folder"):
        merge(sources("b", "none"), Path("both"))
    (there / "a" / "queries.jsonl").unlink()
    with pytest.raises(BadInput, match=r"a/queries.jsonl: no such file"):
        merge(sources("a", "b"), Path("both"))


def test_a_failed_write_keeps_the_old_dataset(there, monkeypatch):
    merge(sources("a", "b"), Path("both"))
    before = tree(there)

    def broken(folder, shares):
        raise OSError("power cut")

    monkeypatch.setattr("ance_cli.interop.merge.write_shares", broken)
    with pytest.raises(OSError, match="power cut"):
        merge(sources("b", "a"), Path("both"), call=Call(force=True))
    assert tree(there) == before and not list(there.glob(".both*"))


def size_of(path):
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def test_killed_and_repeated(ance, two):
    """SIGKILL while it writes, at several moments: whole or absent, then as if uninterrupted."""
    with open(two[0] / "corpus.jsonl", "a") as handle:
        for number in range(20_000):
            handle.write(json.dumps({"_id": f"x{number}", "text": "filler " * 20}) + "\n")
    ance("merge", "a", "b", "-o", "whole")
    partial, both = ance.cwd / ".both.partial", ance.cwd / "both"
    for size in (1, 2_500_000):
        shutil.rmtree(partial, ignore_errors=True)
        process = ance.start("merge", "a", "b", "-o", "both")
        while process.poll() is None and size_of(partial / "corpus.jsonl") < size:
            pass
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert partial.exists() != both.exists()
    ance("merge", "a", "b", "-o", "both")
    assert contents(both) == contents(ance.cwd / "whole")
    assert not list(ance.cwd.glob(".both*"))
