"""`python -m benchmarks.study list | run | table | compare`: see docs/evidence/reproduce.md."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from ance_cli.errors import AnceError, Stopped, UsageProblem, install_signal_handlers
from benchmarks.study.cell import Cell, Placeholders
from benchmarks.study.grid import grid
from benchmarks.study.results import Result, Results
from benchmarks.study.runner import run, trainer_state


def choose(cells: Mapping[str, Cell], patterns: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """Names of the cells that match the patterns (all without a pattern), of these seeds.

    A pattern is a name, the beginning of one up to a slash, or has wildcards. Cells without a seed
    are of every seed. Raises `UsageProblem` where a pattern names none.
    """
    named = []
    for pattern in patterns or ["*"]:
        within = pattern.rstrip("/") + "/"
        found = [name for name in cells if fnmatchcase(name, pattern) or name.startswith(within)]
        if not found:
            raise UsageProblem(f"{pattern!r} names no cell", hint="`list` shows every cell")
        named += found
    kept = [name for name in cells if name in named]
    return [name for name in kept if not seeds or cells[name].seed in (None, *seeds)]


def _show(
    cells: Mapping[str, Cell], chosen: Sequence[str], results: Results, places: Placeholders
) -> None:
    states = trainer_state(cells, results, places)
    width = max(map(len, chosen))
    for name in chosen:
        print(f"{name:<{width}}  {cells[name].minutes:>5g} min  {states[name]}")
    left = [name for name in chosen if states[name] != "done"]
    minutes = sum(cells[name].minutes for name in left)
    print(f"{len(chosen) - len(left)} of {len(chosen)} done; {minutes / 60:.1f} hours are left")


def _write_page(cells: Mapping[str, Cell], results: Results) -> None:
    from benchmarks.study import page

    done = results.of(cells.values())
    for name in page.write(cells, done, results.path.parent):
        print(results.path.parent / name)
    if missing := [name for name in cells if name not in done]:
        print(f"missing: {', '.join(missing)}")


def _compare(cells: Mapping[str, Cell], results: Results, names: Sequence[str]) -> None:
    """Differences from the first of some arms or cells; p as in the tables, Holm over these."""
    from benchmarks.study import comparing

    done = {
        name: result
        for name, result in results.of(cells.values()).items()
        if "test" in result["per_query"]
    }
    runs = {
        name: {done[name]["seed"] or 0: done[name]}
        if name in done
        else comparing.by_seed(done, name)
        for name in names
    }
    if nothing := [name for name, found in runs.items() if not found]:
        raise UsageProblem(
            f"no test run of {', '.join(nothing)}",
            hint="name arms such as table1/bm25-ance, or cells that `list` shows as done",
        )
    if len(runs) < 2:
        raise UsageProblem("nothing to compare", hint="name a reference and at least one other")
    kinds = {name: {_kind(result) for result in found.values()} for name, found in runs.items()}
    if other := [name for name in runs if kinds[name] != kinds[names[0]]]:
        raise UsageProblem(
            f"{', '.join(other)}: other queries or another measure than {names[0]}",
            hint="compare arms of one collection",
        )
    reference = runs.pop(names[0])
    for name, found in comparing.against(reference, runs).items():
        own, theirs = comparing.shared_seeds(reference, runs.pop(name))
        seeds = sorted({*own, *theirs} - {0})
        over = f", seeds {', '.join(map(str, seeds))}" if seeds else ""
        print(f"{name} less {names[0]}: {found.value:+.4f}, p {found.p:.4f}, after Holm "
              f"{found.corrected:.4f}{over}")  # fmt: skip
    if runs:
        print(f"no seed to compare with {names[0]}: {', '.join(runs)}")


def _kind(result: Result) -> tuple[str, int]:
    """The measure whose values a result has by query, and of how many queries."""
    return next(iter(result["measures"]["test"])), len(result["per_query"]["test"])


def _folder(given: Path | None, variable: str, flag: str) -> Path:
    found = given or (Path(os.environ[variable]) if variable in os.environ else None)
    if found is None or not found.is_dir():
        raise UsageProblem(
            f"{flag} {found}: no such folder" if found else f"{flag} is missing",
            hint=f"name the folder with {flag}, or in ${variable}",
        )
    return found.resolve()


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--data", type=Path, help="datasets (default: $ANCE_TEST_DATA)")
    shared.add_argument("--weights", type=Path, help="checkpoints (default: $ANCE_TEST_WEIGHTS)")
    shared.add_argument("--work", type=Path, default=Path("runs/study"))
    shared.add_argument("--results", type=Path, default=Path("docs/evidence/study/results.jsonl"))
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, does in (("list", "show the cells and their state"), ("run", "do cells")):
        command = verbs.add_parser(verb, parents=[shared], help=does)
        command.add_argument("patterns", nargs="*", metavar="PATTERN")
        command.add_argument("--seeds", default="", help="only these, for instance 42,43")
        if verb == "run":
            command.add_argument("--threads", type=int, default=0, help="0 = every core")
    verbs.add_parser("table", parents=[shared], help="write tables and plots next to the results")
    compare = verbs.add_parser("compare", parents=[shared], help="paired tests of some results")
    compare.add_argument("names", nargs="+", metavar="ARM", help="the first is the reference")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says; returns the exit code."""
    options = _parse(arguments)
    try:
        cells, results = grid(), Results(options.results)
        if options.verb == "table":
            _write_page(cells, results)
            return 0
        if options.verb == "compare":
            _compare(cells, results, options.names)
            return 0
        places = Placeholders(
            data=_folder(options.data, "ANCE_TEST_DATA", "--data"),
            weights=_folder(options.weights, "ANCE_TEST_WEIGHTS", "--weights"),
            work=options.work.resolve(),
            threads=getattr(options, "threads", 0),
        )
        seeds = [int(seed) for seed in options.seeds.split(",") if seed]
        chosen = choose(cells, options.patterns, seeds)
        if options.verb == "list":
            _show(cells, chosen, results, places)
            sys.stdout.flush()
            return 0
        failed = run(cells, chosen, results, places, lambda line: print(line, flush=True))
    except AnceError as problem:
        print(f"error: {problem.what}\n{problem.hint or ''}", file=sys.stderr)
        return problem.exit_code
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Stopped as stop:
        print("stopped; the same command continues", file=sys.stderr)
        return stop.exit_code
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    install_signal_handlers()
    sys.exit(main(sys.argv[1:]))
