"""Serves sandbox files by range from a ROUTER of the slave's own. The reader's end is `meseta/files.py`.

Files are read in threads, a piece at a time, and only while the reader has granted credit and takes
what it was sent: a file of any size costs neither memory nor the loop's time. A path cannot leave its
sandbox: the file is opened first, by a descriptor that gives no data, and then asked where it is.
"""

import asyncio
import logging
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from meseta.errors import RequestRefused
from meseta.ids import ContainerId, FrameworkId, Principal, SessionId
from meseta.log import DEBUG, log_event
from meseta.messages import (
    CHUNK_LIMIT_BYTES,
    Error,
    FileCredit,
    FileData,
    FileList,
    Hello,
    ListFiles,
    Message,
    Ping,
    Pong,
    ReadFile,
)
from meseta.model import FileEntry
from meseta.transport import Server
from meseta.transport_keys import KeyPair

JOBS_LIMIT: Final = 64  # Reads and listings of one session under way: each may hold a descriptor of the slave.
PRINCIPAL_JOBS_LIMIT: Final = 256  # Likewise in all sessions of one principal, which may open as many as it likes.
CREDIT_LIMIT: Final = 64  # Pieces that a read may be ahead of its reader, however much credit it is granted.
ENTRIES_LIMIT: Final = 10_000  # Of one listing: some 1 MB.
BACKLOG_BYTES: Final = 8 << 20  # What may wait in a session's outbox before the next piece is read.
BACKLOG_RETRY_S: Final = 0.01
STALLED_S: Final = 600.0  # A read whose reader grants no credit for this long is ended.
THREADS: Final = 4  # One may hang on a bad disk; reads from memory are done by any.
_OFFSET_LIMIT: Final = (1 << 63) - 1

_log = logging.getLogger(__name__)

# The sandbox's folder, or the sentence with which the principal is refused.
Resolve = Callable[[Principal, FrameworkId, ContainerId], Path | str]


class _Job:
    """A read or a listing. `step` runs in a thread, never two at a time."""

    def __init__(self, request: ReadFile | ListFiles, folder: Path) -> None:
        self.request_id = request.request_id
        self.is_last = False
        self.credit = 1
        self.stalled_at = 0.0
        self._request = request
        self._folder = folder
        self._descriptor = -1
        self._offset = 0
        self._remaining = 0
        if isinstance(request, ReadFile):
            self.credit = request.credit

    def step(self) -> FileData | FileList:
        """Return the next answer; sets `is_last`. Raises RequestRefused or OSError."""
        if isinstance(self._request, ListFiles):
            self.is_last = True
            return FileList(request_id=self.request_id, entries=_entries(self._folder, self._request.path))
        if self._descriptor < 0:
            self._open(self._request)
        wanted = min(self._remaining, CHUNK_LIMIT_BYTES)
        data = os.pread(self._descriptor, wanted, self._offset)
        piece_offset = self._offset
        self._offset += len(data)
        self._remaining -= len(data)
        size_bytes = os.fstat(self._descriptor).st_size
        # The end is where the file ends now: one that is still written is asked for again.
        self.is_last = self._remaining == 0 or self._offset >= size_bytes or not data
        return FileData(
            request_id=self.request_id, offset=piece_offset, data=data, size_bytes=size_bytes, is_last=self.is_last
        )

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self, request: ReadFile) -> None:
        self._descriptor = open_beneath(self._folder, request.path, is_folder=False)
        size_bytes = os.fstat(self._descriptor).st_size
        self._offset = min(request.offset, size_bytes) if request.offset >= 0 else max(0, size_bytes + request.offset)
        self._remaining = min(request.length, _OFFSET_LIMIT)


class _Reader:
    """One session: its jobs, in the order in which they get their turns."""

    def __init__(self, principal: Principal) -> None:
        self.principal = principal
        self.jobs: dict[int, _Job] = {}
        self.ready: deque[_Job] = deque()
        self.task: asyncio.Task[None] | None = None
        self.is_open = True


