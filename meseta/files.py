"""Sandbox files by range, straight from the slave that has them. The slave's end is `meseta/file_server.py`.

A reader asks for a range and grants credit; the slave sends pieces of at most 1 MiB, never more than
it has credit for, so that neither end holds more than a window of a file in memory.

```python
async with SlaveFiles(address.endpoint, keys=pair, server_public_key=address.public_key) as files:
    text = await files.read(framework_id, container_id, "stdout", offset=-1000)
    async for data in files.stream(framework_id, container_id, "part-00000"):
        out.write(data)
```
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import TracebackType
from typing import Final, Self

from meseta.errors import RequestRefused, SessionLost, TransportError
from meseta.ids import ContainerId, FrameworkId
from meseta.messages import FileCredit, FileData, FileList, Hello, ListFiles, Message, ReadFile
from meseta.model import FileEntry
from meseta.requests import TIMEOUT_S, Requester
from meseta.transport_keys import KeyPair

WINDOW_PIECES: Final = 4  # 4 MiB under way hide 40 ms of round trip at 100 MB/s.
READS_AT_ONCE: Final = 8  # `SlaveFiles.read`s under way; others wait for their turn.
RESUMES_LIMIT: Final = 3  # Sessions lost in a row, without a byte between, before a read fails.
_TO_THE_END: Final = (1 << 63) - 1


class SlaveFiles:
    """Reads files of one slave; entered by `async with`. Any number of reads may be under way.

    A read survives the slave daemon's restart: it goes on where it was.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        keys: KeyPair | None = None,
        server_public_key: str | None = None,
        hello: Hello | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._requester = Requester(
            endpoint,
            hello=hello or Hello(kind="task"),
            keys=keys,
            server_public_key=server_public_key,
            timeout_s=timeout_s,
        )
        self._turns = asyncio.Semaphore(READS_AT_ONCE)

    async def __aenter__(self) -> Self:
        """Open the session. Raises TransportError: nobody answers, or we are refused."""
        await self._requester.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._requester.__aexit__(kind, error, trace)

    async def read(
        self,
        framework_id: FrameworkId,
        container_id: ContainerId,
        path: str,
        offset: int = 0,
        length: int | None = None,
    ) -> bytes:
        """Return up to `length` bytes (None: all) from `offset`; negative: from the end. Less at the file's end.

        Raises:
            RequestRefused: no such file, or it is not ours to read.
            SessionLost, TransportError: the slave does not answer.
        """
        async with self._turns:
            parts = [data async for data in self.stream(framework_id, container_id, path, offset=offset, length=length)]
        return b"".join(parts)

    async def stream(
        self,
        framework_id: FrameworkId,
        container_id: ContainerId,
        path: str,
        *,
        offset: int = 0,
        length: int | None = None,
        window: int = WINDOW_PIECES,
    ) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of a range, in order, in pieces of at most 1 MiB. As `read` otherwise."""
        pieces = self.pieces(framework_id, container_id, path, offset=offset, length=length, window=window)
        async with aclosing(pieces):
            async for piece in pieces:
                yield piece.data

    async def pieces(
        self,
        framework_id: FrameworkId,
        container_id: ContainerId,
        path: str,
        *,
        offset: int = 0,
        length: int | None = None,
        window: int = WINDOW_PIECES,
    ) -> AsyncGenerator[FileData, None]:
        """Yield a range as `FileData`, which tells offset and file size too; at least one, perhaps empty.

        At most `window` pieces are on the way or waiting here. As `read` otherwise.
        """
        remaining = _TO_THE_END if length is None else length
        resumes = 0
        while True:
            request = ReadFile(
                request_id=self._requester.next_id(),
                framework_id=framework_id,
                container_id=container_id,
                path=path,
                offset=offset,
                length=remaining,
                credit=window,
            )
            try:
                async with aclosing(self._requester.stream(request)) as answers:
                    async for piece in answers:
                        if not isinstance(piece, FileData):
                            raise TransportError(
                                f"{self._requester.endpoint} answers {type(piece).__name__} to ReadFile"
                            )
                        yield piece
                        if piece.is_last:
                            return
                        self._requester.send(FileCredit(request_id=request.request_id, credit=1))
                        offset = piece.offset + len(piece.data)
                        remaining -= len(piece.data)
                        resumes = 0
            except SessionLost:
                resumes += 1
                if resumes > RESUMES_LIMIT:
                    raise
            except RequestRefused as error:
                if error.code != "expired":
                    raise

    async def list_files(
        self, framework_id: FrameworkId, container_id: ContainerId, path: str = "."
    ) -> tuple[FileEntry, ...]:
        """Return the entries of a folder in the order of their names. Raises as `read`."""
        request = ListFiles(
            request_id=self._requester.next_id(), framework_id=framework_id, container_id=container_id, path=path
        )
        answer = await self._requester.request(request)
        if not isinstance(answer, FileList):
            raise self._surprised(answer, request)
        return answer.entries

    def _surprised(self, answer: Message, request: Message) -> TransportError:
        kinds = f"{type(answer).__name__} to {type(request).__name__}"
        return TransportError(f"{self._requester.endpoint} answers {kinds}: is it a slave's file server?")
