"""Writes the table of docs/evidence/families.md: `python -m tests.regenerate_families`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.families import FAMILIES, REFUSED, REMOTE_CODE, library

PAGE = Path(__file__).parents[1] / "docs" / "evidence" / "families.md"
_HEADER = "| Row | Modules | Settings | ance |\n|---|---|---|---|"


def _named(module: Any) -> str:
    """A module as the table names it, with what tells it from others of its kind."""
    kind = type(module).__name__
    if kind == "Transformer":
        return f"`{module.config.model_type}`"
    if kind == "Router":
        routes = (f"{name}: {_chain(route)}" for name, route in module.sub_modules.items())
        return f"Router ({'; '.join(routes)})"
    if kind == "Pooling":
        modes = (
            [module.pooling_mode] if isinstance(module.pooling_mode, str) else module.pooling_mode
        )
        without = "" if module.include_prompt else ", without the prompt"
        return f"Pooling ({' and '.join(modes)}{without})"
    if kind == "Dense":
        function = type(module.activation_function).__name__
        return "Dense" if function == "Identity" else f"Dense ({function})"
    return kind


def _chain(modules: Iterable[Any]) -> str:
    return ", ".join(_named(module) for module in modules)


def _settings(model: Any) -> str:
    """The settings of a whole model that are not the library's defaults."""
    prompts = [name for name, text in model.prompts.items() if text]
    return ", ".join(
        [
            *([f"prompts {' and '.join(prompts)}"] if prompts else []),
            *([f"{model.truncate_dim} dimensions kept"] if model.truncate_dim else []),
            model.similarity_fn_name,
        ]
    )


def table(folder_of: Callable[[str], Path]) -> str:
    """The table with a line for each row; `folder_of` says where a row is built."""
    lines = [_HEADER]
    for name in FAMILIES:
        model = library(name, folder_of(name))
        outcome = "`--trust-remote-code`" if name in REMOTE_CODE else "yes"
        if name in REFUSED:
            outcome = f"refused: {REFUSED[name]}"
        lines.append(f"| {name} | {_chain(model)} | {_settings(model)} | {outcome} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Replace the table in the page."""
    with tempfile.TemporaryDirectory() as root:

        def folder_of(name: str) -> Path:
            FAMILIES[name](Path(root) / name)
            return Path(root) / name

        made = table(folder_of)
    lines = PAGE.read_text().splitlines(keepends=True)
    places = [place for place, line in enumerate(lines) if line.startswith("|")]
    PAGE.write_text("".join([*lines[: places[0]], made, *lines[places[-1] + 1 :]]))


if __name__ == "__main__":
    main()