class FileServer:
    """A `Server` that answers ReadFile, FileCredit and ListFiles, made on a running asyncio loop.

    `resolve` says where a sandbox is and who may see it. Raises TransportError as `Server` does.
    """

    def __init__(
        self,
        endpoint: str,
        resolve: Resolve,
        *,
        keys: KeyPair | None,
        principals: Callable[[str], Principal | None] | None,
    ) -> None:
        self._resolve = resolve
        self._loop = asyncio.get_running_loop()
        self._readers: dict[SessionId, _Reader] = {}
        self._server = Server(endpoint, self, keys=keys, principals=principals)
        self.endpoint = self._server.endpoint
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="files")
        self._sweep_timer = self._loop.call_later(STALLED_S / 10, self._sweep)

    def close(self) -> None:
        """End all reads and unbind. Waits for the threads' present pieces."""
        self._sweep_timer.cancel()
        readers = list(self._readers.values())
        for session in list(self._readers):
            self.session_closed(session, "closed")
        self._threads.shutdown(wait=True)
        for reader in readers:
            if reader.task is not None:
                reader.task.cancel()
            _close_all(reader)
        self._server.close()

    # --- What the transport tells ---------------------------------------------------------------

    def session_opened(self, session: SessionId, principal: Principal, hello: Hello) -> str | None:
        """See `ServerHandler`: who may see what is asked for each request."""
        self._readers[session] = _Reader(principal)
        return None

    def session_closed(self, session: SessionId, reason: str) -> None:
        """See `ServerHandler`."""
        reader = self._readers.pop(session, None)
        if reader is not None:
            reader.is_open = False
            if reader.task is None:
                _close_all(reader)  # Else the task does, after the thread's present piece.

    def received(self, session: SessionId, message: Message) -> None:
        """See `ServerHandler`."""
        reader = self._readers[session]
        if isinstance(message, FileCredit):
            self._grant(session, reader, message)
        elif isinstance(message, ReadFile | ListFiles):
            refusal = self._begin(session, reader, message)
            if refusal is not None:
                self._server.send(session, refusal)
        elif isinstance(message, Ping):
            self._server.send(session, Pong())
        elif not isinstance(message, Pong | Error):
            text = f"{type(message).__name__} is not for a slave's file server: send ReadFile or ListFiles"
            self._server.send(session, Error(code="invalid", message=text))

    # --- Jobs -----------------------------------------------------------------------------------

    def _begin(self, session: SessionId, reader: _Reader, request: ReadFile | ListFiles) -> Error | None:
        request_id = request.request_id
        if request_id in reader.jobs:
            text = f"request_id {request_id} is under way already"
            return Error(code="invalid", message=text, field="request_id", request_id=request_id)
        if len(reader.jobs) >= JOBS_LIMIT:
            text = f"{JOBS_LIMIT} reads are under way in this session already: finish one first"
            return Error(code="overflow", message=text, request_id=request_id)
        if self._jobs_of(reader.principal) >= PRINCIPAL_JOBS_LIMIT:
            text = f"{PRINCIPAL_JOBS_LIMIT} reads of {reader.principal} are under way already: finish one first"
            return Error(code="overflow", message=text, request_id=request_id)
        folder = self._resolve(reader.principal, request.framework_id, request.container_id)
        if isinstance(folder, str):
            return Error(code="unauthorized", message=folder, request_id=request_id)
        job = _Job(request, folder)
        reader.jobs[request_id] = job
        self._continue(session, reader, job)
        return None

    def _jobs_of(self, principal: Principal) -> int:
        return sum(len(reader.jobs) for reader in self._readers.values() if reader.principal == principal)

    def _grant(self, session: SessionId, reader: _Reader, message: FileCredit) -> None:
        job = reader.jobs.get(message.request_id)
        if job is None:
            return  # The read has ended meanwhile; the reader knows, or will in a moment.
        job.credit = min(CREDIT_LIMIT, job.credit + message.credit)
        if job.stalled_at:
            job.stalled_at = 0.0
            self._continue(session, reader, job)

    def _continue(self, session: SessionId, reader: _Reader, job: _Job) -> None:
        reader.ready.append(job)
        if reader.task is None:
            reader.task = self._loop.create_task(self._serve(session, reader))

    async def _serve(self, session: SessionId, reader: _Reader) -> None:
        """Give the session's jobs their turns, a piece each, until none can go on."""
        try:
            while reader.ready and reader.is_open:
                if self._server.waiting_bytes(session) > BACKLOG_BYTES:
                    await asyncio.sleep(BACKLOG_RETRY_S)
                    continue
                job = reader.ready.popleft()
                answer = await self._loop.run_in_executor(self._threads, _step, job)
                if not reader.is_open or not self._server.send(session, answer):
                    break
                job.credit -= 1
                if job.is_last:
                    del reader.jobs[job.request_id]
                    job.close()
                elif job.credit > 0:
                    reader.ready.append(job)
                else:
                    job.stalled_at = self._loop.time()
        finally:
            reader.task = None
            if not reader.is_open:
                _close_all(reader)

    def _sweep(self) -> None:
        self._sweep_timer = self._loop.call_later(STALLED_S / 10, self._sweep)
        stalled_before = self._loop.time() - STALLED_S
        for session, reader in self._readers.items():
            for job in list(reader.jobs.values()):
                if 0.0 < job.stalled_at < stalled_before:
                    text = f"no FileCredit for {STALLED_S:g} s: the read is ended; ask again from where you are"
                    self._server.send(session, Error(code="expired", message=text, request_id=job.request_id))
                    del reader.jobs[job.request_id]
                    job.close()


