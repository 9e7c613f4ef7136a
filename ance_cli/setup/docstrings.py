"""A retrieval dataset that every machine has: the docstrings of Python's library and of packages.

The first line of a docstring is a query, and the rest is its passage. Files are parsed, never
imported. Pairs are split by module, so that training has no pair from the file of a test query.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import packages_distributions, version
from pathlib import Path

import orjson
import xxhash

from ance_cli.config import DemoConfig
from ance_cli.errors import BadInput, Mismatch
from ance_cli.formats import atomic, lease
from ance_cli.formats.plan import Plan
from ance_cli.formats.summary import Summary, summary_of
from ance_cli.progress import Reporter

_SKIPPED_FOLDERS = ("site-packages", "test", "tests", "testing", "idlelib", "lib2to3")
_SPLITS = (("test", 0.2), ("dev", 0.3), ("train", 1.0))


@dataclass(frozen=True)
class Pair:
    """One docstring: its qualified name, its module, its first line and the rest."""

    name: str
    module: str
    query: str
    passage: str


def docstring_dataset(output: Path, config: DemoConfig, reporter: Reporter) -> Summary:
    """Write the dataset folder (BEIR layout, splits train, dev and test).

    It has at most `config.passages` docstrings of Python's own library and of `config.packages`.
    """
    plan = Plan("dataset", output, {"max_passages": config.passages, **_versions(config)}, {})
    try:
        manifest = plan.published()
    except Mismatch as problem:
        raise Mismatch(
            problem.what, hint=f"remove {output.parent}, or name another folder with -o"
        ) from problem
    if manifest:
        return summary_of(manifest, output, up_to_date=True)
    with lease.of_output(output):
        pairs = _sampled(_distinct(_read_all(config.packages, reporter)), config.passages)
        with plan.new_partial() as folder:
            counts = _write(folder, pairs)
        manifest = plan.publish_folder({}, {"passages": len(pairs), **counts})
    return summary_of(manifest, output, up_to_date=False)


def _versions(config: DemoConfig) -> dict[str, str]:
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in config.packages:
        for distribution in packages_distributions().get(package, ()):
            versions[distribution] = version(distribution)
    return versions


def _sampled(pairs: list[Pair], count: int) -> list[Pair]:
    """At most `count` of the pairs, chosen by the hash of their names; sorted by name."""
    by_hash = sorted(pairs, key=lambda pair: xxhash.xxh3_64_intdigest(pair.name.encode()))
    chosen = sorted(by_hash[:count], key=lambda pair: pair.name)
    if len(chosen) < 500:
        raise BadInput(
            f"{sysconfig.get_paths()['stdlib']}: found only {len(chosen)} docstrings, expected at "
            "least 500: this Python was installed without sources",
            hint="use another Python, or train on your own data",
        )
    return chosen


def _read_all(packages: Sequence[str], reporter: Reporter) -> Iterator[Pair]:
    roots = {"": Path(sysconfig.get_paths()["stdlib"])}
    for package in packages:
        found = importlib.util.find_spec(package)
        if found and found.submodule_search_locations:
            roots[package] = Path(found.submodule_search_locations[0])
    files = [
        (path, ".".join([package, *path.relative_to(root).with_suffix("").parts]).strip("."))
        for package, root in roots.items()
        for path in sorted(_sources(root))
    ]
    with reporter.task("reading docstrings", len(files), "file") as bar:
        for path, module in files:
            yield from _read_file(path, module.removesuffix(".__init__"))
            bar.advance()


def _sources(root: Path) -> Iterator[Path]:
    """The Python files of a library or package, without tests and installed packages."""
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix == ".py" and stem not in _SKIPPED_FOLDERS:
                yield Path(folder, name)


def _read_file(path: Path, module: str) -> Iterator[Pair]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError, RecursionError):
        return  # templates and files of other Python versions
    stack: list[tuple[ast.AST, str]] = [(tree, module)]
    while stack:
        node, prefix = stack.pop()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{prefix}.{child.name}"
                stack.append((child, name))
                if pair := _pair(name, module, ast.get_docstring(child)):
                    yield pair


def _pair(name: str, module: str, docstring: str | None) -> Pair | None:
    """The pair of a docstring; None if it is too short, or if the passage contains the query."""
    query, _, passage = (docstring or "").partition("\n\n")
    query, passage = query.strip(), passage.strip()
    if "\n" in query or not 4 <= len(query.split()) <= 30 or len(passage.split()) < 12:
        return None
    if query.lower().rstrip(".") in " ".join(passage.lower().split()):
        return None
    return Pair(name, module, query, passage)


def _distinct(pairs: Iterator[Pair]) -> list[Pair]:
    """The first of the pairs that share a query or (nearly) a passage, as in mirrored modules."""
    seen: set[str] = set()
    names: set[str] = set()
    kept = []
    for pair in pairs:
        words = "".join(c if c.isalnum() else " " for c in pair.passage.lower()).split()
        keys = {f"q:{pair.query.lower()}", f"p:{' '.join(words[:40])}"}
        if not keys & seen and pair.name not in names:
            kept.append(pair)
            names.add(pair.name)
        seen |= keys
    return kept


def _split_of(module: str) -> str:
    fraction = xxhash.xxh3_64_intdigest(module.encode()) / 2**64
    return next(name for name, up_to in _SPLITS if fraction < up_to)


def _write(folder: Path, pairs: list[Pair]) -> dict[str, int]:
    with atomic.new_file(folder / "corpus.jsonl") as handle:
        for pair in pairs:
            record = {"_id": pair.name, "title": "", "text": pair.passage}
            handle.write(orjson.dumps(record) + b"\n")
    with atomic.new_file(folder / "queries.jsonl") as handle:
        for pair in pairs:
            handle.write(orjson.dumps({"_id": f"q:{pair.name}", "text": pair.query}) + b"\n")
    counts = {}
    for split, _ in _SPLITS:
        members = [pair for pair in pairs if _split_of(pair.module) == split]
        counts[split] = len(members)
        with atomic.new_file(folder / "qrels" / f"{split}.tsv") as handle:
            handle.write(b"query-id\tcorpus-id\tscore\n")
            for pair in members:
                handle.write(f"q:{pair.name}\t{pair.name}\t1\n".encode())
    return counts
