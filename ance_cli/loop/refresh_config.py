"""The settings of a run's refreshes: fixed and checked by the first refresh, read by later ones."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from ance_cli.call import Call
from ance_cli.config import RefreshConfig
from ance_cli.config.loop import NO_DEV
from ance_cli.errors import BadInput, UsageProblem
from ance_cli.formats.dataset import Dataset, queries_of_split, read_answers
from ance_cli.formats.run_folder import REFRESH, RunFolder, compare_settings
from ance_cli.loop.guard import guard_dataset
from ance_cli.mining.mining_job import shares_of
from ance_cli.mining.mix import ANN, PREVIOUS
from ance_cli.mining.text_filters import teacher_inputs
from ance_cli.models.checkpoint import Checkpoint


def refresh_config(
    run: RunFolder, dataset: Dataset, given: dict[str, Any], call: Call
) -> RefreshConfig:
    """The run's refresh settings, checked for the first refresh and for one with --force; these two
    have to write them.

    Which labels are positives, and the seed, are settings of the run.
    """
    if run.has_refresh_settings and not call.force:
        return fixed_config(run, given)
    config = _chosen(run, given)
    _check_mining(config, dataset)
    _check_index(config, run)
    _check_guard(config)
    return _with_dev(config, dataset, is_required="dev_split" in given, call=call)


def fixed_config(run: RunFolder, given: dict[str, Any]) -> RefreshConfig:
    """The settings in `refresh.json`; `Mismatch` if the given ones differ."""
    path = run.path / REFRESH
    found = run.refresh_settings()
    config = _config_of(path, found)
    compare_settings(
        path,
        found,
        _as_kept(found, given),
        "leave them out, or fix other settings for the run with ance refresh --force",
    )
    return config


def _chosen(run: RunFolder, given: dict[str, Any]) -> RefreshConfig:
    identity = run.read().identity
    before = run.refresh_settings() if run.has_refresh_settings else {}
    own = {name: identity[name] for name in ("min_rel", "seed")}
    return _config_of(run.path / REFRESH, {**before, **given, **own})


def _config_of(path: Path, settings: dict[str, Any]) -> RefreshConfig:
    if unknown := settings.keys() - {field.name for field in fields(RefreshConfig)}:
        raise BadInput(
            f"{path}: {min(unknown)!r} is not a setting of a refresh",
            hint="delete it, or remove the file and give the settings again",
        )
    return RefreshConfig(**settings)


def _as_kept(found: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The given settings in the form in which `refresh.json` keeps them."""
    config = asdict(RefreshConfig(**{**found, **given}))
    return {name: config[name] for name in given}


def _check_mining(config: RefreshConfig, dataset: Dataset) -> None:
    """Refuse now what mining would refuse after the corpus is encoded."""
    shares = shares_of(config, exact=config.index_factory is None)
    if config.negatives and PREVIOUS in shares and ANN not in shares:
        raise UsageProblem(
            f"--mix {config.mix}: previous draws from the candidates of the generation before, "
            "and without ann no generation has candidates",
            hint="add ann to the mix: --mix ann:0.5,previous:0.5",
        )
    if config.answers:
        read_answers(dataset.need("queries"))
    teacher_inputs(config)


def _check_index(config: RefreshConfig, run: RunFolder) -> None:
    """Refuse an index that faiss cannot make for the run's vectors."""
    if config.index_factory and (newest := run.newest_checkpoint()):
        from ance_cli.retrieval.faiss_index import new_index

        new_index(Checkpoint(newest[1]).dim, config.index_factory)


def _check_guard(config: RefreshConfig) -> None:
    """Refuse a guard that cannot be measured."""
    if config.guard is None:
        return
    from ance_cli.evaluation.measures import parse_measures

    parse_measures(config.measures)
    queries_of_split(guard_dataset(config.guard))


def _with_dev(
    config: RefreshConfig, dataset: Dataset, is_required: bool, call: Call
) -> RefreshConfig:
    """The settings with a dev split that exists; without one, if the default split does not."""
    if config.dev_split == NO_DEV:
        return config
    from ance_cli.evaluation.measures import parse_measures

    parse_measures(config.measures)
    try:
        labels = labels_of_split(dataset.need("qrels"), config.dev_split)
    except BadInput:
        if is_required:
            raise
        call.reporter.warn("the dataset has no dev split: refreshes will measure nothing")
        return replace(config, dev_split=NO_DEV)
    queries_of_split(replace(dataset, qrels=labels))
    return config


def labels_of_split(qrels: Path, split: str) -> Path:
    """The labels of another split, in the folder of `qrels`; `BadInput` if there are none."""
    for ending in (".tsv", ".tsv.gz", ".tsv.zst", ".txt"):
        path = qrels.with_name(f"{split}{ending}")
        if path.exists():
            return path
    raise BadInput(
        f"{qrels.with_name(f'{split}.tsv')}: no such split",
        hint=f"name another split, or measure nothing with --dev-split {NO_DEV}",
    )
