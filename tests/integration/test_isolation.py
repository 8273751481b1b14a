"""Users and limits, read from the kernel; and what is left when a supervisor is killed. As root, nothing is skipped."""

import asyncio
import os
import pwd
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from isolation import spawn as spawn_module
from isolation.cgroup_files import own_hierarchies
from isolation.cgroups import available, open_cgroups
from isolation.spawn import Command, find_login
from isolation.trees import MEM_FLOOR_BYTES, Bounds
from meseta.errors import IsolationError, SessionLost
from meseta.ids import ContainerId
from slave.supervisor_client import SupervisorClient, find_supervisors, kill_orphans
from slave.supervisor_messages import Limits, Started
from tests.integration.supervisor_peer import (
    group_folders,
    is_alive,
    marked,
    run,
    supervisor,
    until,
    until_written,
)

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

USER = "nobody"
MIB = 1 << 20
PERL_REGAIN = '$> = 0; $< = 0; $) = "0 0"; print(($> == 0 || $< == 0) ? "root!\\n" : "still nobody\\n");'
EAT = "import sys; data = bytearray(int(sys.argv[1]) << 20); print(len(data), flush=True)"


def label() -> str:
    """Return which cgroups this machine has."""
    is_v1 = any("memory" in hierarchy.controllers for hierarchy in own_hierarchies())
    return "cgroups-v1" if is_v1 else "cgroups-v2"


