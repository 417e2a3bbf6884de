"""The session for a target: this machine, devices behind a tracker, or the simulated accelerator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cprune.targets.local import LocalSession
from cprune.targets.session import Session
from cprune.targets.target import Target


@contextmanager
def connect(
    target: Target,
    wait: Callable[[str], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[tuple[Session, Target]]:
    """Yield a session on `target`, and the target with what the machine said of itself; close the session afterwards.

    `wait(text)` is told about once a second why nothing happens ("" when it goes on), `say(text)` what happened to a
    device.  Raises UserError or BrokenWorld where there is no way to the machine.
    """
    if target.transport == "local":
        with LocalSession(target) as local:
            yield local, target
        return
    if target.simulated:
        from cprune.targets.npu.machine import described
        from cprune.targets.npu.session import NpuSession

        with NpuSession(described(target.cpu)) as simulated:
            yield simulated, target
        return
    from cprune.targets.remote.rpc import RpcSession

    with RpcSession(target, wait, say) as remote:
        yield remote, remote.target
