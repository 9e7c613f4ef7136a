"""Which tool wrote the files of a source, and which of its splits are wanted."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from ance_cli.errors import BadInput, UsageProblem
from ance_cli.formats.jsonl import STDIO
from ance_cli.interop import (
    AUTO,
    FORMATS,
    IR_DATASETS,
    beir,
    dpr,
    flagembedding,
    irdatasets,
    msmarco,
    tevatron,
    trec,
)
from ance_cli.interop.records import Head, Part, Role

UNNAMED_SPLIT = "train"
"""The split of a file whose name says none, where `--split` does not name it."""

Recogniser = Callable[[Path, Head], Part | None]


@dataclass(frozen=True)
class Request:
    """What a person asks for: sources, and files whose role they say themselves."""

    sources: Sequence[str] = ()
    """`FORMAT:PATH`, `PATH`, or `ir-datasets:ID`"""
    format: str = AUTO
    """of the sources that name none"""
    corpora: Sequence[Path] = ()
    queries: Sequence[Path] = ()
    qrels: Sequence[Path] = ()
    splits: Sequence[str] = ()
    """`NAME`, or `NAME=FOUND` for one that the source calls otherwise; all where empty"""
    with_url: bool = False
    recognisers: dict[str, Recogniser] = field(init=False)

    def __post_init__(self) -> None:
        found: dict[str, Recogniser] = {
            "beir": beir.recognise,
            "msmarco-passage": msmarco.recognise_passages,
            "msmarco-doc": partial(msmarco.recognise_documents, with_url=self.with_url),
            "dpr": dpr.recognise,
            "tevatron": tevatron.recognise,
            "flagembedding": flagembedding.recognise,
            "trec": trec.recognise,
        }
        object.__setattr__(self, "recognisers", found)


def parts_of(request: Request) -> tuple[list[Part], list[Path]]:
    """The parts that a request names, in the order in which they are read, with their splits; and
    the files of its folders that were left out."""
    if not (request.sources or request.corpora or request.queries or request.qrels):
        raise UsageProblem(
            "there is nothing to import",
            hint="for instance: ance import msmarco-passage:DIR -o data/msmarco",
        )
    parts: list[Part] = []
    left_out: list[Path] = []
    for source in request.sources:
        parts += _parts_of_source(source, request, left_out)
    for paths, role in (
        (request.corpora, Role.DOCUMENTS),
        (request.queries, Role.QUERIES),
        (request.qrels, Role.LABELS),
    ):
        parts += [_part_of_role(path, role, request) for path in paths]
    once = {(part.name, part.role): part for part in parts}
    chosen = _in_splits(list(once.values()), request.splits)
    _check(chosen)
    return sorted(chosen, key=lambda part: part.role), left_out


def _parts_of_source(source: str, request: Request, left_out: list[Path]) -> list[Part]:
    name, colon, rest = source.partition(":")
    if not colon or name not in FORMATS or Path(source).exists():
        name, rest = request.format, source
    if name == IR_DATASETS:
        return irdatasets.parts_of(rest, request.with_url)
    path = Path(rest)
    if path == STDIO:
        raise UsageProblem(
            "an import reads files, not a pipe", hint="their names say what they hold"
        )
    if not path.exists():
        raise BadInput(f"{path}: no such file or folder", hint=_SOURCE_LOOKS_LIKE)
    if not path.is_dir():
        return [_recognised(path, name, request)]
    if name in (AUTO, "beir") and beir.is_layout(path):
        return beir.parts_of(path)
    return _parts_in_folder(path, name, request, left_out)


_SOURCE_LOOKS_LIKE = "a source is PATH, FORMAT:PATH or ir-datasets:ID"


def _parts_in_folder(folder: Path, name: str, request: Request, left_out: list[Path]) -> list[Part]:
    parts: dict[Path, Part] = {}
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name[0] != ".")
    for path in files:
        twin = path.with_suffix("") if path.suffix in (".gz", ".zst") else None
        part = None if twin in files or _is_archive(path) else _guess(path, name, request)
        if part is None:
            left_out.append(path)
        else:
            parts[path] = part
    if not parts:
        raise BadInput(
            f"{folder}: holds no file that was recognised as {_shown(name)}",
            hint=f"name its files with a format: {', '.join(request.recognisers)}",
        )
    if any(part.role is Role.DOCUMENTS for part in parts.values()):
        for path in [path for path, part in parts.items() if part.text_only]:
            left_out.append(path)  # its texts are those of the corpus over again, without their ids
            del parts[path]
    return list(parts.values())


def _is_archive(path: Path) -> bool:
    return any(ending in (".tar", ".tgz", ".zip") for ending in path.suffixes)


def _guess(path: Path, name: str, request: Request) -> Part | None:
    head = Head(path)
    names = request.recognisers if name == AUTO else [name]
    for each in names:
        if part := request.recognisers[each](path, head):
            return part
    return None


def _recognised(path: Path, name: str, request: Request) -> Part:
    if _is_archive(path):
        raise BadInput(
            f"{path}: is an archive of files", hint="unpack it and name the folder or the file"
        )
    part = _guess(path, name, request)
    if part is None:
        start = Head(path).first[:60]
        raise BadInput(
            f"{path}:1: was not recognised as {_shown(name)}; it begins {start!r}",
            hint="say what it holds with --corpus, --queries or --qrels, or say the format: "
            f"{', '.join(request.recognisers)}",
        )
    return part


def _shown(name: str) -> str:
    return "a form that ance knows" if name == AUTO else name


def _part_of_role(path: Path, role: Role, request: Request) -> Part:
    """The part that is a file whose role was said: of its form if that has the role, else by its
    columns."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file", hint="check the path")
    part = _guess(path, request.format, request)
    if part is None or part.role is not role:
        by_columns = {
            Role.DOCUMENTS: trec.as_documents,
            Role.QUERIES: trec.as_queries,
            Role.LABELS: trec.as_labels,
        }
        part = by_columns[role](path, Head(path))
    if part is None:
        raise BadInput(
            f"{path}:1: is no corpus: expected JSON lines, or 2 or 3 columns separated by tabs, "
            f"found {len(Head(path).columns)}"
        )
    return part


