"""The charts of a report: inline SVG without a script, a link or an outside font.

Colours are Okabe and Ito's (2008), and every series also has its own line style, marker or hatch,
so that a chart is readable in black and white and for colour-blind people. Black becomes the colour
of the page's text, in the light and the dark theme. Text stays text.
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
from ance_cli.report.facts import Mean, RunFacts, Stretch

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLACK = "#000000"
COLOURS = (BLACK, "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3)))
MARKERS = "osD^vPX"
HATCHES = ("", "///", "...", "xx", "\\\\\\", "++", "oo")

SIZE = (4.6, 2.9)
"""Inches: readable on a phone without zooming; two charts fit side by side on a desktop."""
MAX_POINTS = 400
_LEAST = 1e-6
"""The log has six decimals, so that a zero in it means less than this."""
_MAX_MARKS = 10
_MAX_ROWS = 24
_LABEL = 44
"""The most characters of a label in a legend."""

_STYLE: dict[Any, Any] = {
    "axes.grid": True, "axes.spines.right": False, "axes.spines.top": False, "font.size": 9,
    "font.family": "sans-serif", "grid.alpha": 0.3, "grid.linewidth": 0.5, "hatch.linewidth": 0.6,
    "legend.fontsize": 8, "legend.frameon": False, "lines.linewidth": 1.4, "lines.markersize": 4.5,
    "svg.fonttype": "none", "svg.hashsalt": "ance", "text.parse_math": False,
}  # fmt: skip


@dataclass(frozen=True)
class Chart:
    """A figure and its caption."""

    caption: str
    svg: Markup


def need_matplotlib() -> None:
    """Raise `UsageProblem` if matplotlib is not installed."""
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
    """One dev measure by checkpoint step, for each run; `rankings` (label -> mean) are horizontal
    lines."""
    series = [
        (run.label, [(each.step, each.dev[measure]) for each in run.generations
                     if measure in each.dev])
        for run in runs
    ]  # fmt: skip
    return _means_chart(measure, "dev split", series, rankings)


def guard_chart(measure: str, run: RunFacts) -> Chart | None:
    """The same measure on the guard."""
    points = [(each.step, each.guard[measure]) for each in run.generations if measure in each.guard]
    return _means_chart(measure, "guard", [(run.label, points)], {})


def _means_chart(
    measure: str,
    measured_on: str,
    series: Sequence[tuple[str, Sequence[tuple[int, Mean]]]],
    rankings: Mapping[str, float],
) -> Chart | None:
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
        if axes.dataLim.ymax <= 1 < high:  # a value above 1 does not exist: a point at 1 is perfect
            axes.set_ylim(top=1 + 0.03 * (1 - low))
        _label(axes, "step of the checkpoint", measure)

    names = len(series) + len(rankings) > 1
    caption = f"{measure} on the {measured_on} by checkpoint step, with 95 % intervals."
    name = f"measure-{measured_on}-{measure}"
    return Chart(caption, _svg(name, caption, draw, legend=names))


# ---------------------------------------------------------------- training


def loss_chart(run: RunFacts) -> Chart | None:
    """Training loss, with a mark at each change of the negatives."""
    caption = "Training loss."
    return _log_chart(run, {"loss": "loss"}, "loss", caption, logarithmic=False)


def gradient_chart(run: RunFacts) -> Chart | None:
    """Gradient norms of the whole model and of its parts."""
    names = {"grad_norm": "all", "grad_norm_bottom": "bottom", "grad_norm_middle": "middle",
             "grad_norm_top": "top", "grad_norm_head": "head"}  # fmt: skip
    caption = "Gradient norms before clipping, of all parameters and of the parts of the model."
    return _log_chart(run, names, "gradient norm", caption, logarithmic=True)


def age_chart(run: RunFacts) -> Chart | None:
    """Age of the negatives, in steps, at each training step."""
    caption = "Age of the negatives in use, in steps since the checkpoint that mined them."
    return _log_chart(run, {"negatives_age": "age"}, "steps", caption, logarithmic=False)


def _log_chart(
    run: RunFacts, names: dict[str, str], unit: str, caption: str, logarithmic: bool
) -> Chart | None:
    """Fields of the log by step, averaged to at most `MAX_POINTS` points, with a mark at each
    change of the negatives."""
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
            from matplotlib.ticker import LogLocator

            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(
                "{x:g}"
            )  # the default formatter writes powers as formulas
            low, high = axes.get_ylim()
            if high / low < 100:  # else no more than one power of ten would have its number
                axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
                axes.yaxis.set_minor_formatter("{x:g}")
            else:
                axes.yaxis.set_minor_formatter("")
        _label(axes, "step", unit)
        _mark_changes(axes, run.stretches)

    if each > 1:
        caption += f" Each point is the mean of {each} lines of the log."
    if len(run.stretches) > 1:
        caption += (
            " Dotted lines mark a change of the negatives, with the number of the generation."
        )
    return Chart(caption, _svg(f"log-{unit}-{next(iter(names))}", caption, draw, len(series) > 1))


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
    """For each generation: its checkpoint, its publication, and the steps trained on it."""
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
                          label="refresh, until published")  # fmt: skip
            axes.plot([generation.step], [place], color=BLACK, marker="D", linestyle="none",
                      label="checkpoint")  # fmt: skip
        for stretch in run.stretches:
            if stretch.generation in places:
                axes.barh(places[stretch.generation], stretch.last - stretch.first,
                          left=stretch.first, height=0.4, color=COLOURS[6], edgecolor=BLACK,
                          linewidth=0.6, hatch="///", label="trained on")  # fmt: skip
        axes.set_yticks(list(places.values()), [str(number) for number in places])
        axes.invert_yaxis()
        _label(axes, "step", "generation")

    caption = (
        "Lineage: the checkpoint of each generation, and the steps at which it was trained on."
    )
    if len(shown) < len(run.generations):
        caption += f" Only the last {len(shown)} generations are shown."
    height = max(SIZE[1], 1.3 + 0.22 * len(shown))
    return Chart(caption, _svg("lineage", caption, draw, legend=True, size=(SIZE[0], height)))


def drift_chart(run: RunFacts) -> Chart | None:
    """How much of each generation is the same as in the generation before."""
    drifts = [(drift.get("checkpoint_step"), drift.get("overlap")) for drift in run.drifts]
    series: dict[str, list[tuple[int | None, float | None]]] = {
        "probe's rankings": [(g.step, g.refresh.probe_overlap) for g in run.generations],
        "negatives": [(g.step, g.refresh.overlap_with_earlier) for g in run.generations],
        "measured while training": drifts,
    }
    shown_points = {
        label: [(step, value) for step, value in points if step is not None and value is not None]
        for label, points in series.items()
    }
    if not any(shown_points.values()):
        return None

    def draw(axes: Axes) -> None:
        for place, (label, points) in enumerate(shown_points.items()):
            if points:
                steps, values = zip(*points, strict=True)
                axes.plot(steps, values, label=label, **_look(place))
        axes.set_ylim(-0.02, 1.02)
        _label(axes, "step of the checkpoint", "overlap")

    caption = (
        "Drift: overlap of the probe's rankings, and of the negatives, with the generation before."
    )
    return Chart(caption, _svg("drift", caption, draw, legend=True))


def score_chart(run: RunFacts) -> Chart | None:
    """Scores of positives and of negatives: median and middle 90 %."""
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

    caption = (
        "Scores of positives and negatives by the model that mined them: median, and 5 % to 95 %."
    )
    return Chart(caption, _svg("scores", caption, draw, legend=True))


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

    caption = "Seconds of each refresh, by stage."
    return Chart(caption, _svg("cost", caption, draw, legend=True))


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
    # a mean and its bounds are rounded separately, so that a length could be below 0
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
    """What `draw` puts on the axes, as an element of a page; `name` makes its ids unique."""
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
    """An SVG document as an element of an HTML page: without namespaces, metadata and style sheet,
    with unique ids, and with the colour of the text instead of black."""
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
