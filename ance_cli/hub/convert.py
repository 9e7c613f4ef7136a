"""`ance checkpoint`: inspects a checkpoint, and converts checkpoints of other layouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ance_cli.call import Call
from ance_cli.config.sets import PoolingName, Side, SimilarityName
from ance_cli.errors import BadInput, Mismatch
from ance_cli.formats import atomic, lease
from ance_cli.formats.checkpoint_folder import CheckpointFolder, seal
from ance_cli.formats.hashing import hash_file
from ance_cli.formats.jsonl import refuse_stdio
from ance_cli.formats.plan import KEEP, spare_inputs
from ance_cli.formats.run_folder import RunFolder
from ance_cli.formats.summary import Summary
from ance_cli.hub.servers import servers
from ance_cli.models.checkpoint import ORIGIN, Checkpoint
from ance_cli.models.hub import fetched
from ance_cli.models.tower import WIDTH_KEYS, Module, Tower, read_object

if TYPE_CHECKING:
    from ance_cli.models.foreign import Foreign

_SIDES: tuple[Side, Side] = ("query", "passage")
_WEIGHTS_AND_CONFIGS = (".safetensors", ".bin", ".cp", ".pt", ".json", ".txt", ".model")
_SHAPE = {
    "layers": ("num_hidden_layers", "n_layers"),
    "hidden_size": WIDTH_KEYS,
    "heads": ("num_attention_heads", "n_heads"),
    "vocabulary": ("vocab_size",),
}
"""The size of a backbone -> the keys that models use for it in their configs."""

_ENCODING = "pins"
"""The key of the changed encoding settings in `ance.json`, unchanged since the first version."""


def inspect(checkpoint: Checkpoint) -> Summary:
    """The parts of a checkpoint, the settings that its vectors depend on, its lineage, and which
    servers give its vectors.

    Reads the configs and the headers of the weight files, and hashes every file once.
    """
    towers = {
        "shared" if checkpoint.shared else side: _described(checkpoint.tower(side))
        for side in (_SIDES[:1] if checkpoint.shared else _SIDES)
    }
    return {
        "checkpoint": str(checkpoint.shown),
        "towers": towers,
        "parameters": sum(tower["parameters"] for tower in towers.values()),
        "has_head": checkpoint.has_head,
        "dim": checkpoint.dim,
        "similarity": "cosine" if checkpoint.is_cosine else checkpoint.settings.similarity,
        "scale": checkpoint.settings.scale,
        "encoding": _settings_of(checkpoint),
        "pinned": checkpoint.is_pinned,
        "hashes": {side: checkpoint.tower_hash(side) for side in _SIDES},
        "lineage": _lineage(checkpoint),
        "servers": servers(checkpoint),
    }


def _settings_of(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        name: value for side in _SIDES for name, value in checkpoint.settings.shaping(side).items()
    }


def _described(tower: Tower) -> dict[str, Any]:
    config = {} if tower.is_static else read_object(tower.config)
    size = {
        name: next((config[key] for key in keys if key in config), None)
        for name, keys in _SHAPE.items()
    }
    parameters, dtypes = _tensors_of(tower)
    return {
        "model_type": config.get("model_type"),
        **size,
        "max_positions": tower.max_positions,
        "modules": [module.kind for module in tower.modules],
        "parameters": parameters,
        "dtypes": dtypes,
    }


def _tensors_of(tower: Tower) -> tuple[int, list[str]]:
    """The number of parameters in a tower's weight files, and their dtypes."""
    from safetensors import SafetensorError, safe_open

    count, dtypes = 0, set()
    for folder in dict.fromkeys(module.folder for module in tower.modules):
        for path in sorted(folder.glob("*.safetensors")):
            try:
                with safe_open(path, framework="numpy") as found:
                    for name in found.keys():  # noqa: SIM118 (not a mapping)
                        tensor = found.get_slice(name)
                        count += prod(tensor.get_shape())
                        dtypes.add(str(tensor.get_dtype()))
            except SafetensorError as error:
                raise BadInput(f"{path}: not a whole safetensors file ({error})") from error
    return count, sorted(dtypes)


def _lineage(checkpoint: Checkpoint) -> dict[str, Any]:
    """The step of a checkpoint, its run and the run's start, and its origin if it was converted."""
    found: dict[str, Any] = {"training_step": checkpoint.settings.training_step}
    if checkpoint.is_pinned and (origin := read_object(checkpoint.files.settings).get(ORIGIN)):
        found[ORIGIN] = origin
    run = RunFolder(checkpoint.path.parent.parent)
    if checkpoint.path.parent == run.checkpoints and run.exists:
        found |= {"run": str(run.path), "start_checkpoint": run.read().start_checkpoint}
    return found


