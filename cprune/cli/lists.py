"""`cprune models`, `cprune targets`: what is known by name."""

from __future__ import annotations

import typer

from cprune.cli import show
from cprune.cli.options import Json


def models(as_json: Json = False) -> None:
    """List the models that cprune knows by name."""
    from cprune.models import zoo

    known = zoo.models()
    if as_json:
        show.json_object(
            {
                "models": [
                    {"name": m.name, "input": m.input_shape, "weights": m.weights, "description": m.description}
                    for m in known
                ]
            }
        )
        return
    table = show.table("name", "input", "weights", "what it is")
    for m in known:
        size = "x".join(map(str, m.input_shape))
        table.add_row(m.name, size, "built in" if m.weights else "--weights", m.description)
    show.on_output(table)


def targets(as_json: Json = False) -> None:
    """List the machines that can be pruned for, and what this one is."""
    from cprune.targets.presets import CPUS, KINDS, no_cuda
    from cprune.targets.target import find, names

    known = [find(name) for name in names()]
    if as_json:
        processors = {name: kind.cpus for name, kind in KINDS.items()}
        show.json_object(
            {
                "targets": [target.to_dict() for target in known],
                "processors": processors,
                "missing": {"cuda": no_cuda()},
            }
        )
        return
    table = show.table("name", "reached", "processor", "threads", "float lanes")
    for target in known:
        reached = f"tracker, key {target.key}" if target.transport == "rpc" else "here"
        table.add_row(target.name, reached, target.cpu, str(target.threads), str(target.vector))
    table.add_row("cuda", "not at all", no_cuda(), "", "")
    show.on_output(table)
    table = show.table("processor", "threads", "what it is")
    for name, cpu in CPUS.items():
        table.add_row(name, str(cpu.cores), cpu.about)
    show.on_output(table)
    typer.echo("With a processor: --target android-arm64:cortex-a76. A TOML file for your own: docs/devices.md")
