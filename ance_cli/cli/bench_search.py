"""`ance bench-search`."""

from __future__ import annotations

from typing import Any

import typer

from ance_cli.call import Call
from ance_cli.cli.command import READS, command
from ance_cli.cli.runner import checkpoint_of, dataset_of
from ance_cli.config import BenchSearchConfig, ComputeConfig
from ance_cli.config.calling import CallSettings
from ance_cli.config.data import Ckpt, DataFiles, EncodingOverrides
from ance_cli.config.retrieval import SearchedFolders
from ance_cli.formats.summary import Summary


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(
        app,
        "bench-search",
        "Stages",
        takes=("threads", "quiet", "json", "trust_remote_code", *READS),
    )
    def bench_search(
        call: Call,
        asked: CallSettings,
        *,
        sources: SearchedFolders,
        ckpt: Ckpt,
        data: DataFiles,
        config: BenchSearchConfig,
        overrides: EncodingOverrides,
        compute: ComputeConfig,
    ) -> Summary | None:
        """Time queries online: encoded and searched one by one, and in one batch.

        Shows milliseconds, and the share of the exact ranking that each index finds (if one of the
        folders contains embeddings). With --widths also what is lost if the vectors are cut to
        their first dimensions, which --matryoshka trains for that.

        Example: `ance bench-search emb/ hnsw/ ivf/ --ckpt runs/ance/best --data data/medquad
        --split dev`
        """
        from ance_cli.evaluation.by_width import measure_widths
        from ance_cli.formats.dataset import queries_of_split
        from ance_cli.retrieval.bench_search import bench_search as stage

        dataset, checkpoint = dataset_of(data), checkpoint_of(ckpt, overrides)
        queries = queries_of_split(dataset, call.skipped)
        by_width = {}
        if config.widths is not None:
            by_width["widths"] = measure_widths(
                sources, checkpoint, dataset, queries, config, compute, call
            )
        found = stage(
            sources,
            checkpoint,
            queries,
            dataset.corpus,
            config,
            compute,
            call=call,
        )
        found |= by_width
        if asked.json:
            return found
        _show(found)
        return None


def _show(found: Summary) -> None:
    from ance_cli.cli.console import show_rows, stdout

    console = stdout()
    console.print(
        f"{found['queries']} queries, {found['depth']} documents each, encoded on "
        f"{found['device']}; milliseconds"
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
    if "widths" in found:
        console.print()
        show_rows([_by_width(row) for row in found["widths"]], console)


def _by_width(row: dict[str, Any]) -> dict[str, Any]:
    line = {"dimensions": row["width"]}
    for measure, mean in row["measures"].items():
        share = row["shares"][measure]
        line[measure] = f"{mean:.4f}"
        line[f"{measure} kept"] = "" if share is None else f"{share:.1%}"
    return line
