"""The command lines of a loop's children: `ance train-segment` and `ance refresh`, as a user would
type them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ance_cli.call import Call
from ance_cli.config import FollowConfig, LoopConfig
from ance_cli.config.data import RunStart
from ance_cli.config.loop import RefreshRules
from ance_cli.config.setting import declared, flag_of
from ance_cli.config.training import RecipeConfig, WorkerConfig
from ance_cli.errors import UsageProblem
from ance_cli.formats.run_folder import RunFolder
from ance_cli.loop.devices import Devices


def _names(*configs: type) -> frozenset[str]:
    return frozenset(each.name for config in configs for each in declared(config))


_RUN = _names(RunStart, RecipeConfig) - {"datas"} | {"data", "preset"}
"""What makes a run: its data, its start and its recipe. A loop has merged several datasets."""
_SEGMENT = _names(WorkerConfig)
_REFRESH = _names(RefreshRules)


_FLAGS = {each.name: each.flags[0] for each in declared(RecipeConfig) if each.flags}
"""Settings of a recipe -> their flags, of which some have other words."""


def as_flags(values: Mapping[str, Any]) -> list[str]:
    """`{"refresh_every": 5}` -> `["--refresh-every", "5"]`; True gives the flag alone, None and
    False give nothing."""
    flags = []
    for name, value in values.items():
        if value is not None and value is not False:
            flags.append(_FLAGS.get(name) or flag_of(name))
            if value is not True:
                flags.append(str(value))
    return flags


def refresh_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the given settings that a refresh takes."""
    return _chosen(given, _REFRESH)


def check_names(given: Mapping[str, Any]) -> None:
    """Raise `UsageProblem` if no child of a loop takes one of the given settings."""
    if unknown := sorted(given.keys() - _RUN - _SEGMENT - _REFRESH):
        raise UsageProblem(f"{flag_of(unknown[0])} is not a setting of a loop")


def _chosen(given: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name in names}


@dataclass(frozen=True)
class Commands:
    """The children of one loop.

    `given` holds the settings of the run, its training and its refreshes that the caller set; each
    child gets those that its command takes.
    """

    run: RunFolder
    config: LoopConfig
    follow: FollowConfig
    given: Mapping[str, Any]
    devices: Devices
    call: Call

    def prepare(self) -> list[str]:
        """Make the run, or check that the existing run has these settings."""
        settings = {"total_steps": self.config.last_step, **_chosen(self.given, _RUN)}
        return ["train-segment", "-o", str(self.run.path), "--steps", "0",
                *as_flags({**settings, **self._segment}), *self._quiet]  # fmt: skip

    def refresh(self) -> list[str]:
        """One refresh."""
        return self._refresh({"keep": self.follow.keep})

    def refresh_daemon(self) -> list[str]:
        """Refresh from each checkpoint of an asynchronous loop."""
        until = {"until": self.config.last_step, "follow": True}
        return self._refresh({**asdict(self.follow), **until})

    def train(self, negatives: str, steps: int, force: bool = False) -> list[str]:
        """One segment on a file of negatives."""
        return self._train([negatives], steps, force)

    def train_on_generations(self, steps: int, force: bool) -> list[str]:
        """One segment of an asynchronous loop, on each generation from its publication on."""
        following = {"follow": True, "checkpoint_every": self.config.refresh_every,
                     "max_staleness": self.config.max_staleness or None}  # fmt: skip
        return [*self._train([], steps, force), *as_flags(following)]

    def first_cycle(self) -> list[str]:
        """The commands of the first cycle, as a user would type them."""
        config = self.config
        if self.devices.mode == "async":
            pair = [self.train_on_generations(config.last_step, False), self.refresh_daemon()]
        else:
            negatives = str(self.run.generation(1).negatives)
            pair = [self.refresh(), self.train(negatives, config.refresh_every)]
        return [shlex.join(["ance", *words]) for words in (self.prepare(), *pair)]

    def _train(self, negatives: list[str], steps: int, force: bool) -> list[str]:
        flags = as_flags({"steps": steps, **self._segment, "force": force})
        return ["train-segment", *negatives, "-o", str(self.run.path), *flags, *self._quiet]

    def _refresh(self, timing: Mapping[str, Any]) -> list[str]:
        devices = self.devices
        settings = {**refresh_settings(self.given), "gpus": devices.infer_gpus, "ray": devices.ray,
                    "local_gpus": devices.local_gpus,
                    "threads": self._threads(devices.infer_cpus), **timing}  # fmt: skip
        return ["refresh", str(self.run.path), *as_flags(settings), *self._quiet]

    @property
    def _segment(self) -> dict[str, Any]:
        devices = self.devices
        return {**_chosen(self.given, _SEGMENT), "gpus": devices.train_gpus,
                "threads": self._threads(devices.train_cpus)}  # fmt: skip

    @property
    def _quiet(self) -> list[str]:
        return ["--quiet"] if self.call.quiet else []

    def _threads(self, cpus: frozenset[int]) -> int | None:
        """Threads of a child that is pinned to some CPUs (empty = not pinned); None = every
        core."""
        return min(filter(None, (self.call.threads, len(cpus))), default=None)
