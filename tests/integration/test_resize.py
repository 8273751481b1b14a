"""Limits of a container that runs are changed, as an executor gets and ends tasks. Read from the kernel."""

import os
from pathlib import Path

import pytest

from slave.supervisor_messages import Limits, ResizeContainer
from tests.integration.supervisor_peer import group_folders, run, supervisor, until

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

MIB = 1 << 20


def values(group: str, *names: str) -> list[int]:
    """Return what the group's control files of these names hold."""
    paths = [Path(folder) / name for folder in group_folders(group) for name in names]
    return [int(path.read_text()) for path in paths if path.exists()]


def test_memory_is_raised_and_not_lowered_and_cpus_follow(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path, "cgroups") as peer:
            peer.start("c", "sleep", "1000", limits=Limits(cpu_milli=1000, mem_bytes=64 * MIB))
            started = await peer.started("c")

            def mem() -> list[int]:
                return values(started.cgroup, "memory.limit_in_bytes", "memory.max")

            def cpu() -> list[int]:
                return values(started.cgroup, "cpu.shares", "cpu.weight")

            (one_cpu,) = cpu()
            more = Limits(cpu_milli=2000, mem_bytes=128 * MIB)
            peer.send(ResizeContainer(container_id=started.container_id, limits=more))
            await until(lambda: mem() == [128 * MIB], "memory is raised")
            assert cpu() == [2 * one_cpu]
            peer.send(ResizeContainer(container_id=started.container_id, limits=Limits(cpu_milli=1000, mem_bytes=MIB)))
            await until(lambda: cpu() == [one_cpu], "cpus are lowered")
            assert mem() == [128 * MIB]

    run(scenario())


def test_container_without_memory_limit_gets_none_later(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path, "cgroups") as peer:
            peer.start("c", "sleep", "1000", limits=Limits(cpu_milli=1000))
            started = await peer.started("c")
            more = Limits(cpu_milli=2000, mem_bytes=64 * MIB)
            peer.send(ResizeContainer(container_id=started.container_id, limits=more))
            await until(lambda: values(started.cgroup, "cpu.shares", "cpu.weight")[0] in {2048, 200}, "cpus are raised")
            assert values(started.cgroup, "memory.limit_in_bytes") == []

    run(scenario())
