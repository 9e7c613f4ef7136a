"""The table of a trial: every number with what it is compared with, also those without a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.gpu_trial.parts import Mark, Number, Part
from benchmarks.gpu_trial.records import ENDED, Record, Value

NOT_RUN = "not run"
_HEAD = ("part", "number", "value", "ceiling or mark", "ratio", "")

Found = Mapping[tuple[str, str], Record]


@dataclass(frozen=True)
class Row:
    """One line of the table, as text."""

    part: str
    name: str
    value: str
    against: str = ""
    ratio: str = ""
    verdict: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        return self.part, self.name, self.value, self.against, self.ratio, self.verdict


def rows_of(parts: Sequence[Part], found: Found, full: bool) -> list[Row]:
    """A row for each number of each part; marks for the full size are checked if `full`."""
    return [_row(part, number, found, full) for part in parts for number in part.rows]


def _row(part: Part, number: Number, found: Found, full: bool) -> Row:
    record = found.get((part.key, number.name))
    if record is None or record.value is None:
        why = record.not_run if record else None
        value = f"{NOT_RUN}: {why}" if why else NOT_RUN
        return Row(part.key, number.name, value, _against(number.mark, found), "", NOT_RUN)
    if number.name == ENDED:
        verdict = "pass" if record.value == "yes" else "fail"
        took = f"{record.more['seconds']:.0f} s of {record.more['limit']:.0f} s"
        return Row(part.key, ENDED, f"{record.value} ({took})", verdict=verdict)
    if isinstance(record.value, bool):
        must = number.unit == ""
        verdict = ("pass" if record.value else "fail") if must else ""
        return Row(part.key, number.name, "yes" if record.value else "no", verdict=verdict)
    shown = _shown(record.value, number.unit)
    if number.mark is None:
        return Row(part.key, number.name, shown)
    if isinstance(record.value, str):  # not finite
        return Row(part.key, number.name, shown, _against(number.mark, found), "", "fail")
    ratio = ratio_of(record.value, number.mark, found)
    verdict = verdict_of(ratio, number.mark, full)
    return Row(part.key, number.name, shown, _against(number.mark, found),
               "" if ratio is None or number.mark.against == 1.0 else f"{ratio:.2f}",
               verdict)  # fmt: skip


def ratio_of(value: float, mark: Mark, found: Found) -> float | None:
    """The value over what it is compared with; None if that was not measured."""
    against = _number_of(mark, found)
    return value / against if against else None


def verdict_of(ratio: float | None, mark: Mark, full: bool) -> str:
    """Whether a ratio reaches its mark; empty if nothing is asked of it, or not at this size."""
    if not (full or mark.any_size):
        return ""
    if ratio is None:
        return NOT_RUN if mark.at_least is not None or mark.at_most is not None else ""
    reached = mark.reached(ratio)
    return "" if reached is None else "pass" if reached else "fail"


def _number_of(mark: Mark, found: Found) -> float | None:
    if not isinstance(mark.against, str):
        return mark.against
    part, _, name = mark.against.partition("/")
    record = found.get((part, name))
    if record is None or record.value is None or isinstance(record.value, str):
        return None
    return float(record.value)


def _against(mark: Mark | None, found: Found) -> str:
    """What a number is compared with, in words and with its value."""
    if mark is None:
        return ""
    limit = ""
    if mark.at_least is not None:
        limit = f"at least {mark.at_least:g} x "
    elif mark.at_most is not None:
        limit = f"at most {mark.at_most:g} x "
    if not isinstance(mark.against, str):
        only = mark.at_least if mark.at_least is not None else mark.at_most
        if only is None:
            return f"{mark.against:,.6g}"
        return f"{limit.split(' x ')[0].rsplit(' ', 1)[0]} {only * mark.against:,.6g}"
    other = mark.against.partition("/")[2]
    value = _number_of(mark, found)
    return f"{limit}{other}: {NOT_RUN if value is None else _shown(value, '')}"


def _shown(value: Value, unit: str) -> str:
    if isinstance(value, str | bool):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1_000:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.6f}".rstrip("0").rstrip(".") if 0.99 < abs(value) < 1 else f"{value:.3g}"
    return f"{text} {unit}".strip()


def failures(rows: Sequence[Row]) -> int:
    """How many rows failed."""
    return sum(row.verdict == "fail" for row in rows)


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table whose columns are aligned."""
    lines = [_HEAD, *(row.cells for row in rows)]
    lines = [tuple(cell.replace("|", "/") for cell in line) for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = tuple("-" * max(3, width) for width in widths)
    padded = [
        "| " + " | ".join(c.ljust(max(3, w)) for c, w in zip(line, widths, strict=True)) + " |"
        for line in (lines[0], rule, *lines[1:])
    ]
    return "\n".join(padded) + "\n"


def summary(rows: Sequence[Row]) -> str:
    """One sentence: how many passed, failed, and were not run."""
    counts = {name: sum(row.verdict == name for row in rows) for name in ("pass", "fail", NOT_RUN)}
    return f"{counts['pass']} passed, {counts['fail']} failed, {counts[NOT_RUN]} not run"
