"""The history of a run: its training curve, its refreshes, and the quality of its negatives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ance_cli.formats.hashing import hash_file, hash_json
from ance_cli.formats.jsonl import read_records
from ance_cli.formats.ledgers import read_ledger
from ance_cli.formats.run_folder import RunFolder
from ance_cli.loop.status import status
from ance_cli.training.gradients import GROUPS

_POINTS = 1_000
"""The most lines of the log that are kept."""


def history_hash(path: Path) -> str:
    """Hash of what `read_history` reads, without reading the negatives."""
    run = RunFolder(path)
    made = [
        run.generation(refresh.generation).read_manifest()["fingerprint"]
        for refresh in status(path).refreshes
    ]
    logs = [hash_file(file) for file in (run.metrics, run.switches) if file.exists()]
    return hash_json({"generations": made, "logs": logs})


def read_history(path: Path, test_time: Mapping[tuple[str, str], set[str]]) -> dict[str, Any]:
    """The run's log and generations.

    `test_time` (query, positive) -> the negatives that the diagnosed model ranks high at test time.
    The `test_time` of a generation is the share of its negatives for these pairs that are among
    them; of each pair only as many ranks count as its set has documents. None if the generation has
    no negatives for these pairs.
    """
    run = RunFolder(path)
    log = read_ledger(run.metrics)
    log = log[:: -(-len(log) // _POINTS) or 1]
    return {
        "run": str(path),
        "training": {
            "step": [line["step"] for line in log],
            "loss": [line["loss"] for line in log],
            "norms": {group: [line.get(f"grad_norm_{group}") for line in log] for group in GROUPS},
        },
        "switches": read_ledger(run.switches),
        "generations": [
            {
                "generation": refresh.generation,
                "checkpoint_step": refresh.checkpoint_step,
                "churn_against_earlier": refresh.churn_against_earlier,
                "probe_overlap": refresh.probe_overlap,
                "test_time": _test_time_share(
                    run.generation(refresh.generation).negatives, test_time
                ),
                "dev": refresh.dev,
            }
            for refresh in status(path).refreshes
        ],
    }


def _test_time_share(
    negatives: Path, test_time: Mapping[tuple[str, str], set[str]]
) -> float | None:
    """Share of a generation's negatives that the model ranks high at test time."""
    if not negatives.exists():
        return None
    found = seen = 0
    for _, record in read_records(negatives):
        expected = test_time.get((str(record["query_id"]), str(record["positive_id"])))
        if expected is None:
            continue
        ranks = record.get("negative_ranks") or [None] * len(record["negative_ids"])
        for doc_id, rank in zip(record["negative_ids"], ranks, strict=True):
            if rank is None or rank <= len(expected):
                seen += 1
                found += doc_id in expected
    return found / seen if seen else None
