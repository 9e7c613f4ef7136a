"""`ance checkpoint push` of a dataset folder, which becomes a dataset on the hub."""

from __future__ import annotations

import re
from pathlib import Path

import orjson

from ance_cli.call import Call
from ance_cli.formats.dataset import locate, read_qrels, splits_of
from ance_cli.formats.summary import Summary
from ance_cli.hub.push import Content, check_links, check_repo_id, upload

_ENDINGS = ("", ".gz", ".zst")
_CARD = "README.md"


def is_dataset(place: Path) -> bool:
    """Whether a folder holds a corpus in the BEIR layout."""
    return any((place / f"corpus.jsonl{ending}").is_file() for ending in _ENDINGS)


def push_dataset(folder: Path, repo_id: str, public: bool = False, call: Call = Call()) -> Summary:
    """Create the dataset `repo_id` on the hub if it does not exist, private unless `public`, and
    commit the dataset folder to it.

    Uploads corpus, queries, labels, negatives and `datasets.json`, and the folder's `README.md` or,
    if it has none, `dataset_card`; other files are named in `left_out`. The labels are also written
    as JSON lines: all configurations of a dataset on the hub are read in the format of the first.
    Raises as `push` does, and `BadInput` for labels that cannot be read.
    """
    check_repo_id(repo_id)
    names = ("corpus.jsonl", "queries.jsonl", "datasets.json", "qrels/*.tsv", "negatives/*.jsonl")
    content: Content = {
        path.relative_to(folder).as_posix(): path
        for name in names
        for ending in _ENDINGS
        for path in sorted(folder.glob(f"{name}{ending}"))
    }
    if (own := folder / _CARD).exists():
        content[_CARD] = own
    check_links(content, folder)
    for split in splits_of(folder):
        content[f"qrels/{split}.jsonl"] = _labels(locate(folder, split).need("qrels"))
    content.setdefault(_CARD, dataset_card(list(content), repo_id).encode())
    message = f"Dataset {folder.resolve().name}, by ance"
    return upload("dataset", content, folder, repo_id, public, message, call)


def _labels(qrels: Path) -> bytes:
    rows = (
        {"query-id": query_id, "corpus-id": doc_id, "score": score}
        for query_id, judged in read_qrels(qrels).items()
        for doc_id, score in judged.items()
    )
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


def dataset_card(files: list[str], repo_id: str) -> str:
    """The card of a dataset with these files; its YAML leads `datasets.load_dataset` to them."""
    from huggingface_hub import DatasetCardData

    configs = _configs(files)
    data = DatasetCardData(
        task_categories=["text-retrieval"],
        tags=["information-retrieval", "ance"],
        configs=[
            {
                "config_name": name,
                "data_files": [{"split": split, "path": path} for split, path in found.items()],
            }
            for name, found in configs.items()
        ],
    )
    rows = [f"| `{name}` | {', '.join(found)} |" for name, found in configs.items()]
    table = "\n".join(["| configuration | splits |", "|---|---|", *rows])
    loads = "\n".join(
        f'{name} = load_dataset("{repo_id}", "{name}", split="{next(iter(found))}")'
        for name, found in configs.items()
    )
    return f"""---
{data.to_yaml().strip()}
---

# {repo_id}

A retrieval dataset in the BEIR layout.

{table}

```python
from datasets import load_dataset

{loads}
```

```console
hf download {repo_id} --repo-type dataset --local-dir data
ance search "a question" --engine bm25s --data data
```
"""


def _configs(files: list[str]) -> dict[str, dict[str, str]]:
    """The name of a configuration -> split -> file."""
    found: dict[str, dict[str, str]] = {}
    for path in files:
        part, _, name = path.rpartition("/")
        stem = re.sub(r"\.jsonl(\.gz|\.zst)?$", "", name)
        if stem != name:
            split = re.sub(r"[^\w.]", "_", stem)  # all that a split's name may have
            found.setdefault(part or stem, {})[split] = path
    return found
