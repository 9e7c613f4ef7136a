"""What the configs share: settings that several have, and how a range is checked."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

from ance_cli.errors import UsageProblem

SEED = 42
MIN_REL = 1
MEASURES = "RR@10 nDCG@10 R@100"
PAIR_LENGTH = 512
"""Tokens of query and passage together that a cross-encoder reads."""
REPORT_CASES = 5
"""Wins and losses, each, that a report shows."""


def check(condition: bool, what: str) -> None:
    """Raise a `UsageProblem` that says `what` unless the condition holds."""
    if not condition:
        raise UsageProblem(what)


def flag_of(name: str) -> str:
    """The flag of a field."""
    return f"--{name.replace('_', '-')}"


def check_finite(config: Any) -> None:
    """No field is infinite or no number."""
    for field in fields(config):
        value = getattr(config, field.name)
        check(
            not isinstance(value, float) or math.isfinite(value),
            f"{flag_of(field.name)} {value}: expected a finite number",
        )


def check_pair_length(length: int) -> None:
    """Room for the special tokens and something of both texts."""
    check(length >= 8, "--pair-length must be at least 8")


def check_tag(tag: str) -> None:
    """A run's tag is one column."""
    check(tag.split() == [tag], "--tag is one word: it is a column of the run")
