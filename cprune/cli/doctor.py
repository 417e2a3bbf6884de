"""`cprune doctor`: is everything there that tuning for a machine needs?"""

from __future__ import annotations

from dataclasses import asdict, replace

import typer

from cprune.cli import show
from cprune.cli.options import Json, TargetName, Tracker, machine


def doctor(target: TargetName = "local", rpc_tracker: Tracker = None, as_json: Json = False) -> None:
    """Check everything that tuning for a machine needs, and run one real kernel on it.

    Exit code 1 if something is wrong; the line says what to do.
    """
    from cprune.commands import doctor

    checks = []
    for check in doctor.examine(replace(machine(target, rpc_tracker), device_timeout_s=5.0)):
        checks.append(check)
        if not as_json:
            typer.echo(f"{'ok  ' if check.ok else 'BAD '} {check.name:9} {check.detail}")
            if check.advice:
                typer.echo(f"               → {check.advice}")
    ok = all(check.ok for check in checks)
    if as_json:
        show.json_object({"ok": ok, "checks": [asdict(check) for check in checks]})
    if not ok:
        raise typer.Exit(1)
