"""A scheduler driver that only remembers what it was asked for."""

from collections.abc import Callable

from meseta.driver_events import UserCall
from meseta.scheduler import SchedulerDriver, Timer


class RememberingDriver(SchedulerDriver):
    """`calls` are the calls so far; nothing else happens."""

    def __init__(self) -> None:
        self.calls: list[UserCall] = []

    def submit(self, call: UserCall) -> None:
        self.calls.append(call)

    def take(self) -> list[UserCall]:
        """Return the calls since the last time."""
        calls, self.calls = self.calls, []
        return calls

    def now(self) -> float:
        return 0.0

    def call_later(self, delay_s: float, function: Callable[[], object]) -> Timer:
        raise AssertionError("the scheduler of dcos run has no timers")
