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


LONGEST_FIRST = (
    "test_rpc.py", "test_lower.py", "test_zoo_groups.py", "test_random_networks.py", "test_loop.py", "test_session.py",
    "test_method.py", "test_search.py", "test_export.py", "test_tune.py",
)  # fmt: skip
"""Files that take long: begun last, one of them would keep the other core waiting."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest (with xdist: --no-loadscope-reorder), PyTorch with one thread.

    Two workers of pytest share two cores, and the networks are small: waiting threads would only be in the way.
    """
    import torch

    torch.set_num_threads(1)
    place = {name: index for index, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))