def open_beneath(folder: Path, path: str, *, is_folder: bool) -> int:
    """Return a descriptor for reading the regular file (or the folder) `path` inside `folder`.

    Symbolic links are followed as long as they end inside. The check is made on the opened inode, so
    that no exchange of links between check and opening can lead out.

    Raises:
        RequestRefused: no such file, a path that leaves the sandbox, a device, a pipe or a socket.
        OSError: the file cannot be opened.
    """
    with _inode_beneath(folder, path) as inode:
        mode = os.fstat(inode).st_mode
        if is_folder and not stat.S_ISDIR(mode):
            raise RequestRefused(f"{path} is no folder: read it with ReadFile", code="invalid", field="path")
        if not is_folder and not stat.S_ISREG(mode):
            kind = "a folder: list it with ListFiles" if stat.S_ISDIR(mode) else "no regular file"
            raise RequestRefused(f"{path} is {kind}", code="invalid", field="path")
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_DIRECTORY if is_folder else 0)
        return os.open(f"/proc/self/fd/{inode}", flags)


@contextmanager
def _inode_beneath(folder: Path, path: str) -> Iterator[int]:
    """Open `path` without its contents (O_PATH: a pipe does not block, a device does nothing)."""
    if path.startswith("/") or "\0" in path or ".." in path.split("/"):
        text = f"{path!r} leaves the sandbox: write a path relative to it, without .."
        raise RequestRefused(text, code="invalid", field="path")
    try:
        root = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise RequestRefused("the sandbox is gone", code="not_found") from error
    try:
        inode = os.open(path or ".", os.O_PATH | os.O_CLOEXEC, dir_fd=root)
        try:
            inside = os.readlink(f"/proc/self/fd/{root}")
            place = os.readlink(f"/proc/self/fd/{inode}")
            if place != inside and not place.startswith(f"{inside}/"):
                text = f"{path} is a link that leads out of the sandbox"
                raise RequestRefused(text, code="invalid", field="path")
            yield inode
        finally:
            os.close(inode)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RequestRefused(f"there is no {path} in the sandbox", code="not_found", field="path") from error
    except OSError as error:
        raise RequestRefused(f"{path} cannot be read: {error.strerror}", code="failed", field="path") from error
    finally:
        os.close(root)


def _entries(folder: Path, path: str) -> tuple[FileEntry, ...]:
    descriptor = open_beneath(folder, path, is_folder=True)
    entries: list[FileEntry] = []
    try:
        with os.scandir(descriptor) as found:
            for entry in found:
                if len(entries) >= ENTRIES_LIMIT:
                    text = f"{path} has over {ENTRIES_LIMIT} entries: name the file that you want"
                    raise RequestRefused(text, code="overflow", field="path")
                with suppress(FileNotFoundError):  # Removed meanwhile.
                    entries.append(_entry(entry.name, entry.stat(follow_symlinks=False)))
    finally:
        os.close(descriptor)
    return tuple(sorted(entries, key=lambda entry: entry.name))


def _entry(name: str, status: os.stat_result) -> FileEntry:
    return FileEntry(
        # Names are bytes; those that are no UTF-8 cannot go into a message as they are.
        name=os.fsencode(name).decode(errors="replace"),
        size_bytes=status.st_size,
        mode=status.st_mode,
        modified_unix_s=max(0.0, status.st_mtime),
        is_folder=stat.S_ISDIR(status.st_mode),
    )


def _step(job: _Job) -> Message:
    """Do a job's next step, in a thread; what goes wrong is the answer."""
    try:
        return job.step()
    except RequestRefused as error:
        answer = Error(code=error.code, message=str(error), field=error.field, request_id=job.request_id)
    except OSError as error:
        answer = Error(code="failed", message=f"read failed: {error.strerror}", request_id=job.request_id)
    job.is_last = True
    log_event(_log, DEBUG, "file request refused", reason=answer.message)
    return answer


def _close_all(reader: _Reader) -> None:
    for job in reader.jobs.values():
        job.close()
    reader.jobs.clear()
    reader.ready.clear()
