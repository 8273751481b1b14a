"""Counters of one attempt: the framework's own, and those of job files through `counter`."""

from meseta.errors import InvalidInput

FRAMEWORK_GROUP = "batch"
USER_COUNTER_LIMIT = 120  # Hadoop's; each is kept for each attempt, sent and stored.
_NAME_LIMIT = 64

_values: dict[tuple[str, str], int] = {}


def counter(group: str, name: str, n: int = 1) -> None:
    """Add `n` to a counter of the job. It counts once for each task, however often the task was tried.

    Raises:
        InvalidInput: too many counters, or a name that is too long or reserved.
    """
    key = (group, name)
    if key not in _values:
        if group == FRAMEWORK_GROUP or not 0 < len(group) <= _NAME_LIMIT or not 0 < len(name) <= _NAME_LIMIT:
            raise InvalidInput(
                f"counter({group!r}, {name!r}): group and name have 1 to {_NAME_LIMIT} characters,"
                f" and the group {FRAMEWORK_GROUP!r} is the framework's"
            )
        if len(_values) >= USER_COUNTER_LIMIT:
            raise InvalidInput(f"counter({group!r}, {name!r}): a job has {USER_COUNTER_LIMIT} counters at most")
        _values[key] = 0
    _values[key] += n


def user_counters() -> list[tuple[str, str, int]]:
    """Return what `counter` counted in this process, as (group, name, value)."""
    return [(group, name, value) for (group, name), value in sorted(_values.items())]
