"""Creates a run folder, continues one, and publishes its checkpoints.

`run.json` holds the run's identity: data, start, recipe. It is written once and last, so a run
either exists with its first checkpoint or does not exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ance_cli import __version__
from ance_cli.call import Call
from ance_cli.config import TrainConfig
from ance_cli.config.presets import train_config
from ance_cli.config.setting import flag_of
from ance_cli.errors import UsageProblem
from ance_cli.formats import atomic
from ance_cli.formats.checkpoint_folder import seal
from ance_cli.formats.dataset import Dataset
from ance_cli.formats.hashing import hash_json
from ance_cli.formats.merged import read_shares
from ance_cli.formats.run_folder import RUN, RunFolder, compare_settings, now
from ance_cli.models.checkpoint import COSINE_SCALE, Checkpoint, EncodingSettings
from ance_cli.progress import Reporter
from ance_cli.training.launch import Devices
from ance_cli.training.sizing import DataSample, with_lengths

if TYPE_CHECKING:
    from ance_cli.models.dual import DualEncoder

_SETTINGS_IN_RECIPE = (
    "query_length", "passage_length", "query_prefix", "passage_prefix", "separator",
    "passage_template", "segmentation", "max_segments", "truncate_dim", "similarity", "scale",
)  # fmt: skip
"""The fields of `EncodingSettings` that a recipe replaces in the start checkpoint."""

_SAME_RUN = "repeat the run's own settings (or omit them), or start another run with -o"


@dataclass(frozen=True)
class RunSpec:
    """What a call says about the run that it trains.

    A new run needs `dataset` (with a split) and `checkpoint`. On an existing run each part may be
    omitted; a part that is given must agree with the run. `given` holds the `TrainConfig` fields
    that the caller set.
    """

    dataset: Dataset | None = None
    checkpoint: Path | None = None
    preset: str | None = None
    given: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunSetup:
    """The data, start and recipe of a run, whether its folder exists yet or not.

    `identity` is what two calls of one run must agree on. `checkpoint` is the start checkpoint that
    the call named; only an existing run can do without.
    """

    dataset: Dataset
    checkpoint: Path | None
    config: TrainConfig
    identity: dict[str, Any]
    is_new: bool = False
    sample: DataSample | None = None
    """Of the texts of a new run."""


def resolve_run(
    run: RunFolder, spec: RunSpec, steps: int, devices: Devices, call: Call
) -> RunSetup:
    """The setup of an existing run, with `spec` compared to it, or of a new one.

    Raises `UsageProblem` if a new run lacks a part, and `Mismatch` if `spec` differs from the run.
    """
    if run.exists:
        return continue_run(run, spec)
    return _new_run(run, spec, steps, devices, call)


def _new_run(run: RunFolder, spec: RunSpec, steps: int, devices: Devices, call: Call) -> RunSetup:
    if spec.dataset is None or spec.checkpoint is None:
        raise UsageProblem(
            f"{run.path} is a new run: it needs --data with --split, and --ckpt",
            hint="ance train-segment NEGATIVES --data DATASET --split train --ckpt CHECKPOINT "
            "--steps N -o RUN",
        )
    config = replace(train_config(spec.preset, spec.given), devices=devices.num_ranks)
    if not config.total_steps:
        if not steps:
            raise UsageProblem(
                "--steps 0 needs --total-steps, the step at which the learning rate reaches 0"
            )
        config = replace(config, total_steps=steps)
    if config.warmup_steps >= config.total_steps:
        call.reporter.warn(
            f"the run never reaches the learning rate {config.lr:g}: its warm-up takes "
            f"{config.warmup_steps} of its {config.total_steps} steps (--warmup-steps)"
        )
    start = Checkpoint(spec.checkpoint)
    asked = [flag_of(name) for name in ("head", "pooling") if spec.given.get(name) is not None]
    if start.has_head and asked:
        raise UsageProblem(
            f"{asked[0]}: {spec.checkpoint} has a pooling and head of its own",
            hint=f"omit {asked[0]}, or start from a checkpoint without them",
        )
    sample = DataSample(spec.dataset, config.min_rel, call.skipped)
    config = with_lengths(config, start_checkpoint(spec.checkpoint, config), sample)
    identity = identity_of(spec.dataset, start, config)
    return RunSetup(spec.dataset, spec.checkpoint, config, identity, True, sample)


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
    known = {each.name for each in fields(TrainConfig)}
    return TrainConfig(**{name: value for name, value in identity.items() if name in known})


def continue_run(run: RunFolder, spec: RunSpec) -> RunSetup:
    """The setup of an existing run, with everything in `spec` compared to it."""
    identity = run.read().identity
    known = {each.name for each in fields(TrainConfig)}
    wanted = {name: value for name, value in spec.given.items() if name in known}
    if spec.preset is not None:
        asked = asdict(train_config(spec.preset, spec.given))
        own = ("total_steps", "devices")
        wanted |= {name: value for name, value in asked.items() if name not in own}
    if spec.dataset is not None:
        wanted["dataset"] = spec.dataset.fingerprint("corpus", "queries", "qrels")
        wanted["shares"] = read_shares(spec.dataset)
    if spec.checkpoint is not None:
        start = Checkpoint(spec.checkpoint)
        wanted["start"] = [start.tower_hash("query"), start.tower_hash("passage")]
    compare_settings(run.path / RUN, identity, wanted, _SAME_RUN)
    return RunSetup(run.dataset(), spec.checkpoint, config_of(identity), identity)


def start_checkpoint(checkpoint: Path, config: TrainConfig) -> Checkpoint:
    """The start checkpoint with the encoding settings of the recipe."""
    start = Checkpoint(checkpoint)
    changes = {name: getattr(config, name) for name in _SETTINGS_IN_RECIPE}
    if not start.has_head and config.similarity is None:
        changes["similarity"] = "dot" if config.head == "paper" else "cosine"
    if changes["similarity"] == "cosine" and not start.is_cosine and changes["scale"] is None:
        changes["scale"] = COSINE_SCALE
    return start.with_settings(**changes, training_step=0)


def start_run(run: RunFolder, setup: RunSetup, reporter: Reporter) -> None:
    """Make the run folder: its first checkpoint, then `run.json`, by which the run exists."""
    run.check_is_run()  # `run.json` of an existing run may be missing for a moment
    dataset, config = setup.dataset, setup.config
    assert setup.checkpoint is not None, "a new run has a start"
    start = start_checkpoint(setup.checkpoint, config)
    dual, is_fresh = first_model(start, config, reporter)
    atomic.remove(run.checkpoint(0).path)  # left by a call that was killed before the run existed
    with atomic.disk_errors(run.path):
        for folder in (run.checkpoints, run.states, run.generations):
            folder.mkdir(parents=True, exist_ok=True)
    frozen = start if config.freeze_passages else None
    publish_checkpoint(run, dual, start.settings, frozen)
    run.write_settings(
        RUN,
        {
            "identity": setup.identity,
            "identity_xxh3": hash_json(setup.identity),
            "data": {
                "corpus": str(dataset.corpus.resolve()),
                "queries": str(dataset.need("queries").resolve()),
                "qrels": str(dataset.need("qrels").resolve()),
                "split": dataset.split,
            },
            "start_checkpoint": str(start.path),
            "fresh_head": is_fresh,
            "created": now(),
            "tool_version": __version__,
        },
    )
    run.event("trainer", "run created", start=str(start.path))


def first_model(
    start: Checkpoint, config: TrainConfig, reporter: Reporter
) -> tuple[DualEncoder, bool]:
    """The encoder that training begins with, and whether its head is a new one."""
    from ance_cli.models.dual import Start, freeze_passages, start_dual
    from ance_cli.models.encoder import described
    from ance_cli.training.layers import freeze_layers

    asked = {each.name: getattr(config, each.name) for each in fields(Start)}
    dual, is_fresh = start_dual(start, Start(**asked))
    if config.freeze_passages:
        if is_fresh:
            raise UsageProblem(
                f"--freeze-passages: {start.shown} has no retrieval head, so the vectors of its "
                "passages mean nothing yet",
                hint="train the checkpoint first, and start from that run's checkpoint",
            )
        dual = freeze_passages(dual)
    freeze_layers(dual, config.freeze_layers)  # refuses what cannot be frozen
    if config.lora_rank:
        counts = [sum(p.numel() for p in dual.parameters() if p.requires_grad or every)
                  for every in (False, True)]  # fmt: skip
        reporter.say(f"an adapter is trained: {counts[0]:,} of {counts[1]:,} weights")
    if is_fresh:
        reporter.say(
            f"{start.shown} has no retrieval head: a new one is added "
            f"({described(dual.query)}, {dual.dim} dimensions, {start.settings.similarity})"
        )
    elif config.dim not in (None, dual.dim):
        raise UsageProblem(f"--dim {config.dim}: {start.shown} has a head of {dual.dim} dimensions")
    config.widths(dual.dim)  # refuses widths that the vectors do not have
    return dual, is_fresh


def publish_checkpoint(
    run: RunFolder,
    dual: DualEncoder,
    settings: EncodingSettings,
    frozen_passage_from: Checkpoint | None = None,
) -> None:
    """Publish a whole checkpoint under the name of its step, and point `latest` to it.

    `frozen_passage_from`: the checkpoint of a frozen passage tower, as `save_dual` takes it.
    """
    from ance_cli.models.dual import save_dual

    folder = run.checkpoint(settings.training_step).path
    if not folder.exists():
        partial = atomic.partial_name(folder)
        atomic.remove(partial)
        with atomic.disk_errors(folder):
            save_dual(dual, settings, partial, frozen_passage_from)
            seal(partial)
        atomic.publish_folder(partial, folder)
    atomic.point(run.latest, folder)
