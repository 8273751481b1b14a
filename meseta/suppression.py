"""Which roles are suppressed: by the scheduler, and by its driver when the scheduler wants nothing.

Plain decisions, no I/O. The driver's rule: a scheduler is idle if it has no task that is not terminal and, for
`PATIENCE_S`, every offer it got was declined, accepted without a launch, or left until it was
rescinded. Then the driver suppresses all roles, for 5 s the first time, twice as long each time
after that up to 60 s, and revives them by itself. After a revival the scheduler is shown everything
that is free for `WINDOW_S` before it can be suppressed again. So no scheduler starves: one that
would accept later is asked again within about a minute. A launch or a `revive_offers` of the scheduler ends
the pause at once and starts the rule anew.
"""

PATIENCE_S = 15.0  # Three times the default filter of 5 s: each slave was offered, and refused, some three times.
WINDOW_S = 5.0  # Longer than the allocator takes to offer what is free, however many slaves.
PAUSE_BASE_S = 5.0
PAUSE_LIMIT_S = 60.0  # The longest that a scheduler which changed its mind without saying so must wait.


class Suppression:
    """The roles that get offers, and how long offers have gone unused."""

    def __init__(self, roles: tuple[str, ...], *, is_automatic: bool) -> None:
        self._roles = roles
        self._is_automatic = is_automatic
        self._by_user: dict[str, None] = {}
        self._idle_since: float | None = None
        self._patience_s = PATIENCE_S
        self._pause_s = PAUSE_BASE_S
        self._revive_due: float | None = None

    # --- What the scheduler says ---

    def suppress(self, roles: tuple[str, ...]) -> None:
        """The scheduler suppresses `roles` (none named: all)."""
        for role in roles or self._roles:
            self._by_user[role] = None
        if not self.wanted_roles():
            self.note_use()  # The scheduler has taken the matter into its own hands.

    def revive(self, roles: tuple[str, ...]) -> tuple[str, ...]:
        """The scheduler revives `roles` (none named: all); return those that the master must revive."""
        for role in roles or tuple(self._by_user):
            self._by_user.pop(role, None)
        return self.wanted_roles() if self.note_use() else roles

    def wanted_roles(self) -> tuple[str, ...]:
        """The roles that the scheduler has not suppressed, in the framework's order."""
        return tuple(role for role in self._roles if role not in self._by_user)

    def suppressed_roles(self) -> tuple[str, ...]:
        """What a registration must say."""
        if self._revive_due is not None:
            return self._roles
        return tuple(role for role in self._roles if role in self._by_user)

    # --- What the driver decides ---

    def note_unused(self, now: float) -> None:
        """An offer went unused, and the scheduler has no task."""
        if self._is_automatic and self._idle_since is None and self._revive_due is None:
            self._idle_since = now

    def note_use(self) -> bool:
        """The scheduler wants something: start anew; True if that ended a pause of which the master must hear."""
        was_pausing = self._revive_due is not None
        self._idle_since = None
        self._revive_due = None
        self._patience_s = PATIENCE_S
        self._pause_s = PAUSE_BASE_S
        return was_pausing

    def forget_idleness(self) -> None:
        """What was offered is void, or tasks run: count anew, but keep the pace."""
        self._idle_since = None

    def idle_due(self) -> float | None:
        """When patience ends, None if no offer went unused, or the driver suppresses already."""
        return None if self._idle_since is None else self._idle_since + self._patience_s

    def begin_pause(self, now: float) -> float:
        """Suppress all roles; return for how many seconds."""
        pause_s = self._pause_s
        self._idle_since = None
        self._revive_due = now + pause_s
        self._pause_s = min(PAUSE_LIMIT_S, pause_s * 2)
        self._patience_s = WINDOW_S
        return pause_s

    def revive_due(self) -> float | None:
        """When the driver's own pause ends, None if there is none."""
        return self._revive_due

    def revive_if_due(self, now: float) -> bool:
        """End the driver's pause if its time is over; True if it ended."""
        if self._revive_due is None or self._revive_due > now:
            return False
        self._revive_due = None
        return True
