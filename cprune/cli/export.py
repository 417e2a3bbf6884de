"""`cprune export`, `cprune verify`: a finished model for its device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cprune.cli import show
from cprune.cli.options import Json, Tracker, milliseconds, other_machine, times


def export(
    directory: Annotated[Path, typer.Argument(help="a finished run folder, or what `cprune tune` wrote")],
    target: Annotated[
        str | None, typer.Option("--target", "-t", help="another machine than the one of the run: tuned there first")
    ] = None,
    rpc_tracker: Tracker = None,
    records: Annotated[str | None, typer.Option(help="tuning records for another machine")] = None,
    seed: Annotated[int, typer.Option(help="everything random follows from it")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="folder, or FILE.pt2 or FILE.onnx; default DIR/bundle")
    ] = None,
    pick: Annotated[
        str | None,
        typer.Option(metavar="TIME|TIMES", help="the most accurate model of the run that is so fast: 1.5ms or 2x"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a bundle to deploy: compiled model, weights, a C++ runner with its CMake file, an example and its answer.

    For the machine of the run nothing is measured and no device is needed.  Check it with: cprune verify

    With --out FILE.pt2 or FILE.onnx: the pruned model itself, not compiled, for PyTorch or for ONNX runtimes.

    With --pick 1.5ms or --pick 2x it is not the model that the run delivered, but the most accurate one of front.json
    that is so fast, a certified one if there is any.  Where only a forecast is, `cprune resume DIR --speedup 2` trains
    it.
    """
    from cprune.commands import export
    from cprune.commands.picking import Pick
    from cprune.models.formats.write import SUFFIXES

    wanted = None
    if pick is not None:
        wanted = Pick(latency_ms=milliseconds(pick)) if pick.endswith("s") else Pick(speedup=times(pick))
    if out is not None and out.suffix in SUFFIXES:
        with show.progress() as progress:
            apart = export.write_model(directory, out, wanted, progress)
        if as_json:
            show.json_object({"file": str(out), "max_difference": apart})
        else:
            typer.echo(f"{out} (differs from the model by {apart:.2g})")
        return
    device = other_machine(target, rpc_tracker)
    with show.progress() as progress:
        tuning = export.Tuning(seed, records)
        bundle = export.export(directory, out or directory / "bundle", device, tuning, progress, wanted)
    show.answer(bundle, show.bundle, as_json)


def verify(
    bundle: Annotated[Path, typer.Argument(help="what `cprune export` wrote")],
    target: Annotated[
        str | None, typer.Option("--target", "-t", help="default: the one that the bundle was made for")
    ] = None,
    rpc_tracker: Tracker = None,
    as_json: Json = False,
) -> None:
    """Run a bundle on its device and compare with what PyTorch computed.  Exit code 1 if it differs."""
    from cprune.commands import export

    with show.progress() as progress:
        verified = export.verify(bundle, other_machine(target, None), rpc_tracker or "", progress)
    show.answer(verified, show.verified, as_json)
    if not verified.ok:
        raise typer.Exit(1)
