"""The model card of a checkpoint: what it was trained on, how, from what, and how good it is.

A `README.md` as the Hugging Face hub expects it: YAML in front, by huggingface_hub, then Markdown.
Everything is read from the checkpoint and from the run folder that contains it. No path of the
machine gets into it, only the names of folders.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ance_cli.call import Call
from ance_cli.errors import UsageProblem
from ance_cli.formats import atomic
from ance_cli.formats.dataset import Passage
from ance_cli.formats.jsonl import is_stream, open_output
from ance_cli.formats.ledgers import Segment, SegmentLedger
from ance_cli.formats.plan import KEEP
from ance_cli.formats.run_folder import RunFolder, RunRecord
from ance_cli.formats.summary import Summary
from ance_cli.models.checkpoint import Checkpoint, EncodingSettings
from ance_cli.models.hub import origin

_TAGS = ["sentence-transformers", "sentence-similarity", "feature-extraction", "dense-retrieval",
         "ance"]  # fmt: skip
_MARK = re.compile(rb"\A---\n(?s:.*?)^- ance$", re.MULTILINE)
"""What a card of ours has in its front matter."""

_PAPER = "https://openreview.net/forum?id=zeFrfgyZln"


@dataclass(frozen=True)
class Ancestor:
    """A checkpoint in the lineage of another: from a run, or without a run folder (`run` None)."""

    name: str
    step: int
    run: RunFolder | None
    hub_id: str | None = None


def write_card(place: Path, output: Path, name: str | None = None, call: Call = Call()) -> Summary:
    """Write `model_card` to a file (`-` is stdout); replaces a file only if `call.force` is set."""
    if not is_stream(output) and output.exists():
        if output.is_dir():
            raise UsageProblem(f"{output}: is a folder", hint="name a file with -o")
        if not _MARK.search(output.read_bytes()[:4096]):
            raise UsageProblem(f"{output}: exists and is no model card by ance", hint=KEEP)
        if not call.force:
            raise UsageProblem(
                f"{output}: exists", hint="choose another name with -o, or replace it with --force"
            )
    text = model_card(place, name)
    with atomic.disk_errors(output), open_output(output) as handle:
        handle.write(text.encode())
    return {"output": str(output), "kind": "model card", "up_to_date": False}


def model_card(place: Path, name: str | None = None) -> str:
    """The card of a checkpoint, or of a run's newest one.

    `name` is the name of the model, `ORG/NAME` on the hub (None: the folder's name).
    Raises `BadInput` if there is no checkpoint, or if it has no retrieval head.
    """
    checkpoint = checkpoint_at(place)
    ancestors = lineage(checkpoint)
    last = ancestors[-1]
    shown = name or last.name
    generations = _generations(last.run) if last.run else []
    parts = [
        _front_matter(shown, ancestors, generations),
        f"# {shown}\n\n{_opening(ancestors)}",
        _table(_facts(checkpoint)),
        _usage(checkpoint, shown),
        "## Lineage\n\n" + "\n".join(_story(ancestors)),
    ]
    if last.run:
        facts = last.run.read()
        parts.append(f"## Data\n\n{_data(facts)}")
        parts.append(f"## Recipe\n\n{_table(_recipe(last.run, facts.identity))}")
    if any(row["dev"] for row in generations):
        parts.append(_measures(generations, last.step))
    return "\n\n".join(parts) + "\n"


def checkpoint_at(place: Path) -> Checkpoint:
    """The checkpoint in a folder, or a run's newest one."""
    if (run := RunFolder(place)).exists:
        place = run.latest
    checkpoint = Checkpoint(place)
    checkpoint.need_head()
    return checkpoint


def lineage(checkpoint: Checkpoint) -> list[Ancestor]:
    """The ancestors of a checkpoint, from the first known model to the checkpoint itself."""
    found = [_ancestor(checkpoint.path, checkpoint.settings.training_step)]
    while run := found[0].run:
        start = Path(run.read().start_checkpoint)
        step = Checkpoint(start).settings.training_step if start.is_dir() else 0
        found.insert(0, _ancestor(start, step))
    return found


def _ancestor(folder: Path, step: int) -> Ancestor:
    if named := origin(folder):
        return Ancestor(f"{named[0]} at {named[1][:12]}", step, None, named[0])
    run = RunFolder(folder.parent.parent)
    if folder.parent == run.checkpoints and run.exists:
        return Ancestor(run.path.name, step, run)
    return Ancestor(folder.name, step, None)


def _generations(run: RunFolder) -> list[dict[str, Any]]:
    """number, checkpoint step and dev measures of each generation, oldest first."""
    rows = []
    for generation in run.all_generations():
        stats = generation.read_manifest()["stats"]
        rows.append(
            {"generation": generation.number, "step": stats["checkpoint_step"], "dev": stats["dev"]}
        )
    return rows


# ---------------------------------------------------------------- the parts


def _front_matter(
    name: str, ancestors: Sequence[Ancestor], generations: Sequence[Mapping[str, Any]]
) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    last = ancestors[-1]
    results = []
    if last.run:
        facts = last.run.read()
        split = _refresh(last.run).get("dev_split", "dev")
        results = [
            EvalResult(
                task_type="information-retrieval",
                task_name="Information Retrieval",
                dataset_type="unknown",
                dataset_name=f"{_dataset_name(facts)} {split}",
                metric_type=measure,
                metric_name=measure,
                metric_value=value,
            )
            for row in generations
            if row["step"] == last.step
            for measure, value in row["dev"].items()
        ]
    data = ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=_TAGS,
        base_model=ancestors[0].hub_id if len(ancestors) > 1 else None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml().strip()}\n---"


