"""A table of Markdown for each item, from the results that are there."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.study import comparing, documents, epochs, gap
from benchmarks.study.cell import Cell
from benchmarks.study.comparing import Difference
from benchmarks.study.results import Result

Results = Mapping[str, Result]

ARMS = {
    "table1/warmup": "BM25 warm-up alone",
    "table1/rand": "Rand",
    "table1/nce": "NCE",
    "table1/bm25": "BM25 Neg",
    "table1/bm25+rand": "BM25 + Rand",
    "table1/bm25-bm25": "BM25 -> BM25",
    "table1/bm25-rand": "BM25 -> Rand",
    "table1/bm25-nce": "BM25 -> NCE",
    "table1/bm25-bm25+rand": "BM25 -> BM25 + Rand",
    "table1/bm25-ance": "BM25 -> ANCE",
    "table1/bm25-top-50": "BM25 Neg, top 50",
    "table1/bm25-bm25-top-50": "BM25 -> BM25, top 50",
    "table1/bm25-ance-top-50": "BM25 -> ANCE, top 50",
}
"""Table 1's rows, by the beginnings of the cells' names."""
_ANCE = "table1/bm25-ance"
_SPARSE = {"medquad/bm25": "BM25", "table1/bm25-cross-encoder": "BM25 + cross-encoder (top 20)"}
LATER = {
    "later/simans": "SimANS",
    "later/margin": "margin of 1 %",
    "later/denoised": "denoised by a cross-encoder",
    "later/momentum": "momentum (half of the generation before)",
    "later/lookahead": "lookahead (half the positive's neighbours)",
    "later/tele": "ANCE-Tele (a third each)",
    "later/adore": "ADORE (query tower alone)",
    "later/in-batch": "in-batch + ANCE",
    "later/margin-mse": "margin-MSE distillation",
}


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the empty text where it has no row."""
    if not rows:
        return ""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def mean_of(result: Result, measure: str, label: str = "test") -> float | None:
    """A measure's mean, None where the cell did not measure it."""
    found = result["measures"].get(label, {}).get(measure)
    return None if found is None else float(found["mean"])


def over_seeds(runs: Mapping[int, Result], measure: str, label: str = "test") -> list[float]:
    """A measure of each seed."""
    values = (mean_of(result, measure, label) for result in runs.values())
    return [value for value in values if value is not None]


def shown(values: Sequence[float], signed: bool = False) -> str:
    """`0.931` of one seed, `0.931 ± 0.004` (standard deviation) of several."""
    if not values:
        return "-"
    mean = f"{statistics.mean(values):{'+' if signed else ''}.3f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.3f}"


def _tested(difference: Difference | None) -> list[str]:
    if difference is None:
        return ["", "", ""]
    return [f"{difference.value:+.3f}", _p(difference.p), _p(difference.corrected)]


def _p(value: float) -> str:
    return f"{value:.4f}"


_TESTS = ["p", "p (Holm)"]


# ---------------------------------------------------------------- 1: where negatives come from


def arms_table(results: Results) -> str:
    """Table 1's question."""
    runs = {arm: comparing.by_seed(results, arm) for arm in ARMS}
    sparse = {name: {0: results[name]} for name in _SPARSE if name in results}
    tests = comparing.against(runs[_ANCE], sparse | runs)
    reached = results.get("medquad/bm25", {}).get("reached", [])
    rows = []
    for name, found in (sparse | runs).items():
        if not found:
            continue
        rows.append(
            [
                (ARMS | _SPARSE)[name],
                str(len(found)) if name in ARMS else "",
                *(shown(over_seeds(found, m)) for m in ("RR@10", "nDCG@10", "R@100")),
                shown(over_seeds(found, "RR@10", "rerank")),
                shown(gaps(found.values()), signed=True),
                shown(gaps(found.values(), reached), signed=True) if reached else "",
                *_learning(found),
                *_tested(tests.get(name)),
            ]
        )
    headings = ["", "seeds", "RR@10", "nDCG@10", "R@100", "rerank RR@10", "rerank - retrieval",
                "of queries within reach", *_LEARNING, "less BM25 -> ANCE", *_TESTS]  # fmt: skip
    return markdown(headings, rows)


def gaps(runs: Iterable[Result], within_reach: Sequence[int] | None = None) -> list[float]:
    """RR@10 of reranking less that of retrieval, of each run that has both.

    `within_reach` (1 or 0 for each query) leaves out the queries without a positive among what is
    reranked, of which reranking makes 0 by necessity.
    """
    found = []
    for result in runs:
        rerank, test = mean_of(result, "RR@10", "rerank"), mean_of(result, "RR@10")
        if rerank is None or test is None:
            continue
        if within_reach:
            own = zip(result["per_query"]["test"], within_reach, strict=True)
            test = statistics.mean(value for value, within in own if within)
            rerank /= statistics.mean(within_reach)
        found.append(rerank - test)
    return found


_LEARNING = ["loss", "gradient norm", "weights moved"]


