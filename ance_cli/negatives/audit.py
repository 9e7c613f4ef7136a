"""What happened while negatives were chosen: removals, shortfalls, scores, overlap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ance_cli.formats.triples import PairNegatives

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass
class Audit:
    """Counts over all pairs; `summary` is the JSON that is kept beside the negatives."""

    wanted: int
    earlier: Mapping[tuple[str, str], set[str]] | None = None
    pairs: int = 0
    removed: Counter[str] = field(default_factory=Counter)
    by_source: Counter[str] = field(default_factory=Counter)
    short_pairs: int = 0
    missing: int = 0
    empty_pairs: int = 0
    beaten: int = 0
    scored_pairs: int = 0
    _negatives: list[float] = field(default_factory=list)
    _positives: list[float] = field(default_factory=list)
    _margins: list[float] = field(default_factory=list)
    _overlaps: list[float] = field(default_factory=list)

    def add_query(self, positives_found: int, copies_found: int) -> None:
        """Count what was removed from one query's candidates."""
        self.removed["positives"] += positives_found
        self.removed["copies_of_positives"] += copies_found

    def add(self, pair: PairNegatives) -> None:
        """Count one pair's negatives."""
        self.pairs += 1
        self.by_source.update(pair.sources)
        short = self.wanted - len(pair.negative_ids)
        self.short_pairs += short > 0
        self.missing += short
        self.empty_pairs += not pair.negative_ids
        scores = [score for score in pair.negative_scores if score is not None]
        self._negatives.extend(scores)
        if pair.positive_score is not None:
            self._positives.append(pair.positive_score)
            if scores:
                self.scored_pairs += 1
                self.beaten += max(scores) > pair.positive_score
                self._margins.append(pair.positive_score - max(scores))
        if self.earlier is not None:
            before = self.earlier.get((pair.query_id, pair.positive_id), set())
            if pair.negative_ids:
                shared = len(before.intersection(pair.negative_ids))
                self._overlaps.append(shared / len(pair.negative_ids))

    def summary(self) -> dict[str, Any]:
        """All counts; scores as quantiles (None where the source has no scores)."""
        found: dict[str, Any] = {
            "pairs": self.pairs,
            "negatives": sum(self.by_source.values()),
            "by_source": dict(self.by_source),
            "removed_from_candidates": dict(self.removed),
            "pairs_short_of_negatives": self.short_pairs,
            "pairs_without_negatives": self.empty_pairs,
            "negatives_missing": self.missing,
            "negative_scores": _quantiles(self._negatives),
            "positive_scores": _quantiles(self._positives),
            "margin_to_best_negative": _quantiles(self._margins),
            "share_of_positives_below_a_negative": (
                round(self.beaten / self.scored_pairs, 4) if self.scored_pairs else None
            ),
        }
        if self.earlier is not None:
            mean = float(np.mean(self._overlaps)) if self._overlaps else 0.0
            found["overlap_with_earlier"] = round(mean, 4)
        return found


def _quantiles(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    found = np.quantile(np.asarray(values, np.float64), _QUANTILES)
    return {
        f"p{round(100 * quantile)}": round(float(value), 4)
        for quantile, value in zip(_QUANTILES, found, strict=True)
    }
