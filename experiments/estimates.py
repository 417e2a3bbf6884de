"""How far estimates of task latencies are from measurements, on the records of a machine.

    python experiments/estimates.py                        the records of this machine
    python experiments/estimates.py --records FILE         those of a run, or another store

Three ways to say what a task takes from what wider and narrower ones take: in proportion to the channel blocks of the
nearest wider one (ceil(in / block) x ceil(out / block)), by the work of the busiest thread (`cprune.tuner.estimate`),
and learned (`cprune.tuner.search.estimator`).  Each is asked twice: with a fifth of the entries left out at a time, and
with everything left out but the widest entry of the operator in question, as at the beginning of
`cprune run --estimate` with a model that is new; there the learned one knows the other operators of its fold.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cprune.targets.target import find
from cprune.tuner.estimate import Entry, covers, estimate, family, size
from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import Conv2d, Dense, Workload, from_key
from cprune.tuner.records.place import default_records
from cprune.tuner.records.store import Store
from cprune.tuner.rig import ranked
from cprune.tuner.search.estimator import Estimate, learned_from

FOLDS = 5
RULES = ("blocks", "work", "learned")


@dataclass(frozen=True)
class Error:
    """|log(estimated / measured)| of one entry by one rule."""

    operator: str
    rule: str
    apart: float


def blocks(workload: Workload) -> float:
    """Return the channel blocks of a task: of inputs times those of outputs, of others than layers their sum."""
    inputs, outputs = size(workload)
    if isinstance(workload, Conv2d):
        out = outputs / workload.out_block
        return out if workload.depthwise else out * inputs / (workload.in_block or 1)
    return float(inputs * outputs) if isinstance(workload, Dense) else float(inputs + outputs)


def by_blocks(workload: Workload, entries: Sequence[Entry]) -> float:
    """Return the seconds of the nearest wider entry in proportion to the blocks.  ValueError where none is wider."""
    wider = [e for e in entries if covers(size(e.workload), size(workload))]
    near = min(wider, key=lambda e: blocks(e.workload))
    return near.seconds * blocks(workload) / blocks(near.workload)


def operator(workload: Workload) -> str:
    """Return what kind of task it is, for the table."""
    if isinstance(workload, Conv2d):
        return "depthwise" if workload.depthwise else f"conv {workload.kernel[0]}x{workload.kernel[1]}"
    return "dense" if isinstance(workload, Dense) else "others"


def errors(entries: Sequence[Entry], threads: int, vector: int, widest_only: bool) -> list[Error]:
    """Return the errors of every entry that has a wider one among those that are not left out, fold by fold.

    With `widest_only` folds are of whole families, and of those of the fold nothing but the widest entry is known.
    """
    order = {name: i for i, name in enumerate(sorted({family(e.workload) for e in entries}))}
    found = []
    for fold in range(FOLDS):
        places = [order[family(e.workload)] if widest_only else i for i, e in enumerate(entries)]
        seen = [e for e, place in zip(entries, places, strict=True) if place % FOLDS != fold]
        out = [e for e, place in zip(entries, places, strict=True) if place % FOLDS == fold]
        if widest_only:
            widest = _widest(out)
            seen, out = [*seen, *widest], [e for e in out if e not in widest]
        learned = learned_from(seen, threads, vector, 0)
        rules: Mapping[str, Estimate | None] = {
            "blocks": by_blocks,
            "work": lambda w, known: estimate(w, known, threads, vector),
            "learned": learned,
        }
        for entry in out:
            known = [e for e in seen if family(e.workload) == family(entry.workload)]
            if not any(covers(size(e.workload), size(entry.workload)) for e in known):
                continue
            for rule, says in rules.items():
                if says is not None:
                    apart = abs(math.log(says(entry.workload, known) / entry.seconds))
                    found.append(Error(operator(entry.workload), rule, apart))
    return found


def _widest(entries: Sequence[Entry]) -> list[Entry]:
    """Return the widest entry of every family."""
    widest: dict[str, Entry] = {}
    for entry in sorted(entries, key=lambda e: math.prod(size(e.workload))):
        widest[family(entry.workload)] = entry
    return list(widest.values())


def table(found: Sequence[Error]) -> list[str]:
    """Return lines of Markdown: a row an operator and one for all, medians and 90th percentiles in per cent."""
    lines = [f"| entries | number | {' | '.join(RULES)} |", f"|---|--:|{'--:|' * len(RULES)}"]
    for name in (*sorted({e.operator for e in found}), ""):
        of_rule = {r: sorted(e.apart for e in found if e.rule == r and name in ("", e.operator)) for r in RULES}
        cells = [
            f"{statistics.median(aparts):.1%} ({aparts[int(0.9 * (len(aparts) - 1))]:.0%})" if aparts else "-"
            for aparts in of_rule.values()
        ]
        lines.append(f"| {name or 'all'} | {len(of_rule['blocks'])} | {' | '.join(cells)} |")
    return lines


def entries_of(store: Store, fingerprint: str) -> list[Entry]:
    """Return the fastest program of every task of a target, but for those of TVM's own space."""
    fastest = {}
    for record in ranked(store.all(fingerprint)):
        if record.space == "sketch" and not record.task.startswith('["tir",'):
            fastest.setdefault(record.task, record)
    return [Entry(from_key(t), Candidate.parse(r.candidate), r.latency_s) for t, r in sorted(fastest.items())]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", default=str(default_records()))
    parser.add_argument("--target", default="local")
    parser.add_argument("--fingerprint", help="the target that the records are of; default: TARGET as it is here")
    parser.add_argument("--threads", type=int, help="of the target that the records are of; default: all cores")
    args = parser.parse_args()
    target = find(args.target)
    threads = args.threads or target.threads
    with Store(args.records, read_only=True) as store:
        entries = entries_of(store, args.fingerprint or find(target, args.threads).fingerprint)
        if not entries:
            sys.exit(f"no records of this target in {args.records}; --fingerprint may be {', '.join(store.targets())}")
    print(f"{len(entries)} tasks of {target.name}, {threads} threads: median error (90th percentile)")
    for text, widest_only in (("A fifth left out", False), ("All but the widest left out", True)):
        print(f"\n{text}:\n")
        print("\n".join(table(errors(entries, threads, target.vector, widest_only))))


if __name__ == "__main__":
    main()
