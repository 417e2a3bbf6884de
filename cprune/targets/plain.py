"""Plain values, as TOML and JSON have them, read into a frozen dataclass, or an error that says which one is wrong.

And the way back, `to_plain`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from cprune.targets.errors import UserError, unknown

T = TypeVar("T")

_KINDS: Mapping[object, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def read(kind: type[T], values: Mapping[str, object], what: str = "setting", where: str = "") -> T:
    """Return the dataclass `kind` made of `values` by name; what is missing has its default.

    Its fields are of bool, int, float, str, a Literal of texts, another such dataclass, `Mapping[str, one of them]`,
    `tuple[one of them, ...]`, or one of these and None.  Numbers are finite, a whole one may be written 3.0, and true
    is none.  Raises UserError for a name that is no field (with the nearest),
    a value of another type, and a missing one without a default.  The error calls a field `what` and names `where`, a
    file.  What a class names in `DERIVED` its `to_dict` writes and it makes by itself, so that is left out.
    """
    declared = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    types = get_type_hints(kind)
    place = f"{where}: " if where else ""
    read_values = {}
    for name, value in values.items():
        if name in getattr(kind, "DERIVED", ()):
            continue
        if name not in declared:
            raise unknown(f"{what} in {where}:" if where else what, name, declared)
        try:
            read_values[name] = _typed(types[name], value)
        except ValueError as error:
            raise UserError(f"{place}the {what} {name} must be {error}, not {value!r}") from None
    for name, field in declared.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise UserError(f"{place}the {what} {name} is missing")
    return kind(**read_values)


def _typed(annotation: Any, value: object) -> object:
    """Return `value` as what the annotation says.  Raises ValueError with what it must be."""
    if isinstance(annotation, UnionType):
        (annotation,) = (choice for choice in get_args(annotation) if choice is not NoneType)
        return None if value is None else _typed(annotation, value)
    if get_origin(annotation) is tuple:
        item_type, _ = get_args(annotation)
        if isinstance(value, (list, tuple)):
            return tuple(_items(item_type, value))
        raise ValueError(f"a list, each item {_kind(item_type)}")
    if get_origin(annotation) is Mapping:
        _, item_type = get_args(annotation)
        if isinstance(value, Mapping):
            return dict(zip(map(str, value), _items(item_type, list(value.values())), strict=True))
        raise ValueError(f"named values, each {_kind(item_type)}")
    if get_origin(annotation) is Literal:
        if value in get_args(annotation):
            return value
        raise ValueError(f"one of {', '.join(get_args(annotation))}")
    if is_dataclass(annotation):
        if isinstance(value, Mapping):
            try:
                return read(annotation, value)  # type: ignore[arg-type]
            except UserError as error:
                raise ValueError(f"something else ({error.message})") from None
        raise ValueError("named values")
    return _scalar(annotation, value)


def _items(item_type: Any, values: Sequence[object]) -> list[object]:
    try:
        return [_typed(item_type, item) for item in values]
    except ValueError:
        raise ValueError(f"a list, each item {_kind(item_type)}") from None


def _kind(annotation: Any) -> str:
    return _KINDS.get(annotation, "named values")


def _scalar(annotation: Any, value: object) -> object:
    if annotation in (int, float) and isinstance(value, Real) and not isinstance(value, bool):
        if annotation is int and isinstance(value, Integral):
            return int(value)
        try:
            number = float(value)
        except OverflowError:  # a whole number of 309 digits or more
            number = math.inf
        if math.isfinite(number) and (annotation is float or number.is_integer()):
            return number if annotation is float else int(number)
    elif annotation in (bool, str) and isinstance(value, annotation):
        return value
    raise ValueError(_KINDS[annotation])


def to_plain(value: object) -> object:
    """Return `value` with every dataclass in it as named values, one with a `to_dict` as that says."""
    if is_dataclass(value) and not isinstance(value, type):
        if hasattr(value, "to_dict"):
            return value.to_dict()
        return {name: to_plain(part) for name, part in vars(value).items()}
    if isinstance(value, Mapping):
        return {name: to_plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(part) for part in value]
    return value
