"""`cprune records …`: what a store holds, and records from one store to another.

Heavy imports stand inside the commands, as in `main.py`, which takes this group in.
"""

from __future__ import annotations

import datetime
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cprune.cli import show
from cprune.cli.options import Json
from cprune.targets.errors import UserError, unknown

if TYPE_CHECKING:
    from cprune.tuner.records.store import Added, Store

app = typer.Typer(help="Show, export, import and merge tuning records.", no_args_is_help=True, rich_markup_mode=None)

Records = Annotated[
    str | None,
    typer.Option(help="a file, a run folder or a database URL; default: the store that explain and bench share"),
]
Target = Annotated[str | None, typer.Option(metavar="FINGERPRINT", help="only records of this target")]


class Format(str, Enum):
    """What `export` writes: a file of ours, or a folder that TVM's MetaSchedule loads."""

    jsonl = "jsonl"
    metaschedule = "metaschedule"


@app.command("list")
def list_command(records: Records = None, target: Target = None, as_json: Json = False) -> None:
    """Show every task: how many programs were tried, how many failed, how fast the best one is."""
    from cprune.tuner.records import overview

    with _reading(records, target) as store:
        rows = overview.rows(store.each(target))
        name = store.name
    tasks = [row.to_dict() for row in rows]
    if as_json:
        show.json_object({"records": name, "tasks": tasks})
        return
    table = [
        (row["description"], row["target"], str(row["tried"]), str(row["failed"]), _us(row), _when(row["last"]))
        for row in tasks
    ]
    _show(("task", "target", "tried", "failed", "best us (range)", "last"), table)


@app.command("best")
def best_command(records: Records = None, target: Target = None, as_json: Json = False) -> None:
    """Show the fastest program of every task, with its knobs."""
    from cprune.tuner.records import overview

    with _reading(records, target) as store:
        rows = [row for row in overview.rows(store.each(target)) if row.best]
        name = store.name
    best = [row.best_to_dict() for row in rows]
    if as_json:
        show.json_object({"records": name, "best": best})
        return
    texts = [overview.knobs_text(row.best) for row in rows if row.best]
    table = [
        (row["description"], row["target"], _us(row), "yes" if row["checked"] else "no", text)
        for row, text in zip(best, texts, strict=True)
    ]
    _show(("task", "target", "us (range)", "checked", "knobs"), table)


@app.command("export")
def export_command(
    file: Annotated[Path, typer.Argument(help="the file to write; with --format metaschedule a new folder")],
    records: Records = None,
    target: Target = None,
    kind: Annotated[
        Format, typer.Option("--format", help="jsonl: for `records import`; metaschedule: for TVM's JSONDatabase")
    ] = Format.jsonl,
    target_tvm: Annotated[
        str | None, typer.Option(metavar="JSON", help="metaschedule: what TVM calls a target that is not this machine")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write records to a file that `cprune records import` reads, or as a database for TVM's MetaSchedule."""
    if target_tvm is not None and kind is not Format.metaschedule:
        raise UserError("--target-tvm belongs to --format metaschedule", "Leave it out, or add --format metaschedule.")
    with _reading(records, target) as store:
        if kind is Format.jsonl:
            from cprune.tuner.records import exchange

            left_out = Counter[str]()
            count = exchange.write_file(file, exchange.sound(store.each(target), left_out))
            summary: dict[str, Any] = {"file": str(file), "records": count, "left_out": dict(left_out)}
            lines = [f"{count} records written to {file}"]
        else:
            from cprune.tuner.records import tvm_database

            targets = [target] if target is not None else store.targets()
            done = tvm_database.write_folder(file, store.each(target), tvm_database.compilers(targets, target_tvm))
            summary = {"folder": str(file), "records": done.records, "tasks": done.tasks}
            summary |= {"failed": done.failed, "left_out": dict(done.left_out)}
            lines = [f"{done.records} programs of {done.tasks} tasks written to {file}"]
            if done.failed:
                lines.append(f"{done.failed} candidates that failed were left out: TVM has no place for them")
        lines += _left_out(summary["left_out"])
    typer.echo(json.dumps(summary) if as_json else "\n".join(lines))


@app.command("import")
def import_command(
    file: Annotated[Path, typer.Argument(help="a file that `cprune records export` wrote")],
    records: Records = None,
    as_json: Json = False,
) -> None:
    """Add the records of a file to a store.  Doing it twice adds nothing; a file with any error adds nothing."""
    from cprune.tuner.records import exchange

    left_out = Counter[str]()
    exchange.vet(exchange.read_file(file, left_out))  # before a store is made for it
    with _writing(records) as store:
        added = exchange.take(store, exchange.read_file(file, Counter()))
        _say(store, added, left_out, as_json)


@app.command("merge")
def merge_command(
    other: Annotated[str, typer.Argument(metavar="OTHER", help="a file, a run folder or a database URL")],
    records: Records = None,
    as_json: Json = False,
) -> None:
    """Add the records of another store to a store.  Doing it twice adds nothing; OTHER stays as it is."""
    from cprune.tuner.records import exchange

    left_out = Counter[str]()
    with _reading(other, None) as source, _writing(records) as store:
        added = exchange.take(store, exchange.sound(source.each(), left_out))
        _say(store, added, left_out, as_json)


# --- what the commands share -----------------------------------------------------------------------------------


@contextmanager
def _reading(records: str | None, target: str | None) -> Iterator[Store]:
    from cprune.tuner.records.place import named
    from cprune.tuner.records.store import Store

    with Store(named(records), read_only=True) as store:
        if target is not None and target not in (known := store.targets()):
            raise unknown("target", target, known) if known else UserError(f"there are no records in {store.name}")
        yield store


@contextmanager
def _writing(records: str | None) -> Iterator[Store]:
    from cprune.tuner.records.place import named
    from cprune.tuner.records.store import Store

    with Store(named(records)) as store:
        yield store


def _say(store: Store, added: Added, left_out: Mapping[str, int], as_json: bool) -> None:
    if as_json:
        counts = {"new": added.new, "better": added.better, "known": added.known}
        show.json_object({"records": store.name, **counts, "left_out": dict(left_out)})
        return
    typer.echo(f"{store.name}: {added.new} new, {added.better} better, {added.known} already there")
    for line in _left_out(left_out):
        typer.echo(line)


def _left_out(reasons: Mapping[str, int]) -> list[str]:
    return [f"{count} left out: {reason}" for reason, count in reasons.items()]


def _us(row: dict[str, Any]) -> str:
    if row["best_us"] is None:
        return "-"
    return f"{row['best_us']:.4g} ({row['low_us']:.4g} to {row['high_us']:.4g})"


def _when(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def _show(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not rows:
        typer.echo("no records")
        return
    from rich.text import Text

    table = show.table(*columns)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # as text: what looks like markup is shown, not obeyed
    show.on_output(table)