def _learning(runs: Mapping[int, Result]) -> list[str]:
    """What a run's last 300 steps had to learn and how far all moved it, over the seeds."""
    told = [result["learning"] for result in runs.values() if "learning" in result]
    if not told:
        return [""] * len(_LEARNING)
    means = (
        statistics.mean(each.get(name, math.nan) for each in told)
        for name in ("loss", "grad_norm", "moved")
    )
    return [format(mean, how) for mean, how in zip(means, (".3f", ".2g", ".2%"), strict=True)]


# ---------------------------------------------------------------- 2: long documents


def documents_table(results: Results) -> str:
    """MaxP against FirstP, as a whole and by the depth of the answer."""
    there = [
        (data, name, label, results[f"documents/{kind}"])
        for data, name, kind, label in documents.ROWS
        if label in results.get(f"documents/{kind}", {}).get("measures", {})
    ]
    first = {data: result for data, name, _, result in there if name == "FirstP"}
    pairs = {
        f"{data} {name}": (first[data]["per_query"][data], result["per_query"][label])
        for data, name, label, result in there
        if data in first and name != "FirstP" and f"documents {label}" in result
    }
    asked_for = {
        f"{data} {name}": result.get(f"documents {label}", [])
        for data, name, label, result in there
    }
    tests = comparing.family(pairs, asked_for)
    rows = []
    for data, name, label, result in there:
        thirds = result.get(f"by_depth {label}", [])
        rows.append(
            [
                data,
                name,
                *(_three(mean_of(result, m, label)) for m in ("RR@10", "nDCG@10")),
                *(f"{t['RR@10']:.3f} (words {t['from']} to {t['to']}, {t['queries']})"
                  for t in thirds),
                *[""] * (3 - len(thirds)),
                *_tested(tests.get(f"{data} {name}")),
            ]
        )  # fmt: skip
    headings = ["data", "", "RR@10", "nDCG@10", "RR@10, shallow answers", "middle", "deep",
                "less FirstP", *_TESTS]  # fmt: skip
    return markdown(headings, rows)


