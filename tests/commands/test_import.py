"""`ance import` as the binary: each form once, what is refused, and what a kill leaves."""

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ance_cli.formats.dataset import locate, positives_of, read_corpus, read_qrels, read_queries
from ance_cli.formats.negatives_file import read_negatives
from tests.world import jsonl, make_dataset, tree

PASSAGES = ["0\tGout is caused by crystals.", "1\tIt is treated with drugs.", "2\tA cramp hurts."]


def put(folder: Path, **files: str | list[str]) -> Path:
    """Files by their names, in which `__` means a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        text = lines if isinstance(lines, str) else "".join(f"{line}\n" for line in lines)
        (folder / name.replace("__", ".")).write_text(text)
    return folder


@pytest.fixture
def msmarco(tmp_path) -> Path:
    return put(
        tmp_path / "ms",
        collection__tsv=PASSAGES,
        queries__train__tsv=["10\twhat causes gout", "11\tgout treatment"],
        queries__dev__small__tsv=["12\tmuscle cramp"],
        qrels__train__tsv=["10\t0\t0\t1", "11\t0\t1\t1"],
        qrels__dev__small__tsv=["12\t0\t2\t1"],
        qidpidtriples__train__full__tsv=["10\t0\t1", "11\t1\t0", "10\t0\t2"],
    )


def contents(folder):
    return {name: data for name, data in tree(folder).items() if name != "manifest.json"}


def test_a_folder_of_msmarco(ance, msmarco):
    out = ance.cwd / "data"
    words = ["import", "msmarco-passage:ms", "--split", "train", "--split", "dev=dev.small",
             "-o", "data"]  # fmt: skip
    dry = ance(*words, "--dry-run", "--json")
    assert json.loads(dry.stdout)["forms"]["labels dev"] == ["MS MARCO labels (its name)"]
    assert not out.exists()
    found = json.loads(ance(*words, "--json").stdout)
    assert found["kind"] == "dataset" and found["up_to_date"] is False
    assert found["labels"] == {"train": 2, "dev": 1} and found["negatives"] == {"train": 2}
    assert (found["passages"], found["queries"]) == (3, 3)
    assert sorted(tree(out)) == [
        "corpus.jsonl", "manifest.json", "negatives/train.jsonl", "qrels/dev.tsv",
        "qrels/train.tsv", "queries.jsonl",
    ]  # fmt: skip
    assert not list(ance.cwd.glob(".data*"))
    made = locate(out, "train")
    corpus, queries = {p.doc_id for p in read_corpus(made.corpus)}, read_queries(made.queries)
    positives = positives_of(read_qrels(made.qrels, queries, corpus), 1)
    pairs = read_negatives(out / "negatives" / "train.jsonl", queries, corpus, positives)
    assert {pair.query_id: pair.negative_ids for pair in pairs} == {"10": ["1", "2"], "11": ["0"]}


def test_later_stages_work_on_it(ance):
    make_dataset(ance.cwd / "mine")
    with gzip.open(ance.cwd / "msmarco-docs.tsv.gz", "wt") as handle:
        for record in jsonl(ance.cwd / "mine" / "corpus.jsonl"):
            handle.write(
                f"{record['_id']}\thttps://a.example\t{record['title']}\t{record['text']}\n"
            )
    ance(
        "import", "msmarco-docs.tsv.gz", "mine/queries.jsonl", "mine/qrels/train.tsv", "-o", "data"
    )
    ance("bm25-negatives", "--data", "data", "--engine", "bm25s", "--depth", 12, "-o", "bm25.jsonl")
    assert len(jsonl(ance.cwd / "bm25.jsonl")) == 48


def test_up_to_date_other_settings_and_force(inside, msmarco):
    words = ["import", "ms", "-o", "data"]
    found = inside(*words).stderr
    assert "ms/collection.tsv: MS MARCO passages (its name)" in found
    before = tree(inside.cwd / "data")
    assert "data: up to date" in inside(*words).stderr
    assert tree(inside.cwd / "data") == before
    assert "exists with other settings" in inside(*words, "--split", "train", code=4).stderr
    (msmarco / "collection.tsv").write_text("".join(f"{p}!\n" for p in PASSAGES))
    found = inside(*words, code=4).stderr
    assert "data: exists with other settings: documents" in found and "--force" in found
    assert tree(inside.cwd / "data") == before
    inside(*words, "--force")
    assert "crystals.!" in (inside.cwd / "data" / "corpus.jsonl").read_text()
    for output in ("ms", "."):
        assert "which this command reads" in inside("import", "ms", "-o", output, code=2).stderr
    (inside.cwd / "mine").mkdir()
    (inside.cwd / "mine" / "notes").write_text("x")
    assert "exists and has no manifest" in inside("import", "ms", "-o", "mine", code=4).stderr


CONTEXT = {"title": "Gout", "text": "caused by crystals", "passage_id": "7"}
ROW = {"question": "what is gout", "answers": ["crystals"], "positive_ctxs": [CONTEXT]}
FORMS = {
    "beir": ({"corpus__jsonl": ['{"_id": "d1", "text": "gout"}'],
              "queries__jsonl": ['{"_id": "q1", "text": "what is gout"}']}, 1, 1),
    "msmarco-doc": ({"msmarco-docs__tsv": ["D1\tu\tt\tgout"],
                     "msmarco-doctrain-queries__tsv": ["1\twhat is gout"]}, 1, 1),
    "trec": ({"topics__txt": "<top>\n<num> 301\n<title> gout\n</top>\n",
              "docs__tsv": ["d1\tgout"], "qrels__txt": ["301 0 d1 1"]}, 1, 1),
    "dpr": ({"nq-train__json": json.dumps([ROW]), "nq-test__qa__csv": ["who\t['a']"]}, 1, 2),
    "tevatron": ({"train__jsonl": json.dumps(
        {"query_id": "1", "query": "gout", "positive_passages": [{"docid": "1", "text": "x"}],
         "negative_passages": [{"docid": "2", "text": "y"}]})}, 2, 1),
    "flagembedding": ({"rows__jsonl": '{"query": "g", "pos": ["x"], "neg": ["y"]}'}, 2, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_every_form(ance, name):
    files, passages, queries = FORMS[name]
    put(ance.cwd / "source", **files)
    found = json.loads(ance("import", f"{name}:source", "-o", "named", "--json").stdout)
    assert (found["passages"], found["queries"]) == (passages, queries)
    ance("import", "source", "-o", "recognised", "-q")
    assert contents(ance.cwd / "recognised") == contents(ance.cwd / "named")


def with_module(ance, name, text) -> dict[str, str]:
    (ance.cwd / "modules").mkdir()
    (ance.cwd / "modules" / f"{name}.py").write_text(text)
    paths = [str(ance.cwd / "modules"), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


README = Path(__file__).parents[2] / "data" / "README.md"
DOWNLOADED = {
    "msmarco/collection.tsv": "1\tgout", "msmarco/queries.train.tsv": "10\twhat is gout",
    "msmarco/queries.dev.small.tsv": "11\tgout", "msmarco/qrels.train.tsv": "10\t0\t1\t1",
    "msmarco/qrels.dev.small.tsv": "11\t0\t1\t1", "triples.train.small.tsv": "a b\tc d\te f",
    "msmarco-doc/msmarco-docs.tsv.gz": "D1\tu\tt\tb",
    "msmarco-doc/msmarco-doctrain-queries.tsv.gz": "1\tgout",
    "msmarco-doc/msmarco-doctrain-qrels.tsv.gz": "1 0 D1 1",
    "msmarco-doc/msmarco-docdev-queries.tsv.gz": "2\tgout",
    "msmarco-doc/msmarco-docdev-qrels.tsv.gz": "2 0 D1 1",
    "msmarco-doc/msmarco-docdev-top100.gz": "2 Q0 D1 1 -5.1 Indri",
    "msmarco-test2019-queries.tsv.gz": "19\tgout", "2019qrels-pass.txt": "19 Q0 1 2",
    "psgs_w100.tsv.gz": 'id\ttext\ttitle\n7\t"caused by ""crystals"""\tGout',
    "biencoder-nq-train.json.gz": json.dumps([ROW]), "biencoder-nq-dev.json.gz": json.dumps([ROW]),
    "biencoder-trivia-train.json.gz": json.dumps([ROW]),
    "biencoder-trivia-dev.json.gz": json.dumps([ROW]), "nq-test.qa.csv": "who\t['a']",
    "scifact/corpus.jsonl": '{"_id": "1", "text": "gout"}',
    "train.jsonl.gz": FORMS["tevatron"][0]["train__jsonl"],
    "rows.jsonl": FORMS["flagembedding"][0]["rows__jsonl"],
}  # fmt: skip


