"""Which record store a command means.  Light: only the standard library."""

from __future__ import annotations

import os
from pathlib import Path


def default_records(target: str = "local") -> Path:
    """Return the store that commands without a run folder share: in the user's cache, one for each target's name."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cprune"
    base.mkdir(parents=True, exist_ok=True)
    return base / f"records-{target.replace(os.sep, '-')}.sqlite"


def named(records: str | None) -> str | Path:
    """Return the store that `--records` means: a run folder means its own store, nothing means the shared one."""
    if records is None:
        return default_records()
    if "://" not in records and any((Path(records) / name).is_file() for name in ("run.json", "records.sqlite")):
        return Path(records) / "records.sqlite"
    return records
