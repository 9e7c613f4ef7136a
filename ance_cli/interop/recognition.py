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
    DOCUMENTS,
    FORMATS,
    HUGGING_FACE,
    IR_DATASETS,
    TABLE,
    beir,
    dpr,
    flagembedding,
    huggingface,
    irdatasets,
    msmarco,
    tabular,
    tevatron,
    text_files,
    trec,
)
from ance_cli.interop.chunking import Chunker
from ance_cli.interop.columns import SCORE, parse_columns
from ance_cli.interop.records import Head, Part, Role
from ance_cli.interop.split import is_shares
from ance_cli.interop.table_files import open_table
from ance_cli.interop.tabular import TableReading

UNNAMED_SPLIT = "train"
"""The split of a file whose name contains no split, if `--split` names none."""

Recogniser = Callable[[Path, Head], Part | None]


@dataclass(frozen=True)
class Request:
    """What to import: sources, and files whose role the caller knows."""

    sources: Sequence[str] = ()
    """`FORMAT:PATH`, `PATH`, or `ir-datasets:ID`"""
    format: str = AUTO
    """The format of sources that name none."""
    corpora: Sequence[Path] = ()
    queries: Sequence[Path] = ()
    qrels: Sequence[Path] = ()
    splits: Sequence[str] = ()
    """`NAME`, or `NEW=FOUND` to rename the split `FOUND`; empty: every split. `80/10/10` alone
    divides the queries of the only split."""
    with_url: bool = False
    columns: str | None = None
    """`ROLE=COLUMN,...` for tables whose columns have other names than the known ones."""
    min_score: float | None = None
    """Lowest score of a positive in scored pairs; None: scores are labels."""
    chunk: int | None = None
    """Most characters of a passage; None: files of documents are cut, rows of tables are not."""
    seed: int = 0
    """Of the division into splits."""
    parts: Sequence[Part] = ()
    """Further sources that the caller has opened."""
    recognisers: dict[str, Recogniser] = field(init=False)
    reading: TableReading = field(init=False)

    def __post_init__(self) -> None:
        chunker = None if self.chunk is None else Chunker(self.chunk)
        reading = TableReading(parse_columns(self.columns), self.min_score, chunker)
        found: dict[str, Recogniser] = {
            "beir": beir.recognise,
            "dpr": dpr.recognise,
            "tevatron": tevatron.recognise,
            "flagembedding": flagembedding.recognise,
            TABLE: partial(tabular.recognise, reading=reading),
            "msmarco-passage": msmarco.recognise_passages,
            "msmarco-doc": partial(msmarco.recognise_documents, with_url=self.with_url),
            "trec": trec.recognise,
        }
        object.__setattr__(self, "reading", reading)
        object.__setattr__(self, "recognisers", found)

    @property
    def shares(self) -> str | None:
        """The shares of a division into splits; None without one."""
        asked = [text for text in self.splits if is_shares(text)]
        if asked and len(self.splits) > 1:
            raise UsageProblem(
                f"--split {asked[0]}: divides the only split, and other --split name several",
                hint="import first, then divide one of them: ance split DATA --split NAME -o OUT",
            )
        return asked[0] if asked else None

    @property
    def chunker(self) -> Chunker:
        """Cuts the files of documents."""
        return self.reading.chunker or Chunker()


def parts_of(request: Request) -> tuple[list[Part], list[Path]]:
    """The parts of a request with their splits, in the order of reading; and the skipped files."""
    named = (request.sources, request.corpora, request.queries, request.qrels, request.parts)
    if not any(named):
        raise UsageProblem(
            "there is nothing to import",
            hint="for instance: ance import msmarco-passage:DIR -o data/msmarco",
        )
    parts: list[Part] = [*request.parts]
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
    chosen = _in_splits(list(once.values()), () if request.shares else request.splits)
    _check(chosen)
    _check_asked(chosen, request)
    return sorted(chosen, key=lambda part: part.role), left_out


