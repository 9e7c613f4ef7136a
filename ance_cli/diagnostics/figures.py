"""The paper's figures, one function each, from plain numbers to a matplotlib Figure.

Readable in black and white and by colour-blind people: the colours are Okabe and Ito's, and every
series also has a marker, a line style or a hatch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#777777"

Numbers = npt.NDArray[np.floating[Any]]

_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "ance",
}
"""The salt makes equal figures equal files."""

_KINDS: dict[str, dict[str, Any]] = {
    "random": {"marker": "x", "color": GREY, "s": 22, "linewidths": 1, "zorder": 1},
    "BM25 negatives": {"marker": "s", "edgecolors": BLUE, "facecolors": "none", "s": 34,
                       "linewidths": 1, "zorder": 3},
    "model's negatives": {"marker": "o", "color": ORANGE, "s": 16, "linewidths": 0, "zorder": 2},
    "positives": {"marker": "^", "edgecolors": GREEN, "facecolors": "none", "s": 150,
                  "linewidths": 2, "zorder": 5},
    "query": {"marker": "*", "color": VERMILION, "s": 110, "edgecolors": BLACK, "linewidths": 0.8,
              "zorder": 6},
}  # fmt: skip
"""Triangles and squares are hollow, because they often share a point with another marker."""
_HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "++++")
_LINES = ("-", "--", "-.", ":")


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, Any]:
    matplotlib.rcParams.update(_STYLE)
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


# ---------------------------------------------------------------- Fig. 1, 6 and 7


def project(vectors: Numbers, seed: int) -> Numbers:
    """(n, 2) t-SNE of (n, d) vectors by cosine distance; a function of both arguments.

    Cosine, since a query and the documents that answer it differ in length.
    """
    from sklearn.manifold import TSNE

    perplexity = min(30.0, max(1.0, (len(vectors) - 1) / 3))
    tsne = TSNE(metric="cosine", init="random", perplexity=perplexity, random_state=seed)
    return tsne.fit_transform(vectors)  # type: ignore[no-any-return]


def neighbourhoods(panels: Sequence[tuple[str, Mapping[str, Numbers]]]) -> Figure:
    """Fig. 1 (one panel), Fig. 6 and 7: a query, its positives and each kind of negative.

    A panel is a title and, for each of `_KINDS`, its (n, 2) points. A document that the model and
    BM25 both rank high is a dot in a square.
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = _figure(rows, columns, 1.2 + 3.1 * columns, 0.7 + 2.9 * rows)
    for ax in axes.flat:
        ax.set_axis_off()
    handles: dict[str, Any] = {}
    for ax, (title, points) in zip(axes.flat, panels, strict=False):
        ax.set_axis_on()
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(True)
        ax.set_title(title, wrap=True)
        for kind, style in _KINDS.items():
            if kind in points and len(points[kind]):
                x, y = points[kind].T
                handles[kind] = ax.scatter(x, y, **style)
    order = [kind for kind in reversed(_KINDS) if kind in handles]
    figure.legend(
        [handles[kind] for kind in order], order, loc="outside lower center",
        ncols=len(order) if columns > 1 else 3,
    )  # fmt: skip
    return figure


# ---------------------------------------------------------------- Fig. 3


def long_tail(
    ranks: Sequence[int],
    curves: Sequence[Sequence[float]],
    mean: Sequence[float],
    depth: int,
    overlaps: Mapping[str, float],
) -> Figure:
    """Fig. 3: scores minus the corpus average by rank, a line for each query and their mean.

    `depth` marks the negatives that are ranked high at test time; `overlaps` sampler -> the
    probability that it draws one of them.
    """
    figure, axes = _figure(1, 1, 5.2, 3.4)
    ax = axes[0, 0]
    for nth, curve in enumerate(curves):
        ax.plot(ranks, curve, color=SKY, linestyle=_LINES[nth % 4], linewidth=0.9,
                label=f"{len(curves)} queries" if nth == 0 else None)  # fmt: skip
    ax.plot(ranks, mean, color=BLACK, linewidth=2, label="mean of all")
    ax.axhline(0, color=GREY, linewidth=0.8)
    if depth < ranks[-1]:
        ax.axvline(depth, color=VERMILION, linestyle=":", linewidth=1.2, label=f"rank {depth}")
    ax.set_xscale("log")
    ax.set(xlabel="rank", ylabel="score - corpus average")
    shares = "   ".join(f"{kind} {share:.0%}" for kind, share in overlaps.items())
    ax.set_title(f"training negatives that are ranked high at test time\n{shares}")
    ax.legend()
    return figure


# ---------------------------------------------------------------- Fig. 4


def gradient_norms(
    by_sampler: Mapping[str, Mapping[str, float]],
    steps: Sequence[int] = (),
    along: Mapping[str, Sequence[float | None]] | None = None,
    switches: Sequence[int] = (),
) -> Figure:
    """Fig. 4: mean gradient norm of a negative by sampler and group of layers, and for a run the
    norms during training, before clipping.

    `by_sampler` sampler -> group -> norm; `along` group -> norms at `steps`.
    """
    with_run = along is not None and len(steps) > 1
    figure, axes = _figure(1, 2 if with_run else 1, 9.4 if with_run else 5.2, 3.4)
    ax = axes[0, 0]
    groups = list(next(iter(by_sampler.values())))
    shown = [g for g in groups if any(row[g] > 0 for row in by_sampler.values())]
    width = 0.8 / max(1, len(shown))
    for nth, group in enumerate(shown):
        at = np.arange(len(by_sampler)) + (nth - (len(shown) - 1) / 2) * width
        ax.bar(at, [row[group] for row in by_sampler.values()], width, label=group,
               color=_GROUP_COLOURS[group], edgecolor=BLACK, linewidth=0.6,
               hatch=_HATCHES[groups.index(group)])  # fmt: skip
    _logarithmic(ax, "y", [row[group] for row in by_sampler.values() for group in shown])
    ax.set_xticks(np.arange(len(by_sampler)), [name.replace("+", "\n+ ") for name in by_sampler])
    ax.set(ylabel="gradient norm of a negative")
    if shown:
        ax.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    if with_run and along is not None:
        _norms_along(axes[0, 1], steps, along, switches)
    return figure


