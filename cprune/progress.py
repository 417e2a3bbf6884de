"""What a person sees while cprune works: bars on a terminal, plain lines elsewhere, nothing in a library call."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import TaskID

T = TypeVar("T")


class Progress:
    """One bar at a time, and lines above it.  This one shows nothing; what shows something derives from it."""

    def start(self, text: str, total: int) -> None:
        """Begin a bar of `total` units."""

    def advance(self, units: int = 1) -> None:
        """Move the bar on."""

    def done(self) -> None:
        """End the bar."""

    def say(self, text: str) -> None:
        """Print a line."""

    def wait(self, text: str) -> None:
        """Show what is waited for, about once a second; "" when it goes on."""

    def each(self, text: str, items: Sequence[T]) -> Iterator[T]:
        """Yield the items one by one, with a bar that moves on after each."""
        self.start(text, len(items))
        for item in items:
            yield item
            self.advance()
        self.done()


class Watched(Progress):
    """Another progress, and a function that is called whenever its bar moves on."""

    def __init__(self, progress: Progress, on_advance: Callable[[], None]) -> None:
        self._progress, self._on_advance = progress, on_advance

    def start(self, text: str, total: int) -> None:
        """Begin a bar of the other."""
        self._progress.start(text, total)

    def advance(self, units: int = 1) -> None:
        """Move the bar on, and call the function."""
        self._progress.advance(units)
        self._on_advance()

    def done(self) -> None:
        """End the bar of the other."""
        self._progress.done()

    def say(self, text: str) -> None:
        """Print a line by the other."""
        self._progress.say(text)

    def wait(self, text: str) -> None:
        """Show by the other what is waited for."""
        self._progress.wait(text)


class Plain(Progress):
    """Plain lines on standard error: one when something begins, and one every ten seconds of a long bar or wait."""

    def __init__(self) -> None:
        self.text, self.total, self.count, self.last = "", 0, 0, 0.0
        self.waited = 0.0

    def start(self, text: str, total: int) -> None:
        """Print what begins."""
        self.text, self.total, self.count, self.last = text, total, 0, time.monotonic()
        if text:
            self.say(f"{text} …")

    def advance(self, units: int = 1) -> None:
        """Print where it is, now and then."""
        self.count += units
        if time.monotonic() - self.last > 10:
            self.last = time.monotonic()
            self.say(f"{self.text}: {self.count}/{self.total}")

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, file=sys.stderr, flush=True)

    def wait(self, text: str) -> None:
        """Print what is waited for, now and then."""
        if not text:
            self.waited = 0.0
        elif time.monotonic() - self.waited > 10:
            self.waited = time.monotonic()
            self.say(text)


class Bars(Progress):
    """A rich progress bar on standard error."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        self.console = Console(stderr=True)
        self.bar = RichProgress(
            TextColumn("  {task.description:<34.34}"),
            BarColumn(28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
        )
        self.task: TaskID | None = None
        self.waiting: TaskID | None = None

    def start(self, text: str, total: int) -> None:
        """Begin a bar."""
        self.done()
        self.bar.start()
        self.task = self.bar.add_task(text, total=total)

    def advance(self, units: int = 1) -> None:
        """Move the bar on."""
        if self.task is not None:
            self.bar.advance(self.task, units)

    def done(self) -> None:
        """Take the bar away."""
        if self.task is not None:
            self.bar.remove_task(self.task)
            self.task = None
            if self.waiting is None:
                self.bar.stop()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def wait(self, text: str) -> None:
        """Show the text in a line of its own below the bar."""
        if text and self.waiting is None:
            self.bar.start()
            self.waiting = self.bar.add_task(text, total=None)
        elif self.waiting is not None and text:
            self.bar.update(self.waiting, description=text)
        elif self.waiting is not None:
            self.bar.remove_task(self.waiting)
            self.waiting = None
            if self.task is None:
                self.bar.stop()


def of_terminal() -> Progress:
    """Return bars where standard error is a terminal, else plain lines."""
    return Bars() if sys.stderr.isatty() else Plain()
