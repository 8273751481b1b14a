"""Virtual time: actions in the order of their moments, from one seed."""

import heapq
import random
from collections.abc import Callable

Action = Callable[[], object]

TRACE_LINES_LIMIT = 4000  # The end of a run is what explains a failure; older lines are dropped.


class Timer:
    """A scheduled action; `cancel` forgets it."""

    __slots__ = ("action", "moment_s")

    def __init__(self, moment_s: float, action: Action) -> None:
        self.moment_s = moment_s
        self.action: Action | None = action

    def cancel(self) -> None:
        """Do not run the action."""
        self.action = None


class World:
    """The clock, the dice and the agenda of a simulation. `after_step` runs after every action."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.now = 0.0
        self.step_count = 0
        self.trace: list[str] = []
        self.after_step: list[Action] = []
        self._agenda: list[tuple[float, int, Timer]] = []
        self._scheduled_count = 0

    def call_at(self, moment_s: float, action: Action) -> Timer:
        """Run `action` at `moment_s`, not before now; actions of the same moment run in the order of their calls."""
        timer = Timer(max(moment_s, self.now), action)
        self._scheduled_count += 1
        heapq.heappush(self._agenda, (timer.moment_s, self._scheduled_count, timer))
        return timer

    def call_later(self, delay_s: float, action: Action) -> Timer:
        """Run `action` after `delay_s`."""
        return self.call_at(self.now + delay_s, action)

    def chance(self, probability: float) -> bool:
        """Throw the dice."""
        return probability > 0 and self.rng.random() < probability

    def note(self, line: str) -> None:
        """Add a line to the trace that a failure prints."""
        self.trace.append(f"{self.now:10.3f}  {line}")
        if len(self.trace) > TRACE_LINES_LIMIT:
            del self.trace[: TRACE_LINES_LIMIT // 2]

    def run_until(self, moment_s: float, *, is_done: Callable[[], bool] | None = None) -> bool:
        """Run what is due up to `moment_s`; stop early, and return True, when `is_done` holds after a step."""
        while self._agenda and self._agenda[0][0] <= moment_s:
            moment, _, timer = heapq.heappop(self._agenda)
            if timer.action is None:
                continue
            self.now = max(self.now, moment)
            timer.action()
            self.step_count += 1
            for check in self.after_step:
                check()
            if is_done is not None and is_done():
                return True
        self.now = max(self.now, moment_s)
        return is_done is not None and is_done()
