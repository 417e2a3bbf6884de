"""What a tracker knows, and what the free devices say of themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cprune.targets.remote import tracker
from cprune.targets.remote.device import free_devices


def listed(option: str, say: Callable[[str], None]) -> tuple[str, list[dict[str, Any]]]:
    """Return the tracker's address and a row for each device: its key, "free" or "in use", and what it says.

    A free device is taken for a moment.  Raises UserError or BrokenWorld if no tracker answers.
    """
    where = tracker.address(option)
    rows: list[dict[str, Any]] = []
    for known in tracker.summary(where):
        devices, _ = free_devices(where, known.key, 0, say) if known.free else ([], "")
        for device in devices:
            rows.append({"key": known.key, "state": "free", **device.facts})
        for device in devices:
            device.close()
        silent = known.free - len(devices)
        rows += [{"key": known.key, "state": "does not answer"}] * silent
        rows += [{"key": known.key, "state": "in use"}] * max(0, known.devices - known.free)
    return str(where), rows
