"""What the table of inner loops for Arm counts."""

from __future__ import annotations

import pytest

from experiments.arm_loops import loops, multiplied


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("fmla v0.4s, v1.4s, v2.s[0]", 4),
        ("fmla v0.8h, v1.8h, v2.h[3]", 8),
        ("bfdot v0.4s, v1.8h, v2.2h[1]", 8),
        ("sdot v0.4s, v1.16b, v2.4b[1]", 16),
        ("fmla v0.2s, v1.2s, v2.s[0]", 0),  # half of a register
        ("fadd v0.8h, v1.8h, v2.8h", 0),
        ("add x1, x2, x3", 0),
        ("ret", 0),
    ],
)
def test_multiply_adds_of_a_line(line: str, count: int) -> None:
    assert multiplied(line) == count


def test_a_loop_ends_with_a_branch_to_its_label() -> None:
    text = "\n".join([
        ".LBB0_1:", "\tmov x0, x1", ".LBB0_2:", "\tldr q1, [x0]", "\tfmla v0.8h, v1.8h, v2.h[3]",
        "\tfmla v3.8h, v1.8h, v2.h[4]", "\tcbnz x2, .LBB0_2", "\tb.ne .LBB0_1", "\tret",
    ])  # fmt: skip
    (found,) = loops(text)
    assert found.macs == 16
    assert len(found.lines) == 4