def _opening(ancestors: Sequence[Ancestor]) -> str:
    words = "A dense retriever: texts to vectors, ranked by their similarity."
    if any(_mined(ancestor) for ancestor in ancestors):
        words += (
            " It was trained with `ance` on negatives mined from the whole corpus by the model "
            f"being trained ([ANCE]({_PAPER}), Xiong et al., ICLR 2021)."
        )
    return words


def _facts(checkpoint: Checkpoint) -> dict[str, Any]:
    settings = checkpoint.settings
    segmentation = {
        "first": f"their first {settings.passage_length} tokens",
        "special": f"up to {settings.max_segments} segments of {settings.passage_length} tokens, "
        "the score is the maximum (MaxP)",
        "slice": f"up to {settings.max_segments} slices of {settings.passage_length} tokens, "
        "the score is the maximum (MaxP)",
    }[settings.segmentation]
    return {
        "vectors": f"{checkpoint.dim} dimensions, compared by "
        + ("cosine" if checkpoint.is_cosine else "dot product"),
        "encoder": "one for queries and passages" if checkpoint.shared else "two, one a side",
        "queries": f"their first {settings.query_length} tokens"
        + (
            f", after the prefix {json.dumps(settings.query_prefix)}"
            if settings.query_prefix
            else ""
        ),
        "passages": f"{_joining(settings)}: {segmentation}"
        + (
            f", after the prefix {json.dumps(settings.passage_prefix)}"
            if settings.passage_prefix
            else ""
        ),
        "text": "lower-cased first" if settings.lowercase else "as it is",
    }


def _joining(settings: EncodingSettings) -> str:
    if settings.passage_template:
        return f"title and text as in {json.dumps(settings.passage_template)}"
    return f"title and text, {json.dumps(settings.separator)} between them"


def _usage(checkpoint: Checkpoint, name: str) -> str:
    settings = checkpoint.settings
    passage = settings.text_of(Passage("", "title", "text of the passage"))
    note = (
        ""
        if settings.segmentation == "first"
        else "\nsentence-transformers gives a passage one vector, of its beginning; `ance` encodes "
        "every segment.\n"
    )
    return f"""## Use

With [sentence-transformers](https://sbert.net):

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer({json.dumps(name)})
queries = model.encode_query(["what causes gout"])
passages = model.encode_document([{json.dumps(passage)}])
scores = model.similarity(queries, passages)
```
{note}
With `ance`, over a dataset in the BEIR layout:

```
ance encode --ckpt {name} --data DATASET -o embeddings
ance search --ckpt {name} --embeddings embeddings --data DATASET --split test -o test.trec
```"""


