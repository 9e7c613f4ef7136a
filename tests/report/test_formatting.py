"""How values are shown."""

import pytest

from ance_cli.report import words


@pytest.mark.parametrize(
    "value, shown",
    [(None, "-"), (1234567, "1,234,567"), (0.123456789, "0.123457"), (7.5e-08, "7.5e-08"),
     (12164.25, "12,164.2"), (True, "true"), ("x", "x"), ([1, "a"], '[1,"a"]')],
)  # fmt: skip
def test_figures(value, shown):
    assert words.figure(value) == shown


@pytest.mark.parametrize(
    "num_bytes, shown",
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (45e6, "45.0 MB"), (3e15, "3,000.0 TB")],
)
def test_sizes(num_bytes, shown):
    assert words.size(num_bytes) == shown


def test_settings_stand_as_in_their_file():
    settings = (None, 0.00003, 40000, "a b", False)
    shown = [words.setting(value) for value in settings]
    assert shown == ["null", "0.00003", "40000", "a b", "false"]


def test_small_probabilities_are_not_zero():
    shown = [words.probability(value) for value in (None, 0.0, 0.00009, 0.0002)]
    assert shown == ["-", "< 0.0001", "< 0.0001", "0.0002"]


def test_long_texts_are_cut():
    assert words.beginning("x" * 600) == "x" * 600 and words.beginning(None) is None
    assert words.beginning("x" * 601) == "x" * 600 + "…"
