"""`ance report` on a run that was trained and refreshed, with texts that mean harm."""

import json
import re

import pytest

from tests.html import Page
from tests.world import AnceInside, jsonl, make_dataset, write_jsonl

SCRIPT = "<script>alert(1)</script>"
HOSTILE = f"""{SCRIPT}"'><img src="https://example.org/x.png"> {{{{ 7 * 7 }}}} &amp; $x^2$"""
RUN = "run$a$<b>"


@pytest.fixture(scope="module")
def reported(tmp_path_factory, checkpoint):
    """A run of two generations, its report against itself under another name and a ranking."""
    folder = tmp_path_factory.mktemp("report")
    data = make_dataset(folder / "data")
    for name in ("queries.jsonl", "corpus.jsonl"):
        write_jsonl(
            data / name,
            [{**record, "text": f"{record['text']} {HOSTILE}"} for record in jsonl(data / name)],
        )
    ance = AnceInside(folder)
    ance("train-segment", "--data", data, "--ckpt", checkpoint, "--steps", 0, "--total-steps", 12,
         "--batch-size", 8, "--lr", "1e-2", "--schedule", "constant", "--negatives-per-positive", 1,
         "--log-every", 1, "-o", RUN, "-q")  # fmt: skip
    ance("refresh", RUN, "--depth", 12, "--negatives", 4, "-q")
    negatives = f"{RUN}/generations/0001/negatives.jsonl"
    ance("train-segment", negatives, "--steps", 12, "-o", RUN, "-q")
    ance("refresh", RUN, "-q")
    ance("search", "--engine", "bm25s", "--data", data, "--split", "dev", "-o", "bm25.trec", "-q")
    before = {path: path.stat().st_mtime_ns for path in (folder / RUN).rglob("*")}
    found = ance("report", RUN, "--against", "bm25.trec", "-o", "report.html", "--json")
    ance.summary = json.loads(found.stdout)
    ance.page = (folder / "report.html").read_text()
    assert before == {path: path.stat().st_mtime_ns for path in (folder / RUN).rglob("*")}
    return ance


@pytest.fixture(scope="module")
def page(reported):
    return Page(reported.page)


def test_the_summary(reported):
    assert reported.summary == {
        "output": "report.html", "kind": "report", "run": RUN, "num_generations": 2, "missing": [],
    }  # fmt: skip


def test_nothing_comes_from_outside_and_nothing_runs(reported, page):
    policy = next(each["content"] for tag, each in page.elements if "http-equiv" in each)
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")
    tags = {tag for tag, _ in page.elements}
    assert tags.isdisjoint({"script", "img", "link", "iframe", "object", "base", "form"})
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on") and name != "src"
            if name in ("href", "xlink:href"):
                assert value.startswith("#"), f"{tag} {value}"
            if tag != "meta" and name not in ("aria-label",):
                assert "//" not in (value or "")
    style = re.search(r"<style>(.*?)</style>", reported.page, re.DOTALL)[1]
    assert "url(" not in style and "@import" not in style
    assert "https://example.org" in page.text["cases"]  # as text


def test_texts_are_texts(reported, page):
    assert SCRIPT not in reported.page and SCRIPT in page.text["cases"]
    assert "{{ 7 * 7 }}" in page.text["cases"]
    assert RUN not in reported.page and RUN in page.text["measures"]


def test_ids_are_unique_and_links_lead_somewhere(page):
    ids = [each["id"] for _, each in page.elements if "id" in each]
    assert len(ids) == len(set(ids))
    links = {value[1:] for _, each in page.elements for name, value in each.items()
             if name == "href"}  # fmt: skip
    labels = {each["aria-labelledby"] for _, each in page.elements if "aria-labelledby" in each}
    assert links | labels <= set(ids) and {"cases", "cost", "lineage"} <= links


