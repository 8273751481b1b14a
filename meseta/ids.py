"""Ids as distinct types: mypy refuses a task's id where an offer's is meant."""

import random
from typing import NewType

SlaveId = NewType("SlaveId", str)
FrameworkId = NewType("FrameworkId", str)
OfferId = NewType("OfferId", str)
TaskId = NewType("TaskId", str)
ExecutorId = NewType("ExecutorId", str)
ContainerId = NewType("ContainerId", str)
StatusUuid = NewType("StatusUuid", str)
SessionId = NewType("SessionId", bytes)
Principal = NewType("Principal", str)

_ID_BITS = 64  # A rack makes some 10^9 ids in its life; 64 random bits keep a clash below 1 in 30.
_UUID_BITS = 128


class IdSource:
    """New ids from a core's own random generator, so that a replay makes the same ones."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def new(self, prefix: str) -> str:
        """Return `prefix-` and 16 hexadecimal digits."""
        return f"{prefix}-{self._rng.getrandbits(_ID_BITS):016x}"

    def new_uuid(self) -> StatusUuid:
        """Return 32 hexadecimal digits, unique to one status update."""
        return StatusUuid(f"{self._rng.getrandbits(_UUID_BITS):032x}")
