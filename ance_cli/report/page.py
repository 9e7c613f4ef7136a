"""Makes one self-contained HTML page from the facts of a report.

The template escapes every text, because ids, texts and paths come from outside.
"""

from __future__ import annotations

from importlib.resources import files

from markupsafe import Markup

from ance_cli import __version__
from ance_cli.report import comparisons, formatting
from ance_cli.report import sections as single
from ance_cli.report.facts import ReportFacts

GENERATOR = f"ance {__version__}"


def page_of(facts: ReportFacts) -> str:
    """The complete page."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    folder = files("ance_cli.report")
    template = environment.from_string((folder / "page.html").read_text(encoding="utf-8"))
    run = facts.run
    sections = [
        single.overview(facts),
        single.configuration(run),
        single.lineage(run),
        comparisons.measures_by_generation(facts),
        single.training(run),
        single.staleness(run),
        single.audit(run),
        single.cost(run),
        comparisons.cases(facts.cases),
        single.failures(run),
    ]
    return template.render(
        title=f"ance report: {run.label}",
        run=run.status.run,
        time=formatting.moment(run.status.time),
        generator=GENERATOR,
        style=Markup((folder / "page.css").read_text(encoding="utf-8")),
        long=formatting.LONG,
        missing=facts.missing,
        sections=sections,
    )
