"""Options that several commands share, and the target that they describe."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from cprune.targets.errors import UserError

if TYPE_CHECKING:
    from cprune.targets.target import Target

TargetName = Annotated[
    str, typer.Option("--target", "-t", help="the machine to be fast on: a name from `cprune targets`, or a TOML file")
]
Tracker = Annotated[
    str | None,
    typer.Option(
        "--rpc-tracker",
        metavar="HOST:PORT",
        help="the tracker that knows the device; default: the target's, TVM_TRACKER_HOST and _PORT, or 127.0.0.1:9190",
    ),
]
DeviceTimeout = Annotated[
    str | None, typer.Option(help="how long to wait for a device that is gone: 90s or 10m; default 10m")
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object on standard output")]


def machine(target: str, rpc_tracker: str | None = None, device_timeout: str | None = None) -> Target:
    """Return the target with what the options say of the way to it.  UserError where this machine needs no way."""
    from cprune.method.settings import duration
    from cprune.targets.target import find

    found = find(target)
    if found.transport == "local":
        if rpc_tracker is not None or device_timeout is not None:
            option = "--rpc-tracker" if rpc_tracker is not None else "--device-timeout"
            raise UserError(f"{option} is about another machine", "Say which with --target; see: cprune targets")
        return found
    if rpc_tracker is not None:
        found = replace(found, tracker=rpc_tracker)
    if device_timeout is not None:
        found = replace(found, device_timeout_s=duration(device_timeout))
    return found
