"""Runs measured, reranked and fused, through the command line."""

import json

import numpy as np
import pytest

from ance_cli.formats.dataset import read_corpus, read_qrels, read_queries
from ance_cli.formats.trec import read_run
from tests.world import jsonl, make_cross_encoder, write_jsonl

DEV = ["--data", "data", "--split", "dev"]
NEGATIVES = "negatives.jsonl"
QRELS = ["--qrels", "data/qrels/dev.tsv"]


def write_run(path, tops, base=9):
    """A run of the dev queries: `tops(number)` are the numbers of q's documents, best first."""
    path.write_text("".join(
        f"q{q} Q0 d{d} {rank} {base - rank} t\n"
        for q in range(24, 32) for rank, d in enumerate(tops(q), start=1)
    ))  # fmt: skip


@pytest.fixture
def world(inside, dataset):
    write_run(inside.cwd / "bad.trec", lambda q: [q + 3, 40, q])
    write_run(inside.cwd / "good.trec", lambda q: [q, q + 8, q + 3])
    write_run(inside.cwd / "same.trec", lambda q: [q + 3, 40, q], base=5)
    return inside


def evaluated(world, *arguments):
    return json.loads(world("eval", *arguments, "--json").stdout)


# ---------------------------------------------------------------- eval


def test_p_values_are_corrected_over_the_runs_of_a_measure(world):
    found = evaluated(world, "bad.trec", "good.trec", "same.trec", *QRELS, "--measures", "RR@10")
    _, good, same = (row["measures"]["RR@10"] for row in found["runs"])
    assert good["p_randomisation_holm"] == pytest.approx(2 * good["p_randomisation"])
    assert good["p_t_holm"] == pytest.approx(2 * good["p_t"])
    assert same["p_randomisation"] == same["p_randomisation_holm"] == 1.0
    shown = world("eval", "bad.trec", "good.trec", "same.trec", *QRELS).stdout
    assert "p (Holm)" in shown and "p (t, Holm)" in shown
    shown = world("eval", "bad.trec", "good.trec", *QRELS).stdout
    assert "p (t)" in shown and "Holm" not in shown


def test_holes_and_overlap(world):
    found = evaluated(world, "bad.trec", "good.trec", *QRELS,
                      "--measures", "Holes@3 Overlap@3 Overlap@1")  # fmt: skip
    bad, good = (row["measures"] for row in found["runs"])
    assert bad["Holes@3"]["mean"] == pytest.approx(1 / 3) and good["Holes@3"]["mean"] == 0
    assert "Overlap@3" not in bad
    assert good["Overlap@3"]["mean"] == pytest.approx(2 / 3)
    assert good["Overlap@1"]["mean"] == 0 and "p_t" not in good["Overlap@1"]
    shown = world("eval", "bad.trec", "good.trec", "--measures", "Overlap@3").stdout
    assert "0.6667" in shown, "two runs are compared without labels"


def test_answers(world, dataset):
    queries = jsonl(dataset / "queries.jsonl")
    texts = {passage.doc_id: passage.text for passage in read_corpus(dataset / "corpus.jsonl")}
    for query in queries[24:31]:  # the second word of a text is in no other one
        number = query["_id"][1:]
        assert f"word{number} " in texts[f"d{number}"]
        query["metadata"] = {"answers": [f"WORD{number}"]}
    queries[24]["metadata"] = {"answers": ["(", r"word\d+"]}
    write_jsonl(dataset / "queries.jsonl", queries)
    measures = ["--measures", "Answers@1 Answers@3 RegexAnswers@1"]
    found = evaluated(world, "bad.trec", *DEV, *measures)
    assert found["queries"] == 8
    means = {name: value["mean"] for name, value in found["runs"][0]["measures"].items()}
    assert means == {"Answers@1": 0, "Answers@3": 6 / 8, "RegexAnswers@1": 1 / 8}
    found = world("eval", "bad.trec", *DEV, *measures)
    assert "1 of 8 judged queries have no answer; they count as 0" in found.stderr
    assert "the first is '(' of query 'q24'" in found.stderr
    # without labels the queries with answers are judged
    found = evaluated(world, "bad.trec", "--data", "data", *measures)
    assert (found["queries"], found["qrels"]) == (7, None)
    assert found["runs"][0]["measures"]["Answers@3"]["mean"] == pytest.approx(6 / 7)


