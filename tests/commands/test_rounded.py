"""int8 and binary embeddings through the command line: what reads them, and what refuses them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from ance_cli.formats.embeddings import Embeddings
from ance_cli.formats.trec import read_run
from tests.commands.test_chain import check_negatives
from tests.world import AnceInside, jsonl, make_dataset


@pytest.fixture(scope="module")
def world(tmp_path_factory, checkpoint):
    """Embeddings of the small dataset as `float32`, `int8` and `binary`, and the dev queries."""
    folder = tmp_path_factory.mktemp("rounded")
    make_dataset(folder / "data")
    program = AnceInside(folder)
    model = ["--ckpt", checkpoint, "--dtype", "fp32", "--gpus", "none"]
    encode = ["encode", *model, "--data", "data", "--output-dtype"]
    for dtype in ("float32", "int8", "binary"):
        program(*encode, dtype, "-o", dtype)
    program(*encode, "float32", "--split", "dev", "--side", "query", "-o", "queries")
    asked = Embeddings(folder / "queries")
    return SimpleNamespace(
        ance=program, cwd=folder, model=model, dev=["--data", "data", "--split", "dev"],
        query_ids=asked.ids, xq=np.asarray(asked.vectors),
    )  # fmt: skip


def check_run(world, run, name, depth):
    """The best `depth` documents by the vectors of a folder, any of those that tie at the cut."""
    embeddings = Embeddings(world.cwd / name)
    scores = world.xq @ embeddings.rows(np.arange(embeddings.num_rows)).T
    found = read_run(world.cwd / run)
    assert list(found) == world.query_ids
    for row, hits in zip(scores, found.values(), strict=True):
        expected = [float(row[embeddings.ids.index(doc_id)]) for doc_id in hits]
        assert list(hits.values()) == pytest.approx(expected, abs=1e-5)
        assert sorted(hits.values()) == pytest.approx(np.sort(row)[-depth:].tolist(), abs=1e-5)


@pytest.mark.parametrize("dtype", ["int8", "binary"])
def test_a_search_ranks_by_the_vectors_that_are_stored(world, dtype):
    world.ance("search", *world.model, *world.dev, "--embeddings", dtype, "--depth", 7,
               "-o", f"{dtype}.trec")  # fmt: skip
    check_run(world, f"{dtype}.trec", dtype, 7)


@pytest.mark.parametrize("better", ["int8", "float32"])
def test_candidates_by_bits_get_scores_by_better_vectors(world, better):
    """All 64 documents are candidates, so the run is that of a search of the better vectors."""
    world.ance("search", *world.model, *world.dev, "--embeddings", "binary", "--depth", 64,
               "-o", "candidates.trec")  # fmt: skip
    world.ance("rerank", "candidates.trec", "--data", "data", *world.model, "--embeddings", better,
               "-o", f"again-{better}.trec")  # fmt: skip
    check_run(world, f"again-{better}.trec", better, 64)


def test_a_search_rescores_what_it_found_by_bits(world):
    search = ["search", *world.model, *world.dev, "--embeddings", "binary"]
    rescored = [*search, "--depth", 7, "--rescore", "float32"]
    world.ance(*rescored, "--rescore-depth", 64, "-o", "all.trec")
    check_run(world, "all.trec", "float32", 7)
    refusal = world.ance(*search, "--depth", 7, "-o", "all.trec", code=4).stderr
    assert "rescore" in refusal
    world.ance(*rescored, "-o", "some.trec")
    world.ance(*search, "--depth", 28, "-o", "some-candidates.trec")
    candidates = read_run(world.cwd / "some-candidates.trec")
    best = read_run(world.cwd / "all.trec")
    for query_id, hits in read_run(world.cwd / "some.trec").items():
        assert len(hits) == 7 and set(hits) <= set(candidates[query_id])
        assert set(best[query_id]) & set(candidates[query_id]) <= set(hits)


def test_only_vectors_of_the_same_documents_rescore(world):
    lines = (world.cwd / "data" / "corpus.jsonl").read_text().splitlines(keepends=True)
    (world.cwd / "part.jsonl").write_text("".join(lines[:-1]))
    world.ance("encode", *world.model, "--corpus", "part.jsonl", "-o", "part")
    search = ["search", *world.model, *world.dev, "-o", "refused.trec", "--depth", 7]
    for arguments, code, words in (
        (["--embeddings", "binary", "--rescore", "part"], 4,
         "part: the vectors are of another corpus than those of binary"),
        (["--embeddings", "binary", "--rescore-depth", 9], 2, "--rescore-depth needs --rescore"),
        (["--embeddings", "binary", "--rescore", "int8", "--rescore-depth", 6], 2,
         "--rescore-depth 6 is less than --depth 7"),
        (["--engine", "bm25s", "--rescore", "int8"], 2, "--engine bm25s has no vectors"),
    ):  # fmt: skip
        assert words in " ".join(world.ance(*search, *arguments, code=code).stderr.split())
    assert not (world.cwd / "refused.trec").exists()


def test_negatives_are_mined_from_rounded_vectors(world):
    world.ance("mine", *world.model, "--data", "data", "--embeddings", "int8", "--depth", 20,
               "--negatives", 4, "-o", "ann.jsonl")  # fmt: skip
    records = jsonl(world.cwd / "ann.jsonl")
    check_negatives(records, world.cwd / "data", 4)
    assert all(np.isfinite(record["positive_score"]) for record in records)


def test_latencies_are_compared_with_vectors_that_are_not_rounded(world):
    bench = ["bench-search", *world.model, *world.dev, "--depth", 10, "--json"]
    found = json.loads(world.ance(*bench, "binary", "float32", "int8").stdout)["sources"]
    assert [row["searched"] for row in found] == ["exactly, binary", "exactly", "exactly, int8"]
    assert found[1]["recall"] == 1 > found[0]["recall"]
    found = json.loads(world.ance(*bench, "binary", "int8").stdout)["sources"]
    assert found[0]["recall"] == 1, "the first one, if all are rounded"


def test_what_needs_the_vectors_of_the_model_refuses_rounded_ones(world):
    for dtype, arguments, purpose in (
        ("int8", ["diagnose", "-o", "report.json"], "ance diagnose"),
        ("binary", ["train-segment", "--freeze-passages", "--negatives-per-positive", 1,
                    "--steps", 1, "--total-steps", 1, "-o", "run"], "--freeze-passages"),
    ):  # fmt: skip
        found = world.ance(
            *arguments, *world.model, "--data", "data", "--embeddings", dtype, code=4
        )
        words = f"{dtype}: the vectors were rounded to {dtype}, and {purpose} needs them as the"
        assert words in " ".join(found.stderr.split())


def test_another_number_format_is_another_artifact(world):
    encode = ["encode", *world.model, "--data", "data", "-o", "int8", "--output-dtype"]
    found = json.loads(world.ance(*encode, "int8", "--json").stdout)
    assert found["up_to_date"] and 0 < found["recall_at_10_of_float32"] <= 1
    assert 'output_dtype "int8" -> "binary"' in world.ance(*encode, "binary", code=4).stderr
