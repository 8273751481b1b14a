"""Sandboxes: the folder of each run of a task or executor, and where to find it again.

`work_dir/slaves/SLAVE/frameworks/FRAMEWORK/{tasks,executors}/ID.CONTAINER`, with the files stdout
and stderr. A sandbox stays when its task is over.
"""

import os
import pwd
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from meseta.errors import IsolationError
from meseta.ids import ContainerId, FrameworkId

INDEX_LIMIT: Final = 20_000  # Sandboxes that can be asked for by container, the newest: some 8 MiB.
_USERS_LIMIT: Final = 1000
_RUN_MODE: Final = 0o750  # A sandbox is its user's own.

Key = tuple[FrameworkId, ContainerId]


def owner(path: Path) -> str:
    """Return as whom a sandbox's task ran: its folder's owner, by name if there is one."""
    uid = path.stat().st_uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


class Sandboxes:
    """Makes sandboxes, and finds those that there are."""

    def __init__(self, work_dir: Path) -> None:
        self._work_dir = work_dir
        self._path_by_key: dict[Key, str] = {}
        self._ids_by_user: dict[str, tuple[int, int]] = {}

    def make(self, framework_id: FrameworkId, container_id: ContainerId, path: str, user: str | None) -> None:
        """Make a folder owned by `user`, with stdout and stderr. It may exist.

        `user` None is ourselves: then the supervisor makes the two files as it opens them.

        Raises:
            IsolationError: there is no such user, or the disk does not take it.
        """
        try:
            owner = None if user is None else self._owner(user)
            try:
                os.mkdir(path, _RUN_MODE)
            except FileExistsError:
                pass
            except FileNotFoundError:
                os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
                os.mkdir(path, _RUN_MODE)
            if owner is not None:
                os.chown(path, *owner)
                _make_file(f"{path}/stdout", owner)
                _make_file(f"{path}/stderr", owner)
        except OSError as error:
            raise IsolationError(f"sandbox {path} cannot be made: {error.strerror}") from error
        self._remember((framework_id, container_id), path)

    def find(self, framework_id: FrameworkId, container_id: ContainerId) -> Path | None:
        """Return a container's sandbox, None if it is unknown."""
        path = self._path_by_key.get((framework_id, container_id))
        return None if path is None else Path(path)

    def index(self, found: "list[tuple[Key, str]]") -> None:
        """Take what `scan` found; what was made meanwhile is newer."""
        newer = self._path_by_key
        self._path_by_key = dict(found[-INDEX_LIMIT:])
        for key, path in newer.items():
            self._remember(key, path)

    def scan(self) -> "list[tuple[Key, str]]":
        """Return the sandboxes on disk, newest last. Slow; touches nothing of ours: for a thread."""
        found = sorted(_walk(self._work_dir / "slaves"))
        return [(key, path) for _, key, path in found[-INDEX_LIMIT:]]

    def _remember(self, key: Key, path: str) -> None:
        self._path_by_key[key] = path
        if len(self._path_by_key) > INDEX_LIMIT:
            del self._path_by_key[next(iter(self._path_by_key))]

    def _owner(self, user: str) -> tuple[int, int]:
        owner = self._ids_by_user.get(user)
        if owner is None:
            try:
                entry = pwd.getpwnam(user)
            except (KeyError, ValueError) as error:  # ValueError: a NUL in it.
                raise IsolationError(f"this machine has no user {user!r}; name one that it has") from error
            if len(self._ids_by_user) >= _USERS_LIMIT:
                self._ids_by_user.clear()
            owner = self._ids_by_user[user] = (entry.pw_uid, entry.pw_gid)
        return owner


def _make_file(path: str, owner: tuple[int, int]) -> None:
    # EXCL: in a sandbox that a task had before, this may be a link to anywhere.
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        return
    try:
        os.fchown(fd, *owner)
    finally:
        os.close(fd)


def _walk(slaves: Path) -> Iterator[tuple[float, Key, str]]:
    for slave in _folders(slaves):
        for framework in _folders(slave.path + "/frameworks"):
            for kind in ("tasks", "executors"):
                for run in _folders(f"{framework.path}/{kind}"):
                    container_id = ContainerId(run.name.rpartition(".")[2])
                    with suppress(OSError):
                        made = run.stat(follow_symlinks=False).st_mtime
                        yield made, (FrameworkId(framework.name), container_id), run.path


def _folders(path: str | Path) -> Iterator["os.DirEntry[str]"]:
    try:
        with os.scandir(path) as entries:
            yield from (entry for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return
