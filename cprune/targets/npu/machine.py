"""What the simulated accelerator is, as data.

One multiplier of `lanes` x `lanes` bytes, an ALU of `lanes` words, four memories on the chip, three queues of
instructions (load, compute, store) that wait for each other by tokens, and one port to the memory outside.

The sizes are those of VTA's default configuration (Moreau et al., "A hardware-software blueprint for flexible deep
learning specialization", 2019).  The constants of `Costs` are fitted to cycles that VTA's own RTL took
(`experiments/npu_against_rtl.py`); all other presets have the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from cprune.targets.errors import unknown

MODEL = 1
"""Counts up where programs take another time than before: records of an older model are of another machine."""
WORD = 4
"""Bytes of a sum in the accumulator."""


@dataclass(frozen=True)
class Costs:
    """Cycles beside those of the beats that the port moves, and of the vectors that the multiplier goes through.

    `burst` more for every burst, `pad` for a vector of padding, `gemm` and `alu` for an instruction, `alu_vector` for a
    vector that the ALU goes over, `store_row` more for a row that is stored, `token` until a token is seen.
    """

    burst: float = 4.07
    pad: float = 2.22
    gemm: float = 2.95
    alu: float = 11.49
    alu_vector: float = 1.16
    store_row: float = 5.3
    token: float = 0.01


@dataclass(frozen=True)
class NpuMachine:
    """An accelerator.

    A vector holds `lanes` values, a block `lanes` x `lanes` weights.  Memories are in bytes: a vector of sums takes
    4 bytes a value.  `uops` are the micro-operations that one instruction may have.  The port moves `port_bytes` a
    cycle in bursts that end at multiples of `burst_bytes`.  A program of more than `limit_cycles` is stopped.
    """

    name: str
    lanes: int = 16
    input_bytes: int = 32 * 1024
    weight_bytes: int = 256 * 1024
    sums_bytes: int = 128 * 1024
    uops: int = 2048
    port_bytes: int = 8
    burst_bytes: int = 2048
    instruction_bytes: int = 16
    limit_cycles: int = 12_000_000
    clock_hz: float = 100e6
    costs: Costs = Costs()

    @property
    def input_vectors(self) -> int:
        """Return how many vectors the input memory holds."""
        return self.input_bytes // self.lanes

    @property
    def weight_blocks(self) -> int:
        """Return how many blocks the weight memory holds."""
        return self.weight_bytes // self.lanes**2

    @property
    def sums_vectors(self) -> int:
        """Return how many vectors the accumulator holds; the memory for results holds as many."""
        return self.sums_bytes // (WORD * self.lanes)


VTA = NpuMachine("vta")
PRESETS = {
    machine.name: machine
    for machine in (
        VTA,
        # Fixed before any result on it was looked at: half and a quarter of every memory, and of the time.
        NpuMachine("vta-half", 16, 16 * 1024, 128 * 1024, 64 * 1024, 1024, limit_cycles=6_000_000),
        NpuMachine("vta-quarter", 16, 8 * 1024, 64 * 1024, 32 * 1024, 512, limit_cycles=3_000_000),
    )
}


def described(cpu: str) -> NpuMachine:
    """Return the accelerator that a target of it names as its processor."""
    return preset(cpu.partition(",")[0])


def preset(name: str) -> NpuMachine:
    """Return the accelerator of this name.  Raises UserError for a name that is not known."""
    if name not in PRESETS:
        raise unknown("accelerator", name, PRESETS)
    return PRESETS[name]
