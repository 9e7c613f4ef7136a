"""`ance doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from ance_cli.call import Call
from ance_cli.cli.command import command
from ance_cli.config.calling import CallSettings
from ance_cli.config.setup import Bench
from ance_cli.errors import ResourceExhausted
from ance_cli.formats.summary import Summary


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(app, "doctor", "Start here", takes=("threads", "cache_dir", "quiet", "json"))
    def doctor(call: Call, asked: CallSettings, *, bench: Bench = False) -> None:
        """Check the installation and the machine, and show how to fix what is missing.

        Imports each package, starts Java, searches with BM25 and lists the devices, in a separate
        process. Exits with 0 if a loop can run on this machine, otherwise with 5.

        Example: `ance doctor --bench`
        """
        from ance_cli.cli.console import show_summary
        from ance_cli.setup.doctor import examine

        found = examine(bench, call=call)
        if asked.json:
            show_summary(found, as_json=True, quiet=False)
        elif not asked.quiet:
            _show(found)
        if needed := [problem for problem in found["problems"] if problem["needed"]]:
            raise ResourceExhausted(
                "no loop can run on this machine: "
                f"{'; '.join(problem['what'] for problem in needed)}",
                hint=needed[0]["fix"],
            )


def _show(found: Summary) -> None:
    """Print a table on a terminal, plain lines elsewhere."""
    from rich.table import Table
    from rich.text import Text

    from ance_cli.cli.console import stdout

    console = stdout()
    rows = list(_rows(found))
    if console.is_terminal:
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for name, value in rows:
            bad = name in ("missing", "note")
            table.add_row(Text(name, style="bold red" if bad else "dim"), Text(value))
        console.print(table)
    else:
        for name, value in rows:
            console.print(f"{name:<10}  {value}")


def _rows(found: Summary) -> Iterator[tuple[str, str]]:
    from rich.filesize import decimal

    versions = {name: version for name, version in found["versions"].items() if version}
    yield "versions", "  ".join(f"{name} {version}" for name, version in versions.items())
    java = found["java"]
    yield "java", f"{java['version']} in {java['home']}" if java else "none"
    yield "bm25", _each({engine: "works" for engine, works in found["bm25"].items() if works})
    if faiss := found["faiss"]:
        build = "GPU" if faiss["gpu_build"] else "CPU"
        yield "faiss", f"{build} build, {faiss['gpus']} GPUs  {' '.join(faiss['options'])}"
    cpu = found["cpu"]
    has = [name for name in ("avx512_bf16", "amx_bf16") if cpu[name]]
    yield (
        "cpu",
        _each(
            {
                "cores": f"{cpu['usable']} of {cpu['cores']}",
                "threads": cpu["threads"],
                "instructions": " ".join(filter(None, [cpu["instructions"], *has])),
                "--dtype auto": cpu["dtype"],
            }
        ),
    )
    for gpu in found["gpus"]:
        sizes = f"{decimal(gpu['free_bytes'])} of {decimal(gpu['memory_bytes'])} free"
        yield gpu["device"], f"{gpu['name']}  {sizes}  --dtype auto {gpu['dtype']}"
    yield "memory", _each({name: decimal(size) for name, size in found["memory_bytes"].items()})
    for path, free in found["free_disk_bytes"].items():
        yield "disk", f"{decimal(free)} free  {path}"
    for each in found.get("ceilings", []):
        yield "ceiling", f"{each['device']} {each['dtype']} {each['gflops']:,.0f} GFLOP/s"
    for problem in found["problems"]:
        yield "missing" if problem["needed"] else "note", problem["what"]
        yield "  fix", problem["fix"]
    yield "ready", "yes" if found["ready"] else "no"


def _each(values: dict[str, Any]) -> str:
    return "  ".join(f"{name} {value}" for name, value in values.items() if value) or "none"
