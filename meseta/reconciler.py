"""When a driver asks the master for the newest state of tasks, and whose answers are news.

M057-M059: after each registration the tasks in hand are asked for one by one, again and again with
a truncated exponential back-off until each was answered; and every 15 minutes. Plain decisions, no I/O.
"""

import random

from meseta.ids import SlaveId, TaskId
from meseta.messages import PAGE_LIMIT, ReconcileTasks
from meseta.model import TaskQuery

RETRY_BASE_S = 2.0
RETRY_LIMIT_S = 60.0  # A slave may stay away for minutes; asking more often would not bring it back.
PERIOD_S = 15 * 60.0  # Mesos's advice. It mends what no other rule foresaw.


class Reconciler:
    """The tasks that wait for an answer. `wanted`: those the scheduler asked for itself."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._pending: dict[TaskId, SlaveId | None] = {}
        self._wanted: dict[TaskId, None] = {}
        self._retry_s = RETRY_BASE_S
        self._retry_due: float | None = None
        self._period_due: float | None = None

    def begin(self, tasks: dict[TaskId, SlaveId | None], now: float) -> list[ReconcileTasks]:
        """Ask for `tasks` and for what was pending before, and start the period: a registration or a period is due."""
        self._period_due = now + PERIOD_S
        self._pending.update(tasks)
        self._retry_s = RETRY_BASE_S
        return self._ask(now)

    def ask(self, tasks: dict[TaskId, SlaveId | None], now: float, *, is_session_open: bool) -> list[ReconcileTasks]:
        """Ask for tasks that the scheduler wants to know about; without a session they wait for the next one."""
        self._pending.update(tasks)
        for task_id in tasks:
            self._wanted[task_id] = None
        if not is_session_open:
            return []
        self._retry_s = RETRY_BASE_S
        self._retry_due = now + self._delay_s()
        return _pages(tasks)

    def want(self, tasks: dict[TaskId, SlaveId | None]) -> None:
        """The scheduler asked for these in its own way: the next answer about each is to be delivered."""
        for task_id in tasks:
            self._wanted[task_id] = None

    def answered(self, task_id: TaskId) -> bool:
        """Note any update about a task; True if the scheduler itself had asked for it."""
        self._pending.pop(task_id, None)
        return self._wanted.pop(task_id, 0) is None

    def has_questions(self) -> bool:
        """True if `answered` must be told of updates."""
        return bool(self._pending or self._wanted)

    def pause(self) -> None:
        """The session ended: ask nothing until `begin`."""
        self._retry_due = None
        self._period_due = None

    def retry_due(self) -> float | None:
        """When to ask again, None if all was answered."""
        return self._retry_due if self._pending else None

    def period_due(self) -> float | None:
        """When to ask for everything again, None without a session."""
        return self._period_due

    def retry(self, now: float) -> list[ReconcileTasks]:
        """Ask again for all that is unanswered."""
        self._retry_s = min(RETRY_LIMIT_S, self._retry_s * 2)
        return self._ask(now)

    def _ask(self, now: float) -> list[ReconcileTasks]:
        self._retry_due = now + self._delay_s()
        return _pages(self._pending)

    def _delay_s(self) -> float:
        # Random, so that the frameworks of one restarted master do not ask in step.
        return self._retry_s * self._rng.uniform(0.5, 1.0)


def _pages(tasks: dict[TaskId, SlaveId | None]) -> list[ReconcileTasks]:
    queries = [TaskQuery(task_id=task_id, slave_id=slave_id) for task_id, slave_id in tasks.items()]
    return [
        ReconcileTasks(tasks=tuple(queries[start : start + PAGE_LIMIT])) for start in range(0, len(queries), PAGE_LIMIT)
    ]
