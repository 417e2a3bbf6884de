"""`cprune devices …`, `cprune tracker`: machines that are not this one.

Heavy imports stand inside the commands, as in `main.py`, which takes this group in.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cprune.cli import show
from cprune.cli.options import Json, Tracker
from cprune.targets.errors import UserError

app = typer.Typer(
    help="Show the devices that a tracker knows, and make a machine one of them.",
    invoke_without_command=True,
    rich_markup_mode=None,
)

LOOPBACK = ("127.0.0.1", "::1", "localhost")
OPEN = (
    "warning: whoever reaches {what} can run code on the machines behind it. Keep it on loopback and use ssh to reach "
    "it: docs/devices.md"
)


@app.callback()
def list_command(context: typer.Context, rpc_tracker: Tracker = None, as_json: Json = False) -> None:
    """Show the devices that a tracker knows: keys, free or in use, processor, memory, TVM, round trip."""
    if context.invoked_subcommand is not None:
        return
    from cprune.targets.remote import devices

    where, rows = devices.listed(rpc_tracker or "", lambda text: print(text, file=sys.stderr))
    if as_json:
        show.json_object({"tracker": where, "devices": rows})
        return
    if not rows:
        typer.echo(f"the tracker {where} knows no device. On a device: cprune devices serve --tracker {where} --key K")
        return
    table = show.table("key", "state", "processor", "cores", "memory", "TVM", "round trip", "temperature")
    for row in rows:
        table.add_row(row["key"], row["state"], *_what_it_says(row))
    show.on_output(table)


def _what_it_says(row: dict[str, Any]) -> tuple[str, ...]:
    if row["state"] != "free":
        return ("", "", "", "", "", "")
    memory = f"{row['memory_bytes'] / 2**30:.1f} GB" if row.get("memory_bytes") else "?"
    heat = f"{row['temperature_c']:.0f} °C" if row.get("temperature_c") else ""
    trip = f"{row['round_trip_ms']:.1f} ms"
    return (row.get("cpu") or "?", str(row.get("cores", "?")), memory, row.get("tvm") or "?", trip, heat)


@app.command()
def serve(
    key: Annotated[str, typer.Option(help="what the device is asked for by, without a colon")],
    tracker: Annotated[str, typer.Option(metavar="HOST:PORT", help="the tracker to register at")] = "127.0.0.1:9190",
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on; default: any")] = 0,
    report_as: Annotated[str, typer.Option(help="address that clients reach this server by, if another")] = "",
    cores: Annotated[int, typer.Option(help="pin sessions to the N fastest cores; default: all")] = 0,
) -> None:
    """Make this machine a device: register it at a tracker, and serve until Ctrl-C.

    Every session has a process of its own, so that a kernel that crashes or hangs ends only that.
    """
    from cprune.targets import serve as server
    from cprune.targets.remote.tracker import parsed

    parsed(tracker)
    if ":" in key or not key:
        raise UserError(f"--key {key!r}: a key has no colon and is not empty", "Type for example --key pi5.")
    if host not in LOOPBACK:
        print(OPEN.format(what=f"this server on {host}"), file=sys.stderr)
    options = ["--tracker", tracker, "--key", key, "--host", host, "--port", str(port), "--cores", str(cores)]
    server.main([*options, *(["--report-as", report_as] if report_as else [])])


@app.command()
def bundle(
    out: Annotated[Path, typer.Argument(help="file to write, for example server.tar.gz")],
    target: Annotated[str, typer.Option("--target", "-t", help="linux-arm64 or android-arm64")] = "android-arm64",
    cache: Annotated[Path | None, typer.Option(help="folder that keeps what was downloaded")] = None,
) -> None:
    """Write a server with its own Python and TVM, for a device that has neither: unpack it there, and start run.sh."""
    from cprune.progress import of_terminal
    from cprune.targets.remote import bundle as bundles

    size = bundles.write(out, target, cache, of_terminal().say)
    typer.echo(
        f"{out}: {size / 1e6:.0f} MB. On the device: tar xzf {out.name} && cprune-device/run.sh --tracker … --key …"
    )


@app.command()
def push(
    archive: Annotated[Path, typer.Argument(help="what `cprune devices bundle` wrote")],
    key: Annotated[str, typer.Option(help="what the phones are asked for by")] = "android-arm64",
    tracker: Annotated[str, typer.Option(metavar="HOST:PORT", help="the tracker on this machine")] = "127.0.0.1:9190",
    serial: Annotated[list[str] | None, typer.Option(help="only this phone (adb devices); may be repeated")] = None,
    port: Annotated[int, typer.Option(help="port of the first phone's server, the next phone has the next")] = 9100,
    cores: Annotated[int, typer.Option(help="pin sessions to the N fastest cores; default: all")] = 0,
) -> None:
    """Bring the server onto every phone that adb sees, and start it there; no port is opened to a network.

    The phones' servers end with Ctrl-C here.
    """
    from cprune.progress import of_terminal
    from cprune.targets.remote import adb
    from cprune.targets.remote.tracker import parsed

    adb.push(archive, key, parsed(tracker), tuple(serial or ()), port, cores, of_terminal().say)


def tracker(
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on")] = 9190,
) -> None:
    """Start a tracker, which devices register at and clients ask for devices.  Ctrl-C ends it."""
    from cprune.targets.remote.tracker import Tracker as Started

    if host not in LOOPBACK:
        print(OPEN.format(what=f"this tracker on {host}"), file=sys.stderr)
    with Started(host, port) as started:
        started.wait()
        typer.echo(f"tracker at {started.address} (pid {started.pid}); Ctrl-C ends it")
        started.serve()