def control_file(started: Started, name: str) -> Path:
    """Return a control file of a container's group."""
    (path,) = [Path(folder) / name for folder in group_folders(started.cgroup) if (Path(folder) / name).exists()]
    return path


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user may pass through, as a slave's work folder is."""
    folder = Path(tempfile.mkdtemp(prefix="meseta-test-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("isolation", ["posix", "cgroups"])
def test_task_is_wholly_its_user(open_folder: Path, isolation: str) -> None:
    entry = pwd.getpwnam(USER)
    script = (
        "grep -E '^(Uid|Gid|Groups|CapInh|CapPrm|CapEff|CapAmb|SigIgn|SigBlk):' /proc/self/status;"
        "ls /proc/$$/fd; touch mine; cut -d' ' -f5,6 /proc/$$/stat"
    )

    async def scenario() -> None:
        async with supervisor(open_folder, isolation) as peer:
            for name in ("c", "regain"):
                (open_folder / name).mkdir()
                os.chown(open_folder / name, entry.pw_uid, entry.pw_gid)
            sandbox = peer.start("c", "sh", "-c", script, user=USER)
            started = await peer.started("c")
            assert (await peer.exited("c")).exit_status == 0
            lines = [line.split() for line in (sandbox / "stdout").read_text().splitlines()]
            facts = {line[0].rstrip(":"): line[1:] for line in lines[:9]}
            assert facts["Uid"] == [str(entry.pw_uid)] * 4
            assert facts["Gid"] == [str(entry.pw_gid)] * 4
            assert facts["Groups"] == [str(group) for group in os.getgrouplist(USER, entry.pw_gid)]
            for capabilities in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
                assert int(facts[capabilities][0], 16) == 0
            assert int(facts["SigBlk"][0], 16) == 0
            assert lines[9:12] == [["0"], ["1"], ["2"]]
            assert lines[12] == [str(started.pid)] * 2
            for name in ("mine", "stdout", "stderr"):
                assert (sandbox / name).stat().st_uid == entry.pw_uid
            # The system's interpreter: ours may stand in a folder that the user cannot enter.
            again = peer.start("regain", "/usr/bin/perl", "-e", PERL_REGAIN, user=USER)
            assert (await peer.exited("regain")).exit_status == 0
            assert (again / "stdout").read_text() == "still nobody\n"

    run(scenario())


@pytest.mark.parametrize("isolation", ["posix", "cgroups"])
def test_start_as_a_user_that_fails_says_why(open_folder: Path, isolation: str) -> None:
    async def scenario() -> None:
        async with supervisor(open_folder, isolation) as peer:
            peer.start("roots-folder", "true", user=USER)
            words = await peer.failed("roots-folder")
            assert "user 'nobody' cannot use sandbox" in words
            assert "stdout" in words
            sandbox = open_folder / "c"
            sandbox.mkdir()
            shutil.chown(sandbox, USER)
            peer.start("c", "nonesuch", user=USER)
            assert "program 'nonesuch' was not found in PATH=" in await peer.failed("c")
            peer.start("c", "/root/.profile", user=USER)
            await until(lambda: len(peer.reports) >= 4, "the second answer")
            assert "may not be executed" in str(peer.reports[-1])
            pid = (await peer.listed()).supervisor_pid
            assert Path(f"/proc/{pid}").stat().st_uid == 0
            assert not (Path(f"/proc/{pid}/task/{pid}/children").read_text().split())

    run(scenario())


def test_slave_that_is_not_root_switches_no_users() -> None:
    os.seteuid(pwd.getpwnam(USER).pw_uid)
    try:
        assert find_login(USER) is None
        with pytest.raises(IsolationError, match="only a slave that runs as root can switch users"):
            find_login("root")
    finally:
        os.seteuid(0)


def test_memory_over_the_limit_is_told_by_the_kernels_counter(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path, "cgroups") as peer:
            limit = 64 * MIB
            sandbox = peer.start("hog", *python(EAT), "200", limits=Limits(mem_bytes=limit))
            fits = peer.start("fits", *python(EAT), "20", limits=Limits(mem_bytes=limit))
            hog, modest = await peer.exited("hog"), await peer.exited("fits")
            assert (hog.exit_status, hog.mem_limit_bytes) == (137, limit)
            assert hog.oom_kills >= 1
            assert limit * 0.9 <= hog.mem_peak_bytes <= limit
            assert (sandbox / "stdout").read_text() == ""
            assert (modest.exit_status, modest.oom_kills) == (0, 0)
            assert 20 * MIB <= modest.mem_peak_bytes < limit
            assert (fits / "stdout").read_text() == f"{20 * MIB}\n"

    run(scenario())


def test_sigkill_from_elsewhere_is_no_lack_of_memory(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path, "cgroups") as peer:
            peer.start("c", "sh", "-c", "kill -9 $$", limits=Limits(mem_bytes=64 * MIB))
            exited = await peer.exited("c")
            assert (exited.exit_status, exited.oom_kills) == (137, 0)

    run(scenario())


def test_tiny_memory_limit_is_raised_to_where_a_program_can_start(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path, "cgroups") as peer:
            peer.start("c", "sleep", "1000", limits=Limits(mem_bytes=4096))
            started = await peer.started("c")
            name = "memory.limit_in_bytes" if label() == "cgroups-v1" else "memory.max"
            assert int(control_file(started, name).read_text()) == MEM_FLOOR_BYTES

    run(scenario())


def test_forks_over_the_limit_fail_and_the_kernel_counts_them(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path, "cgroups") as peer:
            script = "for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; sleep 1000"
            sandbox = peer.start("c", "bash", "-c", script, limits=Limits(pids=5))
            started = await peer.started("c")
            await until(lambda: (sandbox / "stderr").stat().st_size > 0, "bash complains")
            assert "Resource temporarily unavailable" in (sandbox / "stderr").read_text()
            assert int(control_file(started, "pids.max").read_text()) == 5
            assert int(control_file(started, "pids.current").read_text()) <= 5
            assert int(control_file(started, "pids.events").read_text().split()[1]) >= 1

    run(scenario())


@pytest.mark.parametrize(
    ("cpu_milli", "shares", "weight"), [(1000, 1024, 100), (50, 51, 5), (1, 2, 1), (4000, 4096, 400)]
)
def test_cpus_become_shares_of_the_processor(tmp_path: Path, cpu_milli: int, shares: int, weight: int) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path, "cgroups") as peer:
            peer.start("c", "sleep", "1000", limits=Limits(cpu_milli=cpu_milli))
            started = await peer.started("c")
            if label() == "cgroups-v1":
                assert int(control_file(started, "cpu.shares").read_text()) == shares
            else:
                assert int(control_file(started, "cpu.weight").read_text()) == weight

    run(scenario())


def test_whole_tree_is_born_in_its_groups_and_the_supervisor_stays_outside(tmp_path: Path) -> None:
    limits = Limits(cpu_milli=100, mem_bytes=64 * MIB, pids=50)

    async def scenario() -> None:
        async with supervisor(tmp_path, "cgroups") as peer:
            pid = (await peer.listed()).supervisor_pid
            before = Path(f"/proc/{pid}/cgroup").read_text()
            sandbox = peer.start(
                "c", "sh", "-c", "cat /proc/self/cgroup; (setsid sleep 1000 &)\n sleep 1000", limits=limits
            )
            started = await peer.started("c")
            lines = await until_written(sandbox / "stdout", len(before.splitlines()))
            held = {line.split(":")[1] for line in lines if line.endswith(started.cgroup)}
            if label() == "cgroups-v1":
                assert {"cpu", "memory", "pids"} <= set(",".join(held).split(","))
            else:
                assert held == {""}
            assert Path(f"/proc/{pid}/cgroup").read_text() == before
            peer.kill("c", 0.0)
            await peer.exited("c")
            assert group_folders(started.cgroup) == []

    run(scenario())


def test_task_that_makes_groups_of_its_own_leaves_none(tmp_path: Path) -> None:
    script = (
        'for f in $(find /sys/fs/cgroup -type d -path "*/$0"); do'
        " mkdir $f/inner; echo $$ > $f/inner/cgroup.procs; done;"
        "sleep 1000 & echo $!"
    )

    async def scenario() -> None:
        async with supervisor(tmp_path, "cgroups") as peer:
            sandbox = peer.start("c", "sh", "-c", script, "c", limits=Limits(pids=50))
            started = await peer.started("c")
            (pid,) = await until_written(sandbox / "stdout")
            assert (await peer.exited("c")).exit_status == 0
            assert not is_alive(int(pid))
            assert group_folders(started.cgroup) == []

    run(scenario())


def test_supervisor_that_ends_leaves_no_group(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path, "cgroups") as peer:
            peer.start("c", "true")
            group = (await peer.started("c")).cgroup.rpartition("/")[0]
            await peer.exited("c")
            assert group_folders(group) != []
        await until(lambda: group_folders(group) == [], "all groups are removed")

    run(scenario())


TREE = (
    "echo $$; sleep 1000 & echo $!; setsid sleep 1000 & echo $!; (setsid sh -c 'echo $$; sleep 1000; :' &); sleep 1000"
)


@pytest.mark.parametrize("isolation", ["posix", "cgroups"])
@pytest.mark.parametrize("is_known", [False, True])
def test_killed_supervisor_leaves_nothing_after_kill_orphans(tmp_path: Path, isolation: str, *, is_known: bool) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path, isolation) as peer:
            supervisor_pid = (await peer.listed()).supervisor_pid
            limits = Limits(cpu_milli=100, mem_bytes=64 * MIB, pids=50)
            sandboxes = [peer.start(f"orphan{i}", "sh", "-c", TREE, limits=limits) for i in range(3)]
            containers = [await peer.started(f"orphan{i}") for i in range(3)]
            lines = [line for sandbox in sandboxes for line in await until_written(sandbox / "stdout", 4)]
            peer.start("ended", "true")
            ended = await peer.started("ended")
            await peer.exited("ended")
            os.kill(supervisor_pid, signal.SIGKILL)
            assert "lost" in await peer.until_lost()
            assert all(is_alive(int(line)) for line in lines)
            group = containers[0].cgroup.rpartition("/")[0]
            if not is_known:  # The daemon asked for them, and the answer was lost with it.
                containers = [Started(container_id=each.container_id, pid=0, start_ticks=0) for each in containers]
            killed = await asyncio.to_thread(kill_orphans, [*containers, ended], isolation)
            assert killed == [container.container_id for container in containers]
            assert not any(is_alive(int(line)) for line in lines)
            assert [name for i in range(3) for name in marked(f"orphan{i}")] == []
            assert not group or group_folders(group) == []
            assert find_supervisors(tmp_path) == []
            with pytest.raises(SessionLost):
                SupervisorClient(peer.path, print, print)
            assert await asyncio.to_thread(kill_orphans, containers, isolation) == []

    run(scenario())


