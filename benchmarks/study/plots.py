"""A figure for each item, from the results that are there.

Readable in black and white and by colour-blind people, as `ance_cli.diagnostics.figures`, whose
figures are used where they fit: Okabe and Ito's colours, and each with a marker or a line style.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ance_cli.diagnostics import figures
from ance_cli.diagnostics.figures import BLACK, BLUE, GREEN, GREY, VERMILION
from benchmarks.study import comparing, documents, gap
from benchmarks.study.results import Result
from benchmarks.study.tables import ARMS, LATER, OPENQA, mean_of, over_seeds

Results = Mapping[str, Result]

_STYLE: Any = {
    "font.size": 9, "axes.titlesize": 9, "axes.spines.top": False, "axes.spines.right": False,
    "legend.frameon": False, "svg.hashsalt": "ance",
}  # fmt: skip


def _axes(rows: int, columns: int, width: float, height: float) -> tuple[Figure, Any]:
    matplotlib.rcParams.update(_STYLE)
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def drawn(results: Results) -> dict[str, Figure]:
    """Name -> figure, of those that the results have the numbers for."""
    found = {
        "arms": arms_figure(results),
        "documents": documents_figure(results),
        "openqa": openqa_figure(results),
        "gap": gap_figure(results),
        "later": later_figure(results),
        **_theory_figures(results),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


# ---------------------------------------------------------------- arms


def arms_figure(results: Results) -> Figure | None:
    """Retrieval and reranking of each arm; the line between them is the gap."""
    runs = {arm: comparing.by_seed(results, arm) for arm in ARMS}
    rows = [(ARMS[arm], over_seeds(found, "RR@10"), over_seeds(found, "RR@10", "rerank"))
            for arm, found in runs.items() if found]  # fmt: skip
    if not rows:
        return None
    figure, axes = _axes(1, 1, 6.4, 1.0 + 0.32 * len(rows))
    ax = axes[0, 0]
    for place, (_, retrieval, rerank) in enumerate(rows):
        if rerank:
            ends = [statistics.mean(retrieval), statistics.mean(rerank)]
            ax.plot(ends, [place, place], color=GREY, linewidth=1, zorder=1)
        _points(ax, rerank, place, "rerank BM25's top 100", VERMILION, "s", hollow=True)
        _points(ax, retrieval, place, "retrieval", BLUE, "o")
    for name, line in (("medquad/bm25", ":"), ("table1/bm25-cross-encoder", "--")):
        if name in results:
            words = {"medquad/bm25": "BM25", "table1/bm25-cross-encoder": "BM25 + cross-encoder"}
            ax.axvline(mean_of(results[name], "RR@10"), color=BLACK, linestyle=line, linewidth=1,
                       label=words[name])  # fmt: skip
    ax.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    ax.invert_yaxis()
    ax.set_xlabel("RR@10 on medquad's test split, a mark a seed")
    _legend(figure, ax)
    return figure


def _points(
    ax: Axes, values: list[float], place: float, label: str, colour: str, marker: str,
    hollow: bool = False,
) -> None:  # fmt: skip
    ax.scatter(values, [place] * len(values), label=label, marker=marker, s=34, zorder=3,
               edgecolors=colour, facecolors="none" if hollow else colour)  # fmt: skip


def _legend(figure: Figure, *axes: Axes) -> None:
    """One legend above all, with each name once."""
    unique = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        unique |= dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside upper center", ncols=4)


# ---------------------------------------------------------------- documents and answers


def documents_figure(results: Results) -> Figure | None:
    """RR@10 in thirds of the answer's depth, FirstP and MaxP."""
    there = [
        (data, name, thirds)
        for data, name, kind, label in documents.ROWS
        if (thirds := results.get(f"documents/{kind}", {}).get(f"by_depth {label}"))
    ]
    if not there:
        return None
    panels = list(dict.fromkeys(data for data, _, _ in there))
    styles = dict(zip(dict.fromkeys(name for _, name, *_ in documents.ROWS),
                      ((BLUE, "o", "-"), (VERMILION, "s", "--"), (GREEN, "^", ":")),
                      strict=True))  # fmt: skip
    figure, axes = _axes(1, len(panels), 1.0 + 2.6 * len(panels), 3.0)
    for data, name, thirds in there:
        ax = axes[0, panels.index(data)]
        colour, marker, line = styles[name]
        ax.plot(range(len(thirds)), [third["RR@10"] for third in thirds], label=name,
                color=colour, marker=marker, linestyle=line)  # fmt: skip
        ax.set_xticks(range(len(thirds)), [f"{t['from']} to\n{t['to']}" for t in thirds])
        ax.set_title(data)
        ax.set(xlabel="the answer's first word")
    for ax in axes[0]:
        ax.set_ylim(0, 1.05 * ax.get_ylim()[1])
    axes[0, 0].set_ylabel("RR@10")
    _legend(figure, *axes[0])
    return figure


