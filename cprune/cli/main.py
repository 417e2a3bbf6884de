"""The command line: which commands there are, and what an error becomes.

The commands stand in the files beside this one.  Heavy imports stand inside them, so that `--help` answers at once.
Standard output carries results (one JSON object with --json), standard error everything else.  Exit codes: 0 done,
1 done but no pruned model keeps the promise, or a limit was missed, 2 an error that the message explains, 130 Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from cprune.cli import devices, doctor, export, lists, model, records, runs
from cprune.targets.errors import CpruneError

INTERRUPTED = 130  # what shells expect of a command ended by Ctrl-C

app = typer.Typer(
    name="cprune",
    help="Prune a trained CNN until its compiled code is faster on your device, at the accuracy you ask for.",
    epilog="Start with: cprune run",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (
    *(runs.run, runs.resume, runs.report),
    *(model.explain, model.check, model.bench, model.tune, model.profile),
    *(export.export, export.verify),
    *(doctor.doctor, devices.tracker, lists.models, lists.targets),
):
    app.command()(command)
app.add_typer(records.app, name="records")
app.add_typer(devices.app, name="devices")


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"cprune {version('cprune')}")
        raise typer.Exit


@app.callback()
def _global(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and stop")
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (default: this process's) and return its exit code; the entry point of the package."""
    try:
        code = app(sys.argv[1:] if arguments is None else list(arguments), prog_name="cprune", standalone_mode=False)
        sys.stdout.flush()
    except CpruneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"error: {error.strerror or error}: {error.filename or 'a file of the run'}", file=sys.stderr)
        return 2
    except Exception as error:
        # A usage error of the parser: it knows how to show itself (which option, and the nearest one).  Its class is
        # not public in all versions of typer, what it can do is.
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        return 2
    if code == INTERRUPTED:  # some versions of typer return it, others raise
        print("\nstopped; nothing measured is lost. Go on with: cprune resume DIR", file=sys.stderr)
    return code if isinstance(code, int) else 0
