from pathlib import Path

from ance_cli.formats.ledgers import Segment
from ance_cli.formats.run_folder import RunFolder
from ance_cli.training.segments import SegmentInput


def segment(record):
    return Segment(segment=1, start_step=0, steps=10, **record)


def test_negatives_inside_a_run_move_with_it(tmp_path):
    old, new = RunFolder(tmp_path / "old"), RunFolder(tmp_path / "new")
    for inside in ("generations/0003/negatives.jsonl", "inputs/0123.jsonl"):
        record = SegmentInput(old.path / inside, "x", 5, 3).facts(old)
        assert record["negatives"] == inside
        found = SegmentInput.of(new, segment(record))
        assert found == SegmentInput(new.path / inside, "x", 5, 3)


def test_negatives_elsewhere_stay_where_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = RunFolder(Path("run"))
    record = SegmentInput(Path("bm25.jsonl"), "x", 0, None).facts(run)
    assert record["negatives"] == str(tmp_path / "bm25.jsonl")  # also from another folder
    assert SegmentInput.of(run, segment(record)).path == tmp_path / "bm25.jsonl"
    nothing = SegmentInput(None, "batch/all", None, None)
    assert SegmentInput.of(run, segment(nothing.facts(run))) == nothing