def test_cases(world):
    write_run(world.cwd / "mixed.trec", lambda q: [q] if q < 26 else [40, 41, q])
    cases = ["bad.trec", "mixed.trec", *DEV, "--measures", "RR@10", "--cases", 1]
    found = evaluated(world, *cases)["runs"][1]["cases"]
    assert found["measure"] == "RR@10" and found["losses"] == []
    (case,) = found["wins"]
    assert (case["query_id"], case["first"], case["second"]) == ("q24", pytest.approx(1 / 3), 1.0)
    assert case["query"] == "river word24"
    seen = [(d["doc_id"], d["relevance"], d["first_rank"], d["second_rank"])
            for d in case["documents"]]  # fmt: skip
    assert seen == [("d24", 1, 3, 1), ("d27", 0, 1, None), ("d40", None, 2, None),
                    ("d32", 1, None, None)]  # fmt: skip
    assert case["documents"][0]["title"] == "river 24"
    assert case["documents"][0]["text"].startswith("river word24 ")
    shown = world("eval", *cases).stdout
    assert "mixed.trec better than bad.trec by RR@10" in shown
    assert "q24  0.3333 -> 1.0000  river word24" in shown
    assert "rank 3 -> 1  label 1  d24" in shown and "river 24 - river word24" in shown
    assert "mixed.trec worse than bad.trec by RR@10: no query" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bad.trec"], "--measures: RR@10 needs a file of labels"),
        (["bad.trec", *QRELS, "--measures", "Overlap@3"], "Overlap@3 needs another run"),
        (["bad.trec", *QRELS, "--measures", "Answers@3"], "Answers@3 needs a dataset's answers"),
        (["bad.trec", *QRELS, "--cases", 1], "--cases needs at least two runs"),
        (["bad.trec", "good.trec", *QRELS, "--cases", 1], "--cases needs the texts of a dataset"),
        (["bad.trec", "good.trec", *DEV, "--cases", -1], "--cases must not be negative"),
        (["bad.trec", "good.trec", *DEV, "--cases", 1, "--measures", "Overlap@1 RR@10"],
         "Overlap@1 is not measured for the "),
    ],
)  # fmt: skip
def test_what_eval_cannot_do(world, arguments, words):
    assert words in world("eval", *arguments, code=2).stderr


def test_a_refresh_measures_by_labels_alone(world, checkpoint):
    world("train-segment", "--data", "data", "--ckpt", checkpoint, "--steps", 0, "--total-steps", 1,
          "--negatives-per-positive", 0, "--in-batch", "all", "-o", "run")  # fmt: skip
    found = world("refresh", "run", "--measures", "RR@10 Overlap@10", code=2)
    assert "Overlap@10 needs another run" in found.stderr


# ---------------------------------------------------------------- rerank


def scores_of(path):
    return {(q, d): score for q, hits in read_run(path).items() for d, score in hits.items()}


def same_scores(found, expected):
    assert found and found.keys() <= expected.keys()
    pairs = list(found)
    assert [found[p] for p in pairs] == pytest.approx([expected[p] for p in pairs], rel=1e-5)


@pytest.mark.parametrize("model", ["checkpoint", "two_towers"])
@pytest.mark.parametrize("settings", [[], ["--segmentation", "special", "--passage-length", 8]])
def test_reranked_scores_are_those_of_the_search(world, request, model, settings):
    ckpt = ["--ckpt", request.getfixturevalue(model), *settings, "--dtype", "fp32"]
    world("encode", *ckpt, "--data", "data", "--output-dtype", "float32", "-o", "emb")
    world("search", *ckpt, "--embeddings", "emb", *DEV, "--depth", 64, "-o", "all.trec")
    searched = scores_of(world.cwd / "all.trec")
    world("search", "--engine", "bm25s", *DEV, "--depth", 9, "-o", "bm25.trec")
    for name, vectors in (("stored", ["--embeddings", "emb"]), ("encoded", [])):
        world("rerank", "bm25.trec", "--data", "data", *ckpt, *vectors, "--depth", 7,
              "-o", f"{name}.trec")  # fmt: skip
        found = scores_of(world.cwd / f"{name}.trec")
        same_scores(found, searched)
        given = read_run(world.cwd / "bm25.trec")
        assert read_run(world.cwd / f"{name}.trec").keys() == given.keys()
        for query_id, hits in given.items():  # bm25s lists are in the order in which they rank
            kept = {d for q, d in found if q == query_id}
            assert kept == set(list(hits)[:7])