def _parts_of_source(source: str, request: Request, left_out: list[Path]) -> list[Part]:
    name, colon, rest = source.partition(":")
    if not colon or name not in FORMATS or Path(source).exists():
        name, rest = request.format, source
    if name == IR_DATASETS:
        return irdatasets.parts_of(rest, request.with_url)
    if name == HUGGING_FACE:
        return huggingface.parts_of(rest, request.reading)
    path = Path(rest)
    if path == STDIO:
        raise UsageProblem(
            "ance import cannot read from stdin", hint="name a file: its name shows its format"
        )
    if not path.exists():
        raise BadInput(f"{path}: no such file or folder", hint=_SOURCE_LOOKS_LIKE)
    if not path.is_dir():
        if name == DOCUMENTS or (name == AUTO and path.suffix.lower() in text_files.ENDINGS):
            return [text_files.part_of(path.parent, [path], request.chunker)]
        return [_recognised(path, name, request)]
    if name in (AUTO, "beir") and beir.is_layout(path):
        return beir.parts_of(path)
    if name in (AUTO, TABLE) and huggingface.is_saved(path):
        return huggingface.parts_of_saved(path, request.reading)
    return _parts_in_folder(path, name, request, left_out)


_SOURCE_LOOKS_LIKE = (
    "a source is PATH, FORMAT:PATH, hf:ORG/NAME for the Hugging Face hub, or ir-datasets:ID"
)


def _parts_in_folder(folder: Path, name: str, request: Request, left_out: list[Path]) -> list[Part]:
    parts: dict[Path, Part] = {}
    documents: list[Path] = []
    files = _files_in(folder)
    for path in files:
        twin = path.with_suffix("") if path.suffix in (".gz", ".zst") else None
        if name in (AUTO, DOCUMENTS) and _is_document(path, name, request):
            documents.append(path)
            continue
        part = None if twin in files or _is_archive(path) else _guess(path, name, request)
        if part is None:
            left_out.append(path)
        else:
            parts[path] = part
    has_texts = any(part.role is Role.DOCUMENTS or part.text_only for part in parts.values())
    if has_texts or all(path.stem.lower() in _ABOUT_A_FOLDER for path in documents):
        left_out += documents
    else:
        parts[folder] = text_files.part_of(folder, documents, request.chunker)
    if not parts:
        raise BadInput(
            f"{folder}: no file in it was recognised as {_shown(name)}",
            hint=f"name the files with a format: {', '.join(request.recognisers)}",
        )
    if any(part.role is Role.DOCUMENTS for part in parts.values()):
        for path in [path for path, part in parts.items() if part.text_only]:
            left_out.append(path)  # it repeats the texts of the corpus without their ids
            del parts[path]
    return list(parts.values())


_ABOUT_A_FOLDER = ("readme", "license", "licence", "notice")
"""Names of files that say what a folder is: they are documents only among others."""


