"""How the report shows values."""

from __future__ import annotations

from typing import Any

import orjson

from ance_cli.report.facts import Mean

NOTHING = "-"
FINGERPRINT = 12
"""Digits of a fingerprint that are shown."""
LONG = 22
"""A value of more characters takes two columns."""
_TEXT = 600
"""Characters of a passage that are shown."""


def measure(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4f}"


def probability(value: float | None) -> str:
    return "< 0.0001" if value is not None and value < 0.0001 else measure(value)


def mean(value: Mean | None) -> str:
    if value is None:
        return NOTHING
    if value.low is None or value.high is None:
        return measure(value.mean)
    return f"{value.mean:.4f} ({value.low:.4f} to {value.high:.4f})"


def count(value: int | None) -> str:
    return NOTHING if value is None else f"{value:,}"


def figure(value: Any) -> str:
    """A number with six significant digits; other values as in a settings file."""
    if value is None:
        return NOTHING
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return count(value)
    return setting(value)


def setting(value: Any) -> str:
    """A value as a settings file has it; strings without quotes."""
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def size(num_bytes: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:,.0f} {unit}" if unit == "bytes" else f"{num_bytes:,.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.1f} TB"


def change(before: str, after: str) -> str:
    return f"{before} → {after}"


def short(fingerprint: str | None) -> str:
    return fingerprint[:FINGERPRINT] if fingerprint else NOTHING


def moment(time: Any) -> str:
    """A UTC time from a ledger, without its time zone."""
    return str(time).replace("T", " ").removesuffix("+00:00") if time else NOTHING


def beginning(text: str | None) -> str | None:
    return text if text is None or len(text) <= _TEXT else f"{text[:_TEXT]}…"
