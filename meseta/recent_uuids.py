"""The uuids of recent status updates, in bounded memory."""

from meseta.ids import StatusUuid

RECENT_LIMIT = 20_000  # 2 MB: far more updates than a slave re-sends before it hears an acknowledgement.


class RecentUuids:
    """Remembers at least the last half of `RECENT_LIMIT`.

    Two generations, so that the oldest are forgotten without ordering them.
    """

    def __init__(self) -> None:
        self._young: set[StatusUuid] = set()
        self._old: set[StatusUuid] = set()

    def __contains__(self, uuid: StatusUuid) -> bool:
        return uuid in self._young or uuid in self._old

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def add(self, uuid: StatusUuid) -> None:
        """Remember `uuid` and forget old ones over the limit."""
        self._young.add(uuid)
        if len(self._young) >= RECENT_LIMIT // 2:
            self._old = self._young
            self._young = set()