def _files_in(folder: Path) -> list[Path]:
    """The files of a folder and of the folders in it; hidden ones are left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part[0] == "." for part in path.relative_to(folder).parts)
    )


def _is_document(path: Path, name: str, request: Request) -> bool:
    """Whether a file of a folder is a document. A .txt file is one unless each of its first lines
    is a line of a format."""
    if path.suffix.lower() in text_files.ENDINGS:
        return True
    if path.suffix.lower() not in text_files.PLAIN:
        return False
    head = Head(path)
    if name == DOCUMENTS or not head.first:
        return True
    if head.first.lstrip()[:5].lower() == "<top>":
        return False
    heads = (head.only(place) for place in range(len(head.lines)))
    return any(_guess(path, name, request, each) is None for each in heads)


def _is_archive(path: Path) -> bool:
    return any(ending in (".tar", ".tgz", ".zip") for ending in path.suffixes)


def _guess(path: Path, name: str, request: Request, head: Head | None = None) -> Part | None:
    head = head or Head(path)
    names = request.recognisers if name == AUTO else [name]
    for each in request.recognisers:
        if each not in names or (name == AUTO and each == "dpr" and dpr.is_other_list(head)):
            continue
        if part := request.recognisers[each](path, head):
            return part
    return None


def _recognised(path: Path, name: str, request: Request) -> Part:
    if _is_archive(path):
        raise BadInput(f"{path}: is an archive", hint="unpack it, and name the folder or the file")
    part = _guess(path, name, request)
    if part is None:
        table = open_table(path, Head(path), request.reading.names)
        if table is not None and name in (AUTO, TABLE):
            raise tabular.not_understood(str(path), table.columns)
        start = Head(path).first[:60]
        raise BadInput(
            f"{path}:1: was not recognised as {_shown(name)}; it begins {start!r}",
            hint="name the file with --corpus, --queries or --qrels, or give its format: "
            f"{', '.join(request.recognisers)}",
        )
    return part


def _shown(name: str) -> str:
    return "a known format" if name == AUTO else name


def _part_of_role(path: Path, role: Role, request: Request) -> Part:
    """The part for a file of a given role.

    Its format is the recognised one if that has the role, and otherwise follows from the columns.
    """
    if not path.is_file():
        raise BadInput(f"{path}: no such file", hint="check the path")
    part = _guess(path, request.format, request)
    if (part is None or part.role is not role) and role is not Role.LABELS:
        part = tabular.recognise(path, Head(path), request.reading, role)
    if part is None or part.role is not role:
        by_columns = {
            Role.DOCUMENTS: trec.as_documents,
            Role.QUERIES: trec.as_queries,
            Role.LABELS: trec.as_labels,
        }
        part = by_columns[role](path, Head(path))
    if part is None:
        raise BadInput(
            f"{path}:1: is not a corpus: expected JSON lines, or 2 or 3 columns separated by tabs, "
            f"found {len(Head(path).columns)}"
        )
    return part


_SPLIT_NAME = re.compile(r"[\w.-]*\w")


def _in_splits(parts: list[Part], splits: Sequence[str]) -> list[Part]:
    """The parts of the wanted splits, which are renamed as requested.

    Documents and queries belong to every split.
    """
    wanted = _wanted_splits(splits)
    chosen = []
    known = set()
    for part in parts:
        if part.role in (Role.DOCUMENTS, Role.QUERIES):
            chosen.append(part)
            continue
        if part.split is None and len(wanted) > 1:
            raise UsageProblem(
                f"{part.name}: its split is unclear: its name contains none, and --split names "
                "several",
                hint="put the split into the file's name, for instance with a link: "
                "rows.train.jsonl",
            )
        found = part.split or next(iter(wanted), UNNAMED_SPLIT)
        known.add(found)
        if not wanted or found in wanted:
            chosen.append(replace(part, split=wanted.get(found, found)))
    if missing := sorted(set(wanted) - known):
        raise UsageProblem(
            f"no source has the split {missing[0]!r}",
            hint=f"the sources have the splits: {', '.join(sorted(known)) or 'none'}",
        )
    return chosen


def _wanted_splits(splits: Sequence[str]) -> dict[str, str]:
    """The name in the sources -> the name in the dataset, from `NAME` and `NEW=FOUND`."""
    wanted: dict[str, str] = {}
    for text in splits:
        new, _, found = text.partition("=")
        if not _SPLIT_NAME.fullmatch(new):
            raise UsageProblem(
                f"--split {text}: {new!r} cannot be the name of a file",
                hint="for instance --split train --split dev=dev.small",
            )
        wanted[found or new] = new
    return wanted


def _check(parts: list[Part]) -> None:
    """Refuse parts that cannot be combined."""
    corpus = next((part for part in parts if part.role is Role.DOCUMENTS), None)
    taken: dict[tuple[Role, str | None], Part] = {}
    for part in parts:
        if part.text_only and corpus:
            raise UsageProblem(
                f"{part.name}: its texts have no ids, so they cannot be matched with the corpus "
                f"{corpus.name}",
                hint="name the column of document ids with --columns doc_id=COLUMN, or import the "
                "two into separate folders",
            )
        if part.role in (Role.LABELS, Role.RUN):
            first = taken.setdefault((part.role, part.split), part)
            if first is not part:
                raise UsageProblem(
                    f"{first.name} and {part.name} belong to the same split {part.split!r}",
                    hint="import them into separate folders, or rename one with --split NEW=FOUND",
                )


def _check_asked(parts: list[Part], request: Request) -> None:
    """Refuse settings that no part would use."""
    if request.columns is not None:
        known = {each for part in parts for names in part.columns.values() for each in names}
        known |= {each for part in parts for each in part.unused}
        if missing := sorted(request.reading.names - known):
            raise UsageProblem(
                f"--columns: no table has the column {missing[0]!r}",
                hint=f"the tables have {', '.join(sorted(known)) or 'no columns'}",
            )
    if request.min_score is not None and not any(part.columns.get(SCORE) for part in parts):
        raise UsageProblem(
            "--min-score: no table has scores", hint="name their column: --columns score=COLUMN"
        )
    if request.chunk is not None and not any(part.is_cut for part in parts):
        raise UsageProblem(
            "--chunk: there are no documents to cut",
            hint="it cuts .txt, .md, .html and .pdf files, and the texts of tables of documents",
        )