def test_the_commands_of_the_page_on_data(inside):
    """Each `ance import` there, on a file in the form of each download; not ir_datasets' ids."""
    for name, text in DOWNLOADED.items():
        path = inside.cwd / name
        path.parent.mkdir(exist_ok=True)
        data = f"{text}\n".encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    page = README.read_text().replace("\\\n", "")
    commands = re.findall(r"(?:^|`)ance (import [^`\n]+ -o [^`\n]+)", page, re.MULTILINE)
    commands = [command.split() for command in commands if "ir-datasets:" not in command]
    assert len(commands) == 7
    for command in commands:
        inside(*command, "--force")
    made = {path.parent.name + "/" + path.name for path in inside.cwd.glob("data/*/qrels/../*/*")}
    assert "negatives/train.jsonl" in made and "runs/dev.trec" in made
    data = inside.cwd / "data"
    for name, splits in (("msmarco", "dev train"), ("msmarco-doc", "dev train"), ("dl19", "dl19"),
                         ("nq", "dev train"), ("trivia", "dev train")):  # fmt: skip
        assert sorted(p.stem for p in (data / name / "qrels").iterdir()) == splits.split(), name


def test_ir_datasets(ance):
    pytest.importorskip("ir_datasets")
    put(ance.cwd, docs__tsv=["d1\tgout"], queries__tsv=["q1\twhat is gout"], qrels=["q1 0 d1 1"])
    env = with_module(
        ance, "sitecustomize",
        "import ir_datasets\n"
        "ir_datasets.registry.register('tiny/train', ir_datasets.create_dataset("
        "docs_tsv='docs.tsv', queries_tsv='queries.tsv', qrels_trec='qrels'))\n",
    )  # fmt: skip
    found = json.loads(
        ance("import", "ir-datasets:tiny/train", "-o", "data", "--json", **env).stdout
    )
    assert (found["passages"], found["queries"], found["labels"]) == (1, 1, {"train": 1})
    assert (
        "data: up to date" in ance("import", "ir-datasets:tiny/train", "-o", "data", **env).stderr
    )


