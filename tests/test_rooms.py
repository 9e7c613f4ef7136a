"""The order of the rooms: a module imports only from its own room or one above it in this list."""

import ast
import re
import subprocess
import sys
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import ance_cli

PACKAGE = Path(ance_cli.__file__).parent
ROOMS = ["errors", "progress", "call", "config", "formats", "models", "encoding", "retrieval",
         "evaluation", "mining", "query_generation", "training", "loop", "diagnostics", "report",
         "interop", "setup", "hub", "api", "cli"]  # fmt: skip
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


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


class Imports(ast.NodeVisitor):
    """The modules of the package that a file imports, also inside functions, but not for the type
    checker alone."""

    def __init__(self, known: set[str]) -> None:
        self.known, self.found = known, set()

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.found |= {alias.name for alias in node.names} & self.known

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        whole = {f"{node.module}.{alias.name}" for alias in node.names} & self.known
        if whole:
            self.found |= whole
        elif node.module in self.known:
            self.found.add(node.module)


def cycle_of(graph: dict[str, set[str]]) -> list[str]:
    """The modules that cannot be put in an order, because they import each other."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_two_modules_import_each_other():
    graph = {}
    known = {module_of(path) for path in MODULES}
    for path in MODULES:
        imports = Imports(known)
        imports.visit(ast.parse(path.read_text()))
        graph[module_of(path)] = imports.found
    assert sum(map(len, graph.values())) > len(MODULES), "the imports are seen"
    assert cycle_of(graph) == []


def test_a_cycle_would_be_seen():
    assert set(cycle_of({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}


def test_no_room_is_larger_than_a_seventh_of_the_package():
    lines = Counter()
    for path in MODULES:
        lines[room_of(path)] += len(path.read_text().splitlines())
    room, most = lines.most_common(1)[0]
    assert most <= lines.total() / 7, f"{room} has {most} of {lines.total()} lines"


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
             "matplotlib", "jinja2", "openai")  # fmt: skip
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