def openqa_figure(results: Results) -> Figure | None:
    """Answer coverage with its intervals."""
    there = {name: results[name]["measures"]["test"] for name in OPENQA if name in results}
    if not there:
        return None
    figure, axes = _axes(1, 1, 6.4, 1.0 + 0.4 * len(there))
    ax = axes[0, 0]
    for shift, (measure, colour, marker) in enumerate(
        (("Answers@20", BLUE, "o"), ("Answers@100", VERMILION, "s"))
    ):
        values = [found[measure] for found in there.values()]
        means = np.array([value["mean"] for value in values])
        spread = [means - [v["low"] for v in values], [v["high"] for v in values] - means]
        places = np.arange(len(values)) + 0.2 * shift - 0.1
        ax.errorbar(means, places, xerr=np.maximum(spread, 0), label=measure, color=colour,
                    marker=marker, linestyle="none", capsize=2)  # fmt: skip
    ax.set_yticks(range(len(there)), [OPENQA[name] for name in there])
    ax.invert_yaxis()
    ax.set_xlabel("share of squad's test questions, with 95 % intervals")
    _legend(figure, ax)
    return figure


# ---------------------------------------------------------------- the gap


def gap_figure(results: Results) -> Figure | None:
    """For each setting the loss with the refreshes marked, the dev measure, the probe's overlap."""
    there = [cell.name for cell in gap.cells() if cell.name in results]
    if not there:
        return None
    columns = min(3, len(there))
    rows = -(-len(there) // columns)
    figure, axes = _axes(rows, columns, 0.8 + 3.2 * columns, 0.6 + 2.4 * rows)
    for ax in axes.flat[len(there) :]:
        ax.set_axis_off()
    handles: dict[str, Any] = {}
    top = max(max(_smooth(results[name]["series"]["training"]["loss"])) for name in there)
    for ax, name in zip(axes.flat, there, strict=False):
        series = results[name]["series"]
        training, generations = series["training"], series["generations"]
        right = ax.twinx()
        right.spines["right"].set_visible(True)
        right.set_ylim(0, 1.02)
        (handles["loss, moving mean"],) = ax.plot(
            training["step"], _smooth(training["loss"]), color=BLUE
        )
        for switch in series["switches"]:
            handles["new negatives"] = ax.axvline(
                switch["step"], color=GREY, linestyle=":", linewidth=1
            )
        steps = [row["checkpoint_step"] for row in generations]
        (handles["dev RR@10"],) = right.plot(
            steps,
            [row["value"] for row in generations],
            color=VERMILION,
            linestyle="--",
            marker="o",
        )
        drift = [(row["checkpoint_step"], row["probe_overlap"]) for row in generations
                 if row["probe_overlap"] is not None]  # fmt: skip
        if drift:
            (handles["overlap of the probe"],) = right.plot(
                *zip(*drift, strict=True), color=GREEN, linestyle="-.", marker="^"
            )
        ax.set_title(name.removeprefix("gap/"))
        ax.set(xlabel="step", ylabel="loss", ylim=(0, 1.05 * top))
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles))
    return figure


