"""A reducer's copy phase: its part of each map's output, from the slaves that have them."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from frameworks.batch.model import ReduceOrder, Sandbox, Source
from meseta.errors import MesetaError, RequestRefused
from meseta.files import SlaveFiles
from meseta.ids import ContainerId, FrameworkId, TaskId
from meseta.transport import KeyPair

SANDBOXES_AT_ONCE = 5  # Hadoop's mapreduce.reduce.shuffle.parallelcopies.
# A slave that does not answer within it is given up and its maps are done again: long before the master misses it.
FETCH_TIMEOUT_S = 6.0


class Fetched:
    """What the copy phase has: local parts as (path, first byte, byte after the last) in the maps' order, or losses."""

    def __init__(self) -> None:
        self.parts: list[tuple[str, int, int]] = []
        self.lost: list[tuple[int, TaskId]] = []
        self.error = ""
        self.remote_bytes = 0


class Fetcher:
    """Copies a reducer's sources to `folder`; those of this executor's own sandbox stay where they are."""

    def __init__(
        self,
        order: ReduceOrder,
        folder: Path,
        *,
        framework_id: FrameworkId,
        own_container_id: ContainerId,
        own_sandbox: Path,
        keys: KeyPair | None,
        path_of: Callable[[TaskId], str],
        progress: Callable[[float], None],
    ) -> None:
        self._order = order
        self._folder = folder
        self._framework_id = framework_id
        self._own_container_id = own_container_id
        self._own_sandbox = own_sandbox
        self._keys = keys
        self._path_of = path_of
        self._progress = progress
        self._result = Fetched()
        self._parts: dict[int, tuple[str, int, int]] = {}

    async def fetch(self) -> Fetched:
        """Copy everything that can be had."""
        sources_by_sandbox: dict[int, list[Source]] = {}
        for source in self._order.sources:
            sources_by_sandbox.setdefault(source.sandbox_index, []).append(source)
        turns = asyncio.Semaphore(SANDBOXES_AT_ONCE)
        fetches = []
        for index, sources in sources_by_sandbox.items():
            sandbox = self._order.sandboxes[index]
            if sandbox.container_id == self._own_container_id:
                self._take_own(sources)
            else:
                fetches.append(self._fetch_from(sandbox, sources, turns))
        await asyncio.gather(*fetches)
        order = [source.map_index for source in self._order.sources]
        self._result.parts = [self._parts[index] for index in order if index in self._parts]
        return self._result

    def _take_own(self, sources: list[Source]) -> None:
        for source in sources:
            path = self._own_sandbox / self._path_of(source.attempt_id)
            if path.is_file():
                self._parts[source.map_index] = (str(path), source.start, source.end)
            else:
                self._lose([source], f"{path} is gone")

    async def _fetch_from(self, sandbox: Sandbox, sources: list[Source], turns: asyncio.Semaphore) -> None:
        address = sandbox.address
        async with turns:
            try:
                async with SlaveFiles(
                    address.endpoint,
                    keys=self._keys,
                    server_public_key=address.public_key,
                    timeout_s=FETCH_TIMEOUT_S,
                ) as files:
                    for source in sources:
                        await self._fetch_one(files, sandbox, source)
            except (MesetaError, TimeoutError) as error:
                # Nobody there: what this sandbox holds is lost, also what was copied before. Others need it too.
                self._lose(sources, f"{address.endpoint}: {error}")

    async def _fetch_one(self, files: SlaveFiles, sandbox: Sandbox, source: Source) -> None:
        target = self._folder / f"fetched-{source.map_index:05d}"
        path = self._path_of(source.attempt_id)
        length = source.end - source.start
        size = 0
        try:
            with target.open("wb") as file:
                async for data in files.stream(
                    self._framework_id, sandbox.container_id, path, offset=source.start, length=length
                ):
                    file.write(data)
                    size += len(data)
        except RequestRefused as error:
            self._lose([source], str(error))
            return
        if size != length:
            self._lose([source], f"{size} of {length} bytes of map {source.map_index}")
            return
        self._result.remote_bytes += size
        self._parts[source.map_index] = (str(target), 0, length)
        self._progress(len(self._parts) / len(self._order.sources))

    def _lose(self, sources: list[Source], error: str) -> None:
        self._result.error = f"map outputs cannot be fetched: {error}"
        self._result.lost += [(source.map_index, source.attempt_id) for source in sources]
