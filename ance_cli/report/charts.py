"""The charts of a report: inline SVG without a script, a link or an outside font.

Colours are Okabe and Ito's (2008) and every series has a line style, marker or hatch of its own, so
that a chart reads in black and white and for those who see colours differently. What is black takes
the colour of the page's text, in light and in dark. Text stays text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

from ance_cli.errors import UsageProblem
from ance_cli.report.facts import RunFacts, Stretch

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLACK = "#000000"
COLOURS = (BLACK, "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3)))
MARKERS = "osD^vPX"
HATCHES = ("", "///", "...", "xx", "\\\\\\", "++", "oo")

SIZE = (4.6, 2.9)
"""Inches: legible as it stands on a phone, two beside each other on a desk."""
MAX_POINTS = 400
_LEAST = 1e-6
"""The log has six decimals: a zero there is less than this."""
_MAX_MARKS = 10
_MAX_ROWS = 24
_LABEL = 44
"""Characters of a legend's longest label."""

_STYLE: dict[Any, Any] = {
    "axes.grid": True, "axes.spines.right": False, "axes.spines.top": False, "font.size": 9,
    "font.family": "sans-serif", "grid.alpha": 0.3, "grid.linewidth": 0.5, "hatch.linewidth": 0.6,
    "legend.fontsize": 8, "legend.frameon": False, "lines.linewidth": 1.4, "lines.markersize": 4.5,
    "svg.fonttype": "none", "svg.hashsalt": "ance", "text.parse_math": False,
}  # fmt: skip


@dataclass(frozen=True)
class Chart:
    """A figure with the words under it."""

    caption: str
    svg: Markup


