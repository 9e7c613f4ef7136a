"""`ance doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from ance_cli.call import Call
from ance_cli.cli.options import Flags, command
from ance_cli.cli.runner import run_stage
from ance_cli.errors import ResourceExhausted
from ance_cli.formats.summary import Summary


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(app, "doctor", "bench threads cache_dir quiet json", panel="Start here")
    def doctor(flags: Flags) -> None:
        """Look at the installation and the machine, and say what mends what is missing.

        Imports each package, starts Java, searches with BM25 and lists the devices, in a process of
        its own. Ends with 0 where a loop can run here, else with 5.

        Example: `ance doctor --bench`
        """
        from ance_cli.setup.doctor import examine

        found: Summary = {}

        def look(call: Call) -> Summary:
            found.update(examine(flags.bench, call=call))
            if flags.json:
                return found
            if not flags.quiet:
                _show(found)
            return {}

        run_stage(flags, look)
        if needed := [problem for problem in found["problems"] if problem["needed"]]:
            raise ResourceExhausted(
                f"no loop can run here: {'; '.join(problem['what'] for problem in needed)}",
                hint=needed[0]["mend"],
            )


def _show(found: Summary) -> None:
    """A table on a terminal, plain lines elsewhere; it is what was asked for, so on stdout."""
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
            console.print(f"{name:<10}  {value}", markup=False)


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
        yield "  mend", problem["mend"]
    yield "ready", "yes" if found["ready"] else "no"


def _each(values: dict[str, Any]) -> str:
    return "  ".join(f"{name} {value}" for name, value in values.items() if value) or "none"