def _smooth(values: list[float]) -> list[float]:
    """A moving mean over eleven lines of the log, cut at the ends."""
    return [statistics.mean(values[max(0, at - 5) : at + 6]) for at in range(len(values))]


# ---------------------------------------------------------------- theory


def _theory_figures(results: Results) -> dict[str, Figure | None]:
    found: dict[str, Figure | None] = {}
    for name in ("warmup", "ance", "every-50"):
        diagnosis = results.get(f"theory/{name}", {}).get("diagnosis")
        if diagnosis is None:
            continue
        samplers = {row["sampler"]: row for row in diagnosis["samplers"]}
        tail = diagnosis["long_tail"]
        found[f"theory-{name}-long-tail"] = figures.long_tail(
            tail["ranks"],
            [query["above_average"] for query in tail["queries"]],
            tail["mean"],
            diagnosis["batch"]["informative"],
            {kind: samplers[kind]["test_time"] for kind in ("rand", "nce", "bm25", "ance")
             if kind in samplers},
        )  # fmt: skip
        norms = {kind: row["parameters"]["by_group"] for kind, row in samplers.items()}
        history = diagnosis.get("history")
        found[f"theory-{name}-gradient-norms"] = (
            figures.gradient_norms(norms)
            if history is None
            else figures.gradient_norms(
                norms,
                history["training"]["step"],
                history["training"]["norms"],
                [switch["step"] for switch in history["switches"] if switch["step"] > 0],
            )
        )
        found[f"theory-{name}-bias-and-variance"] = figures.bias_and_variance(
            {kind: row["encodings"] for kind, row in samplers.items()}
        )
    found["theory-overlap"] = overlap_figure(results)
    return found


def overlap_figure(results: Results) -> Figure | None:
    """How many of a generation's negatives the last checkpoint still ranks high, along training."""
    figure, axes = _axes(1, 1, 5.2, 3.2)
    ax = axes[0, 0]
    for place, name in enumerate(("ance", "every-50")):
        history = results.get(f"theory/{name}", {}).get("diagnosis", {}).get("history", {})
        points = [
            (row["checkpoint_step"], row["test_time"])
            for row in history.get("generations", ())
            if row["test_time"] is not None
        ]
        if points:
            colour, marker, line = ((BLUE, "o", "-"), (VERMILION, "s", "--"))[place]
            ax.plot(*zip(*points, strict=True), label=f"{name}: ranked high at test time",
                    color=colour, marker=marker, linestyle=line)  # fmt: skip
    if not ax.lines:
        return None
    ax.set(xlabel="step of the checkpoint that mined", ylabel="share of its negatives", ylim=(0, 1))
    ax.legend()
    return figure


# ---------------------------------------------------------------- after ANCE


def later_figure(results: Results) -> Figure | None:
    """Each method's test measure with its interval, and uniform ANCE as a line."""
    there = {name: results[name]["measures"]["test"]["RR@10"] for name in LATER if name in results}
    if not there:
        return None
    figure, axes = _axes(1, 1, 6.4, 1.0 + 0.34 * len(there))
    ax = axes[0, 0]
    values = list(there.values())
    means = np.array([value["mean"] for value in values])
    spread = [means - [v["low"] for v in values], [v["high"] for v in values] - means]
    ax.errorbar(means, range(len(values)), xerr=np.maximum(spread, 0), color=BLUE, marker="o",
                linestyle="none", capsize=2, label="RR@10, 95 % interval")  # fmt: skip
    uniform = comparing.by_seed(results, "table1/bm25-ance")
    seeds = [seed for seed in uniform if any(results[name]["seed"] == seed for name in there)]
    if seeds:
        mean = statistics.mean(over_seeds({seed: uniform[seed] for seed in seeds}, "RR@10"))
        ax.axvline(mean, color=VERMILION, linestyle="--", label="uniform ANCE")
    ax.set_yticks(range(len(there)), [LATER[name] for name in there])
    ax.invert_yaxis()
    ax.set_xlabel("RR@10 on medquad's test split")
    _legend(figure, ax)
    return figure