def test_a_block_of_passages_more_or_less_changes_nothing(world, checkpoint, monkeypatch):
    from ance_cli.retrieval import rerank

    command = ["rerank", "good.trec", "--data", "data", "--ckpt", checkpoint, "--dtype", "fp32"]
    world(*command, "-o", "whole.trec")
    monkeypatch.setattr(rerank, "_BLOCK", 5)
    world(*command, "-o", "blocks.trec")
    found = [scores_of(world.cwd / f"{name}.trec") for name in ("blocks", "whole")]
    same_scores(*found)
    assert found[0].keys() == found[1].keys()


def test_a_cross_encoder_reads_each_query_with_each_passage(world, tmp_path_factory):
    from ance_cli.models.cross_encoder import CrossEncoder

    folder = make_cross_encoder(tmp_path_factory.mktemp("cross"))
    command = ["rerank", "bad.trec", "--data", "data", "--cross-encoder", folder, "--depth", 2,
               "-o", "cross.trec"]  # fmt: skip
    world(*command)
    found = scores_of(world.cwd / "cross.trec")
    queries = read_queries(world.cwd / "data" / "queries.jsonl")
    passages = {p.doc_id: p for p in read_corpus(world.cwd / "data" / "corpus.jsonl")}
    pairs = [(f"q{q}", d) for q in range(24, 32) for d in (f"d{q + 3}", "d40")]
    texts = [(queries[q], passages[d].joined(" ")) for q, d in pairs]
    expected = CrossEncoder(folder).scores(texts)
    assert np.ptp(expected) > 0.01
    assert found == pytest.approx(dict(zip(pairs, expected.tolist(), strict=True)), abs=1e-4)
    assert "up to date" in world(*command).stderr
    world(*command[:-1], "short.trec", "--pair-length", 8)
    short = CrossEncoder(folder, max_length=8).scores(texts)
    assert not np.allclose(short, expected, atol=1e-3)
    cut = scores_of(world.cwd / "short.trec")
    assert cut == pytest.approx(dict(zip(pairs, short.tolist(), strict=True)), abs=1e-4)
    command[7] = 3
    assert "exists with other settings: depth 2 -> 3" in world(*command, code=4).stderr


@pytest.mark.long
def test_rerank_goes_through_pipes(world, ance, checkpoint):
    command = ["--data", "data", "--ckpt", checkpoint, "--tag", "mine"]
    world("rerank", "bad.trec", *command, "-o", "file.trec")
    piped = ance("rerank", "-", *command, "-o", "-", stdin=(world.cwd / "bad.trec").read_text())
    assert piped.stdout == (world.cwd / "file.trec").read_text()
    assert piped.stdout.split()[5] == "mine"


def test_what_rerank_refuses(world, checkpoint, two_towers):
    world("encode", "--ckpt", two_towers, "--data", "data", "--passage-length", 9, "-o", "emb")
    (world.cwd / "query.trec").write_text("nobody Q0 d1 1 2.0 t\n")
    (world.cwd / "doc.trec").write_text("q24 Q0 nowhere 1 2.0 t\n")
    rerank = ["--data", "data", "-o", "out.trec"]
    ckpt = ["--ckpt", checkpoint]
    for arguments, words, code in (
        (["bad.trec"], "exactly one scorer: --ckpt DIR or --cross-encoder DIR", 2),
        (["bad.trec", *ckpt, "--cross-encoder", "x"], "exactly one scorer: --ckpt DIR", 2),
        (
            ["bad.trec", "--cross-encoder", "x", "--embeddings", "emb"],
            "--embeddings needs --ckpt",
            2,
        ),
        (["bad.trec", *ckpt, "--pair-length", 64], "--pair-length needs --cross-encoder", 2),
        (["bad.trec", *ckpt, "--depth", 0], "--depth must be at least 1", 2),
        (["bad.trec", *ckpt, "--tag", "a b"], "--tag must be one word", 2),
        (["query.trec", *ckpt], "query.trec: query 'nobody' is not among the queries", 3),
        (["doc.trec", *ckpt], "doc.trec: document 'nowhere' is not in the corpus", 3),
        (["bad.trec", "--cross-encoder", checkpoint], "a dual encoder cannot score pairs", 3),
        (["bad.trec", *ckpt, "--embeddings", "emb"], "made by another passage encoder", 4),
    ):
        found = world("rerank", *arguments, *rerank, code=code)
        assert words in f"{found.stderr} {found.stdout}", arguments
    assert not list(world.cwd.glob("out.trec*"))


