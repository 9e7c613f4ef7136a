"""`ance bench-search`."""

from __future__ import annotations

from pathlib import Path

import typer

from ance_cli.call import Call
from ance_cli.cli.flags import FLAGS, RUNTIME, Flag
from ance_cli.cli.options import Flags, command
from ance_cli.cli.runner import ENCODING_SETTINGS, checkpoint_of, dataset_of, run_stage
from ance_cli.config import EncodeConfig
from ance_cli.formats.summary import Summary

FLAGS["trials"] = Flag(int, "Queries that are timed, at most.", RUNTIME)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(
        app,
        "bench-search",
        f"ckpt data split corpus queries qrels skip_bad depth {ENCODING_SETTINGS} "
        "trials gpus dtype threads quiet json",
        configs="search encode",
        required="ckpt",
        arguments={"sources": (list[Path], ..., "Embeddings folders, searched exactly, and index "
                               "folders.")},
        panel="Stages",
    )  # fmt: skip
    def bench_search(flags: Flags) -> None:
        """Time queries online: encoded and searched one by one, and all at once.

        In milliseconds, beside the share of the exact ranking that each index finds (where
        embeddings are among the folders).

        Example: `ance bench-search emb/ hnsw/ ivf/ --ckpt runs/ance/latest --data data/medquad
        --split dev`
        """
        from ance_cli.retrieval.bench_search import bench_search as stage
        from ance_cli.retrieval.search import queries_of_split

        def timed(call: Call) -> Summary:
            dataset = dataset_of(flags)
            found = stage(
                flags.sources,
                checkpoint_of(flags),
                queries_of_split(dataset, call.skipped),
                dataset.corpus,
                flags.depth,
                flags.trials,
                flags.config(EncodeConfig),
                call=call,
            )
            if flags.json:
                return found
            _show(found)
            return {}

        run_stage(flags, timed)


def _show(found: Summary) -> None:
    from ance_cli.cli.console import show_rows, stdout

    console = stdout()
    console.print(
        f"{found['queries']} queries, {found['depth']} documents each, encoded on "
        f"{found['device']}; milliseconds",
        markup=False,
    )
    show_rows(
        [
            {
                "folder": row["source"],
                "searched": row["searched"],
                "encode p50": f"{row['encode']['p50']:.2f}",
                "search p50": f"{row['search']['p50']:.2f}",
                "both p50": f"{row['total']['p50']:.2f}",
                "p95": f"{row['total']['p95']:.2f}",
                "p99": f"{row['total']['p99']:.2f}",
                "all at once, each": f"{row['batched']:.2f}",
                f"recall@{found['depth']}": f"{row['recall']:.4f}" if "recall" in row else "",
            }
            for row in found["sources"]
        ],
        console,
    )
