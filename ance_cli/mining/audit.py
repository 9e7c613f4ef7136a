"""The audit of a draw: candidates removed, negatives missing, their scores, and overlaps."""

from __future__ import annotations

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ance_cli.formats.negatives_file import PairNegatives

BM25_TOP = 100
"""Depth of the BM25 ranking that negatives are compared with, as in the paper's analysis."""

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def _numbers() -> array[float]:
    return array("d")


@dataclass
class Audit:
    """Counts over all pairs; `summary` is the JSON that is written next to the negatives."""

    wanted: int
    """Negatives per pair."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """source -> share of the negatives"""
    absent: Sequence[str] = ()
    """Sources of the mix that had nothing to draw from."""
    earlier: Mapping[tuple[str, str], set[str]] | None = None
    """(query_id, positive_id) -> negatives in an earlier file"""
    bm25: Callable[[str], set[str]] | None = None
    """query_id -> the documents that BM25 ranks highest"""
    probable: float = 0.9
    """Probability, by the teacher, above which a negative is probably a positive."""
    pairs: int = 0
    by_source: Counter[str] = field(default_factory=Counter)
    removed: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    missing: Counter[str] = field(default_factory=Counter)
    short_pairs: int = 0
    empty_pairs: int = 0
    beaten: int = 0
    judged: int = 0
    above_positive: int = 0
    probably_positive: int = 0
    _negatives: array[float] = field(default_factory=_numbers)
    _positives: array[float] = field(default_factory=_numbers)
    _margins: array[float] = field(default_factory=_numbers)
    _ranks: array[float] = field(default_factory=_numbers)
    _overlaps: array[float] = field(default_factory=_numbers)
    _bm25_overlaps: array[float] = field(default_factory=_numbers)

    def remove(self, source: str, rule: str, count: int) -> None:
        """Count the candidates that a rule removed; 0 records that the rule was active."""
        self.removed[source][rule] += count

    def judge(self, logit: float, positive_logit: float) -> None:
        """Count the teacher's score of a candidate that was drawn, whether it is kept or not."""
        self.judged += 1
        self.above_positive += logit > positive_logit
        self.probably_positive += logit > logit_of(self.probable)

    def add(self, pair: PairNegatives, missing: Mapping[str, int]) -> None:
        """Count the negatives of one pair; `missing` is how many each source fell short of."""
        self.pairs += 1
        self.by_source.update(pair.sources)
        self.missing.update(missing)
        self.short_pairs += sum(missing.values()) > 0
        self.empty_pairs += not pair.negative_ids
        self._ranks.extend(rank for rank in pair.negative_ranks if rank is not None)
        scores = [score for score in pair.negative_scores if score is not None]
        self._negatives.extend(scores)
        if pair.positive_score is not None:
            self._positives.append(pair.positive_score)
            if scores:
                self.beaten += max(scores) > pair.positive_score
                self._margins.append(pair.positive_score - max(scores))
        if pair.negative_ids:
            own = set(pair.negative_ids)
            if self.earlier is not None:
                before = self.earlier.get((pair.query_id, pair.positive_id), set())
                self._overlaps.append(len(own & before) / len(own))
            if self.bm25 is not None:
                self._bm25_overlaps.append(len(own & self.bm25(pair.query_id)) / len(own))

    def summary(self) -> dict[str, Any]:
        """All counts, and quantiles of scores and ranks (None without a value)."""
        found: dict[str, Any] = {
            "pairs": self.pairs,
            "negatives": sum(self.by_source.values()),
            "shares": {source: round(share, 4) for source, share in self.shares.items()},
            **({"absent_sources": list(self.absent)} if self.absent else {}),
            "by_source": dict(self.by_source),
            "removed_from_candidates": {name: dict(rules) for name, rules in self.removed.items()},
            "pairs_short_of_negatives": self.short_pairs,
            "pairs_without_negatives": self.empty_pairs,
            "negatives_missing": sum(self.missing.values()),
            "missing_by_source": dict(+self.missing),
            "negative_ranks": _quantiles(self._ranks),
            "negative_scores": _quantiles(self._negatives),
            "positive_scores": _quantiles(self._positives),
            "margin_to_best_negative": _quantiles(self._margins),
            "share_of_positives_below_a_negative": _share(self.beaten, len(self._margins)),
        }
        if self.earlier is not None:
            overlap = _mean(self._overlaps)
            found["overlap_with_earlier"] = overlap
            found["churn_against_earlier"] = None if overlap is None else round(1 - overlap, 4)
        if self.bm25 is not None:
            found[f"overlap_with_bm25_top_{BM25_TOP}"] = _mean(self._bm25_overlaps)
        if self.judged:
            found["teacher"] = {
                "judged_negatives": self.judged,
                "share_above_the_positive": _share(self.above_positive, self.judged),
                "probability": self.probable,
                "share_above_probability": _share(self.probably_positive, self.judged),
            }
        return found


def logit_of(probability: float) -> float:
    """The logit whose sigmoid is the probability; infinite for 0 and 1."""
    if probability in (0.0, 1.0):
        return math.inf if probability else -math.inf
    return math.log(probability / (1 - probability))


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _mean(values: array[float]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None


def _quantiles(values: array[float]) -> dict[str, float] | None:
    if not values:
        return None
    found = np.quantile(np.asarray(values, np.float64), _QUANTILES)
    return {
        f"p{round(100 * quantile)}": round(float(value), 4)
        for quantile, value in zip(_QUANTILES, found, strict=True)
    }