def _three(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


# ---------------------------------------------------------------- 3: answers


OPENQA = {
    "openqa/bm25": "BM25",
    "openqa/bm25-bm25": "BM25 negatives, 600 steps",
    "openqa/bm25-ance": "BM25 -> ANCE, 300 + 300 steps",
    "openqa/fused": "BM25 and ANCE, reciprocal ranks",
}


def openqa_table(results: Results) -> str:
    """Answer coverage, and each against BM25."""
    there = {name: {0: results[name]} for name in OPENQA if name in results}
    tests = comparing.against(there.get("openqa/bm25", {}), there)
    rows = []
    for name, runs in there.items():
        measures = runs[0]["measures"]["test"]
        values = [f"{measures[m]['mean']:.3f} ({measures[m]['low']:.3f} to "
                  f"{measures[m]['high']:.3f})" for m in ("Answers@20", "Answers@100")]  # fmt: skip
        rows.append([OPENQA[name], *values, *_tested(tests.get(name))])
    return markdown(["", "Answers@20 (95 %)", "Answers@100 (95 %)", "less BM25 (Answers@20)",
                     *_TESTS], rows)  # fmt: skip


# ---------------------------------------------------------------- 4: the gap


def gap_table(results: Results) -> str:
    """Each setting of the refreshes: what it reached, how old its negatives got, how it drifted."""
    return _refreshes(results, gap.cells(), "gap/every-150")


def epochs_table(results: Results) -> str:
    """The same over several epochs."""
    return _refreshes(results, epochs.cells(), "epochs/once")


def _refreshes(results: Results, cells: Iterable[Cell], reference: str) -> str:
    there = {cell.name: {gap.SEED: results[cell.name]} for cell in cells if cell.name in results}
    tests = comparing.against(there.get(reference, {}), there)
    rows = []
    for name, runs in there.items():
        result = runs[gap.SEED]
        generations = result["series"]["generations"]
        overlaps = [g["probe_overlap"] for g in generations if g["probe_overlap"] is not None]
        losses = result["series"]["training"]["loss"]
        rows.append(
            [
                name.split("/")[1],
                str(len({switch["generation"] for switch in result["series"]["switches"]})),
                str(oldest(result)),
                f"{statistics.mean(losses[-10:]):.3f}",
                _three(generations[-1]["value"]),
                _three(min(overlaps, default=None)),
                _three(mean_of(result, "RR@10")),
                *_tested(tests.get(name)),
            ]
        )
    headings = ["", "generations used", "oldest negatives (steps)", "loss",
                "dev RR@10 at the end", "least overlap of the probe", "test RR@10",
                f"less {reference.split('/')[1]}", *_TESTS]  # fmt: skip
    return markdown(headings, rows)


def oldest(result: Result) -> int:
    """Steps from the checkpoint that mined the negatives until they were no longer used."""
    series = result["series"]
    generations = {row["generation"]: row["checkpoint_step"] for row in series["generations"]}
    switches = series["switches"]
    ends = [switch["step"] for switch in switches[1:]] + [series["training"]["step"][-1]]
    return max(
        (
            end - generations[switch["generation"]]
            for switch, end in zip(switches, ends, strict=True)
        ),
        default=0,
    )


# ---------------------------------------------------------------- 5: theory


def theory_table(results: Results) -> str:
    """Samplers before ANCE and after it."""
    rows = []
    for name in ("theory/warmup", "theory/ance", "theory/every-50"):
        for row in results.get(name, {}).get("diagnosis", {}).get("samplers", ()):
            exact, true = row["encodings"], row["parameters"]
            rows.append(
                [
                    name.removeprefix("theory/"),
                    f"`{row['sampler']}`",
                    f"{row['test_time']:.1%}",
                    f"{exact['norm']:.2g}",
                    f"{true['norm']:.2g}",
                    f"{true['median_norm']:.2g}",
                    "-" if exact["bias"] is None else f"{exact['bias']:.1%}",
                    _short(exact["noise"]),
                    _short(exact["squared_error"]),
                    f"{row['oracle_mass']:.1%}",
                ]
            )
    return markdown(["model", "sampler", "ranked high at test time", "mean norm at the encodings",
                     "of all parameters", "the same, median", "bias",
                     "Tr(Var) / norm of the whole^2, median", "squared error", "of the oracle"],
                    rows)  # fmt: skip


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


# ---------------------------------------------------------------- 6: after ANCE


def later_table(results: Results) -> str:
    """Each method against uniform ANCE from the same warm-up."""
    uniform = comparing.by_seed(results, _ANCE)
    rows = []
    there = {name: {results[name]["seed"]: results[name]} for name in LATER if name in results}
    tests = comparing.against(uniform, there)
    first = next(iter(there.values()), {})
    own = {seed: result for seed, result in uniform.items() if seed in first or not there}
    if own:
        rows.append(["uniform ANCE", *_means(own), *_learning(own), "", "", ""])
    for name, runs in there.items():
        rows.append([LATER[name], *_means(runs), *_learning(runs), *_tested(tests.get(name))])
    return markdown(["", "RR@10", "nDCG@10", "R@100", *_LEARNING, "less uniform ANCE", *_TESTS],
                    rows)  # fmt: skip


def _means(runs: Mapping[int, Result]) -> list[str]:
    return [shown(over_seeds(runs, measure)) for measure in ("RR@10", "nDCG@10", "R@100")]


# ---------------------------------------------------------------- 7: cost


def cost_table(results: Results) -> str:
    """What each operation took."""
    told = {name.removeprefix("cost/"): result["told"] for name, result in results.items()
            if name.startswith("cost/")}  # fmt: skip
    rows: list[list[str]] = []
    if "encode" in told:
        made = told["encode"][0]
        rows.append(["encode the corpus", f"{made['rows_per_s']:.0f} passages/s, "
                     f"{made['seconds']:.1f} s for {made['docs']:,}"])  # fmt: skip
    if "index" in told:
        made = told["index"][0]
        rows.append(["build an HNSW32 index", f"{made['seconds']:.1f} s for {made['rows']:,} rows"])
    for source in told["online"][0]["sources"] if "online" in told else ():
        rows += _online(source)
    if "bm25" in told:
        rows.append(["BM25, per query", _each(told["bm25"][-1], "queries")])
    if "rerank" in told:
        rows.append(["rerank with the dual encoder, per pair", _each(told["rerank"][0], "pairs")])
    if "cross-encoder" in told:
        rows.append(["rerank with the cross-encoder, per pair",
                     _each(told["cross-encoder"][0], "pairs")])  # fmt: skip
    if "cost/train" in results:
        rate = results["cost/train"]["steps_per_s"]
        rows.append(["training step", f"{1 / rate:.2f} s ({rate:.2f} steps/s)"])
    if "refresh" in told:
        parts = told["refresh"][0]["seconds"]
        listed = ", ".join(f"{name} {value:.1f}" for name, value in parts.items() if name != "all")
        rows.append(["refresh", f"{parts['all']:.1f} s ({listed})"])
    loads = [result["load"] for name, result in results.items() if name.startswith("cost/")]
    if loads:
        rows.append(["load of the machine before, at most", f"{max(loads):.2f}"])
    return markdown(["operation", "measured"], rows)


def _online(source: Mapping[str, Any]) -> list[list[str]]:
    how = "exactly" if source["searched"] == "exactly" else f"in {source['searched']}"
    encode, search = source["encode"]["p50"], source["search"]["p50"]
    return [
        [f"a query online, searched {how}",
         f"{encode:.1f} ms to encode, {search:.2f} ms to search (medians); in a batch "
         f"{source['batched']:.2f} ms both; recall {source['recall']:.3f}"]
    ]  # fmt: skip


def _each(told: Mapping[str, Any], what: str) -> str:
    count = told[what]
    return f"{1000 * told['seconds'] / count:.2f} ms ({told['seconds']:.1f} s for {count:,})"
