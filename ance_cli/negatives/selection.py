"""From candidates to negatives: remove what may not be one, then draw."""

from __future__ import annotations

from collections.abc import Iterator

from ance_cli.formats.candidates import Candidates
from ance_cli.formats.triples import PairNegatives
from ance_cli.negatives.audit import Audit
from ance_cli.negatives.filtering import Copies
from ance_cli.negatives.sampling import (
    RANDOM,
    draw,
    draw_from_corpus,
    keyed_generator,
    split_by_shares,
)


def select_negatives(
    candidates: Candidates,
    positives: dict[str, list[str]],
    copies: Copies,
    source: str,
    shares: dict[str, float],
    sampler: str,
    count: int,
    seed: int,
    checkpoint_step: int,
    audit: Audit,
) -> Iterator[PairNegatives]:
    """The negatives of every (query, positive) pair of the candidates' queries.

    D- is the candidate list without D+ (ANN_f(q, C) \\ D+, ICLR Sec. 4, arXiv Eq. 10) and without
    copies of D+; `shares` says how many of the `count` come from it (under the name `source`) and
    how many uniformly from the corpus (`random`). A list that is too short is left short, and
    counted.
    """
    doc_ids = copies.doc_ids
    for row, query_id in enumerate(candidates.query_ids):
        relevant = positives.get(query_id)
        if not relevant:
            continue
        own, same = copies.banned(relevant)
        listed = candidates.docs[row].tolist()
        listed = listed[: listed.index(-1)] if -1 in listed else listed
        scores = candidates.scores[row]
        ranks = [r for r, doc in enumerate(listed) if doc not in own and doc not in same]
        audit.add_query(len(own.intersection(listed)), len(same.intersection(listed)))
        positive_scores = candidates.positive_scores.get(query_id, {})
        for positive_id in relevant:
            pair = PairNegatives(query_id, positive_id, [])
            pair.positive_score = positive_scores.get(positive_id)

            def rng(name: str, pair: PairNegatives = pair):  # type: ignore[no-untyped-def]
                return keyed_generator(seed, checkpoint_step, pair.query_id, pair.positive_id, name)

            wanted = split_by_shares(count, shares, rng("mix"))
            kept = draw(len(ranks), wanted.get(source, 0), sampler, rng(source))
            for rank in (ranks[place] for place in kept.tolist()):
                pair.negative_ids.append(doc_ids[listed[rank]])
                pair.negative_scores.append(round(float(scores[rank]), 6))
                pair.negative_ranks.append(rank + 1)
                pair.sources.append(source)
            if wanted.get(RANDOM):
                taken = {listed[ranks[place]] for place in kept.tolist()}
                banned = own | same | taken
                for doc in draw_from_corpus(len(doc_ids), wanted[RANDOM], banned, rng(RANDOM)):
                    pair.negative_ids.append(doc_ids[int(doc)])
                    pair.negative_scores.append(None)
                    pair.negative_ranks.append(None)
                    pair.sources.append(RANDOM)
            audit.add(pair)
            yield pair