def convert(
    sources: Sequence[Path],
    output: Path,
    backbone: Path | None = None,
    pooling: PoolingName | None = None,
    similarity: SimilarityName | None = None,
    normalize: bool = False,
    settings: Mapping[str, Any] | None = None,
    call: Call = Call(),
) -> Summary:
    """Convert a checkpoint of another layout (see `models.foreign`) into a checkpoint folder.

    A source can be the name of a model on the hub. `settings` overrides the encoding settings of
    the layout. An output that was made from the same files with the same settings is up to date.
    """
    refuse_stdio(output, "a checkpoint folder")
    sources = [fetched(source, _WEIGHTS_AND_CONFIGS) for source in sources]
    backbone = fetched(backbone) if backbone else None
    spare_inputs(output, (*sources, backbone))
    changes = {name: value for name, value in (settings or {}).items() if value is not None}
    origin = {
        "files": {name: hash_file(path) for source in sources for name, path in _files_of(source)},
        "backbone": str(backbone) if backbone else None,
        "pooling": pooling,
        "similarity": similarity,
        "normalize": normalize,
    }
    summary = {"output": str(output), "kind": "checkpoint", "up_to_date": False}
    _check_replaceable(output)
    if not call.force and _is_made(output, {**origin, _ENCODING: changes}):
        return {**summary, "up_to_date": True}
    if call.dry_run:
        return {**summary, "dry_run": True, **origin, "encoding": changes}
    from ance_cli.models.foreign import load_foreign

    def load(scratch: Path) -> Foreign:
        return load_foreign(sources, scratch, backbone, pooling, similarity, normalize, changes)

    with lease.of_output(output):
        layout = _write(output, load, {**origin, _ENCODING: changes})
    made = Checkpoint(output)
    return {
        **summary,
        "layout": layout,
        "towers": "shared" if made.shared else "two",
        "dim": made.dim,
        "similarity": made.settings.similarity,
        "encoding": _settings_of(made),
    }


def _write(output: Path, load: Callable[[Path], Foreign], origin: dict[str, Any]) -> str:
    """Write the loaded checkpoint with its origin; returns the name of its layout.

    `load` takes a folder for temporary files.
    """
    from ance_cli.models.dual import load_merged, save_dual

    place = atomic.place_of(output)
    partial = atomic.partial_name(place)
    scratch = partial.with_name(f"{partial.name}.source")
    for folder in (partial, scratch):  # left by a call that was killed
        atomic.remove(folder)
    try:
        with atomic.disk_errors(output):
            found = load(scratch)
            origin = {"layout": found.layout, **origin}
            save_dual(found.dual, found.settings, partial, origin=origin)
            seal(partial)
        load_merged(Checkpoint(partial))  # refuses what does not load, before it is published
        atomic.publish_folder(partial, place)
    finally:
        for folder in (partial, scratch):
            atomic.remove(folder)
    return found.layout


def _files_of(source: Path) -> list[tuple[str, Path]]:
    """The files of a source that vectors can depend on, by names that are relative to it; those of
    an adapter's base too."""
    if not source.exists():
        raise BadInput(f"{source}: no such file or folder", hint="check the path")
    name = source.resolve().name
    if not source.is_dir():
        return [(name, source)]
    base = Tower((Module("Transformer", source, source),)).base
    return [
        (f"{prefix}/{path.relative_to(folder).as_posix()}", path)
        for prefix, folder in ((name, source), *([("base of the adapter", base)] if base else []))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in _WEIGHTS_AND_CONFIGS
    ]


def _check_replaceable(output: Path) -> None:
    """Raise `Mismatch` if the output exists and is no checkpoint of ours: no flag replaces it."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not CheckpointFolder(output).settings.exists():
        raise Mismatch(
            f"{output}: exists and has no {CheckpointFolder(output).settings.name}, so it was made "
            "from an unknown source",
            hint=KEEP,
        )


def _is_made(output: Path, origin: dict[str, Any]) -> bool:
    """Whether the output was converted from this origin; `Mismatch` if it is something else."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    settings = CheckpointFolder(output).settings
    made = read_object(settings).get(ORIGIN) if settings.exists() else None
    if made is None or {name: made.get(name) for name in origin} != origin:
        reason = "other files or settings" if made else "an unknown source"
        raise Mismatch(
            f"{output}: exists and was made from {reason}",
            hint="choose another name with -o, or replace the output with --force",
        )
    return True