def test_without_ir_datasets(ance):
    env = with_module(ance, "ir_datasets", "raise ImportError")
    found = ance("import", "ir-datasets:msmarco-passage/train", "-o", "data", code=2, **env)
    assert "pip install 'ance-cli[datasets]'" in found.stderr


def test_files_of_any_name(ance):
    put(ance.cwd, a=["d1\tgout"], b=["q1\twhat is gout"], c=["q1 0 d1 1"])
    ance("import", "--corpus", "a", "--queries", "b", "--qrels", "c", "--split", "test", "-o", "d")
    assert (ance.cwd / "d" / "qrels" / "test.tsv").read_text().endswith("\nq1\td1\t1\n")
    assert "there is nothing to import" in ance("import", "-o", "e", code=2).stderr


def test_a_part_of_a_dataset_says_what_was_not_checked(ance):
    put(ance.cwd, qrels__dl19__txt=["1 Q0 d1 3"], topics__dl19__txt=["1\twhat is gout"])
    found = ance("import", "qrels.dl19.txt", "topics.dl19.txt", "-o", "dl19").stderr
    assert "warning: no documents were imported, so no document id was checked" in found
    found = ance("import", "qrels.dl19.txt", "-o", "labels").stderr
    assert "warning: no queries were imported, so no query id was checked" in found


BROKEN = [
    ("collection.tsv", b"3\ta\tb\n", "ms/collection.tsv:4: expected 2 columns separated by tabs"),
    ("collection.tsv", b"3\n", "ms/collection.tsv:4: expected 2 columns separated by tabs"),
    ("collection.tsv", b"3\tg\xffut\n", "ms/collection.tsv:4: not valid UTF-8"),
    ("collection.tsv", b"\tgout\n", "ms/collection.tsv:4: '' cannot be an id"),
    ("collection.tsv", b"0\tanother\n", "document id '0' was used before with another text"),
    (
        "queries.train.tsv",
        b"10\tanother\n",
        "ms/queries.train.tsv:3: query id '10' was used before",
    ),
    (
        "qrels.train.tsv",
        b"10\t0\t9\t1\n",
        "ms/qrels.train.tsv:3: document '9' is not in the corpus",
    ),
    ("qrels.train.tsv", b"99\t0\t1\t1\n", "ms/qrels.train.tsv:3: query '99' is not among the"),
    (
        "qidpidtriples.train.full.tsv",
        b"10\t0\t9\n",
        "full.tsv:4: document '9' is not in the corpus",
    ),
]


