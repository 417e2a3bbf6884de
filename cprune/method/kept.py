"""Where a run keeps what it must not lose: its events, and its accepted networks before and after long training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from cprune.files import read_json, write_json
from cprune.network.network import Network
from cprune.network.saving import load, save
from cprune.runs.events import Event
from cprune.runs.folder import RunFolder
from cprune.runs.journal import Journal
from cprune.training.checkpoint import Checkpoint


class Keeper(Protocol):
    """Keeps events and networks."""

    def events(self) -> Sequence[Event]:
        """Return the events of earlier lives of this run."""

    def append(self, event: Event) -> None:
        """Keep one event."""

    def save(self, index: int, network: Network, long_trained: bool = False) -> None:
        """Keep the network of step `index`, as it was accepted or after long training."""

    def load(self, index: int, long_trained: bool = False) -> Network:
        """Return a network that was kept."""

    def save_scout(self, round_: int, number: int, network: Network) -> None:
        """Keep the network of a scout."""

    def load_scout(self, round_: int, number: int) -> Network:
        """Return the network of a scout."""

    def save_tables(self, round_: int, values: Mapping[str, Any]) -> None:
        """Keep the tables of a round (`cprune.method.round_tables`), plain values."""

    def load_tables(self, round_: int) -> Mapping[str, Any] | None:
        """Return the tables of a round, None if there are none."""

    def checkpoint(self, name: str, say: Callable[[str], None]) -> Checkpoint | None:
        """Return where the training of that name keeps its state; None if nowhere."""


class FolderKeeper:
    """Keeps a run in its folder."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder, self.journal = folder, Journal(folder.journal)

    def events(self) -> Sequence[Event]:
        """See `Keeper.events`.  Raises UserError for a journal that is damaged."""
        return self.journal.events()

    def append(self, event: Event) -> None:
        """See `Keeper.append`.  It is on the disk when this returns."""
        self.journal.append(event)

    def save(self, index: int, network: Network, long_trained: bool = False) -> None:
        """See `Keeper.save`."""
        save(network, self._folder_of(index, long_trained))

    def load(self, index: int, long_trained: bool = False) -> Network:
        """See `Keeper.load`."""
        return load(self._folder_of(index, long_trained))

    def save_scout(self, round_: int, number: int, network: Network) -> None:
        """See `Keeper.save_scout`."""
        save(network, self.folder.scout_dir(round_, number))

    def load_scout(self, round_: int, number: int) -> Network:
        """See `Keeper.load_scout`."""
        return load(self.folder.scout_dir(round_, number))

    def save_tables(self, round_: int, values: Mapping[str, Any]) -> None:
        """See `Keeper.save_tables`."""
        self.folder.steps_dir.mkdir(exist_ok=True)
        write_json(self.folder.tables(round_), values)

    def load_tables(self, round_: int) -> Mapping[str, Any] | None:
        """See `Keeper.load_tables`.  Raises UserError for a file that is damaged."""
        return read_json(self.folder.tables(round_))

    def checkpoint(self, name: str, say: Callable[[str], None]) -> Checkpoint:
        """See `Keeper.checkpoint`."""
        return Checkpoint(self.folder.steps_dir / f"{name}.training", say=say)

    def _folder_of(self, index: int, long_trained: bool) -> Path:
        return self.folder.long_trained_dir(index) if long_trained else self.folder.step_dir(index)
