"""What happens in a run, as dataclasses: the lines of `journal.jsonl`, for those who write and those who read them.

`cprune.method.history` makes the state of a run of them, live or from an earlier life; the report shows them.

===========  ====================================================================================
kind         written
===========  ====================================================================================
start        once, when the unpruned model is tuned and its accuracy known
planned      when it is known how long the run trains
scouted      after the short training of one allocation
chosen       when a scout is chosen for long training
measured     after the gate timed a candidate against the current model
step         after every visit to a task
trained      after long training of an accepted model
renewed      when the run goes on with a model that was trained long
certified    after a look at a finished model with the images that certify
reported     after the look at the chosen model with the images of the report
asked        when one more model is asked for after the run
further      when that model was trained and timed
cost         when nothing else was written for a while
final        at the end
===========  ====================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import ClassVar, Literal, TypeAlias

from cprune.targets.interval import Comparison, Interval
from cprune.targets.paired import Paired
from cprune.targets.plain import read, to_plain

Verdict = Literal["accepted", "rejected", "excluded"]
Status = Literal["pruned", "stepped-back", "unpruned"]


@dataclass(frozen=True)
class SoFar:
    """What a run has cost when an event is written, its earlier lives included (see `cprune.method.cost`)."""

    seconds: Mapping[str, float]
    trials: Mapping[str, int]


@dataclass(frozen=True)
class PartSizes:
    """How many images a run decides on, certifies with and reports on; 0 where that is not known."""

    decide: int = 0
    certify: int = 0
    report: int = 0


@dataclass(frozen=True)
class Start:
    """What was known before the first step.

    `report`, `decide` and `certify` are the accuracies of the unpruned model on the images of those uses (`images` says
    how many they are; `certify` is None in the journal of a version that did not certify).  `required` is what is
    promised of the first, and `floor` what decisions keep of the second.  `memorised` says that the images which decide
    look as if the model had been trained on them.  The layout has channels in blocks of `block`, those of `narrow`
    widths in half blocks.  `share` is the latency of the unpruned model in the `precision` of the run, as a share of
    `latency_ms`, that in fp32, and `integers_lose` the accuracy that fewer bits alone cost on the images that decide.
    `floats` are the layers that stay in fp32 in a run in bf16.
    """

    kind: ClassVar[str] = "start"
    report: float
    decide: float
    required: float
    floor: float
    block: int
    trials: int
    latency_ms: Interval
    narrow: tuple[int, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    certify: float | None = None
    images: PartSizes = PartSizes()
    memorised: bool = False
    share: float = 1.0
    precision: str = "fp32"
    integers_lose: float = 0.0
    floats: tuple[str, ...] = ()
    so_far: SoFar | None = None

    @property
    def whole_ms(self) -> float:
        """Return the median latency of the unpruned model in the precision of the run."""
        return self.latency_ms.median * self.share

    @property
    def allowed(self) -> float:
        """Return the accuracy that may be lost."""
        return self.report - self.required


@dataclass(frozen=True)
class Measured:
    """A comparison of the gate.  `key` names the step and what it removes, so that it is not measured twice."""

    kind: ClassVar[str] = "measured"
    key: str
    before_ms: Interval
    latency_ms: Interval
    ratio: Interval
    so_far: SoFar | None = None

    @property
    def comparison(self) -> Comparison:
        """Return it as the gate saw it."""
        return Comparison(self.before_ms, self.latency_ms, self.ratio)


@dataclass(frozen=True)
class GroupChange:
    """A channel group with its channels before and after a step."""

    id: str
    before: int
    after: int


@dataclass(frozen=True)
class Estimated:
    """A call of a compiled model whose latency was estimated before its task was tuned; `error` is a share."""

    call: str
    estimated_us: float
    measured_us: float

    @property
    def error(self) -> float:
        """Return by how much the estimate was too large, as a share of what was measured."""
        return self.estimated_us / self.measured_us - 1


@dataclass(frozen=True)
class Step:
    """One visit to a task and its verdict: accepted, rejected (not faster) or excluded (too inaccurate).

    `step` is the channel step of the task's fastest program, `key` the groups that shrink.  Latencies and their
    `ratio` are missing where the forecast was enough; the accuracy on the images that decide, and what is lost there
    against the unpruned model, where the gate was.  `forecast` is the share of the current model's latency that was
    expected of it, `estimated` are the calls that were estimated when that was said and that are tuned now.
    """

    kind: ClassVar[str] = "step"
    index: int
    task: str
    step: int
    groups: tuple[GroupChange, ...]
    latency_ms: Interval | None
    before_ms: Interval | None
    ratio: Interval | None
    accuracy: float | None
    verdict: Verdict
    reason: str
    trials: int
    seconds: Mapping[str, float]
    key: str
    loss: Paired | None = None
    forecast: float | None = None
    estimated: tuple[Estimated, ...] = ()
    so_far: SoFar | None = None


@dataclass(frozen=True)
class Trained:
    """Long training of the model after step `index`: accuracy where decisions are made before, and of what is kept.

    `loss` is what is lost there against the unpruned model.  `note` says why it did not help, where it did not.
    """

    kind: ClassVar[str] = "trained"
    index: int
    before: float
    accuracy: float
    note: str = ""
    loss: Paired | None = None
    so_far: SoFar | None = None


@dataclass(frozen=True)
class Renewed:
    """The run goes on with the long-trained model of step `index`, and every task may be tried again."""

    kind: ClassVar[str] = "renewed"
    index: int
    accuracy: float
    so_far: SoFar | None = None


@dataclass(frozen=True)
class Planned:
    """How many seconds the whole run trains, and with how many views of the images."""

    kind: ClassVar[str] = "planned"
    train_s: float
    views: int
    so_far: SoFar | None = None


@dataclass(frozen=True)
class Scouted:
    """A short training of one allocation: `share` of the latency was measured, `forecast` is what the tables say.

    `round` and `number` name it; `damage` is before any training, `loss` on the images that decide.  `widths` are those
    of the groups that are narrower ("layer1.conv 16"), `gone` the residual branches that it lacks.
    """

    kind: ClassVar[str] = "scouted"
    round: int
    number: int
    share: float
    forecast: float
    damage: float
    epochs: float
    loss: Paired
    widths: tuple[str, ...]
    gone: tuple[str, ...]
    so_far: SoFar | None = None

    @staticmethod
    def texts(widths: Iterable[tuple[str, int]]) -> tuple[str, ...]:
        """Return widths by group as `widths` has them."""
        return tuple(f"{group} {width}" for group, width in widths)

    @property
    def by_group(self) -> dict[str, int]:
        """Return `widths` as numbers, by group."""
        return {group: int(width) for group, _, width in (text.rpartition(" ") for text in self.widths)}


@dataclass(frozen=True)
class Chosen:
    """The scout of a round that is trained long, for so many epochs: what it lost, and what it lacks.

    `forecast` is the share of the latency that the tables said.  `estimated_us` are its calls that nobody had measured,
    of a run that decides by estimates, with what was estimated.
    """

    kind: ClassVar[str] = "chosen"
    round: int
    number: int
    share: float
    epochs: float
    scout_loss: float
    groups: tuple[GroupChange, ...]
    gone: tuple[str, ...]
    forecast: float | None = None
    estimated_us: Mapping[str, float] = field(default_factory=dict)
    so_far: SoFar | None = None


@dataclass(frozen=True)
class Certified:
    """A look at model `index` with the images that certify: accuracy, loss against the unpruned model, is it enough."""

    kind: ClassVar[str] = "certified"
    index: int
    accuracy: float
    loss: Paired
    passed: bool
    so_far: SoFar | None = None


@dataclass(frozen=True)
class Reported:
    """The look at model `index`, the one that was chosen, with the images of the report."""

    kind: ClassVar[str] = "reported"
    index: int
    accuracy: float
    loss: Paired
    so_far: SoFar | None = None


@dataclass(frozen=True)
class Asked:
    """One more model is wanted, so many times as fast as the unpruned one; the settings of the run stay.

    With `safer` it is the run that wants it: no other model could be delivered.
    """

    kind: ClassVar[str] = "asked"
    number: int
    speedup: float
    so_far: SoFar | None = None
    safer: bool = False

    @property
    def index(self) -> int:
        """Return what its model is called in the journal and on the disk, where others go by their step: from 1000."""
        return 1000 + self.number


@dataclass(frozen=True)
class Further:
    """One more model that was asked for: timed in turns with the unpruned one, and looked at where it is decided.

    `gone` is how many branches it lacks.  `reason` says why there is none, where it failed.
    """

    kind: ClassVar[str] = "further"
    number: int
    speedup: Interval
    latency_ms: Interval
    accuracy: float
    loss: Paired | None
    gone: int
    reason: str = ""
    so_far: SoFar | None = None


@dataclass(frozen=True)
class CostSoFar:
    """Nothing but what the run has cost so far."""

    kind: ClassVar[str] = "cost"
    so_far: SoFar | None = None


@dataclass(frozen=True)
class Final:
    """The end: how it ended, and the accuracy of the final model on the images of the report."""

    kind: ClassVar[str] = "final"
    status: Status
    report: float
    so_far: SoFar | None = None


Event: TypeAlias = (
    Start
    | Planned
    | Scouted
    | Chosen
    | Measured
    | Step
    | Trained
    | Renewed
    | Certified
    | Reported
    | Asked
    | Further
    | CostSoFar
    | Final
)

_KINDS: Mapping[str, type[Event]] = {
    event.kind: event
    for event in (
        *(Start, Planned, Scouted, Chosen, Measured, Step, Trained, Renewed, Certified, Reported, Asked, Further),
        *(CostSoFar, Final),
    )
}
_FORMER = {"test": "report"}
"""Names that older journals have for fields."""


def to_line(event: Event) -> dict[str, object]:
    """Return the fields of `event` as plain values, without those that say nothing of the run."""
    values = {name: to_plain(value) for name, value in vars(event).items()}
    if event.so_far is None:
        del values["so_far"]
    return values


def of_line(values: Mapping[str, object]) -> Event | None:
    """Return the event of a line, None for a kind that is not known.

    Raises UserError for one that lacks a field or has another type in it.  What it has beside its fields is left out.
    """
    kind = _KINDS.get(str(values["event"]))
    if kind is None:
        return None
    names = {declared.name for declared in fields(kind)}
    values = {_FORMER.get(name, name): value for name, value in values.items()}
    return read(kind, {name: value for name, value in values.items() if name in names}, "field")


def cost_so_far(events: Iterable[Event]) -> SoFar:
    """Return what a run has cost after `events`, all of its lives.

    Older journals have no `so_far`: in them the start and every step say what they cost themselves.
    """
    seconds: dict[str, float] = {}
    trials: dict[str, int] = {}
    for event in events:
        if event.so_far is not None:
            seconds, trials = dict(event.so_far.seconds), dict(event.so_far.trials)
        elif isinstance(event, (Start, Step)):
            for kind, spent in event.seconds.items():
                seconds[kind] = seconds.get(kind, 0.0) + spent
            phase = "before" if isinstance(event, Start) else "loop"
            trials[phase] = trials.get(phase, 0) + event.trials
    return SoFar(seconds, trials)
