"""The settings in the manifests of mining: another key or value would make every existing artifact
out of date."""

import pytest

from ance_cli.call import Call
from ance_cli.config import Bm25Config, ClusterConfig, MineConfig, RefreshConfig
from ance_cli.config.setting import declared
from ance_cli.formats.dataset import locate
from ance_cli.formats.hashing import hash_file
from ance_cli.formats.plan import Plan
from ance_cli.mining.bm25_negatives import bm25_negatives
from ance_cli.mining.mine import mine
from ance_cli.mining.mining_job import MiningFiles, MiningJob
from ance_cli.mining.negatives_output import NegativesFiles
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.retrieval.dense import VectorSource

DRAWING = {
    "negatives": 20, "sampler": "uniform", "sampler_temperature": 1.0, "simans_a": 0.5,
    "simans_b": 0.0, "range_min": 0, "range_max": None, "min_score": None, "max_score": None,
    "absolute_margin": None, "relative_margin": None, "answers": False, "teacher_max": None,
    "teacher_pairs": 0, "pair_length": 512, "engine": "lucene", "k1": 0.9, "b": 0.4, "seed": 42,
    "min_rel": 1, "with_text": False,
}  # fmt: skip
MINED = {**DRAWING, "depth": 200, "mix": "ann", "probes": None, "audit_bm25": False,
         "dtype": "auto", "checkpoint_step": 0}  # fmt: skip
DRY = Call(dry_run=True)
SUMMARY = ("output", "kind", "up_to_date", "dry_run")


def settings(summary):
    return {name: value for name, value in summary.items() if name not in SUMMARY}


@pytest.fixture
def mining(tmp_path, dataset, checkpoint):
    """The arguments of `mine`, with embeddings of which only the manifest exists."""
    opened, data = Checkpoint(checkpoint), locate(dataset, "train")
    inputs = {"tower": opened.tower_hash("passage"), "corpus": hash_file(data.corpus)}
    plan = Plan("embeddings", tmp_path / "emb", {}, inputs)
    plan.open_partial()
    plan.publish_folder(
        {"rows": 64, "docs": 64, "dim": 32, "dtype": "float16", "block_docs": 64,
         "block_xxh3": [], "ids_xxh3": ""}, {},
    )  # fmt: skip
    vectors = VectorSource(plan.output, "embeddings")
    return opened, data, vectors, MiningFiles(tmp_path / "ann.jsonl")


def test_the_settings_of_mined_negatives(mining):
    assert settings(mine(*mining, MineConfig(), call=DRY)) == MINED


def test_the_settings_of_candidates(mining):
    job = MiningJob(*mining, MineConfig(probes=3, sampler="top"), ClusterConfig(dtype="fp32"), DRY)
    candidates, _ = job.plans()
    assert candidates.shaped_by == {"depth": 200, "dtype": "fp32", "probes": 3, "min_rel": 1}
    assert sorted(candidates.inputs) == ["corpus", "qrels", "queries", "query_tower", "vectors"]


def test_the_negatives_of_a_refresh_have_only_the_settings_of_mining(mining):
    config = RefreshConfig(dev_depth=7, relative_margin=0.05, index_factory="Flat")
    assert settings(mine(*mining, config, call=DRY)) == {**MINED, "relative_margin": 0.05}


def test_the_settings_of_bm25_negatives(dataset, tmp_path):
    data, files = locate(dataset, "train"), NegativesFiles(tmp_path / "bm25.jsonl")
    found = bm25_negatives(data, files, call=DRY)
    assert settings(found) == {**DRAWING, "depth": 100, "mix": "bm25"}
    assert {each.name for each in declared(Bm25Config)} - found.keys() == {"teacher"}