def test_kill_orphans_spares_a_later_owner_of_the_pid(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path, "posix") as peer:
            peer.start("stranger", "sleep", "1000")
            stranger = await peer.started("stranger")
            dead = Started(
                container_id=ContainerId("dead"), pid=stranger.pid, start_ticks=stranger.start_ticks - 500, cgroup=""
            )
            assert await asyncio.to_thread(kill_orphans, [dead], "cgroups") == []
            assert is_alive(stranger.pid)

    run(scenario())


def test_groups_of_a_dead_supervisor_are_removed_by_the_next_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path, "cgroups") as peer:
            peer.start("c", "true")
            group = (await peer.started("c")).cgroup.rpartition("/")[0]
            await peer.exited("c")
            os.kill((await peer.listed()).supervisor_pid, signal.SIGKILL)
            await peer.until_lost()
            assert group_folders(group) != []
            async with supervisor(tmp_path, "cgroups"):
                await until(lambda: group_folders(group) == [], "the dead one's groups are removed")

    run(scenario())


def test_two_supervisors_share_the_parent_folder(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "second").mkdir()
        async with supervisor(tmp_path, "cgroups") as first:
            first.start("one", "sleep", "1000")
            one = await first.started("one")
            async with supervisor(tmp_path / "second", "cgroups") as second:
                second.start("two", "sleep", "1000")
                await second.started("two")
            assert group_folders(one.cgroup) != []
            assert is_alive(one.pid)
            first.start("three", "true")
            assert (await first.exited("three")).exit_status == 0

    run(scenario())


