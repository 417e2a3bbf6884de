"""The latency of any allocation of widths: tables that are measured where somebody looks, and estimated elsewhere.

The table of a task has an entry for every pair (input channels, output channels) that the layout tells apart.  Entries
are tuned from the program of the nearest wider one and kept in the record store, so that none is tuned twice; the table
has what they take when they are timed in turns with the whole ones (`cprune.method.comparable`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from cprune.channels.graph import Graph
from cprune.compiling.narrowing import narrowed
from cprune.compiling.tuned import Tuned
from cprune.method.comparable import ratios, whole_seconds
from cprune.method.terms import Term, Widths, terms
from cprune.tuner.estimate import Entry, family, size
from cprune.tuner.programs.workload import Workload, key, padded
from cprune.tuner.search.estimator import Errors, Estimate, fitted
from cprune.tuner.tune import Best, Job, Tunes

EIGHTHS = 8
TRIALS = 3


@dataclass(frozen=True)
class Later:
    """An entry that was measured after it had been estimated."""

    workload: Workload
    estimated_s: float
    measured_s: float


class LatencyTable:
    """The latencies of a tuned network's calls by the widths of its groups; `graph` is `analyse` of that network.

    Estimates are learnt (`cprune.tuner.search.estimator`) where that beats the plain ones on what is known: the table's
    entries and those of other models, `taught` (`Tuner.entries`).  `errors` are those of both, None before the first
    estimate and while little is known; `later` lists what was estimated before it was measured.
    """

    def __init__(
        self, tuned: Tuned, graph: Graph, tuner: Tunes, trials: int = TRIALS, taught: Sequence[Entry] = ()
    ) -> None:
        self.terms, self.layout = terms(tuned.lowered, graph), tuned.lowered.layout
        self.full: Mapping[str, int] = {group.id: group.channels for group in graph.groups}
        self.layers = frozenset(graph.layers)
        self.later: list[Later] = []
        self.errors: Errors | None = None
        self._taught = {key(entry.workload): entry for entry in taught}
        self._estimate: Estimate | None = None
        self._tuner, self._trials = tuner, trials
        self._entries: dict[str, Entry | None] = {}  # by task; None: nobody measured it
        self._families: dict[str, dict[str, Entry]] = {}
        self._compared: set[str] = set()  # tasks that were timed in turns with others
        self._seconds: dict[tuple[str, int, int], float] = {}
        self._described = frozenset(term.call for term in self.terms if self._is_described(term))
        for term in self.terms:
            self._note(_entry(term.workload, tuned.best[key(term.workload)]))

    def seconds(self, term: Term, widths: Widths) -> float:
        """Return the latency of a call at these widths (a group that is left out has its full width).

        Measured where it is, else estimated; a call that no widths describe scales with its channels.
        """
        ins, outs = self._channels(term, widths)
        place = (term.call, ins, outs)
        if place not in self._seconds:
            self._seconds[place] = self._looked_up(term, ins, outs)
        return self._seconds[place]

    def forecast_s(self, widths: Widths, gone: Collection[str] = ()) -> float:
        """Return the sum over all calls but those whose layers, or themselves (by the value written), are `gone`."""
        out = set(gone)
        stay = (t for t in self.terms if t.call not in out and not out.intersection(t.layers))
        return sum(self.seconds(term, widths) for term in stay)

    def estimated_us(self, widths: Widths, gone: Collection[str] = ()) -> dict[str, float]:
        """Return the microseconds of the calls that `forecast_s` adds up and that nobody measured, by call."""
        out = set(gone)
        stay = (t for t in self.terms if t.call not in out and not out.intersection(t.layers))
        return {t.call: round(1e6 * self.seconds(t, widths), 3) for t in stay if not self.measured(t, widths)}

    def measured(self, term: Term, widths: Widths) -> bool:
        """Tell whether the latency of a call at these widths was measured, in this run or another."""
        workload = self.workload(term, widths)
        return workload is not None and self._known(workload) is not None

    def workload(self, term: Term, widths: Widths) -> Workload | None:
        """Return what a call computes at these widths; None where widths do not tell."""
        return self._narrowed(term, *self._channels(term, widths))

    def missing(self, allocations: Sequence[Widths], gone: Collection[str] = ()) -> list[Workload]:
        """Return the entries that these allocations use and that are not measured yet, the widest first."""
        used = {key(workload): workload for _, workload in self._used(allocations, gone)}
        return sorted((w for w in used.values() if self._known(w) is None), key=lambda w: [-n for n in size(w)])

    def settled(self, allocations: Sequence[Widths], gone: Collection[str] = ()) -> bool:
        """Tell whether all entries that these allocations use were timed in turns with whole ones, in this table."""
        return all(key(workload) in self._compared for _, workload in self._used(allocations, gone))

    def measure(
        self,
        allocations: Sequence[Widths],
        on_trial: Callable[[], object] = lambda: None,
        gone: Collection[str] = (),
    ) -> int:
        """Tune what `missing` returns, each from its nearest wider sibling; return how many entries that were.

        What these allocations use is timed in turns with the whole tasks, entries that were known before as well.
        Raises BrokenWorld if not one program of an entry works.
        """
        estimated_s = {}
        for workload in (missing := self.missing(allocations, gone)):
            estimated_s[key(workload)] = self._estimated(workload)
            entries = list(self._families.get(family(workload), {}).values())
            job = Job(workload, 1, tuple(e.candidate for e in _nearest(workload, entries)))
            best = self._tuner.tune_all([job], self._trials, on_trial=on_trial)[key(workload)]
            self._note(_entry(workload, best))
        self._compare(allocations, gone)
        self.later += [Later(w, estimated_s[key(w)], self._of(key(w)).seconds) for w in missing]
        self._seconds.clear()
        self._estimate = None  # it learns from what was measured
        return len(missing)

    def options(self, group: str) -> tuple[int, ...]:
        """Return the widths that a group may sensibly have, descending, the full one first.

        They are the eighths of the full width, each rounded up to the widest that no call tells from it; the smallest
        fills at least one block, or half a one.  Where several groups share an axis each is looked at as if it were
        alone: their parts of a block may go together.
        """
        full = self.full[group]
        axes = {axis for term in self.terms for axis in (term.inputs, term.outputs) if group in dict(axis.groups)}

        def stored(width: int) -> list[int]:
            alone = [len(axis.groups) == 1 for axis in axes]
            sizes = [each * width for axis in axes for name, each in axis.groups if name == group]
            sizes = [n + axis.fixed * one for n, one, axis in zip(sizes, alone, axes, strict=True)]
            return [padded(n, self.layout.of(n)) for n in sizes]

        found = []
        for part in range(EIGHTHS, 0, -1):
            width = -(-full * part // EIGHTHS)
            sizes = stored(width)
            while width < full and stored(width + 1) == sizes:
                width += 1
            found.append(width)
        return tuple(sorted(set(found), reverse=True))

    # -- entries

    def _used(self, allocations: Sequence[Widths], gone: Collection[str]) -> Iterator[tuple[Term, Workload]]:
        """Yield the calls that stay, with what each computes in every allocation where widths tell."""
        out = set(gone)
        for term in self.terms:
            if term.call in out or out.intersection(term.layers):
                continue
            for widths in allocations:
                workload = self.workload(term, widths)
                if workload is not None:
                    yield term, workload

    def _compare(self, allocations: Sequence[Widths], gone: Collection[str]) -> None:
        """Time the entries of these allocations in turns with the whole ones, where that was not done yet."""
        uses = Counter(key(term.workload) for term in self.terms)
        if not self._compared:
            for task, seconds in whole_seconds(self._tuner, [self._of(task) for task in uses], uses).items():
                self._set(task, seconds)
        waiting: dict[str, dict[str, Entry]] = {}
        for term, workload in self._used(allocations, gone):
            if (task := key(workload)) not in self._compared:
                waiting.setdefault(key(term.workload), {})[task] = self._of(task)
                self._compared.add(task)
        for whole, entries in waiting.items():
            for task, ratio in ratios(self._tuner, self._of(whole), list(entries.values())).items():
                self._set(task, ratio * self._of(whole).seconds)

    def _of(self, task: str) -> Entry:
        entry = self._entries[task]
        assert entry is not None  # measured, or whole: those are there from the beginning
        return entry

    def _set(self, task: str, seconds: float) -> None:
        """Let a known entry take this long, as others that were timed in turns."""
        self._note(replace(self._of(task), seconds=seconds))
        self._compared.add(task)

    def _channels(self, term: Term, widths: Widths) -> tuple[int, int]:
        whole = {group: widths.get(group, self.full[group]) for group in term.groups}
        return term.inputs.at(whole), term.outputs.at(whole)

    def _is_described(self, term: Term) -> bool:
        """Tell whether widths say what a call computes: they must do so for the full ones."""
        ins, outs = self._channels(term, self.full)
        return narrowed(term.workload, ins, outs, self.layout) == term.workload

    def _narrowed(self, term: Term, ins: int, outs: int) -> Workload | None:
        if (ins, outs) == (term.inputs.at(self.full), term.outputs.at(self.full)):
            return term.workload
        return narrowed(term.workload, ins, outs, self.layout) if term.call in self._described else None

    def _looked_up(self, term: Term, ins: int, outs: int) -> float:
        workload = self._narrowed(term, ins, outs)
        if workload is None:
            whole = self._of(key(term.workload))
            return whole.seconds * (ins + outs) / (term.inputs.at(self.full) + term.outputs.at(self.full))
        known = self._known(workload)
        return self._estimated(workload) if known is None else known.seconds

    def _known(self, workload: Workload) -> Entry | None:
        task = key(workload)
        if task not in self._entries:
            self._entries[task] = None
            best = self._tuner.known(workload, self._trials)
            if best is not None:
                self._note(_entry(workload, best))
        return self._entries[task]

    def _estimated(self, workload: Workload) -> float:
        if self._estimate is None:
            target = self._tuner.target
            entries = {**self._taught, **{task: e for es in self._families.values() for task, e in es.items()}}
            self._estimate, self.errors = fitted(list(entries.values()), target.threads, target.vector)
        return self._estimate(workload, list(self._families[family(workload)].values()))

    def _note(self, entry: Entry) -> None:
        task = key(entry.workload)
        self._entries[task] = self._families.setdefault(family(entry.workload), {})[task] = entry


def _entry(workload: Workload, best: Best) -> Entry:
    return Entry(workload, best.candidate, best.latency_s)


def _nearest(workload: Workload, entries: Sequence[Entry]) -> list[Entry]:
    """Return the narrowest entry that is at least as wide, if there is one."""
    mine = size(workload)
    wider = [e for e in entries if all(a >= b for a, b in zip(size(e.workload), mine, strict=True))]
    return sorted(wider, key=lambda e: size(e.workload)[0] / mine[0] * size(e.workload)[1] / mine[1])[:1]
