"""Shapes that a user gives to the inputs of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cprune.targets.errors import UserError, unknown


def by_name(shapes: Mapping[str, Sequence[int]], names: Sequence[str], path: str) -> dict[str, Sequence[int]]:
    """Return the shapes by the names of a file's inputs; "" means the only one.  UserError for a name that is none."""
    shape_of = {(names[0] if name == "" and len(names) == 1 else name): shape for name, shape in shapes.items()}
    for name in shape_of:
        if not name:
            raise UserError(f"{path} has {len(names)} inputs: {', '.join(names)}", "Say which: --input NAME=1,3,32,32")
        if name not in names:
            raise unknown(f"input of {path}", name, names)
    return shape_of
