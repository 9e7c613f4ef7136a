"""Datasets of the Hugging Face hub, and folders that the library `datasets` saved.

`hf:ORG/NAME[:SUBSET][@REVISION]` is streamed through that library: nothing is downloaded but the
rows that are read, and no code of the dataset runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from ance_cli.call import SkippedLines
from ance_cli.errors import AnceError, BadInput, UsageProblem, system_failure
from ance_cli.formats.hashing import hash_file, hash_json
from ance_cli.interop import HUGGING_FACE
from ance_cli.interop.columns import shape_of
from ance_cli.interop.records import Head, Part, Role
from ance_cli.interop.table_files import Rows, Table, open_table
from ance_cli.interop.tabular import TableReading, not_understood, part_of

_NAME = re.compile(r"(?P<name>[^:@]+)(?::(?P<subset>[^@]+))?(?:@(?P<revision>.+))?")
_BEIR_SUBSETS = {"corpus", "queries"}


def parts_of(source: str, reading: TableReading) -> list[Part]:
    """The splits of a dataset, each a part by its columns.

    A dataset with the subsets `corpus` and `queries`, as MTEB publishes BEIR, is read whole.
    """
    found = _NAME.fullmatch(source)
    if found is None:
        raise UsageProblem(
            f"{HUGGING_FACE}:{source}: cannot be read",
            hint=f"expected {HUGGING_FACE}:ORG/NAME[:SUBSET][@REVISION]",
        )
    name, subset, revision = found["name"], found["subset"], found["revision"]
    with _reaching(source):
        import datasets

        commit = _commit(name, revision)
        content = commit if commit is not None else _hash_folder(Path(name))
        subsets = datasets.get_dataset_config_names(name, revision=commit)
        parts = []
        for each in _chosen(source, subset, subsets):
            loaded = datasets.load_dataset(name, each, revision=commit, streaming=True)
            for split, stream in loaded.items():
                identity = {"subset": each, "split": str(split), "content": content}
                parts.append(_part(source, each, str(split), stream, identity, reading))
    return parts


def _commit(name: str, revision: str | None) -> str | None:
    """The commit that a revision of a hub dataset is now; a local folder has none."""
    if Path(name).exists():
        if revision is not None:
            raise UsageProblem(f"{name} is a folder, which has no revision {revision!r}")
        return None
    from huggingface_hub import HfApi

    return HfApi().dataset_info(name, revision=revision).sha


def _hash_folder(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hash_json({path.relative_to(folder).as_posix(): hash_file(path) for path in files})


def _chosen(source: str, subset: str | None, subsets: list[str]) -> list[str]:
    if subset is not None:
        if subset not in subsets:
            raise BadInput(
                f"{HUGGING_FACE}:{source}: has no subset {subset!r}",
                hint=f"it has {', '.join(subsets[:20])}",
            )
        return [subset]
    if len(subsets) == 1 or set(subsets) >= _BEIR_SUBSETS:
        return subsets
    raise UsageProblem(
        f"{HUGGING_FACE}:{source}: has {len(subsets)} subsets: {', '.join(subsets[:20])}",
        hint=f"name one: {HUGGING_FACE}:{source}:{subsets[0]}",
    )


def _part(
    source: str, subset: str, split: str, stream: Any, identity: dict[str, Any],
    reading: TableReading,
) -> Part:  # fmt: skip
    name = f"{HUGGING_FACE}:{source} {subset}/{split}"
    columns = tuple(stream.column_names or next(iter(stream), {}))
    role = {"corpus": Role.DOCUMENTS, "queries": Role.QUERIES}.get(subset)
    shape = shape_of(columns, reading.named, subset, role)
    if shape is None:
        raise not_understood(name, columns)
    info = (stream.info.splits or {}).get(split)
    count = info.num_examples if info is not None else None

    def rows(skipped: SkippedLines | None) -> Rows:
        with _reaching(source):
            yield from enumerate(stream, start=1)

    table = Table("Hugging Face", columns, rows, count or None, by_row=True)
    return part_of(name, table, shape, reading, partial(hash_json, identity), split)


@contextmanager
def _reaching(source: str) -> Iterator[None]:
    """Turns what `datasets` raises while it is asked and read into errors of ours."""
    try:
        yield
    except AnceError:
        raise
    except Exception as error:  # the HTTP library below, and so its errors, differ by version
        if isinstance(error, OSError) and system_failure(error):
            raise
        reason = " ".join(str(error).split())[:300]
        raise BadInput(
            f"{HUGGING_FACE}:{source}: cannot be downloaded or read ({reason})",
            hint="check the name and the network; a private dataset needs HF_TOKEN",
        ) from error


# -------------------------------------------------------------------- saved folders


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` of a `Dataset` or a `DatasetDict` wrote the folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def parts_of_saved(folder: Path, reading: TableReading) -> list[Part]:
    """The Arrow files of a saved folder, split by split."""
    if not (folder / "dataset_dict.json").is_file():
        return _shards(folder, None, reading)
    splits = _listed(folder / "dataset_dict.json", "splits")
    return [part for split in splits for part in _shards(folder / split, split, reading)]


def _shards(folder: Path, split: str | None, reading: TableReading) -> list[Part]:
    parts = []
    for entry in _listed(folder / "state.json", "_data_files"):
        name = entry.get("filename") if isinstance(entry, dict) else None
        if not isinstance(name, str) or Path(name).name != name:
            raise BadInput(f"{folder / 'state.json'}: names no Arrow file")
        path = folder / name
        table = open_table(path, Head(path))
        shape = None if table is None else shape_of(table.columns, reading.named, folder.name)
        if table is None or shape is None:
            raise not_understood(str(path), table.columns if table else ())
        table = replace(table, form="Arrow, saved by datasets")
        parts.append(part_of(str(path), table, shape, reading, partial(hash_file, path), split))
    return parts


def _listed(path: Path, field: str) -> list[Any]:
    try:
        found = orjson.loads(path.read_bytes())[field]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{path}: cannot be read as a folder of datasets' save_to_disk ({error})",
            hint="save the dataset again",
        ) from error
    if not isinstance(found, list):
        raise BadInput(f"{path}: {field!r} should be a list")
    return found
