"""A checkpoint as mteb's encoder, and which tasks it is measured on."""

import sys
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("mteb")

from ance_cli.config import ComputeConfig
from ance_cli.errors import UsageProblem
from ance_cli.evaluation.mteb_tasks import MtebEncoder, evaluate_on_mteb, find_tasks
from ance_cli.formats.dataset import Passage
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.dual import load_dual, save_dual
from ance_cli.models.texts import TextEncoder
from ance_cli.progress import Silent
from tests.mteb_task import add_task, retrieval_task
from tests.world import make_dataset

FP32 = ComputeConfig(dtype="fp32", gpus="none")


@pytest.fixture
def prompted(two_towers, tmp_path):
    """Two different towers, with prompts and a template of their own."""
    start = Checkpoint(two_towers)
    settings = replace(start.settings, query_prefix="river ", passage_prefix="bread ",
                       passage_template="{text} of {title|none}")  # fmt: skip
    save_dual(load_dual(start), settings, tmp_path / "prompted")
    return Checkpoint(tmp_path / "prompted")


def same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_each_kind_of_text_gets_the_vectors_of_its_side(prompted):
    query, passage = (TextEncoder(prompted, side, FP32) for side in ("query", "passage"))
    encoder = MtebEncoder(prompted, FP32, Silent())
    texts = ["violin word3", "old comet"]
    batches = [{"text": texts}, {"text": ["falcon"]}]
    same(encoder.encode(batches, prompt_type="query"), query([*texts, "falcon"])[0])
    same(encoder.encode(batches), passage([*texts, "falcon"])[0])
    assert not np.allclose(query(texts)[0], passage(texts)[0], atol=1e-3)
    documents = [{"text": ["comet 5 old", "new"], "body": ["old", "new"], "title": ["comet 5", ""]}]
    joined = [prompted.settings.text_of(Passage("", *each)) for each in (("comet 5", "old"),
              ("", "new"))]  # fmt: skip
    assert joined == ["old of comet 5", "new of none"]
    same(encoder.encode(documents, prompt_type="document"), passage(joined)[0])
    untitled = [{"text": ["new"], "body": ["new"]}]
    same(encoder.encode(untitled, prompt_type="document"), passage(joined[1:])[0])


def test_similarities_are_inner_products(prompted):
    encoder = MtebEncoder(prompted, FP32, Silent())
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 4)).astype(np.float32)
    same(encoder.similarity(a, b), a @ b.T)
    same(encoder.similarity_pairwise(a, b), (a * b).sum(1))


def test_a_benchmark_is_its_tasks_and_each_is_measured_once():
    found = [task.metadata.name for task in find_tasks(["NanoNQRetrieval", "NanoBEIR"])]
    assert found[0] == "NanoNQRetrieval" and len(found) == len(set(found)) == 13
    assert "NanoTouche2020Retrieval" in found


@pytest.mark.parametrize(
    ("name", "words", "hint"),
    [
        ("NanoBIER", "mteb has no such task or benchmark", "did you mean NanoBEIR"),
        ("zzzzzzzzzz", "mteb has no such task or benchmark", "mteb available-tasks"),
        ("Birdsnap", "a task of type ImageClassification on image", "leave the task out"),
    ],
)
def test_tasks_that_cannot_be_measured(name, words, hint):
    with pytest.raises(UsageProblem, match=words) as caught:
        find_tasks([name])
    assert hint in caught.value.hint


def test_a_model_with_several_vectors_for_a_passage_is_refused(checkpoint, dataset, monkeypatch):
    name = add_task(monkeypatch, retrieval_task(dataset, "LocalRetrieval"))
    maxp = Checkpoint(checkpoint).with_settings(segmentation="special", max_segments=3)
    with pytest.raises(UsageProblem, match=r"several vectors for a passage \(MaxP\)"):
        evaluate_on_mteb(maxp, [name])


def test_tasks_of_other_types_work_too(checkpoint, monkeypatch):
    from mteb.mocks.mock_tasks.classification import MockClassificationTask
    from mteb.mocks.mock_tasks.clustering import MockClusteringTask
    from mteb.mocks.mock_tasks.pair_classification import MockPairClassificationTask
    from mteb.mocks.mock_tasks.reranking import MockRerankingTask
    from mteb.mocks.mock_tasks.sts import MockSTSTask

    classes = (MockClassificationTask, MockClusteringTask, MockPairClassificationTask,
               MockRerankingTask, MockSTSTask)  # fmt: skip
    names = [add_task(monkeypatch, cls) for cls in classes]
    found = evaluate_on_mteb(Checkpoint(checkpoint), names, compute=FP32)
    assert [row["task"] for row in found["tasks"]] == names
    assert found["mean"] == pytest.approx(np.mean([row["score"] for row in found["tasks"]]))


def test_a_task_of_several_tasks_counts_once(spread_checkpoints, dataset, monkeypatch):
    from mteb.abstasks.aggregate_task_metadata import AggregateTaskMetadata
    from mteb.abstasks.aggregated_task import AbsTaskAggregate

    other = make_dataset(dataset.with_name("other"))
    (other / "qrels" / "train.tsv").replace(other / "qrels" / "dev.tsv")
    parts = [retrieval_task(folder, f"{folder.name}Retrieval") for folder in (dataset, other)]
    names = [add_task(monkeypatch, part) for part in parts]

    class Both(AbsTaskAggregate):
        metadata = AggregateTaskMetadata(
            name="BothRetrieval", description="Both collections.", reference=None,
            tasks=[part() for part in parts], main_score="ndcg_at_10", type="Retrieval",
            eval_splits=["dev"], bibtex_citation="",
        )  # fmt: skip

    checkpoint = Checkpoint(spread_checkpoints["dot"])
    one, two = evaluate_on_mteb(checkpoint, names, compute=FP32)["tasks"]
    monkeypatch.setattr(MtebEncoder, "encode", lambda *_, **__: 1 / 0)  # all is in the cache
    found = evaluate_on_mteb(checkpoint, [add_task(monkeypatch, Both)], compute=FP32)
    assert found["mean"] == pytest.approx((one["score"] + two["score"]) / 2, abs=1e-5)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(UsageProblem, match="the package mteb, which is not installed") as caught:
        find_tasks(["NanoBEIR"])
    assert caught.value.hint == "pip install 'ance-cli[mteb]'"
