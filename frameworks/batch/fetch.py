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


async def fetch(
    order: ReduceOrder,
    folder: Path,
    *,
    framework_id: FrameworkId,
    own_container_id: ContainerId,
    own_sandbox: Path,
    keys: KeyPair | None,
    path_of: Callable[[TaskId], str],
    progress: Callable[[float], None],
) -> Fetched:
    """Copy every source to `folder`; those of this executor's own sandbox stay where they are."""
    result = Fetched()
    parts: dict[int, tuple[str, int, int]] = {}
    sources_by_sandbox: dict[int, list[Source]] = {}
    for source in order.sources:
        sources_by_sandbox.setdefault(source.sandbox_index, []).append(source)
    turns = asyncio.Semaphore(SANDBOXES_AT_ONCE)

    async def fetch_from(sandbox: Sandbox, sources: list[Source]) -> None:
        async with turns:
            try:
                async with SlaveFiles(
                    sandbox.address.endpoint,
                    keys=keys,
                    server_public_key=sandbox.address.public_key,
                    timeout_s=FETCH_TIMEOUT_S,
                ) as files:
                    for source in sources:
                        await fetch_one(files, sandbox, source)
            except (MesetaError, TimeoutError) as error:
                # Nobody there: what this sandbox holds is lost, also what was copied before. Others need it too.
                lose(sources, f"{sandbox.address.endpoint}: {error}")

    async def fetch_one(files: SlaveFiles, sandbox: Sandbox, source: Source) -> None:
        target = folder / f"fetched-{source.map_index:05d}"
        length = source.end - source.start
        size = 0
        try:
            with target.open("wb") as file:
                async for data in files.stream(
                    framework_id, sandbox.container_id, path_of(source.attempt_id), offset=source.start, length=length
                ):
                    file.write(data)
                    size += len(data)
        except RequestRefused as error:
            lose([source], str(error))
            return
        if size != length:
            lose([source], f"{size} of {length} bytes of map {source.map_index}")
            return
        result.remote_bytes += size
        parts[source.map_index] = (str(target), 0, length)
        progress(len(parts) / len(order.sources))

    def lose(sources: list[Source], error: str) -> None:
        result.error = f"map outputs cannot be fetched: {error}"
        result.lost += [(source.map_index, source.attempt_id) for source in sources]

    fetches = []
    for index, sources in sources_by_sandbox.items():
        sandbox = order.sandboxes[index]
        if sandbox.container_id == own_container_id:
            for source in sources:
                path = own_sandbox / path_of(source.attempt_id)
                if path.is_file():
                    parts[source.map_index] = (str(path), source.start, source.end)
                else:
                    lose([source], f"{path} is gone")
        else:
            fetches.append(fetch_from(sandbox, sources))
    await asyncio.gather(*fetches)
    result.parts = [parts[source.map_index] for source in order.sources if source.map_index in parts]
    return result
