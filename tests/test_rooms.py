"""The order of the rooms: a module imports only from its own room or one above it in this list."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ance_cli

PACKAGE = Path(ance_cli.__file__).parent
ROOMS = ["errors", "progress", "call", "config", "formats", "models", "retrieval", "encoding",
         "evaluation", "mining", "training", "loop", "diagnostics", "report", "interop", "setup",
         "hub", "cli"]  # fmt: skip
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_go_one_way(path):
    room = room_of(path)
    if room in ("__init__", "__main__"):
        return
    for name in imports_of(path):
        if name.startswith("ance_cli.") and name.split(".")[1] in ROOMS:
            other = name.split(".")[1]
            assert ROOMS.index(other) <= ROOMS.index(room), f"{room} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_typer_and_rich_live_in_cli_only(path):
    tops = {name.split(".")[0] for name in imports_of(path)}
    assert room_of(path) == "cli" or not tops & {"typer", "rich", "click"}


@pytest.mark.parametrize(
    "code",
    [
        "import ance_cli",
        "import ance_cli.call",
        "import ance_cli.cli.main",
        "import sys; sys.argv = ['ance', '--help']; import ance_cli.cli.main",
        "import ance_cli.encoding.encode, ance_cli.loop.loop, ance_cli.training.train_segment",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code):
    heavy = ("torch", "transformers", "faiss", "pyserini", "jnius", "scipy", "ir_measures",
             "matplotlib", "jinja2")  # fmt: skip
    check = f"{code}\nimport sys; print([name for name in {heavy!r} if name in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def test_no_pickle_and_no_eval():
    for path in MODULES:
        text = path.read_text()
        for word in ("import pickle", "allow_pickle=True", "weights_only=False",
                     "trust_remote_code=True"):  # fmt: skip
            assert word not in text, f"{path}: {word}"
        loads = re.findall(r"torch\.load\([^()]*\)?", text)
        assert all("weights_only=True" in load for load in loads), f"{path}: {loads}"
        assert not loads or path.name == "foreign.py", f"{path}: {loads}"