def _logarithmic(ax: Axes, axis: str, bars: Sequence[float]) -> None:
    """A logarithmic axis that starts at the power of ten below the smallest bar."""
    if positive := [value for value in bars if value > 0]:
        ax.set(**{f"{axis}scale": "log"})
        least = 10 ** np.floor(np.log10(0.9 * min(positive)))
        ax.set(**{f"{axis}lim": (least, None)})


_GROUP_COLOURS = {"bottom": SKY, "middle": ORANGE, "top": GREEN, "head": "#FFFFFF"}
_GROUP_LINES = {"bottom": (SKY, "-"), "middle": (ORANGE, "--"), "top": (GREEN, "-."),
                "head": (BLACK, ":")}  # fmt: skip


def _norms_along(
    ax: Axes,
    steps: Sequence[int],
    along: Mapping[str, Sequence[float | None]],
    switches: Sequence[int],
) -> None:
    for group, norms in along.items():
        values = np.array([np.nan if norm is None else norm for norm in norms])
        if not (values > 0).any():
            continue
        colour, line = _GROUP_LINES[group]
        # the log rounds to six decimals, so that a zero means less than this
        shown = np.maximum(_smoothed(values), 1e-6)
        ax.plot(steps, shown, color=colour, linestyle=line, label=group)
    ax.set_yscale("log")
    _mark(ax, switches)
    ax.set(xlabel="step", ylabel="norm of a batch before clipping,\nrunning median")
    ax.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _smoothed(values: Numbers) -> Numbers:
    """Median over a window of a fortieth of the values: single steps differ by powers of ten."""
    half = max(1, len(values) // 80)
    padded = np.pad(values.astype(np.float64), half, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    return np.asarray(np.median(windows, axis=1))


def _mark(ax: Axes, switches: Sequence[int]) -> None:
    for nth, step in enumerate(switches):
        ax.axvline(step, color=GREY, linestyle=":", linewidth=1,
                   label="new negatives" if nth == 0 else None)  # fmt: skip


# ---------------------------------------------------------------- Fig. 5


def training_curve(
    steps: Sequence[int],
    losses: Sequence[float],
    switches: Sequence[int],
    dev_steps: Sequence[int],
    dev: Sequence[float],
    measure: str,
) -> Figure:
    """Fig. 5: the training loss, the steps at which training switched to new negatives, and a dev
    measure of the checkpoint of each refresh."""
    figure, axes = _figure(1, 1, 5.6, 3.4)
    ax = axes[0, 0]
    ax.plot(steps, losses, color=SKY, linewidth=0.7, label="loss")
    smooth = _moving_mean(np.asarray(losses, np.float64))
    ax.plot(steps, smooth, color=BLUE, linewidth=1.8, label="loss, moving mean")
    _mark(ax, switches)
    ax.set(xlabel="step", ylabel="training loss")
    ax.set_ylim(bottom=0)
    handles, labels = ax.get_legend_handles_labels()
    if len(dev):
        right = ax.twinx()
        right.spines["right"].set_visible(True)
        (line,) = right.plot(dev_steps, dev, color=VERMILION, linestyle="--", marker="o")
        right.set_ylabel(f"dev {measure}")
        right.margins(y=0.15)
        handles, labels = [*handles, line], [*labels, f"dev {measure}"]
    figure.legend(handles, labels, loc="outside upper center", ncols=2)
    return figure


def _moving_mean(values: Numbers) -> Numbers:
    half = max(1, len(values) // 40)
    padded = np.pad(values, half, mode="edge")
    return np.convolve(padded, np.full(2 * half + 1, 1 / (2 * half + 1)), mode="valid")


# ---------------------------------------------------------------- Sec. 3


def bias_and_variance(by_sampler: Mapping[str, Mapping[str, float | None]]) -> Figure:
    """Sec. 3.1: the bias and the variance of each sampler's estimator.

    `by_sampler` sampler -> `bias` (a share of the gradient) and `variance`, both exact.
    """
    figure, axes = _figure(1, 2, 7.6, 3.0)
    names = list(by_sampler)
    for ax, what, label, colour, hatch in (
        (axes[0, 0], "bias", "bias, share of the whole gradient", ORANGE, "////"),
        (axes[0, 1], "variance", "Tr(Var) of the estimator", SKY, "...."),
    ):
        values = [by_sampler[name][what] or 0.0 for name in names]
        bars = ax.barh(names, values, color=colour, edgecolor=BLACK, linewidth=0.6, hatch=hatch)
        ax.margins(x=0.2)
        if what == "variance":
            _logarithmic(ax, "x", values)
        shown = [f"{v:.0%}" if what == "bias" else f"{v:,.0f}" if v >= 100 else f"{v:.2g}"
                for v in values]  # fmt: skip
        ax.bar_label(bars, shown, padding=3)
        ax.invert_yaxis()
        ax.set_xlabel(label)
    return figure
