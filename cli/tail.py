"""Files of a sandbox as they grow, read from the slave by range."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from cli.connection import Master, slave_files
from meseta.errors import RequestRefused, SessionLost, TransportError
from meseta.files import SlaveFiles
from meseta.ids import ContainerId, FrameworkId, SlaveId
from meseta.model import Address

POLL_FIRST_S: Final = 0.05  # After something came: more follows soon.
PATIENCE_S: Final = 30.0  # Without a byte from a slave that a keeper would have restarted within seconds.
_ANSWER_LIMIT_S: Final = 3.0
POLL_LIMIT_S: Final = 0.5  # A silent task costs two small messages a second.
_BLOCK_BYTES: Final = 64 << 10  # Read backwards, to find the last lines.


class SandboxFile:
    """One file of one task."""

    def __init__(self, files: SlaveFiles, framework_id: FrameworkId, container_id: ContainerId, path: str) -> None:
        self._files = files
        self._framework_id = framework_id
        self._container_id = container_id
        self._path = path

    async def pieces(self, offset: int) -> AsyncIterator[bytes]:
        """Yield what there is from `offset` to the present end; nothing if the file does not exist yet."""
        try:
            stream = self._files.stream(self._framework_id, self._container_id, self._path, offset=offset)
            async for data in stream:
                if data:
                    yield data
        except RequestRefused as error:
            if error.code != "not_found" or error.field != "path":
                raise

    async def size(self) -> int:
        """Return the file's size in bytes."""
        async for piece in self._files.pieces(self._framework_id, self._container_id, self._path, offset=0, length=0):
            return piece.size_bytes
        return 0

    async def offset_of_last_lines(self, count: int) -> int:
        """Return where the last `count` lines begin; a last line without its end counts as one."""

        async def read(offset: int, length: int) -> bytes:
            return await self._files.read(
                self._framework_id, self._container_id, self._path, offset=offset, length=length
            )

        return await offset_of_last_lines(read, await self.size(), count)

    async def follow(self, offset: int, has_ended: asyncio.Event) -> AsyncIterator[bytes]:
        """Yield what there is from `offset` and what is written later, until `has_ended` and all is read."""
        pause_s = POLL_FIRST_S
        while True:
            is_last = has_ended.is_set()
            got = 0
            async for data in self.pieces(offset + got):
                got += len(data)
                yield data
            offset += got
            if is_last:
                return
            pause_s = POLL_FIRST_S if got else min(POLL_LIMIT_S, pause_s * 1.5)
            try:
                async with asyncio.timeout(pause_s):
                    await has_ended.wait()
            except TimeoutError:
                pass


async def offset_of_last_lines(read: Callable[[int, int], Awaitable[bytes]], size_bytes: int, count: int) -> int:
    """Return where the last `count` lines begin, in a file of which `read(offset, length)` gives parts."""
    position, newlines = size_bytes, 0
    while position > 0:
        start = max(0, position - _BLOCK_BYTES)
        block = await read(start, position - start)
        for index in range(len(block) - 1, -1, -1):
            # The file's last byte ends its last line; it does not begin another.
            if block[index] == ord("\n") and start + index != size_bytes - 1:
                newlines += 1
                if newlines == count:
                    return start + index + 1
        position = start
    return 0


class LinePrinter:
    """Writes bytes as they come, or whole lines with a prefix: several tasks then share one terminal."""

    def __init__(self, write: Callable[[bytes], None], prefix: str = "") -> None:
        self._write = write
        self._prefix = prefix.encode()
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Write what can be written of `data`."""
        if not self._prefix:
            self._write(data)
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        if lines:
            self._write(b"".join(self._prefix + line + b"\n" for line in lines))

    def end(self) -> None:
        """Write a last line that has no end."""
        if self._rest:
            self._write(self._prefix + self._rest + b"\n")
            self._rest = b""


async def follow_task(
    master: Master,
    slave_id: SlaveId,
    framework_id: FrameworkId,
    container_id: ContainerId,
    path: str,
    *,
    has_ended: asyncio.Event,
    offset: int = 0,
) -> AsyncIterator[bytes]:
    """Follow a file of a task's sandbox, also over restarts of its slave, whose port may change with each.

    Raises:
        TransportError, SessionLost: the slave was out of reach for too long.
        RequestRefused: the file cannot be read.
    """
    until: float | None = None
    while True:
        try:
            address = await _address(master, slave_id)
            async with slave_files(address, master.keys, timeout_s=_ANSWER_LIMIT_S) as files:
                file = SandboxFile(files, framework_id, container_id, path)
                async for data in file.follow(offset, has_ended):
                    offset += len(data)
                    until = None
                    yield data
                return
        except (TransportError, SessionLost):
            now = time.monotonic()
            until = until or now + PATIENCE_S
            if now > until:
                raise
            await asyncio.sleep(POLL_LIMIT_S)


async def _address(master: Master, slave_id: SlaveId) -> Address:
    for node in await master.nodes():
        if node.slave_id == slave_id:
            return node.address
    raise TransportError(f"slave {slave_id} is gone, and the sandbox with it")
