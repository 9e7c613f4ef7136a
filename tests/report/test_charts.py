"""Charts as elements of a page: unique ids, nothing from outside, text that stays text."""

import re
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from ance_cli.report.charts import MAX_POINTS, _svg, _thinned, gradient_chart, measure_chart
from ance_cli.report.facts import Mean


def chart(name="one", label="<b>&$x^2$"):
    return _svg(
        name, label, lambda axes: axes.plot([0, 1], [1e-9, 1], "ko-", label=label), legend=True
    )


def test_an_element_of_a_page():
    element = ElementTree.fromstring(chart())
    assert element.tag == "svg" and element.attrib["role"] == "img"
    assert {"width", "height", "version"}.isdisjoint(element.attrib)
    tags = {each.tag for each in element.iter()}
    assert tags.isdisjoint({"style", "metadata", "script", "image"})
    assert not any("{" in name or "http" in name for each in element.iter() for name in each.attrib)
    assert "http" not in chart() and "#000000" not in chart() and "currentColor" in chart()


def test_labels_are_neither_markup_nor_formulas():
    texts = ["".join(each.itertext()) for each in ElementTree.fromstring(chart()).iter("text")]
    assert "<b>&$x^2$" in texts


def test_a_legend_shows_the_end_of_a_long_label():
    texts = [
        "".join(each.itertext())
        for each in ElementTree.fromstring(chart(label="x" * 99 + "/run")).iter("text")
    ]
    assert [text for text in texts if "run" in text] == ["…" + "x" * 39 + "/run"]


def test_ids_are_the_charts_own_and_every_reference_resolves():
    first, second = chart("one"), chart("two")
    ids = [re.findall(r'\bid="([^"]+)"', each) for each in (first, second)]
    assert ids[0] and set(ids[0]).isdisjoint(ids[1]) and len(set(ids[0])) == len(ids[0])
    for each, own in zip((first, second), ids, strict=True):
        assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', each)) == set(own)


def test_a_chart_is_the_same_each_time():
    assert chart() == chart()


def gradients(*norms):
    lines = [
        {"step": step, "grad_norm": 1.0, "grad_norm_top": norm} for step, norm in enumerate(norms)
    ]
    return gradient_chart(SimpleNamespace(log=lines, stretches=[]))


def test_a_norm_that_the_log_rounds_to_zero_falls_to_the_least_that_it_can_hold():
    assert gradients(2.0, 0.0, 1.0) == gradients(2.0, 1e-6, 1.0) != gradients(2.0, 1.0)
    assert "top" in gradients(2.0, 0.0).svg and "top" not in gradients(0.0, 0.0).svg


@pytest.mark.parametrize("norms", [(2.1, 8.4), (3.1, 3.9), (0.6, 14.0), (1e-5, 2e4)])
def test_a_logarithmic_axis_has_numbers_however_near_its_ends_are(norms):
    lines = [{"step": step, "grad_norm": norm} for step, norm in enumerate(norms)]
    chart = gradient_chart(SimpleNamespace(log=lines, stretches=[]))
    texts = ["".join(each.itertext()) for each in ElementTree.fromstring(chart.svg).iter("text")]
    shown = [float(text) for text in texts if re.fullmatch(r"[\d.]+(e[-+]\d+)?", text)]
    steps = {0.0, 0.2, 0.4, 0.6, 0.8, 1.0}
    assert len([each for each in shown if each not in steps]) >= 2


def measured(*values):
    generations = [
        SimpleNamespace(step=step, dev={"R@100": Mean(value)}) for step, value in enumerate(values)
    ]
    chart = measure_chart("R@100", [SimpleNamespace(label="run", generations=generations)], {})
    texts = ["".join(each.itertext()) for each in ElementTree.fromstring(chart.svg).iter("text")]
    return [float(text) for text in texts if re.fullmatch(r"\d\.\d+", text)]


def test_the_axis_of_a_measure_ends_at_one_unless_a_value_is_greater():
    assert max(measured(1.0, 1.0)) == max(measured(0.9, 1.0)) == 1
    assert max(measured(0.5, 0.6)) < 0.7
    assert max(measured(1.0, 2.0)) == 2


def test_long_logs_are_thinned_to_means():
    points = [(step, 2.0 * step) for step in range(1, 1001)]
    steps, values = _thinned(points, 3)
    assert len(steps) == 334 and steps[:2] == [2, 5] and values[:2] == [4, 10]
    assert (steps[-1], values[-1]) == (1000, 2000)
    assert len(_thinned(points, -(-1000 // MAX_POINTS))[0]) <= MAX_POINTS
