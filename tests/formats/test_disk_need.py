"""The disk space of a run: counted by part, and estimated in advance."""

from dataclasses import replace

from ance_cli.formats.retention import Extent, disk_need, disk_use
from ance_cli.formats.run_folder import RunFolder

PAPER = Extent(
    num_docs=8_841_823, rows_per_doc=1, dim=768, id_bytes=7, num_queries=502_939,
    num_pairs=532_761, num_dev_queries=6_980, num_guard_docs=0, num_guard_queries=0, depth=200,
    negatives=20, dev_depth=100, weight_bytes=4 * 125_000_000, num_checkpoints=61,
    num_log_lines=60_000, keep=2, has_index=False,
)  # fmt: skip


def test_the_parts_of_a_run_on_the_papers_corpus():
    need = disk_need(PAPER)
    one = 8_841_823 * 768 * 2
    assert 3 * one < need["embeddings"] < 3.1 * one
    assert need["index"] == 0
    assert need["checkpoints"] == 62 * PAPER.weight_bytes
    assert need["states"] == 9 * PAPER.weight_bytes
    assert need["all"] == sum(size for name, size in need.items() if name != "all")
    maxp = disk_need(replace(PAPER, rows_per_doc=4, has_index=True))
    assert maxp["embeddings"] > 12 * one and maxp["index"] > 24 * one
    assert disk_need(replace(PAPER, keep=1))["embeddings"] * 3 == need["embeddings"] * 2
    guarded = disk_need(replace(PAPER, num_guard_docs=8_841_823, num_guard_queries=6_980))
    assert guarded["embeddings"] * 3 == need["embeddings"] * 4, "one copy of its vectors"
    assert guarded["records"] - need["records"] == 61 * 6_980 * 100 * 44


def test_every_file_counts_once_and_with_its_part(tmp_path):
    files = {
        "checkpoints/step-1/model": "checkpoints",
        "checkpoints/.step-2.partial/model": "checkpoints",
        "state/step-1/weights": "states",
        "generations/0001/embeddings/embeddings.npy": "embeddings",
        "generations/.0002.partial/.embeddings.partial/embeddings.npy": "embeddings",
        "generations/0001/.embeddings.removed/ids.txt": "embeddings",
        "generations/.0002.partial/guard-embeddings/ids.txt": "embeddings",
        "generations/.0002.partial/.guard-embeddings.partial/ids.txt": "embeddings",
        "generations/0001/index/index": "index",
        "generations/0001/candidates/rows.npy": "candidates",
        "generations/0001/negatives.jsonl": "records",
        "inputs/bm25/x/rows.npy": "records",
        "run.json": "records",
    }
    expected = dict.fromkeys(disk_need(PAPER), 0)
    for size, (name, part) in enumerate(files.items(), start=1):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
        expected[part] += size
        expected["all"] += size
    assert disk_use(RunFolder(tmp_path)) == expected
