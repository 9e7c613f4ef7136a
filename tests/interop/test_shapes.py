"""Data as people have it, imported as it is: what is understood, shown and written."""

import json

import pytest

from ance_cli.call import Call, SkippedLines
from ance_cli.errors import BadInput, UsageProblem
from ance_cli.interop.import_dataset import import_dataset, import_into_cache
from ance_cli.interop.recognition import Request, parts_of
from ance_cli.interop.records import Role
from ance_cli.progress import Silent


class Saying(Silent):
    """Keeps what is said."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def pdf(text):
    """A page with one line of text."""
    content = f"BT /F 12 Tf 20 200 Td ({text}) Tj ET"
    objects = [
        "<</Type/Catalog/Pages 2 0 R>>",
        "<</Type/Pages/Kids[3 0 R]/Count 1>>",
        "<</Type/Page/Parent 2 0 R/MediaBox[0 0 300 300]/Contents 4 0 R"
        "/Resources<</Font<</F 5 0 R>>>>>>",
        f"<</Length {len(content)}>>stream\n{content}\nendstream",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    body, places = "%PDF-1.4\n", []
    for number, each in enumerate(objects, start=1):
        places.append(len(body))
        body += f"{number} 0 obj{each}endobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    end = f"xref\n0 6\n0000000000 65535 f \n{table}trailer<</Root 1 0 R/Size 6>>\n"
    return (body + end + f"startxref\n{len(body)}\n%%EOF\n").encode()


def test_documents_and_a_table_of_ids(write, imported):
    write("docs.csv", "uid,heading,content", "a 1,One,first text", 'b,Two,"second, text"')
    write("pairs.csv", "q,uid", "what is first?,a 1", "what is second?,b")
    found = imported("docs.csv", "pairs.csv",
                     columns="doc_id=uid,title=heading,text=content,query=q")  # fmt: skip
    assert found.corpus == {"a_1": ("One", "first text"), "b": ("Two", "second, text")}
    assert [label[1:] for label in found.labels()] == [("a_1", "1"), ("b", "1")]


def test_a_tsv_with_a_header_has_no_document_called_id(write, imported):
    write("corpus.tsv", "id\ttitle\ttext", "d1\tOne\tfirst", "d2\tTwo\tsecond")
    assert imported("corpus.tsv").corpus == {"d1": ("One", "first"), "d2": ("Two", "second")}


def test_a_folder_of_documents_and_questions(write, imported):
    folder = write("kb/a/How to.md", "# Violins\n\nOld wood.\n\n" + "Strings. " * 30).parent.parent
    write("kb/page.html", "<html><head><title>Page</title><script>no()</script></head>"
          "<body><nav>menu</nav><p>Text &amp; more</p></body></html>")  # fmt: skip
    write("kb/plain.txt", "The annual report 2023", "is about violins.")
    write("kb/scan.pdf", pdf("Violins are old."))
    write("questions.csv", "question,file", "who has old wood?,a/How to.md")
    found = imported("kb", "questions.csv", columns="doc_id=file", chunk=100)
    titles = {doc_id.partition("#")[0]: title for doc_id, (title, _) in found.corpus.items()}
    assert titles == {"a/How_to.md": "Violins", "page.html": "Page", "plain.txt": "plain",
                      "scan.pdf": "scan"}  # fmt: skip
    assert found.corpus["page.html#1"] == ("Page", "Text & more")
    assert found.corpus["scan.pdf#1"][1] == "Violins are old."
    assert found.corpus["plain.txt#1"][1].startswith("The annual report 2023")
    cut = [doc_id for doc_id in found.corpus if doc_id.startswith("a/How_to.md#")]
    assert len(cut) > 1 and all(len(text) <= 100 for _, text in found.corpus.values())
    assert [label[1] for label in found.labels()] == cut
    assert found.summary["labels_of_documents"] == 1 and found.summary["documents_cut"] == 4
    record = json.loads((folder.parent / "out/corpus.jsonl").read_text().splitlines()[0])
    assert record["parent_id"] == "a/How_to.md"


def test_a_folder_of_text_files_is_not_taken_for_trec(write):
    folder = write("notes/one.txt", "A note of 3", "and a second line").parent
    (part,), _ = parts_of(Request([str(folder)]))
    assert part.role is Role.DOCUMENTS
    write("notes/labels.txt", "301 0 D1 1", "301 0 D2 0")
    parts, _ = parts_of(Request([str(folder)]))
    assert [part.role for part in parts] == [Role.DOCUMENTS, Role.LABELS]


def test_texts_of_a_table_are_cut_where_it_is_asked_for(write, imported):
    write("docs.jsonl", json.dumps({"id": "d", "text": "One sentence here. " * 20}))
    assert [*imported("docs.jsonl", output="whole").corpus] == ["d"]
    cut = imported("docs.jsonl", chunk=80, output="cut").corpus
    assert len(cut) > 2 and all(len(text) <= 80 for _, text in cut.values())
    words = " ".join(text for _, text in cut.values()).split()
    assert words == ("One sentence here. " * 20).split()


def test_triplets_bring_their_negatives(write, imported):
    write("rows.jsonl", *(
        json.dumps({"anchor": f"q{n}", "positive": f"p{n}", "negative": f"p{n + 1}"})
        for n in range(3)
    ))  # fmt: skip
    found = imported("rows.jsonl")
    assert len(found.corpus) == 4 and len(found.negatives()) == 3
    assert found.negatives()[0]["sources"] == ["negative"]


def test_a_saved_dataset(imported, tmp_path):
    datasets = pytest.importorskip("datasets")
    splits = {
        name: datasets.Dataset.from_dict(
            {
                "question": [f"{name} {n}" for n in range(3)],
                "context": ["a", "b", "b"],
                "answers": [{"text": ["x"], "answer_start": [0]}] * 3,
            }
        )
        for name in ("train", "validation")
    }
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    found = imported("saved", splits=["train", "dev=validation"])
    assert len(found.corpus) == 2 and len(found.labels()) == len(found.labels("dev")) == 3
    assert found.records[0]["metadata"] == {"answers": ["x"]}
    state = tmp_path / "saved/train/state.json"
    state.write_text(state.read_text().replace("data-00000", "../../data-00000"))
    with pytest.raises(BadInput, match="names no Arrow file"):
        imported("saved", output="other")


def test_a_dataset_of_the_hub(imported, tmp_path):
    """As `datasets` streams a local copy of a repository: subsets, splits, columns."""
    pytest.importorskip("datasets")
    import pyarrow as pa
    import pyarrow.parquet as pq

    repo = tmp_path / "repo"
    for subset, split, rows in (
        ("corpus", "corpus", {"_id": ["d1", "d2"], "title": ["", ""], "text": ["x", "y"]}),
        ("queries", "queries", {"_id": ["q1"], "text": ["what?"]}),
        ("default", "test", {"query-id": ["q1"], "corpus-id": ["d2"], "score": [1.0]}),
    ):
        (repo / subset).mkdir(parents=True)
        pq.write_table(pa.table(rows), repo / subset / f"{split}.parquet")
    (repo / "README.md").write_text("---\nconfigs:\n" + "".join(
        f"- config_name: {subset}\n  data_files:\n  - split: {split}\n"
        f"    path: {subset}/*.parquet\n"
        for subset, split in (("corpus", "corpus"), ("queries", "queries"), ("default", "test"))
    ) + "---\n")  # fmt: skip
    found = imported(f"hf:{repo}")
    assert found.corpus == {"d1": ("", "x"), "d2": ("", "y")} and found.queries == {"q1": "what?"}
    assert found.labels("test") == [("q1", "d2", "1")]
    with pytest.raises(BadInput, match="has no subset 'other'"):
        imported(f"hf:{repo}:other", output="b")
    with pytest.raises(UsageProblem, match="has no revision 'main'"):
        imported(f"hf:{repo}@main", output="c")
    with pytest.raises(BadInput, match="hf:ance/none: cannot be downloaded or read"):
        imported("hf:ance/none", output="d")


def test_what_was_understood_is_shown_first(write, tmp_path):
    write("faq.csv", "question,answer,source", *(f"q {n}?,a {n},web" for n in range(9)), "q,")
    said = Saying()
    request = Request([str(tmp_path / "faq.csv")])
    call = Call(reporter=said, skipped=SkippedLines(), dry_run=True)
    summary = import_dataset(request, tmp_path / "out", call)
    assert summary["dry_run"] and not (tmp_path / "out").exists()
    assert said.lines == [
        f"{tmp_path}/faq.csv: pairs of a query and a positive (CSV), 9 rows and 1 that cannot be "
        "read, split train",
        "  columns    query = question, positive = answer",
        "  not read   source",
        "  document   a 0 | a 1 | a 2",
        "  query      q 0? | q 1? | q 2?",
        *(line for line in said.lines if line.startswith("  label")),
    ]


def test_an_empty_row_stops_the_import_or_is_counted(write, imported):
    write("faq.csv", "question,answer", "q1,a1", "q2,", ",a3", "q4,a4")
    with pytest.raises(BadInput, match="faq.csv:3: 'answer' is empty"):
        imported("faq.csv")
    skipped = SkippedLines()
    assert len(imported("faq.csv", skipped=skipped).queries) == 2 and skipped.count == 2


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"columns": "query=nope"}, "no table has the column 'nope'"),
        ({"min_score": 0.5}, "--min-score: no table has scores"),
        ({"chunk": 100}, "--chunk: there are no documents to cut"),
        ({"splits": ["80/10/10", "train"]}, "other --split name several"),
    ],
)
def test_settings_that_nothing_uses_are_refused(write, imported, request_, words):
    write("faq.csv", "question,answer", "q1,a1")
    with pytest.raises(UsageProblem, match=words):
        imported("faq.csv", **request_)


def test_an_unknown_table_names_its_columns(write, imported):
    write("x.csv", "foo,bar", "1,2")
    with pytest.raises(BadInput, match="no column is known .* it has foo, bar") as caught:
        imported("x.csv")
    assert "--columns query=COLUMN" in caught.value.hint


def test_an_import_is_divided(write, imported):
    write(
        "faq.csv", "question,answer", *(f"topic{n} unique{n}?,text{n} alone{n}" for n in range(20))
    )
    found = imported("faq.csv", splits=["80/10/10"], seed=1)
    sizes = [len(found.labels(name)) for name in ("train", "dev", "test")]
    assert sizes == [16, 2, 2] and found.summary["division"]["groups"] == 20
    assert sorted(path.name for path in found.folder.iterdir()) == [
        "corpus.jsonl", "manifest.json", "qrels", "queries.jsonl",
    ]  # fmt: skip


def test_what_data_names_is_imported_once(write, monkeypatch, tmp_path):
    monkeypatch.setenv("ANCE_CACHE_DIR", str(tmp_path / "cache"))
    path = write("faq.csv", "question,answer", "q1,a1")
    first = import_into_cache(Request([str(path)]))
    changed = (first / "corpus.jsonl").stat().st_mtime_ns
    assert import_into_cache(Request([str(path)])) == first
    assert (first / "corpus.jsonl").stat().st_mtime_ns == changed
    write("faq.csv", "question,answer", "q1,a1", "q2,a2")
    assert import_into_cache(Request([str(path)])) != first


@pytest.mark.parametrize("name", ["page.pdf", "page.txt", "empty.md"])
def test_a_document_that_cannot_be_read(write, imported, name):
    content = {"page.pdf": b"%PDF-1.4 nothing", "page.txt": b"caf\xe9\n", "empty.md": b"\n"}
    write(f"kb/{name}", content[name])
    write("kb/good.md", "words")
    with pytest.raises(BadInput, match=name):
        imported("kb", output="a")
    skipped = SkippedLines()
    assert [*imported("kb", output="b", skipped=skipped).corpus] == ["good.md#1"]
    assert skipped.count == 1
