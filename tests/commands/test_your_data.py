"""Each kind of data on the guide's page goes from its files to a trained, searched and exported
model with the commands of that page."""

import csv
import json
import random
import re
import shlex
import shutil

import pytest

from tests.guides import ROOT

PAGE = (ROOT / "docs" / "guides" / "your-data.md").read_text()
IMPORTS = re.findall(r"^\|.*\| `(ance import .*?)` \|$", PAGE, re.MULTILINE)
THEN = re.search(r"^```sh\ncd data\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[1].splitlines()

pytestmark = pytest.mark.long


def facts(count: int = 60) -> list[tuple[str, str]]:
    """Questions, each with the passage that answers it."""
    draw = random.Random(7)
    words = [f"w{number}" for number in range(300)]
    passages = [" ".join(draw.sample(words, 25)) for _ in range(count)]
    return [(f"what is {' '.join(draw.sample(text.split(), 3))}?", text) for text in passages]


def write_csv(path, header, rows, delimiter=","):
    with open(path, "w", newline="") as handle:
        csv.writer(handle, delimiter=delimiter).writerows([*([header] if header else []), *rows])


def write(folder, source: str) -> None:
    """The files of one source, by its name on the page."""
    pairs = facts()
    other = [pairs[(place + 7) % len(pairs)][1] for place in range(len(pairs))]
    if source in ("faq.csv", "faq.tsv"):
        delimiter = "\t" if source == "faq.tsv" else ","
        write_csv(folder / source, ("question", "answer"), pairs, delimiter)
    elif source == "docs.csv":
        rows = [(f"d{n}", f"Title {n}", text) for n, (_, text) in enumerate(pairs)]
        write_csv(folder / "docs.csv", ("id", "title", "text"), rows)
        ids = [(query, f"d{n}") for n, (query, _) in enumerate(pairs)]
        write_csv(folder / "pairs.csv", ("question", "document_id"), ids)
    elif source == "pairs.csv":
        write_csv(folder / source, None, pairs)
    elif source == "scored.csv":
        rows = [(q, text, 0.9) for q, text in pairs]
        rows += [(q, text, 0.2) for (q, _), text in zip(pairs, other, strict=True)]
        write_csv(folder / source, ("query", "passage", "score"), rows)
    elif source == "kb":
        (folder / "kb" / "more").mkdir(parents=True)
        for n, (_, text) in enumerate(pairs):
            name, text = (f"more/{n}.md", f"# Page {n}\n\n{text}") if n % 2 else (f"{n}.txt", text)
            (folder / "kb" / name).write_text(text + "\n")
        names = [f"more/{n}.md" if n % 2 else f"{n}.txt" for n in range(len(pairs))]
        rows = [(query, name) for (query, _), name in zip(pairs, names, strict=True)]
        write_csv(folder / "questions.csv", ("question", "file"), rows)
    else:
        write_rows(folder, source, pairs, other)


def write_rows(folder, source, pairs, other):
    names = {"triplets.jsonl": ("anchor", "positive", "negative"),
             "rows.json": ("query", "positives", "negatives")}  # fmt: skip
    query, positive, negative = names.get(source, ("query", "positive", None))
    rows = [
        {query: q, positive: text, **({negative: wrong} if negative else {})}
        for (q, text), wrong in zip(pairs, other, strict=True)
    ]
    if source == "rows.json":
        rows = [{k: v if k == "query" else [v] for k, v in row.items()} for row in rows]
        (folder / source).write_text(json.dumps(rows, indent=1))
    elif source.endswith(".jsonl"):
        (folder / source).write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif source == "saved":
        import datasets

        parts = {"train": rows[:50], "validation": rows[50:]}
        saved = {name: datasets.Dataset.from_list(part) for name, part in parts.items()}
        datasets.DatasetDict(saved).save_to_disk(str(folder / source))
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = folder / (source if source.endswith(".parquet") else "hub-copy/train.parquet")
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path)


def test_the_page_has_twelve_kinds():
    assert len(IMPORTS) == len(set(IMPORTS)) == 12


@pytest.mark.parametrize("command", IMPORTS, ids=lambda command: command.split()[2])
def test_from_the_files_to_a_model(command, tmp_path, backbone, ance):
    write(tmp_path, command.split()[2].removeprefix("hf:./"))
    shutil.copytree(backbone, tmp_path / "encoder")
    _, *words = shlex.split(command)
    ance.cwd = tmp_path
    ance(*words)
    splits = {path.stem for path in (tmp_path / "data" / "qrels").iterdir()}
    assert {"train", "dev"} <= splits
    folder = ance.cwd = tmp_path / "data"
    printed = {}
    for line in THEN:
        _, *words = shlex.split(line)
        printed[words[0]] = ance(*words).stdout
    assert (folder / "runs/ance/best/model.safetensors").exists()
    assert len(printed["search"].splitlines()) >= 3
    assert (folder / "onnx").is_dir()