def test_the_numbers_are_those_of_the_files(reported, page):
    run = reported.cwd / RUN
    measured = page.tables["Means with 95 % intervals"]
    lineage = next(
        rows for caption, rows in page.tables.items() if caption.startswith("Inputs of each")
    )
    cost = page.tables["Seconds of each stage, and the size at publication"]
    counts = page.tables["Counts and shares by generation"]
    for number in (1, 2):
        folder = run / "generations" / f"{number:04d}"
        manifest = json.loads((folder / "manifest.json").read_text())
        dev = json.loads((folder / "dev.json").read_text())
        cells = [f"{v['mean']:.4f} ({v['low']:.4f} to {v['high']:.4f})" for v in dev.values()]
        assert measured[0][3:] == list(dev) and measured[number][3:] == cells
        negatives = json.loads((folder / "negatives.jsonl.manifest.json").read_text())
        assert lineage[number][3:7] == [
            text[:12]
            for text in (
                manifest["inputs"]["query_tower"],
                manifest["inputs"]["passage_tower"],
                json.loads((folder / "embeddings" / "manifest.json").read_text())["fingerprint"],
                negatives["fingerprint"],
            )
        ]
        seconds = manifest["stats"]["seconds"]
        assert [name.removesuffix(" s") for name in cost[0][2:-1]] == list(seconds)
        assert list(map(float, cost[number][2:-1])) == list(seconds.values())
        audit = manifest["stats"]["audit"]
        shown = {row[0]: row[number] for row in counts[1:]}
        assert shown["pairs"] == str(audit["pairs"])
        removed = audit["removed_from_candidates"]["ann"]["copies_of_positives"]
        assert shown["removed from candidates: ann: copies of positives"] == str(removed)
    assert lineage[1][7:] == ["0 to 12"] and lineage[2][7:] == ["-"]
    last = jsonl(run / "metrics.jsonl")[-1]
    assert f"{last['loss']:.6g}" in page.text["training"]


def test_tests_and_cases_are_those_of_eval(reported, page):
    generations = f"{RUN}/generations"
    found = json.loads(
        reported("eval", f"{generations}/0001/dev.trec", f"{generations}/0002/dev.trec",
                 "--data", "data", "--split", "dev", "--cases", 5, "--json").stdout
    )  # fmt: skip
    second = found["runs"][1]
    rows = page.tables["generation 1 and generation 2"]
    for measure, value in second["measures"].items():
        row = next(row for row in rows if row[:2] == ["generation 2", measure])
        assert row[3:5] == [f"{value['difference']:+.4f}", f"{value['p_randomisation']:.4f}"]
    cases = [case for kind in ("wins", "losses") for case in second["cases"][kind]]
    assert cases, "the two generations rank alike: the test shows nothing"
    for case in cases:
        assert f"{case['first']:.4f} → {case['second']:.4f}" in page.text["cases"]
        assert case["query"] in page.text["cases"]
    against = page.tables["Baselines against the best generation"]
    assert re.fullmatch(r"run\$a\$<b>, generation [12]", against[1][0])
    bm25 = json.loads(reported("eval", "bm25.trec", "--qrels", "data/qrels/dev.tsv",
                               "--json").stdout)["runs"][0]["measures"]  # fmt: skip
    row = next(row for row in against if row[:2] == ["bm25.trec", "RR@10"])
    assert row[2].startswith(f"{bm25['RR@10']['mean']:.4f} (")
    for words in (f"bm25.trec: {bm25['RR@10']['mean']:.4f}", "/best", "data/corpus.jsonl"):
        assert words in page.text["overview"]


def test_to_stdout_and_what_is_refused(reported):
    assert Page(reported("report", RUN, "-o", "-", "--cases", 0).stdout).text["overview"]
    assert "exists and is not a report" in reported("report", RUN, "-o", "bm25.trec", code=4).stderr
    assert "not a run folder" in reported("report", "data", "-o", "x.html", code=3).stderr
    assert "--cases" in reported("report", RUN, "-o", "x.html", "--cases", -1, code=2).stderr
    found = reported("report", RUN, "-o", "x.html", "--against", "nowhere", code=3)
    assert "nowhere" in found.stderr and not (reported.cwd / "x.html").exists()
