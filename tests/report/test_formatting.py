"""How the report shows values."""

import pytest

from ance_cli.report import formatting


@pytest.mark.parametrize(
    "value, shown",
    [(None, "-"), (1234567, "1,234,567"), (0.123456789, "0.123457"), (7.5e-08, "7.5e-08"),
     (12164.25, "12,164.2"), (True, "true"), ("x", "x"), ([1, "a"], '[1,"a"]')],
)  # fmt: skip
def test_figures(value, shown):
    assert formatting.figure(value) == shown


@pytest.mark.parametrize(
    "num_bytes, shown",
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (45e6, "45.0 MB"), (3e15, "3,000.0 TB")],
)
def test_sizes(num_bytes, shown):
    assert formatting.size(num_bytes) == shown


def test_settings_are_shown_as_in_their_file():
    settings = (None, 0.00003, 40000, "a b", False)
    shown = [formatting.setting(value) for value in settings]
    assert shown == ["null", "0.00003", "40000", "a b", "false"]


def test_small_probabilities_are_not_zero():
    shown = [formatting.probability(value) for value in (None, 0.0, 0.00009, 0.0002)]
    assert shown == ["-", "< 0.0001", "< 0.0001", "0.0002"]


def test_long_texts_are_cut():
    assert formatting.beginning("x" * 600) == "x" * 600 and formatting.beginning(None) is None
    assert formatting.beginning("x" * 601) == "x" * 600 + "…"
