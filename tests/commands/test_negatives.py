"""Ways of drawing negatives, through the binary: sources, samplers, filters, answers, a teacher."""

import json
import math
from types import SimpleNamespace

import pytest

from ance_cli.formats.plan import Plan
from ance_cli.loop.commands import as_flags
from tests.commands.test_chain import check_negatives
from tests.world import Ance, AnceInside, jsonl, make_cross_encoder, make_dataset, tree, write_jsonl

EVERYTHING = [
    "--mix", "ann:3,bm25:2,lookahead:2,random:1", "--engine", "bm25s", "--depth", 20,
    "--negatives", 8,
]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory, checkpoint):
    """Embeddings of the small dataset, whose queries have answers, and candidates in `first`."""
    folder = tmp_path_factory.mktemp("negatives")
    make_dataset(folder / "data")
    queries = jsonl(folder / "data" / "queries.jsonl")
    for number, query in enumerate(queries[:-1]):
        query["metadata"] = {"answers": [f"word{(number + 5) % 60}", f"word{(number + 11) % 60}"]}
    write_jsonl(folder / "data" / "queries.jsonl", queries)
    make_cross_encoder(folder / "teacher")
    program = AnceInside(folder)
    program("encode", "--ckpt", checkpoint, "--data", "data", "-o", "emb", "--output-dtype",
            "float32")  # fmt: skip
    mine = ["mine", "--ckpt", checkpoint, "--data", "data", "--embeddings", "emb"]
    program(*mine, "--depth", 20, "--negatives", 4, "-o", "first.jsonl")
    return SimpleNamespace(ance=program, mine=mine, data=folder / "data", cwd=folder)


def drawn(world, name, count):
    """The records of a file and its audit, after a look for positives and copies."""
    records = jsonl(world.cwd / f"{name}.jsonl")
    check_negatives(records, world.data, count)
    return records, json.loads((world.cwd / f"{name}.audit.json").read_text())


def test_every_source_at_once(world):
    found = world.ance(*world.mine, *EVERYTHING, "--audit-bm25", "-o", "all.jsonl")
    for words in ("source", "lookahead", "negative scores", "overlap with bm25 top 100"):
        assert words in found.stderr
    records, audit = drawn(world, "all", 8)
    assert audit["by_source"] == {"ann": 144, "bm25": 96, "lookahead": 96, "random": 48}
    assert audit["overlap_with_bm25_top_100"] >= 0.25
    for record in records:
        assert all(score is not None for score in record["negative_scores"])
        found = [score for score, source in zip(
            record["negative_scores"], record["sources"], strict=True) if source == "ann"
        ]  # fmt: skip
        assert found == sorted(found, reverse=True)  # ANN's ranking is by the same scores
    # the same again, on other threads, from nothing: not a byte differs
    world.ance(*world.mine, *EVERYTHING, "--audit-bm25", "--threads", 2, "-o", "again.jsonl",
               "--cache-dir", "cache2")  # fmt: skip
    assert (world.cwd / "all.jsonl").read_bytes() == (world.cwd / "again.jsonl").read_bytes()
    assert tree(world.cwd / "all.candidates").keys() == tree(world.cwd / "again.candidates").keys()


def test_simans_and_margins_with_the_generation_before(world):
    world.ance(*world.mine, "--mix", "previous:1,ann:1", "--previous", "first.candidates",
               "--sampler", "simans", "--simans-a", 2, "--simans-b", -0.1, "--depth", 20,
               "--absolute-margin", "0", "--relative-margin", "0", "--range-min", 1,
               "--range-max", 18, "--negatives", 4, "-o", "margins.jsonl")  # fmt: skip
    records, audit = drawn(world, "margins", 4)
    lowest = {}
    for record in records:
        score = record["positive_score"]
        lowest[record["query_id"]] = min(score, lowest.get(record["query_id"], score))
    for record in records:
        assert all(s <= lowest[record["query_id"]] + 1e-5 for s in record["negative_scores"])
        assert all(1 < rank <= 18 for rank in record["negative_ranks"])
    assert audit["missing_by_source"]  # few score below: they are not topped up
    assert set(audit["removed_from_candidates"]["previous"]) == {
        "positives", "copies_of_positives", "range_min", "range_max", "absolute_margin",
        "relative_margin",
    }  # fmt: skip


