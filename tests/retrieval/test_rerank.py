"""Reranking as a stage: the progress that it reports."""

from contextlib import contextmanager

import pytest

from ance_cli.call import Call
from ance_cli.config import EncodeConfig, RerankConfig
from ance_cli.formats.dataset import locate
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.progress import Silent
from ance_cli.retrieval.rerank import CrossScoring, DualScoring, rerank
from tests.world import make_cross_encoder


class Bars(Silent):
    """How far each bar moved at a time."""

    def __init__(self):
        self.steps: dict[tuple[str, int], list[int]] = {}

    @contextmanager
    def task(self, name, total, unit, done=0):
        steps = self.steps.setdefault((name, total), [])

        class Bar:
            def advance(self, amount=1):
                steps.append(amount)

        yield Bar()


@pytest.mark.parametrize("is_cross", [False, True], ids=["dual", "cross"])
def test_the_bar_moves_with_the_pairs_that_were_read(is_cross, dataset, checkpoint, tmp_path):
    run = tmp_path / "run.trec"
    run.write_text("".join(f"q{q} Q0 d{d} {d + 1} {9 - d} bm25\n"
                           for q in (24, 25) for d in range(8)))  # fmt: skip
    scoring = (
        CrossScoring(make_cross_encoder(tmp_path / "cross"))
        if is_cross
        else DualScoring(Checkpoint(checkpoint))
    )
    bars = Bars()
    rerank(run, locate(dataset, "dev"), tmp_path / "out.trec", scoring, RerankConfig(depth=6),
           EncodeConfig(batch_tokens=128), Call(reporter=bars))  # fmt: skip
    moves = bars.steps["scoring", 12]
    assert sum(moves) == 12
    assert len(moves) > 1 if is_cross else moves == [12]