def test_auto_chooses_cgroups_where_they_can_be_had(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path, "auto") as peer:
            listed = await peer.listed()
            assert (listed.isolation, listed.isolation_note) == (label(), "")

    run(scenario())


def test_unusable_root_is_told_in_words() -> None:
    assert available("meseta-test", "00000000") is None
    reason = available("cgroup.procs/below", "00000000")
    assert reason is not None
    assert "cannot make cgroups in" in reason


def test_group_that_is_made_twice_is_an_error() -> None:
    cgroups = open_cgroups("meseta-test", "00000001")
    try:
        cgroups.create("c", Bounds(cpu_milli=1000, pids=10))
        with pytest.raises(FileExistsError):
            cgroups.create("c", Bounds())
        assert cgroups.processes("c") == []
        assert cgroups.kill("c")
        assert cgroups.remove("c")
    finally:
        cgroups.close()


def python(program: str) -> tuple[str, ...]:
    """Return the start of a command line that runs `program` in a small interpreter."""
    return (sys.executable, "-I", "-S", "-c", program)


@pytest.mark.parametrize("isolation", ["posix", "cgroups"])
def test_pipe_in_the_place_of_output_holds_up_nobody(open_folder: Path, isolation: str) -> None:
    entry = pwd.getpwnam(USER)

    async def scenario() -> None:
        async with supervisor(open_folder, isolation) as peer:
            for name in ("c", "d"):
                (open_folder / name).mkdir()
                os.chown(open_folder / name, entry.pw_uid, entry.pw_gid)
            os.mkfifo(open_folder / "c" / "stdout")
            os.chown(open_folder / "c" / "stdout", entry.pw_uid, entry.pw_gid)
            peer.start("c", "true", user=USER)
            assert "No such device or address (stdout)" in await peer.failed("c")
            peer.reports.clear()
            reader = os.open(open_folder / "c" / "stdout", os.O_RDONLY | os.O_NONBLOCK)
            peer.start("c", "true", user=USER)
            assert "not a regular file (stdout)" in await peer.failed("c")
            peer.start("d", "sh", "-c", "echo out", user=USER)
            assert (await peer.exited("d")).exit_status == 0
            os.close(reader)
            assert (open_folder / "d" / "stdout").read_text() == "out\n"

    run(scenario())


def test_program_whose_file_system_hangs_is_given_up(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawn_module, "START_LIMIT_S", 0.2)
    monkeypatch.setattr(spawn_module, "_find_program", lambda command: time.sleep(60))
    open_folder.chmod(0o777)
    with pytest.raises(IsolationError, match=r"'true' did not start within 0\.2 s"):
        spawn_module.spawn(Command(("true",), {}, str(open_folder), find_login(USER)))
    _, status = os.wait()
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