@pytest.mark.parametrize(("name", "line", "words"), BROKEN)
def test_a_broken_line_is_named(inside, msmarco, name, line, words):
    with open(msmarco / name, "ab") as handle:
        handle.write(line)
    before = tree(inside.cwd)
    assert words in inside("import", "ms", "-o", "data", code=3).stderr
    assert tree(inside.cwd) == before
    found = inside("import", "ms", "-o", "data", "--skip-bad", "--json")
    assert "skipped 1 broken lines" in found.stderr
    stats = json.loads(found.stdout)
    assert (stats["passages"], stats["queries"]) == (3, 3) and stats["negatives"] == {"train": 2}


def test_a_broken_line_through_the_binary(ance, msmarco):
    with open(msmarco / "collection.tsv", "a") as handle:
        handle.write("no tab\n")
    found = ance("import", "ms", "-o", "data", code=3)
    assert "ms/collection.tsv:4: expected 2 columns" in found.stderr and "hint:" in found.stderr
    assert not list(ance.cwd.glob("*data*"))


def test_windows_lines_and_a_byte_order_mark(inside, msmarco):
    inside("import", "ms", "-o", "plain")
    for path in msmarco.iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    inside("import", "ms", "-o", "other")
    assert contents(inside.cwd / "other") == contents(inside.cwd / "plain")


def test_a_file_that_is_cut_short(inside, msmarco):
    path = msmarco / "collection.tsv"
    lines = "".join(f"{number}\tpassage {number * 7919}\n" for number in range(2000))
    (msmarco / "collection.tsv.gz").write_bytes(gzip.compress(lines.encode())[:-200])
    path.unlink()
    found = inside("import", "ms", "-o", "data", "--skip-bad", code=3).stderr
    assert "ms/collection.tsv.gz:" in found and "cut short or damaged" in found
    assert not list(inside.cwd.glob("*data*"))


def size_of(path):
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def enlarge(msmarco, rows):
    with open(msmarco / "collection.tsv", "a") as handle:
        handle.writelines(f"{n}\t{'filler words ' * 15}{n}\n" for n in range(3, rows))


@pytest.mark.long
def test_killed_and_repeated(ance, msmarco):
    """SIGKILL while it writes: whole or absent, then as if uninterrupted."""
    enlarge(msmarco, 60_000)
    ance("import", "ms", "-o", "whole", "-q")
    partial, data = ance.cwd / ".data.partial", ance.cwd / "data"
    for size in (1, 6_000_000):
        shutil.rmtree(partial, ignore_errors=True)
        process = ance.start("import", "ms", "-o", "data")
        while process.poll() is None and size_of(partial / "corpus.jsonl") < size:
            pass
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert partial.exists() and not data.exists()
    ance("import", "ms", "-o", "data", "-q")
    assert contents(data) == contents(ance.cwd / "whole")
    assert not list(ance.cwd.glob(".data*"))


IMPORT_AND_TELL = """
import sys
from pathlib import Path
from ance_cli.interop.recognition import Request
from ance_cli.interop.import_dataset import import_dataset
import_dataset(Request([sys.argv[1]]), Path(sys.argv[2]))
print(Path("/proc/self/status").read_text())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_does_not_grow_with_the_corpus(ance, msmarco):
    """The peak memory of a separate process, as the kernel reports it."""
    enlarge(msmarco, 200_000)
    put(ance.cwd / "few", collection__tsv=PASSAGES)

    def peak(*words: str) -> int:
        found = subprocess.run(
            [sys.executable, "-c", IMPORT_AND_TELL, *words], cwd=ance.cwd, check=True,
            capture_output=True, text=True, env=ance.environment(),
        )  # fmt: skip
        return int(re.search(r"VmHWM:\s+(\d+) kB", found.stdout)[1]) * 1024

    few, many = peak("few", "a"), peak("ms", "b")
    assert (msmarco / "collection.tsv").stat().st_size > 40_000_000
    assert many - few < 25_000_000, (few, many)