_SPLIT_NAME = re.compile(r"[\w.-]*\w")


def _in_splits(parts: list[Part], splits: Sequence[str]) -> list[Part]:
    """The parts that belong to the wanted splits, under the names wanted for them.

    Documents and queries belong to every split.
    """
    wanted: dict[str, str] = {}
    for text in splits:
        new, _, found = text.partition("=")
        if not _SPLIT_NAME.fullmatch(new):
            raise UsageProblem(
                f"--split {text}: {new!r} cannot be the name of a file",
                hint="for instance --split train --split dev=dev.small",
            )
        wanted[found or new] = new
    chosen = []
    there = set()
    for part in parts:
        if part.role in (Role.DOCUMENTS, Role.QUERIES):
            chosen.append(part)
            continue
        if part.split is None and len(wanted) > 1:
            raise UsageProblem(
                f"{part.name}: its name does not say which split it is, and --split names several",
                hint="put the split into the file's name, for instance by a link: rows.train.jsonl",
            )
        found = part.split or next(iter(wanted), UNNAMED_SPLIT)
        there.add(found)
        if not wanted or found in wanted:
            chosen.append(replace(part, split=wanted.get(found, found)))
    if missing := sorted(set(wanted) - there):
        raise UsageProblem(
            f"no source has the split {missing[0]!r}",
            hint=f"the splits there are: {', '.join(sorted(there)) or 'none'}",
        )
    return chosen


def _check(parts: list[Part]) -> None:
    """Refuse parts that cannot be combined."""
    corpus = next((part for part in parts if part.role is Role.DOCUMENTS), None)
    taken: dict[tuple[Role, str | None], Part] = {}
    for part in parts:
        if part.text_only and corpus:
            raise UsageProblem(
                f"{part.name}: its texts have no ids, and {corpus.name} is a corpus that has: "
                "nothing says which of them are the same",
                hint="import the two into folders of their own",
            )
        if part.role in (Role.LABELS, Role.RUN):
            first = taken.setdefault((part.role, part.split), part)
            if first is not part:
                raise UsageProblem(
                    f"{first.name} and {part.name} are both of the split {part.split!r}",
                    hint="import them into folders of their own, or choose with --split",
                )
