"""The journal of a run: `journal.jsonl`, one event a line.

It only ever grows, and each line is on the disk before the run goes on, so `cprune resume` can rebuild the state of the
run by reading.  Light: only the standard library.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from cprune.files import disk_errors, json_text, sync_folder, write_all
from cprune.runs.events import Event, of_line, to_line
from cprune.targets.errors import UserError


class Journal:
    """The events of a run (`cprune.runs.events`), each a line of JSON with "event" (its kind) and "time".

    One process appends (the one that holds `RunFolder.lock`); any number may read meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: Event) -> None:
        """Write `event` as one line with its "time" (unix seconds); it is on the disk when this returns.

        What a crash left of a last line is cut away first.  Numbers that JSON lacks (nan, inf) become null.  Raises
        BrokenWorld if the disk is full or gone; the journal is then as before.
        """
        line = json_text({"event": event.kind, "time": round(time.time(), 3), **to_line(event)})
        with disk_errors(self.path):
            is_new = not self.path.exists()
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                end = self._mend(file)
                try:
                    write_all(file, line.encode() + b"\n", end)
                    os.fsync(file)
                except OSError:
                    os.ftruncate(file, end)
                    raise
            finally:
                os.close(file)
            if is_new:
                sync_folder(self.path.parent)

    def events(self) -> list[Event]:
        """Return all events, oldest first; none if there is no journal yet.

        A last line that is no JSON was being written when the run was killed, and is left out.  Any other such line
        raises UserError with its number, and so does an event that lacks something.
        """
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return []
        lines = data.split(b"\n")
        if lines[-1] == b"":
            lines.pop()
        events = []
        for number, line in enumerate(lines, start=1):
            values = _object(line)
            if values is None and number == len(lines):
                break
            detail = "not an event of a journal"
            try:
                event = None if values is None else of_line(values)
            except UserError as error:
                event, detail = None, error.message
            if event is None:
                raise UserError(
                    f"{self.path}, line {number}: {detail}",
                    "The file was changed or damaged, or is of another version.  Put a copy back, or keep only the "
                    f"lines before it (head -n {number - 1}) and resume from there",
                )
            events.append(event)
        return events

    @staticmethod
    def _mend(file: int) -> int:
        """Cut off a torn last line, end a whole one that lacks its newline; return where to write."""
        size = os.fstat(file).st_size
        data = os.pread(file, size, 0)
        ended = data.endswith(b"\n")
        last = data.rfind(b"\n", 0, size - ended) + 1
        if _object(data[last:]) is None:
            os.ftruncate(file, last)
            return last
        if not ended:
            write_all(file, b"\n", size)
            return size + 1
        return size


def _object(line: bytes) -> dict[str, object] | None:
    """Return the JSON object of a line, None if it is none, or says no kind of event."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) and isinstance(values.get("event"), str) else None