# ---------------------------------------------------------------- fuse


def test_fuse(world):
    world("fuse", "bad.trec", "good.trec", "-o", "rrf.trec")
    found = read_run(world.cwd / "rrf.trec")["q24"]
    assert found == pytest.approx(
        {"d24": 1 / 63 + 1 / 61, "d27": 1 / 61 + 1 / 63, "d40": 1 / 62, "d32": 1 / 62}, abs=1e-9
    )
    world("fuse", "bad.trec", "good.trec", "--method", "sum", "--weights", "1,0.5", "--depth", 3,
          "-o", "sum.trec")  # fmt: skip
    found = read_run(world.cwd / "sum.trec")["q24"]
    assert found == pytest.approx({"d27": 1.0, "d24": 0.5, "d40": 0.5})
    assert (world.cwd / "sum.trec").read_text().startswith("q24 Q0 d27 1 1.000000000 ance\n")
    again = world("fuse", "bad.trec", "good.trec", "--method", "sum", "--weights", "1,0.5",
                  "--depth", 3, "-o", "sum.trec")  # fmt: skip
    assert "up to date" in again.stderr
    found = world("fuse", "bad.trec", "good.trec", "-o", "sum.trec", code=4)
    assert 'engine "fuse-sum" -> "fuse-rrf"' in found.stderr


def test_a_fused_run_keeps_deep_ranks_apart(world):
    for name in ("one", "two"):
        write_run(world.cwd / f"{name}.trec", lambda q: range(1200), base=2000)
    world("fuse", "one.trec", "two.trec", "-o", "deep.trec")
    lines = (world.cwd / "deep.trec").read_text().splitlines()[:1000]
    assert [line.split()[2] for line in lines] == [f"d{n}" for n in range(1000)]


def test_what_fuse_refuses(world):
    for arguments, words in (
        (["bad.trec"], "fusing needs at least two runs"),
        (["-", "-"], "stdin (-) is named twice"),
        (["bad.trec", "good.trec", "--weights", "1"], "--weights '1': expected 2 numbers"),
        (["bad.trec", "good.trec", "--weights", "1,inf"], "expected 2 numbers"),
        (["bad.trec", "good.trec", "--weights", "1,x"], "expected 2 numbers"),
        (["bad.trec", "good.trec", "--rrf-k", -1], "--rrf-k must not be negative"),
    ):
        assert words in world("fuse", *arguments, "-o", "out.trec", code=2).stderr
    assert not list(world.cwd.glob("out.trec*"))


@pytest.mark.long
@pytest.mark.realdata
def test_the_reranker_of_the_paper_puts_the_answer_first(world, test_data, test_weights):
    """A real cross-encoder over the worst half of a real ranking: relevant passages rise."""
    data = test_data / "msmarco_nq_samples"
    (qrels,) = (data / "qrels").glob("*.tsv")
    positives = {query_id: next(iter(docs)) for query_id, docs in read_qrels(qrels).items()}
    negatives = {row["qid"]: list(dict.fromkeys(row["neg"])) for row in jsonl(data / NEGATIVES)}
    (world.cwd / "last.trec").write_text("".join(
        f"{q} Q0 {d} 1 {score} t\n" for q, positive in positives.items()
        for score, d in enumerate([positive, *negatives[q][:4]])
    ))  # fmt: skip
    assert len(positives) == 20
    world("rerank", "last.trec", "--data", data, "--cross-encoder",
          test_weights / "ms-marco-MiniLM-L-12-v2", "-o", "first.trec")  # fmt: skip
    before, after = (
        row["measures"]["RR@10"]["mean"]
        for row in evaluated(world, "last.trec", "first.trec", "--qrels", qrels,
                             "--measures", "RR@10")["runs"]
    )  # fmt: skip
    assert before < 0.4 and after > 0.6