def need_matplotlib() -> None:
    """`UsageProblem` where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageProblem(
            "the report's charts are drawn with matplotlib, which is not installed",
            hint="pip install 'ance-cli[figures]'",
        ) from None


# ---------------------------------------------------------------- measures


def measure_chart(
    measure: str, runs: Sequence[RunFacts], rankings: Mapping[str, float]
) -> Chart | None:
    """One dev measure by checkpoint step, of each run; `rankings` (label -> mean) are lines
    across."""
    series = [
        (run.label, [(each.step, each.dev[measure]) for each in run.generations
                     if measure in each.dev])
        for run in runs
    ]  # fmt: skip
    if not any(points for _, points in series):
        return None

    def draw(axes: Axes) -> None:
        for place, (label, points) in enumerate(series):
            if not points:
                continue
            means = [value.mean for _, value in points]
            lows = [value.mean if value.low is None else value.low for _, value in points]
            highs = [value.mean if value.high is None else value.high for _, value in points]
            _spread(axes, place, label, [step for step, _ in points], means, lows, highs)
        for place, (label, mean) in enumerate(rankings.items(), start=len(series)):
            colour, dash = COLOURS[place % len(COLOURS)], DASHES[place % len(DASHES)]
            axes.axhline(mean, label=label, color=colour, linestyle=dash)
        low, high = axes.get_ylim()
        if axes.dataLim.ymax <= 1 < high:  # no measure there is: a point at 1 is the best one
            axes.set_ylim(top=1 + 0.03 * (1 - low))
        _label(axes, "step of the checkpoint", measure)

    names = len(series) + len(rankings) > 1
    words = f"{measure} on the dev split by the step of the checkpoint, with 95 % intervals."
    return Chart(words, _svg(f"measure-{measure}", words, draw, legend=names))


# ---------------------------------------------------------------- training


def loss_chart(run: RunFacts) -> Chart | None:
    """Training loss, with a mark where other negatives begin."""
    words = "Training loss."
    return _log_chart(run, {"loss": "loss"}, "loss", words, logarithmic=False)


def gradient_chart(run: RunFacts) -> Chart | None:
    """Gradient norms of the whole model and of its parts."""
    names = {"grad_norm": "all", "grad_norm_bottom": "bottom", "grad_norm_middle": "middle",
             "grad_norm_top": "top", "grad_norm_head": "head"}  # fmt: skip
    words = "Gradient norms before clipping, of all parameters and of the parts of the model."
    return _log_chart(run, names, "gradient norm", words, logarithmic=True)


def age_chart(run: RunFacts) -> Chart | None:
    """How many steps old the negatives are that a step is trained on."""
    words = "Age of the negatives in use: steps since the checkpoint that mined them."
    return _log_chart(run, {"negatives_age": "age"}, "steps", words, logarithmic=False)


def _log_chart(
    run: RunFacts, names: dict[str, str], unit: str, words: str, logarithmic: bool
) -> Chart | None:
    """Fields of the log by step, thinned to what can be seen, with marks where the negatives
    change."""
    series = {
        label: [(line["step"], line[name]) for line in run.log
                if isinstance(line.get(name), int | float)]
        for name, label in names.items()
    }  # fmt: skip
    if logarithmic:
        series = {
            label: points if any(value > 0 for _, value in points) else []
            for label, points in series.items()
        }
    if not any(series.values()):
        return None
    each = -(-max(len(points) for points in series.values()) // MAX_POINTS)

    def draw(axes: Axes) -> None:
        for place, (label, points) in enumerate(series.items()):
            if not points:
                continue
            steps, values = _thinned(points, each)
            if logarithmic:
                values = [max(value, _LEAST) for value in values]
            look = {"color": COLOURS[place], "linestyle": DASHES[place], "linewidth": 1.1}
            if len(steps) == 1:
                look["marker"] = MARKERS[place]
            axes.plot(steps, values, label=label, **look)
        if logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")  # the usual one writes powers as formulas
            axes.yaxis.set_minor_formatter("")
        _label(axes, "step", unit)
        _mark_changes(axes, run.stretches)

    if each > 1:
        words += f" Each point is the mean of {each} lines of the log."
    if len(run.stretches) > 1:
        words += " Dotted lines: other negatives from here on, with the number of the generation."
    return Chart(words, _svg(f"log-{unit}-{next(iter(names))}", words, draw, len(series) > 1))


def _thinned(points: list[tuple[int, float]], each: int) -> tuple[list[float], list[float]]:
    """Means of `each` consecutive points."""
    groups = [points[start : start + each] for start in range(0, len(points), each)]
    steps = [sum(step for step, _ in group) / len(group) for group in groups]
    return steps, [sum(value for _, value in group) / len(group) for group in groups]


def _mark_changes(axes: Axes, stretches: Sequence[Stretch]) -> None:
    named = -(-len(stretches) // _MAX_MARKS)
    for place, stretch in enumerate(stretches):
        axes.axvline(stretch.first, color=BLACK, linewidth=0.8, linestyle=":", alpha=0.7)
        if place % named == 0:
            name = str(stretch.generation) if stretch.generation is not None else "file"
            axes.annotate(name, (stretch.first, 1), xycoords=("data", "axes fraction"),
                          xytext=(2, 1), textcoords="offset points", fontsize=7)  # fmt: skip


# ---------------------------------------------------------------- refreshes


def lineage_chart(run: RunFacts) -> Chart | None:
    """For each generation: its checkpoint, when it was published, when it was trained on."""
    shown = run.generations[-_MAX_ROWS:]
    if not shown:
        return None
    places = {generation.number: place for place, generation in enumerate(shown)}

    def draw(axes: Axes) -> None:
        for generation in shown:
            place = places[generation.number]
            if generation.refresh.age is not None:
                published = generation.step + generation.refresh.age
                axes.plot([generation.step, published], [place, place], color=COLOURS[2],
                          linestyle=":", marker="|", markevery=[1], markersize=9,
                          label="being made, until published")  # fmt: skip
            axes.plot([generation.step], [place], color=BLACK, marker="D", linestyle="none",
                      label="its checkpoint")  # fmt: skip
        for stretch in run.stretches:
            if stretch.generation in places:
                axes.barh(places[stretch.generation], stretch.last - stretch.first,
                          left=stretch.first, height=0.4, color=COLOURS[6], edgecolor=BLACK,
                          linewidth=0.6, hatch="///", label="trained on")  # fmt: skip
        axes.set_yticks(list(places.values()), [str(number) for number in places])
        axes.invert_yaxis()
        _label(axes, "step", "generation")

    words = "Lineage: from which checkpoint a generation was made, and at which steps it was used."
    if len(shown) < len(run.generations):
        words += f" The last {len(shown)} generations."
    height = max(SIZE[1], 1.3 + 0.22 * len(shown))
    return Chart(words, _svg("lineage", words, draw, legend=True, size=(SIZE[0], height)))


def drift_chart(run: RunFacts) -> Chart | None:
    """How much of a generation is as it was in the one before it."""
    drifts = [(drift.get("checkpoint_step"), drift.get("overlap")) for drift in run.drifts]
    series: dict[str, list[tuple[int | None, float | None]]] = {
        "probe's rankings": [(g.step, g.refresh.probe_overlap) for g in run.generations],
        "negatives": [(g.step, g.refresh.overlap_with_earlier) for g in run.generations],
        "measured while training": drifts,
    }
    told = {
        label: [(step, value) for step, value in points if step is not None and value is not None]
        for label, points in series.items()
    }
    if not any(told.values()):
        return None

    def draw(axes: Axes) -> None:
        for place, (label, points) in enumerate(told.items()):
            if points:
                steps, values = zip(*points, strict=True)
                axes.plot(steps, values, label=label, **_look(place))
        axes.set_ylim(-0.02, 1.02)
        _label(axes, "step of the checkpoint", "overlap")

    words = "Drift: overlap with the generation before, of the probe's rankings and of negatives."
    return Chart(words, _svg("drift", words, draw, legend=True))


def score_chart(run: RunFacts) -> Chart | None:
    """Scores of positives and of negatives, median and the middle 90 %."""
    names = {"positive_scores": "positives", "negative_scores": "negatives"}
    series = {
        label: [(g.step, g.audit[name]) for g in run.generations
                if isinstance(g.audit.get(name), dict)]
        for name, label in names.items()
    }  # fmt: skip
    if not any(series.values()):
        return None

    def draw(axes: Axes) -> None:
        for place, (label, points) in enumerate(series.items()):
            if not points:
                continue
            low, middle, high = (
                [scores[end] for _, scores in points] for end in ("p5", "p50", "p95")
            )
            _spread(axes, place, label, [step for step, _ in points], middle, low, high)
        _label(axes, "step of the checkpoint", "score")

    words = "Scores of positives and negatives by the model that mined: median, 5 % to 95 %."
    return Chart(words, _svg("scores", words, draw, legend=True))


def cost_chart(run: RunFacts) -> Chart | None:
    """Seconds of each stage of each refresh, stacked."""
    shown = [g for g in run.generations if g.refresh.seconds][-_MAX_ROWS:]
    stages = list(dict.fromkeys(name for g in shown for name in g.refresh.seconds if name != "all"))
    if not stages:
        return None

    def draw(axes: Axes) -> None:
        base = [0.0] * len(shown)
        for place, stage in enumerate(stages):
            heights = [generation.refresh.seconds.get(stage, 0.0) for generation in shown]
            colour = COLOURS[(place + 1) % len(COLOURS)]
            axes.bar(
                range(len(shown)), heights, bottom=base, width=0.6, label=stage, color=colour,
                edgecolor=BLACK, linewidth=0.6, hatch=HATCHES[place % len(HATCHES)],
            )  # fmt: skip
            base = [low + height for low, height in zip(base, heights, strict=True)]
        axes.set_xticks(range(len(shown)), [str(generation.number) for generation in shown])
        axes.grid(axis="x", visible=False)
        axes.set_xlabel("generation")
        axes.set_ylabel("seconds")

    words = "What each refresh cost, by stage."
    return Chart(words, _svg("cost", words, draw, legend=True))


# ---------------------------------------------------------------- drawing


def _look(place: int) -> dict[str, Any]:
    return {
        "color": COLOURS[place % len(COLOURS)],
        "linestyle": DASHES[place % len(DASHES)],
        "marker": MARKERS[place % len(MARKERS)],
    }


def _spread(
    axes: Axes,
    place: int,
    label: str,
    steps: list[int],
    middle: list[float],
    low: list[float],
    high: list[float],
) -> None:
    """A series of points with a bar from low to high at each."""
    look = _look(place)
    axes.plot(steps, middle, label=label, **look)
    ends = [
        [at - end for at, end in zip(middle, low, strict=True)],
        [end - at for at, end in zip(middle, high, strict=True)],
    ]
    # not below 0, which the last digits of a mean and its bounds may be apart
    ends = [[max(0.0, length) for length in lengths] for lengths in ends]
    axes.errorbar(
        steps, middle, yerr=ends, fmt="none", ecolor=look["color"], capsize=3, elinewidth=0.8
    )


def _label(axes: Axes, x: str, y: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))


def _svg(
    name: str,
    label: str,
    draw: Callable[[Axes], None],
    legend: bool,
    size: tuple[float, float] = SIZE,
) -> Markup:
    """What `draw` puts on the axes, as an element of a page; `name` keeps its ids apart."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        if legend:
            handles, labels = axes.get_legend_handles_labels()
            once = dict(zip(labels, handles, strict=True))
            names = [each if len(each) <= _LABEL else f"…{each[1 - _LABEL :]}" for each in once]
            columns = max(1, min(3, 54 // (max(map(len, names), default=0) + 5)))
            figure.legend(list(once.values()), names, loc="outside lower center", ncols=columns)
        written = io.BytesIO()
        figure.savefig(written, format="svg", transparent=True)
    return _inline(written.getvalue(), re.sub(r"\W+", "-", name), label)


def _inline(document: bytes, name: str, label: str) -> Markup:
    """An SVG document as an element of an HTML page: no namespaces, no metadata, no style sheet,
    ids of its own, black as the colour of the text."""
    root = ElementTree.fromstring(document)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", document.decode()))
    for element in root.iter():
        element.tag = element.tag.rsplit("}")[-1]
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            value = value.replace(BLACK, "currentColor")
            key = key.rsplit("}")[-1]
            if key == "id":
                if value not in used:
                    continue
                value = f"{name}-{value}"
            elif key == "href":
                value = f"#{name}-{value.removeprefix('#')}"
            else:
                value = value.replace("url(#", f"url(#{name}-")
            element.set(key, value)
        for child in [
            each for each in element if each.tag.rsplit("}")[-1] in ("metadata", "style")
        ]:
            element.remove(child)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", label)
    return Markup(ElementTree.tostring(root, encoding="unicode"))
