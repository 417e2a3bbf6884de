"""What every command about a model is asked, and what it opens for it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from cprune.compiling.tuned import opened_tuner
from cprune.method.settings import Settings
from cprune.models.opened import Opened
from cprune.models.source import Source
from cprune.progress import Progress
from cprune.targets.session import Session
from cprune.targets.target import Target
from cprune.tuner.records.place import default_records
from cprune.tuner.tune import Tuner


@dataclass(frozen=True)
class Request:
    """Which model, on which machine, decided how, and where tuning records are (None: the store that is shared)."""

    source: Source
    target: Target
    settings: Settings
    records: str | Path | None = None

    def opened(self) -> Opened:
        """Return the model with its graph.  Raises UserError for what cannot be found, read or captured."""
        return self.source.opened(self.settings.seed)

    def tuner(
        self, progress: Progress, spaces: str = "sketch", search: str | None = None
    ) -> AbstractContextManager[tuple[Session, Tuner]]:
        """Open the record store and a session on the target (see `opened_tuner`)."""
        store = self.records or default_records(self.target.name)
        return opened_tuner(self.target, store, self.settings.seed, progress, spaces, search)
