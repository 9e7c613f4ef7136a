"""Making a run folder, continuing one, and publishing its checkpoints.

`run.json` holds the run's identity: data, start, recipe. It is written once and last, so a run
either exists with its first checkpoint or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ance_cli import __version__
from ance_cli.config import TrainConfig
from ance_cli.config.presets import train_config
from ance_cli.errors import UsageProblem
from ance_cli.formats import atomic
from ance_cli.formats.dataset import Dataset
from ance_cli.formats.merged import read_shares
from ance_cli.formats.run_folder import RUN, RunFolder, compare_settings, now
from ance_cli.models.checkpoint import COSINE_SCALE, Checkpoint, EncodingSettings
from ance_cli.progress import Reporter

if TYPE_CHECKING:
    from ance_cli.models.dual import DualEncoder
    from ance_cli.models.tokens import Tokenizer

_PIN_FIELDS = (
    "query_length", "passage_length", "separator", "segmentation", "max_segments", "scale",
)  # fmt: skip
_SAME_RUN = "repeat the run's own settings (or leave them out), or start another run with -o"


def identity_of(dataset: Dataset, checkpoint: Checkpoint, config: TrainConfig) -> dict[str, Any]:
    """What two calls of one run must agree on: data and start by content, and the recipe."""
    return {
        "dataset": dataset.fingerprint("corpus", "queries", "qrels"),
        "shares": read_shares(dataset),
        "start": [checkpoint.tower_hash("query"), checkpoint.tower_hash("passage")],
        **asdict(config),
    }


def config_of(identity: Mapping[str, Any]) -> TrainConfig:
    """The recipe in a run's identity."""
    known = {field.name for field in fields(TrainConfig)}
    return TrainConfig(**{name: value for name, value in identity.items() if name in known})


def continue_run(
    run: RunFolder,
    dataset: Dataset | None,
    checkpoint: Path | None,
    preset: str | None,
    given: Mapping[str, Any],
) -> tuple[dict[str, Any], TrainConfig]:
    """The existing run's identity, with everything that was given compared to it."""
    identity = run.read().identity
    config = config_of(identity)
    known = {field.name for field in fields(TrainConfig)}
    wanted = {name: value for name, value in given.items() if name in known}
    if preset is not None:
        asked = asdict(train_config(preset, given))
        own = ("total_steps", "devices")
        wanted |= {name: value for name, value in asked.items() if name not in own}
    if dataset is not None:
        wanted["dataset"] = dataset.fingerprint("corpus", "queries", "qrels")
        wanted["shares"] = read_shares(dataset)
    if checkpoint is not None:
        start = Checkpoint(checkpoint)
        wanted["start"] = [start.tower_hash("query"), start.tower_hash("passage")]
    compare_settings(run.path / RUN, identity, wanted, _SAME_RUN)
    return identity, config


def start_checkpoint(checkpoint: Path | Checkpoint, config: TrainConfig) -> Checkpoint:
    """The start checkpoint with the pins that the recipe sets."""
    start = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)
    changes = {name: getattr(config, name) for name in _PIN_FIELDS}
    if not start.has_head:
        changes["similarity"] = config.similarity
        if config.similarity == "cosine" and changes["scale"] is None:
            changes["scale"] = COSINE_SCALE
    return start.with_settings(**changes, training_step=0)


def start_run(
    run: RunFolder,
    dataset: Dataset,
    checkpoint: Checkpoint,
    config: TrainConfig,
    identity: dict[str, Any],
    reporter: Reporter,
) -> None:
    """Make the run folder: its first checkpoint, then `run.json`, by which it exists."""
    from ance_cli.models.dual import freeze_passages, start_dual
    from ance_cli.models.tokens import Tokenizer

    similarity = config.similarity
    pinned = start_checkpoint(checkpoint, config)
    dual, fresh = start_dual(pinned, config.dim, config.seed, config.towers, similarity)
    if config.freeze_passages:
        if fresh:
            raise UsageProblem(
                f"--freeze-passages: {checkpoint.shown} has no retrieval head, so its passages' "
                "vectors mean nothing yet",
                hint="train it first, and start from that run's checkpoint",
            )
        dual = freeze_passages(dual)
    if fresh:
        normalized = " -> Normalize" if similarity == "cosine" else ""
        reporter.say(
            f"{checkpoint.shown} has no retrieval head: a fresh one is added "
            f"([CLS] -> Linear -> LayerNorm{normalized}, {dual.dim} dimensions)"
        )
    elif config.dim not in (None, dual.dim):
        raise UsageProblem(
            f"--dim {config.dim}: {checkpoint.shown} has a head of {dual.dim} dimensions"
        )
    atomic.remove(run.checkpoint(0).path)  # left by a call that was killed before the run existed
    with atomic.disk_errors(run.path):
        for folder in (run.checkpoints, run.states, run.generations):
            folder.mkdir(parents=True, exist_ok=True)
    frozen = pinned if config.freeze_passages else None
    publish_checkpoint(run, dual, Tokenizer(pinned), pinned.settings, frozen)
    run.write_settings(
        RUN,
        {
            "identity": identity,
            "data": {
                "corpus": str(dataset.corpus.resolve()),
                "queries": str(dataset.need("queries").resolve()),
                "qrels": str(dataset.need("qrels").resolve()),
                "split": dataset.split,
            },
            "start_checkpoint": str(checkpoint.path),
            "fresh_head": fresh,
            "created": now(),
            "tool_version": __version__,
        },
    )
    run.event("trainer", "run created", start=str(checkpoint.path))


def publish_checkpoint(
    run: RunFolder,
    dual: DualEncoder,
    tokenizer: Tokenizer,
    settings: EncodingSettings,
    frozen_passage_from: Checkpoint | None = None,
) -> None:
    """A whole checkpoint under its step's name, and `latest` pointing to it.

    `frozen_passage_from` is `save_dual`'s.
    """
    from ance_cli.models.dual import save_dual

    folder = run.checkpoint(settings.training_step).path
    if not folder.exists():
        partial = atomic.partial_name(folder)
        atomic.remove(partial)
        with atomic.disk_errors(folder):
            save_dual(dual, tokenizer, settings, partial, frozen_passage_from)
        atomic.publish_folder(partial, folder)
    atomic.point(run.latest, folder)