def test_weighted_within_limits_of_score(world):
    scores = [s for record in jsonl(world.cwd / "first.jsonl") for s in record["negative_scores"]]
    low, high = sorted(scores)[len(scores) // 10], sorted(scores)[len(scores) // 2]
    world.ance(*world.mine, "--mix", "ann:1,random:1", "--sampler", "weighted",
               "--sampler-temperature", 0.01, "--min-score", low, "--max-score", high, "--depth",
               20, "--negatives", 4, "-o", "limits.jsonl")  # fmt: skip
    records, audit = drawn(world, "limits", 4)
    kept = [score for record in records for score in record["negative_scores"]]
    assert kept and all(low - 1e-5 <= score <= high + 1e-5 for score in kept)
    assert audit["removed_from_candidates"]["random"]["min_score"] > 0


def test_answers_and_a_teacher(world):
    mine = [*world.mine, "--mix", "ann:1,random:1", "--depth", 20, "--negatives", 6]
    found = world.ance(*mine, "--answers", "--teacher", "teacher", "--teacher-max", 0.5,
                       "-o", "judged.jsonl")  # fmt: skip
    assert "teacher" in found.stderr and "1 of" not in found.stderr
    records, audit = drawn(world, "judged", 6)
    texts = {doc["_id"]: doc["text"].split() for doc in jsonl(world.data / "corpus.jsonl")}
    for record in records:
        number = int(record["query_id"][1:])
        for doc_id in record["negative_ids"]:
            assert not {f"word{number + 5}", f"word{number + 11}"}.intersection(texts[doc_id])
        assert len(record["teacher_scores"]) == len(record["negative_ids"])
        assert all(1 / (1 + math.exp(-logit)) <= 0.5 for logit in record["teacher_scores"])
        assert isinstance(record["teacher_positive_score"], float)
    removed = audit["removed_from_candidates"]
    assert removed["ann"]["answers"] + removed["random"]["answers"] > 0
    assert audit["teacher"]["judged_negatives"] == audit["negatives"] + sum(
        rules["teacher"] for rules in removed.values()
    )
    assert audit["teacher"]["share_above_probability"] > 0
    assert "up to date" in world.ance(
        *mine, "--answers", "--teacher", world.cwd / "teacher", "--teacher-max", 0.5,
        "-o", "judged.jsonl",
    ).stderr  # fmt: skip


def test_bm25_negatives_take_a_teacher_for_some_pairs(world):
    command = ["bm25-negatives", "--data", "data", "--engine", "bm25s", "--sampler", "weighted",
               "--depth", 20, "--negatives", 3, "--teacher", "teacher", "--teacher-pairs",
               5]  # fmt: skip
    world.ance(*command, "-o", "bm25.jsonl")
    records, audit = drawn(world, "bm25", 3)
    judged = [record for record in records if "teacher_positive_score" in record]
    assert len(judged) == 5
    assert audit["teacher"]["judged_negatives"] == sum(len(r["negative_ids"]) for r in judged)
    world.ance(*command, "--pair-length", 8, "-o", "short.jsonl")
    short, _ = drawn(world, "short", 3)
    assert [r["negative_ids"] for r in short] == [r["negative_ids"] for r in records]
    assert [r.get("teacher_scores") for r in short] != [r.get("teacher_scores") for r in records]


def test_what_the_mix_does_not_name_is_not_searched(world):
    found = Ance(world.cwd)("bm25-negatives", "--data", "data", "--mix", "random", "--negatives", 3,
                       "-o", "random.jsonl", JAVA_HOME="/nowhere")  # fmt: skip
    assert "BM25" not in found.stderr
    found = world.ance(*world.mine, "--mix", "random", "--depth", 20, "--negatives", 3,
                       "-o", "corpus.jsonl")  # fmt: skip
    for name in ("random", "corpus"):
        records, _ = drawn(world, name, 3)
        assert {source for record in records for source in record["sources"]} == {"random"}
    world.ance(*world.mine, "--mix", "ann:1,lookahead:1", "--negatives", 0, "-o", "none.jsonl")
    records, audit = drawn(world, "none", 0)
    assert audit["negatives"] == audit["negatives_missing"] == 0
    assert not list(world.cwd.glob("corpus.candidates")) + list(world.cwd.glob("none.candidates"))


USAGE = [
    (["--previous", "first.candidates"], "--mix ann does not draw from it"),
    (["--mix", "previous", "--previous", "no.candidates"],
     "this call would write its own candidates there"),
    (["--mix", "previous"], "there are no earlier candidates to draw from"),
    (["--mix", "ann,web"], "--mix 'ann,web': cannot read 'web'"),
    (["--range-min", 20, "--range-max", 9, "--depth", 30], "--range-max 9 must be greater than"),
    (["--range-min", 30, "--depth", 30], "--range-min 30 must be less than --depth 30"),
    (["--sampler-temperature", 0], "--sampler-temperature must be greater than 0"),
    (["--simans-a", -1], "--simans-a must not be negative"),
    (["--min-score", 2, "--max-score", 1], "--min-score must not be greater"),
    (["--teacher-max", 0.5], "--teacher-max and --teacher-pairs need --teacher"),
    (["--teacher", "teacher", "--teacher-max", 1.5], "--teacher-max must be between 0 and 1"),
    (["--teacher", "teacher", "--teacher-max", 0.5, "--teacher-pairs", 3], "--teacher-pairs 0"),
    (["--pair-length", 64], "--pair-length needs --teacher"),
    (["--teacher", "teacher", "--pair-length", 7], "--pair-length must be at least 8"),
    (["--negatives", -1], "--negatives must not be negative"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "words"), USAGE, ids=lambda value: str(value)[:40])
def test_what_cannot_be_is_refused(world, flags, words):
    assert words in world.ance(*world.mine, *flags, "-o", "no.jsonl", code=2).stderr
    assert not list(world.cwd.glob("no.*"))


def test_an_index_has_no_scores_for_what_it_did_not_find(world):
    world.ance("index", "emb", "-o", "index")
    mine = [*world.mine[:-2], "--index", "index", "--engine", "bm25s", "-o", "no.jsonl"]
    for flags, words in (
        (["--sampler", "simans"], "--sampler simans compares with the positive's score"),
        (["--absolute-margin", 1], "a margin compares with the positive's score"),
        (["--mix", "lookahead"], "the source lookahead searches with the vectors"),
        (["--mix", "ann,bm25", "--sampler", "weighted"], "the source bm25 has none"),
        (["--mix", "ann,random", "--max-score", 1], "the source random has none"),
    ):
        found = world.ance(*mine, *flags, code=2).stderr
        assert words in found and "--embeddings DIR" in found
    mine[-1] = "indexed.jsonl"
    world.ance(*mine, "--mix", "ann,bm25,random", "--depth", 20, "--negatives", 6)
    for record in drawn(world, "indexed", 6)[0]:
        scored = [score is not None for score in record["negative_scores"]]
        assert scored == [source == "ann" for source in record["sources"]]


def test_a_ranking_without_a_model_has_no_score_of_the_positive(world):
    found = world.ance("bm25-negatives", "--data", "data", "--sampler", "simans", "-o", "no.jsonl",
                       code=2)  # fmt: skip
    assert "--sampler simans compares with the positive's score" in found.stderr
    found = world.ance("bm25-negatives", "--data", "data", "--mix", "bm25,random", "--min-score",
                       1, "-o", "no.jsonl", code=2)  # fmt: skip
    assert "the source random has none" in found.stderr


def test_earlier_candidates_of_another_corpus(world):
    plan = Plan("candidates", world.cwd / "other", {}, {"corpus": "0" * 32})
    plan.open_partial()
    plan.publish_folder({}, {})
    found = world.ance(*world.mine, "--mix", "ann,previous", "--previous", "other", "-o",
                       "no.jsonl", code=4)  # fmt: skip
    assert "other: its candidates are of another corpus" in found.stderr


@pytest.mark.slow
def test_a_refresh_and_the_chain_by_hand_draw_the_same(world, checkpoint):
    """Two generations of a mix with everything: BM25 kept in the run, momentum from the first."""
    (world.data / "qrels" / "dev.tsv").unlink()
    mix = ["--mix", "ann:3,previous:2,bm25:2,lookahead:1,random:1", "--engine", "bm25s",
           "--sampler", "simans", "--range-min", 1, "--depth", 20, "--negatives", 5, "--answers",
           "--teacher", "teacher"]  # fmt: skip
    train = ["train-segment", "--data", "data", "--ckpt", checkpoint, "--batch-size", 8, "--lr",
             "1e-3", "--total-steps", 9, "-o", "run"]  # fmt: skip
    world.ance(*train, "--steps", 0)
    found = world.ance("refresh", "run", *mix)
    assert "there are no earlier candidates" in found.stderr
    world.ance("train-segment", "run/generations/0001/negatives.jsonl", "-o", "run", "--steps", 2)
    world.ance("refresh", "run", "--teacher", world.cwd / "teacher")
    kept = json.loads((world.cwd / "run" / "refresh.json").read_text())
    assert kept["teacher"] == str(world.cwd / "teacher")
    assert len(list((world.cwd / "run" / "inputs" / "bm25").glob("*"))) == 1
    second = world.cwd / "run" / "generations" / "0002"
    audit = json.loads((second / "manifest.json").read_text())["stats"]["audit"]
    assert audit["by_source"]["previous"] > 0
    assert audit["churn_against_earlier"] == pytest.approx(1 - audit["overlap_with_earlier"])

    latest = ["--ckpt", "run/latest", "--data", "data"]
    world.ance("encode", *latest, "-o", "emb2")
    world.ance("mine", *latest, "--embeddings", "emb2", *mix, "--previous",
               "run/generations/0001/candidates", "-o", "by-hand.jsonl")  # fmt: skip
    assert (world.cwd / "by-hand.jsonl").read_bytes() == (second / "negatives.jsonl").read_bytes()


def test_a_refresh_refuses_at_once_what_mining_would_refuse_later(inside, dataset, checkpoint):
    inside("train-segment", "--data", "data", "--ckpt", checkpoint, "--steps", 0,
           "--total-steps", 9, "-o", "run")  # fmt: skip
    for flags, code, words in (
        (["--mix", "previous"], 2, "without ann no generation has candidates"),
        (["--mix", "lookahead", "--index-factory", "Flat"], 2, "the source lookahead"),
        (["--answers"], 3, "data/queries.jsonl: no query has an answer"),
        (["--teacher", "data"], 3, "not a cross-encoder folder"),
    ):
        assert words in inside("refresh", "run", *flags, code=code).stderr
        assert not (inside.cwd / "run" / "refresh.json").exists()


def test_switches_are_passed_on_without_a_value():
    values = {"answers": True, "audit_bm25": False, "teacher_max": 0.5, "teacher": None}
    assert as_flags(values) == ["--answers", "--teacher-max", "0.5"]
