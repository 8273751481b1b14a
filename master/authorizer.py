"""Who may do what at the master: a pure question, asked for every call.

A principal comes from the key that a peer proved. Without rules every key of the cluster may do
all. Two kinds of principal stand outside the rules: `anonymous` gets nothing unless the master runs
with --insecure, and the keys that frameworks give to their tasks get nothing at the master at all.
"""

from typing import Final

from meseta.acls import ANONYMOUS, Acls, Action
from meseta.ids import Principal

TASK_KEY_PREFIX: Final = "framework:"  # What follows is the id of the framework whose sandboxes the key may read.


class Authorizer:
    """Answers for one master."""

    def __init__(self, acls: Acls | None, *, is_insecure: bool = False) -> None:
        self._acls = acls
        self._is_insecure = is_insecure

    def authorize(self, principal: Principal, action: Action, subject: str) -> str | None:
        """Return why `principal` may not do `action` to the object `subject`; None: it may."""
        if not principal or (principal == ANONYMOUS and not self._is_insecure):
            return f"{action} needs a key of this cluster"
        if principal.startswith(TASK_KEY_PREFIX):
            return f"{principal} is the key of a framework's tasks, which may do nothing at the master"
        return None if self._acls is None else self._acls.refusal(principal, action, subject)
