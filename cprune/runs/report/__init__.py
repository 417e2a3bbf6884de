"""The report of a run: from its folder to `report.html` and `report.md`, at any time of the run.

`run` reads the folder, `headline` and `sections` say what is in it, `plots` draws, and the two templates lay it out.
Light: jinja2 is imported by the function.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cprune.files import atomic_write
from cprune.runs.folder import RunFolder
from cprune.runs.report import plots
from cprune.runs.report.headline import headline, tiles, title
from cprune.runs.report.run import read_run
from cprune.runs.report.sections import sections


def write_report(folder: RunFolder) -> None:
    """Write `report.html` (one file, nothing loaded from elsewhere) and `report.md` of the run in `folder`.

    Raises UserError if a file of the run is damaged, BrokenWorld if the disk is full.
    """
    import jinja2
    from markupsafe import Markup

    run = read_run(folder)
    values = {
        "title": title(run),
        "headline": headline(run),
        "tiles": tiles(run),
        "sections": sections(run),
        "plot_style": plots.STYLE,
        "version": _version(),
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: bool(name) and ".html" in str(name),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["svg"] = Markup  # ours, from cprune.runs.report.plots, which escapes every label
    environment.filters["md"] = _markdown
    environment.filters["tied"] = _tied
    for template, path in (("report.html.j2", folder.report_html), ("report.md.j2", folder.report_md)):
        text = environment.get_template(template).render(values)
        atomic_write(path, text.encode("utf-8", "replace"))


def _version() -> str:
    try:
        return version("cprune")
    except PackageNotFoundError:
        return "(not installed as a package)"


def _tied(text: str) -> str:
    """Return `text` with its numbers tied to what belongs to them, so that a line never ends between the two."""
    for pair in (" %", " ms", " M", " G", " → "):
        text = text.replace(pair, pair.replace(" ", "\N{NO-BREAK SPACE}"))
    return text


def _markdown(text: object) -> str:
    """Return `text` so that Markdown shows it as it is, in a paragraph and in the cell of a table."""
    escaped = str(text).replace("\\", "\\\\")
    for sign in "`*_[]|#~$":
        escaped = escaped.replace(sign, f"\\{sign}")
    escaped = escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return " ".join(escaped.split())
