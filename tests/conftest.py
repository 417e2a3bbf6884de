"""What several test files share: one session on this machine, small workloads."""

from __future__ import annotations

from collections.abc import Iterator

import postgres
import pytest

from cprune.targets.local import LocalSession
from cprune.targets.target import Target, Timing, find


@pytest.fixture(scope="session")
def target() -> Target:
    """This machine, timed briefly: the tests look at results, not at latencies."""
    from dataclasses import replace

    return replace(find("local"), timing=Timing(repeats=2, min_run_ms=0.2, deadline_s=20))


@pytest.fixture(scope="session")
def session(target: Target) -> Iterator[LocalSession]:
    with LocalSession(target) as made:
        yield made


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.Server]:
    """A PostgreSQL server for the whole run; skips where none is installed."""
    with postgres.running() as server:
        yield server