def _story(ancestors: Sequence[Ancestor]) -> Iterator[str]:
    for number, ancestor in enumerate(ancestors, start=1):
        if ancestor.run is None:
            yield f"{number}. `{ancestor.name}`" + (": the start" if len(ancestors) > 1 else "")
            continue
        facts = ancestor.run.read()
        head = " a fresh head," if facts.fresh_head else ""
        yield (
            f"{number}. `{ancestor.name}`:{head} {ancestor.step:,} steps on "
            f"{_dataset_name(facts)}{_negatives(ancestor)}"
        )


def _segments(ancestor: Ancestor) -> list[Segment]:
    """The segments of training that led to the checkpoint."""
    if ancestor.run is None:
        return []
    begun = SegmentLedger.read(ancestor.run.segments).begun
    return [segment for segment in begun if segment.start_step < ancestor.step]


def _mined(ancestor: Ancestor) -> int:
    """The number of the run's own generations that the checkpoint was trained on."""
    found = {segment.generation for segment in _segments(ancestor)}
    return len(found - {None})


def _negatives(ancestor: Ancestor) -> str:
    """The negatives of the steps up to the checkpoint, as text."""
    files = {
        Path(segment.negatives).name
        for segment in _segments(ancestor)
        if segment.generation is None and segment.negatives
    }
    words = [f"`{name}`" for name in sorted(files)]
    if mined := _mined(ancestor):
        words.append(f"{mined} generation{'s' * (mined > 1)} mined by the model itself")
    return f", negatives: {', '.join(words)}" if words else ""


def _dataset_name(facts: RunRecord) -> str:
    return Path(facts.data.corpus).parent.name


def _data(facts: RunRecord) -> str:
    rows = {
        "dataset": _dataset_name(facts),
        "split": facts.data.split or "one file of labels",
        "fingerprint": facts.identity.get("dataset"),
    }
    if shares := facts.identity.get("shares"):
        rows["merged from"] = ", ".join(f"{name} ({share})" for name, share in shares.items())
    return _table(rows)


def _recipe(run: RunFolder, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The run's settings, and those of its refreshes under `refresh:`."""
    hidden = ("dataset", "start", "shares")
    rows = {name: value for name, value in identity.items() if name not in hidden}
    rows |= {f"refresh: {name}": value for name, value in _refresh(run).items()}
    return {
        name.replace("_", " "): _without_folder(value)
        for name, value in rows.items()
        if value is not None
    }


def _without_folder(value: Any) -> Any:
    """A setting as the card shows it: of a path on this machine only the last name."""
    if isinstance(value, str) and (value[:1] in ("/", ".", "~") or value.count("/") > 1):
        return Path(value).name
    return value


def _refresh(run: RunFolder) -> dict[str, Any]:
    return run.refresh_settings() if run.has_refresh_settings else {}


def _measures(generations: Sequence[Mapping[str, Any]], step: int) -> str:
    names = list(dict.fromkeys(name for row in generations for name in row["dev"]))
    lines = [
        "## Measures",
        "",
        "On the dev split, after each refresh; this checkpoint's row is bold.",
        "",
        f"| generation | step | {' | '.join(names)} |",
        "|" + "---|" * (2 + len(names)),
    ]
    for row in generations:
        mark = "**" if row["step"] == step else ""
        values = [row["generation"], row["step"], *(row["dev"].get(name, "") for name in names)]
        lines.append("| " + " | ".join(f"{mark}{value}{mark}" for value in values) + " |")
    return "\n".join(lines)


def _table(rows: Mapping[str, Any]) -> str:
    cells = (
        f"| {name} | " + str(value).replace("|", "\\|").replace("\n", " ") + " |"
        for name, value in rows.items()
    )
    return "\n".join(["| | |", "|---|---|", *cells])
