"""`ance diagnose`."""

from __future__ import annotations

from typing import Any

import typer

from ance_cli.call import Call
from ance_cli.cli.command import COMMON, LOADS, READS, command
from ance_cli.cli.runner import checkpoint_of, dataset_of
from ance_cli.config import ComputeConfig, DiagnoseConfig
from ance_cli.config.calling import CallSettings
from ance_cli.config.data import Ckpt, DevFiles, Embeddings, EncodingOverrides, Index, Output
from ance_cli.config.evaluation import Figures, History
from ance_cli.formats.summary import Summary


def register(app: typer.Typer) -> None:
    """Add the command to the program."""

    @command(app, "diagnose", "Loop", takes=(*COMMON, "force", *LOADS, *READS))
    def diagnose(
        call: Call,
        asked: CallSettings,
        *,
        ckpt: Ckpt,
        data: DevFiles,
        embeddings: Embeddings,
        index: Index | None = None,
        history: History | None = None,
        output: Output,
        figures: Figures | None = None,
        config: DiagnoseConfig,
        overrides: EncodingOverrides,
        compute: ComputeConfig,
    ) -> Summary:
        """Show the paper's theory on your own queries: gradients, bias, variance, false negatives.

        For each sampler (rand, nce, bm25, ance, ance with a tenth of rand, and the oracle): the
        gradient norms of its negatives, the bias and variance of its estimator, and how many of its
        negatives the model ranks high at test time. Then the chance that a batch contains an
        informative negative, the tail of the scores, and unlabelled documents that outscore a
        positive. --figures draws the paper's figures and needs `pip install 'ance-cli[figures]'`.

        Example: `ance diagnose --ckpt runs/ance/best --data data/medquad --split dev
        --embeddings emb/ --run runs/ance -o diagnosis.json --figures figures/`
        """
        from ance_cli.diagnostics.diagnose import Subject
        from ance_cli.diagnostics.diagnose import diagnose as stage

        checkpoint = checkpoint_of(ckpt, overrides)
        subject = Subject(checkpoint, dataset_of(data), embeddings, index, history)
        found = stage(subject, output, config, compute, figures, call)
        if asked.json or asked.quiet or "samplers" not in found:
            return found
        _show(found)
        names = ("output", "kind", "up_to_date", "figures", "seconds")
        return {name: found[name] for name in names if name in found}


def _show(found: Summary) -> None:
    """Show the tables on stderr: the result of the command is the file."""
    from ance_cli.cli.console import show_rows, stderr

    for where, what in (
        ("encodings", "gradients at the encodings, exact over the corpus"),
        (
            "parameters",
            f"gradients of all {found['parameters']:,} parameters, from drawn negatives",
        ),
    ):
        stderr.print(f"\n{what}", style="bold")
        show_rows([_row(row, where) for row in found["samplers"]])
    rho = found["bound"]["spearman"]
    batch, rank = found["batch"], found["reciprocal_rank"]
    stderr.print(
        f"\nrank correlation of the two gradient norms: {_figure(rho)} over "
        f"{found['bound']['gradients']} negatives\n"
        f"probability that a random batch of {batch['batch_size']} contains one of the "
        f"{batch['informative']} best-scoring negatives: {batch['paper']:.3g} (paper), "
        f"{batch['at_least_one']:.3g} (at least one), {batch['simulated_uniform']:.3g} "
        f"(simulated), {batch['simulated_in_batch']:.3g} (simulated, other pairs' positives)\n"
        f"reciprocal rank of the {found['queries']} positives: {rank['model']:.3f}, "
        f"BM25 {rank['bm25']:.3f}\n"
    )
    if suspects := found["suspects"]:
        stderr.print("suspected false negatives", style="bold")
        for suspect in suspects:
            stderr.print(
                f"{suspect['above_the_positive']:+.2f}  {suspect['query']}\n"
                f"       labelled {suspect['positive_id']}: {_short(suspect['positive'])}\n"
                f"       suspect  {suspect['suspect_id']}: {_short(suspect['suspect'])}"
            )
    if generations := found.get("generations"):
        stderr.print("\nrefreshes", style="bold")
        show_rows(
            [
                {
                    "generation": row["generation"],
                    "step": row["checkpoint_step"],
                    "churn": _figure(row["churn_against_earlier"]),
                    "ranked high at test time": _figure(row["test_time"]),
                    **{name: f"{value:.4f}" for name, value in row["dev"].items()},
                }
                for row in generations
            ]
        )


def _row(row: dict[str, Any], where: str) -> dict[str, str]:
    found = row[where]
    shown = {"sampler": row["sampler"]}
    if where == "encodings":
        shown |= {
            "support": f"{row['support']:,.0f}",
            "ranked high at test time": f"{row['test_time']:.1%}",
            "mass of the oracle": f"{row['oracle_mass']:.1%}",
        }
    shown["mean norm"] = f"{found['norm']:.3g}"
    if where == "parameters":
        shown |= {"median": f"{found['median_norm']:.3g}"}
        shown |= {group: f"{norm:.3g}" for group, norm in found["by_group"].items()}
    return shown | {
        "bias": "-" if found["bias"] is None else f"{found['bias']:.1%}",
        "variance": f"{found['variance']:.3g}",
        "variance / |G|^2, median": "-" if found["noise"] is None else f"{found['noise']:.3g}",
        "squared error": f"{found['squared_error']:.3g}",
    }


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _short(text: str, length: int = 110) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 3]}..."
