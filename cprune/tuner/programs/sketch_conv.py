"""What the sketches of all convolutions share: padding, and the loops around a register tile."""

from __future__ import annotations

from typing import Any

from tvm import te, tirx

from cprune.tuner.programs.space import Candidate


def pad_plane(x: Any, pad: tuple[int, int, int, int], value: Any) -> Any:
    """Pad axes 2 and 3 of a plain or blocked value; the value itself where there is nothing to pad."""
    top, left, bottom, right = pad
    if not any(pad):
        return x
    n, c, h, w, *block = (int(d) for d in x.shape)

    def read(i: Any, j: Any, y: Any, z: Any, *b: Any) -> Any:
        inside = tirx.all(y >= top, y < h + top, z >= left, z < w + left)
        return tirx.if_then_else(inside, x(i, j, y - top, z - left, *b), value)

    return te.compute((n, c, h + top + bottom, w + left + right, *block), read, name="pad")


def tiled(s: Any, knobs: Candidate) -> tuple[Any, Any]:
    """Schedule the block "out" and return two loops: one parallel piece, and the one that walks the tiles of a row."""
    n, c, y, z, b = s.get_loops(s.get_sblock("out"))
    c_out, c_in = s.split(c, [None, knobs["oc_tile"]])
    y_out, y_mid, y_in = s.split(y, [None, knobs["rows"], knobs["oh_tile"]])
    z_out, z_in = s.split(z, [None, knobs["ow_tile"]])
    way = knobs["parallel"]
    if way == "rows":
        s.reorder(n, y_out, c_out, y_mid, z_out, c_in, y_in, z_in, b)
        piece = s.fuse(n, y_out)
    else:
        s.reorder(n, c_out, y_out, y_mid, z_out, c_in, y_in, z_in, b)
        piece = s.fuse(n, c_out, y_out) if way == "both" else s.fuse(n, c_out) if way == "channels" else n
    if way != "none":
        s.parallel(piece)
    s.vectorize(b)
    for loop in (c_in, y_in, z_in):
        s.unroll(loop)
    return piece, z_out


def parallel_pad(s: Any, knobs: Candidate, piece: Any, vectorized: bool) -> None:
    """Schedule the block "pad": within the piece that reads it, or a parallel stage of its own."""
    if knobs["pad"] == "none":
        return
    pad = s.get_sblock("pad")
    if knobs["pad"] == "inside":
        s.compute_at(pad, piece, preserve_unit_loops=True)
        loops = s.get_loops(pad)
    else:
        loops = s.get_loops(pad)
        s.parallel(s.fuse(*loops[:3]))
    if vectorized:
        s.vectorize(loops[-1])
