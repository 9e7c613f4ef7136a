"""Draws the figures of a diagnosis into files."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ance_cli.config import ComputeConfig
from ance_cli.errors import Mismatch, UsageProblem
from ance_cli.formats import atomic
from ance_cli.mining.sampling import keyed_generator
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.progress import Reporter
from ance_cli.retrieval.dense import DenseRetriever, VectorSource

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RANDOM = 100
"""Random documents in a projection."""
_TITLE = 60
"""Characters of a query in a title."""


def check_figures() -> None:
    """Raise `UsageProblem` if the plotting libraries are not installed."""
    missing = [name for name in ("matplotlib", "sklearn") if not importlib.util.find_spec(name)]
    if missing:
        raise UsageProblem(
            f"--figures: {missing[0]} is not installed",
            hint="pip install 'ance-cli[figures]'",
        )


def draw_report(
    report: dict[str, Any],
    checkpoint: Checkpoint,
    source: VectorSource,
    compute: ComputeConfig,
    folder: Path,
    reporter: Reporter,
) -> list[str]:
    """Draw every figure that the report has numbers for; returns the names of the files.

    Raises `Mismatch` if it would replace a file that it did not draw.

    `source` is the embeddings that the report was made from: the projections need vectors.
    """
    drawn = {
        "long-tail": _long_tail(report),
        "gradient-norms": _gradient_norms(report),
        "bias-and-variance": _bias_and_variance(report),
        **_neighbourhoods(report, checkpoint, source, compute, reporter),
    }
    if len(report.get("history", {}).get("training", {}).get("step", ())) > 1:
        drawn["training"] = _training(report)
    files = {folder / f"{name}.{ending}": figure for name, figure in drawn.items()
             for ending in _MARKS}  # fmt: skip
    for path in files:
        if path.exists() and not _is_drawing(path):
            raise Mismatch(
                f"{path}: exists and was not drawn by ance diagnose",
                hint="remove it, or draw the figures into another folder: --figures DIR",
            )
    folder.mkdir(parents=True, exist_ok=True)
    for path, figure in files.items():
        ending, buffer = path.suffix[1:], io.BytesIO()
        figure.savefig(buffer, format=ending, dpi=160, metadata=_MARKS[ending])
        atomic.write_bytes(path, buffer.getvalue())
    return [path.name for path in files]


def _is_drawing(path: Path) -> bool:
    content = path.read_bytes()
    return _OURS.encode() in content or b"Matplotlib v" in content  # version 0.1.0 had no mark


_OURS = "ance diagnose"
_MARKS: dict[str, dict[str, Any]] = {
    "png": {"Software": _OURS},
    "svg": {"Creator": _OURS, "Date": None},
}
"""What each format says of its origin. Without a date, equal figures are equal files."""


def _by_sampler(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["sampler"]: row for row in report["samplers"]}


def _long_tail(report: dict[str, Any]) -> Figure:
    from ance_cli.diagnostics import figures

    tail, rows = report["long_tail"], _by_sampler(report)
    return figures.long_tail(
        tail["ranks"],
        [query["above_average"] for query in tail["queries"]],
        tail["mean"],
        report["batch"]["informative"],
        {kind: rows[kind]["test_time"] for kind in ("rand", "nce", "bm25", "ance") if kind in rows},
    )


def _gradient_norms(report: dict[str, Any]) -> Figure:
    from ance_cli.diagnostics import figures

    norms = {kind: row["parameters"]["by_group"] for kind, row in _by_sampler(report).items()}
    history = report.get("history")
    if history is None:
        return figures.gradient_norms(norms)
    training = history["training"]
    return figures.gradient_norms(norms, training["step"], training["norms"], _switches(report))


def _switches(report: dict[str, Any]) -> list[int]:
    return [switch["step"] for switch in report["history"]["switches"] if switch["step"] > 0]


def _bias_and_variance(report: dict[str, Any]) -> Figure:
    from ance_cli.diagnostics import figures

    return figures.bias_and_variance(
        {kind: row["encodings"] for kind, row in _by_sampler(report).items()}
    )


def _training(report: dict[str, Any]) -> Figure:
    from ance_cli.diagnostics import figures

    history = report["history"]
    measured = [row for row in history["generations"] if row["dev"]]
    measure = next(iter(measured[0]["dev"])) if measured else ""
    return figures.training_curve(
        history["training"]["step"],
        history["training"]["loss"],
        _switches(report),
        [row["checkpoint_step"] for row in measured],
        [row["dev"][measure] for row in measured],
        measure,
    )


def _neighbourhoods(
    report: dict[str, Any],
    checkpoint: Checkpoint,
    source: VectorSource,
    compute: ComputeConfig,
    reporter: Reporter,
) -> dict[str, Figure]:
    """`negatives` (Fig. 1), and `wins` and `losses` (Fig. 6 and 7) if there are any."""
    from ance_cli.diagnostics import figures

    panels = report["panels"]
    retriever = DenseRetriever(checkpoint, source, compute, None)
    embeddings = retriever.embeddings
    assert embeddings is not None
    xq = retriever.encode_queries([panel["query"] for panel in panels], reporter)
    position = {doc_id: number for number, doc_id in enumerate(embeddings.ids)}
    seed = report["settings"]["seed"]
    found: dict[str, list[Any]] = {"example": [], "win": [], "loss": []}
    for panel, query in zip(panels, xq, strict=True):
        rng = keyed_generator(seed, "figures", panel["query_id"])
        count = min(_RANDOM, embeddings.num_docs)
        drawn = rng.choice(embeddings.num_docs, count, replace=False)
        kinds = {
            "positives": [position[doc_id] for doc_id in panel["positives"]],
            "model's negatives": [position[doc_id] for doc_id in panel["model"]],
            "BM25 negatives": [position[doc_id] for doc_id in panel["bm25"]],
        }
        named = {doc for docs in kinds.values() for doc in docs}
        kinds["random"] = [doc for doc in drawn.tolist() if doc not in named]
        docs = np.unique(np.concatenate([np.array(places, int) for places in kinds.values()]))
        vectors = embeddings.rows(embeddings.doc_offsets[docs])
        points = figures.project(np.vstack([query, vectors]), seed)
        at = dict(zip(docs.tolist(), points[1:], strict=True))
        placed = {
            kind: np.array([at[doc] for doc in places]).reshape(-1, 2)
            for kind, places in kinds.items()
        }
        found[panel["panel"]].append((_title(panel["query"]), {"query": points[:1], **placed}))
    names = {"negatives": "example", "wins": "win", "losses": "loss"}
    return {
        name: figures.neighbourhoods(found[kind]) for name, kind in names.items() if found[kind]
    }


def _title(query: str) -> str:
    line = " ".join(query.split()).replace("$", r"\$")
    return line if len(line) <= _TITLE else f"{line[: _TITLE - 3]}..."
