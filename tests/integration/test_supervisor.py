"""The supervisor with real processes, in each isolation that this machine gives us."""

import asyncio
import errno
import os
import signal
import socket
from pathlib import Path

import pytest

from meseta.errors import IsolationError
from meseta.ids import ContainerId
from slave import supervisor_client
from slave.supervisor_client import find_supervisors, start_supervisor
from slave.supervisor_messages import Exited, RetireSupervisor, StartContainer, Started, StartFailed, SupervisorRefused
from slave.supervisor_socket import new_socket, send_datagram
from tests.integration.supervisor_peer import (
    CGROUP_ROOT,
    Peer,
    is_alive,
    marked,
    run,
    supervisor,
    until,
    until_written,
)

LIBC_SIGNALS = 0b11 << 31  # 32 and 33 belong to the C library; nobody else can set them.
IS_ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not IS_ROOT, reason="cgroups need root here")
pytestmark = pytest.mark.parametrize(
    "isolation",
    ["posix", pytest.param("cgroups", marks=[pytest.mark.root, needs_root])],
)


def test_exit_statuses_are_as_a_shell_shows_them(tmp_path: Path, isolation: str) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path, isolation) as peer:
            peer.start("ok", "true")
            peer.start("three", "sh", "-c", "exit 3")
            peer.start("killed", "sh", "-c", "kill -9 $$")
            assert (await peer.exited("ok")).exit_status == 0
            assert (await peer.exited("three")).exit_status == 3
            assert (await peer.exited("killed")).exit_status == 128 + signal.SIGKILL
            assert not (await peer.exited("killed")).was_killed

    run(scenario())


def test_output_is_appended_to_files_in_the_sandbox_where_the_task_runs(tmp_path: Path, isolation: str) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path, isolation) as peer:
            (tmp_path / "c").mkdir()
            (tmp_path / "c" / "stdout").write_text("before\n")
            sandbox = peer.start("c", "sh", "-c", "pwd; echo $MESETA_CONTAINER_ID; echo wrong >&2; cat")
            await peer.exited("c")
            assert (sandbox / "stdout").read_text() == f"before\n{sandbox}\nc\n"
            assert (sandbox / "stderr").read_text() == "wrong\n"

    run(scenario())


def test_task_leads_its_session_with_three_descriptors_and_default_signals(tmp_path: Path, isolation: str) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path, isolation) as peer:
            # No pipelines, and exec: a shell that starts others has descriptors and blocked signals of its own.
            script = (
                "ls /proc/$$/fd; cut -d' ' -f1,5,6 /proc/$$/stat; umask; exec grep -E 'Sig(Blk|Ign)' /proc/self/status"
            )
            sandbox = peer.start("c", "dash", "-c", script)
            started = await peer.started("c")
            assert (await peer.exited("c")).exit_status == 0
            lines = (sandbox / "stdout").read_text().splitlines()
            assert lines[:3] == ["0", "1", "2"]
            assert lines[3].split() == [str(started.pid)] * 3
            blocked, ignored = (int(line.split()[1], 16) & ~LIBC_SIGNALS for line in lines[5:7])
            assert (blocked, ignored) == (0, 0)
            assert lines[4] == "0022"

    run(scenario())


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (("nonesuch",), {"PATH": "/usr/bin"}, "program 'nonesuch' was not found in PATH=/usr/bin"),
        (("nonesuch",), {}, "the task's environment has no PATH"),
        (("/no/such/file",), {}, "does not exist"),
        (("/etc/passwd",), {}, "may not be executed"),
        (("./script",), {}, "interpreter"),
        (("true", "x" * 140_000), {"PATH": "/usr/bin:/bin"}, "larger than the kernel takes"),
        ((), {}, "arguments are empty"),
        (("true", "a\0b"), {"PATH": "/usr/bin:/bin"}, "null"),
    ],
)
def test_start_that_fails_says_why(
    tmp_path: Path, isolation: str, arguments: tuple[str, ...], environment: dict[str, str], words: str
) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path, isolation) as peer:
            (tmp_path / "c").mkdir()
            script = tmp_path / "c" / "script"
            script.write_text("#!/no/interpreter\n")
            script.chmod(0o755)
            peer.start("c", *arguments, environment=environment)
            assert words in await peer.failed("c")
            peer.start("c2", "true")
            assert (await peer.exited("c2")).exit_status == 0

    run(scenario())


def test_missing_sandbox_and_unknown_user_are_named(tmp_path: Path, isolation: str) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path, isolation) as peer:
            peer.start("c", "true", user="nobody-of-that-name")
            assert "user 'nobody-of-that-name' does not exist" in await peer.failed("c")
            (tmp_path / "d").symlink_to(tmp_path / "nowhere")
            with pytest.raises(FileExistsError):
                peer.start("d", "true")
            (tmp_path / "d").unlink()
            sandbox = peer.start("e", "true")
            await peer.exited("e")
            (sandbox / "stdout").unlink()
            (sandbox / "stdout").mkdir()
            peer.forget("e")
            peer.start("e", "true")
            assert "cannot write stdout" in await peer.failed("e")

    run(scenario())


def test_large_environment_reaches_the_task(tmp_path: Path, isolation: str) -> None:
    environment = {f"V{index}": "x" * 10_000 for index in range(90)} | {"PATH": os.environ["PATH"]}

    async def scenario() -> None:
        async with supervisor(tmp_path, isolation) as peer:
            sandbox = peer.start("c", "sh", "-c", "env | wc -c", environment=environment)
            assert (await peer.exited("c")).exit_status == 0
            assert int((sandbox / "stdout").read_text()) > 900_000

    run(scenario())


def test_start_waits_while_descriptors_are_short(
    tmp_path: Path, isolation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = iter([errno.EMFILE, errno.ENOBUFS])
    real = send_datagram

    def send(sock: socket.socket, data: bytes) -> bool:
        for refusal in refusals:
            raise OSError(refusal, os.strerror(refusal))
        return real(sock, data)

    async def scenario() -> None:
        async with supervisor(tmp_path, isolation) as peer:
            monkeypatch.setattr(supervisor_client, "send_datagram", send)
            peer.start("c", "true")
            peer.start("d", "true")
            assert (await peer.exited("c")).exit_status == 0
            assert (await peer.exited("d")).exit_status == 0
            assert next(refusals, None) is None

    run(scenario())


def test_second_start_of_an_id_starts_nothing(tmp_path: Path, isolation: str) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path, isolation) as peer:
            for _ in range(3):
                peer.start("c", "sh", "-c", "echo once >> lines; sleep 60")
            first = await peer.started("c")
            await until(lambda: sum(isinstance(report, Started) for report in peer.reports) == 3, "three answers")
            assert {report for report in peer.reports if isinstance(report, Started)} == {first}
            await until_written(tmp_path / "c" / "lines")
            peer.kill("c", 0.0)
            await peer.exited("c")
            peer.start("c", "sh", "-c", "echo once >> lines")
            await until(lambda: sum(isinstance(report, Exited) for report in peer.reports) == 2, "the end again")
            assert (tmp_path / "c" / "lines").read_text() == "once\n"

    run(scenario())


def test_killed_task_may_clean_up_within_the_grace(tmp_path: Path, isolation: str) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path, isolation) as peer:
            script = "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.05; done"
            sandbox = peer.start("c", "sh", "-c", script)
            await until_written(sandbox / "stdout")
            peer.kill("c", 60.0)
            exited = await peer.exited("c")
            assert (exited.exit_status, exited.was_killed) == (7, True)
            assert (sandbox / "stdout").read_text() == "ready\nbye\n"

    run(scenario())


def test_task_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path, isolation: str) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path, isolation) as peer:
            sandbox = peer.start("c", "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done")
            await until_written(sandbox / "stdout")
            begin = asyncio.get_running_loop().time()
            peer.kill("c", 0.5)
            exited = await peer.exited("c")
            assert (exited.exit_status, exited.was_killed) == (137, True)
            assert asyncio.get_running_loop().time() - begin >= 0.5

    run(scenario())


ESCAPES = {
    "background": "sleep 1000 & echo $!; sleep 1000 & echo $!",
    "session": "setsid sleep 1000 & echo $!; (setsid sh -c 'echo $$; sleep 1000; :' &); sleep 0.1; echo",
    "double fork": "(setsid sh -c '(setsid sh -c \"echo \\$\\$; sleep 1000; :\" &)' &) ; sleep 0.1; echo",
}


@pytest.mark.parametrize("escape", sorted(ESCAPES))
@pytest.mark.parametrize("is_killed", [False, True])
def test_tree_dies_with_its_first_process(tmp_path: Path, isolation: str, escape: str, *, is_killed: bool) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path, isolation) as peer:
            sandbox = peer.start("tree", "sh", "-c", ESCAPES[escape] + ("; sleep 1000" if is_killed else ""))
            peer.start("other", "sh", "-c", "(setsid sleep 1000 &); exec sleep 1000")
            lines = await until_written(sandbox / "stdout", 2)
            if is_killed:
                peer.kill("tree", 5.0)
            await peer.exited("tree")
            assert not any(is_alive(int(line)) for line in lines if line)
            assert marked("tree") == []
            await until(lambda: len(marked("other")) == 2, "the other container lives on")

    run(scenario())


def test_orphan_without_a_mark_dies_with_the_last_that_may_own_it(tmp_path: Path, isolation: str) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path, isolation) as peer:
            peer.start("other", "sleep", "1000")
            script = "(env -i setsid sh -c 'echo $$; sleep 1000; :' &); sleep 0.1; echo"
            sandbox = peer.start("c", "/bin/sh", "-c", script)
            pid = int((await until_written(sandbox / "stdout", 2))[0])
            await peer.exited("c")
            if isolation == "cgroups":  # There it is known whose it is.
                assert not is_alive(pid)
            peer.kill("other", 0.0)
            await peer.exited("other")
            assert not is_alive(pid)

    run(scenario())


def test_fork_bomb_of_a_moment_is_killed_as_a_whole(tmp_path: Path, isolation: str) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path, isolation) as peer:
            script = "for i in 1 2 3 4 5; do (while :; do setsid sleep 3 & sleep 0.01; done) & done; sleep 0.3"
            peer.start("c", "sh", "-c", script)
            await peer.exited("c")
            assert marked("c") == []

    run(scenario())


def test_daemon_that_comes_back_sees_what_runs_and_what_ended(tmp_path: Path, isolation: str) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path, isolation) as peer:
            peer.start("long", "sleep", "1000")
            sandbox = peer.start("short", "sh", "-c", "while [ ! -e go ]; do sleep 0.01; done; exit 5")
            long, short = await peer.started("long"), await peer.started("short")
            peer.client.close()
            (sandbox / "go").touch()
            await until(lambda: not is_alive(short.pid), "the end of the short task")
            again = Peer(peer.path, tmp_path)
            assert (await again.listed()).running == (long,)
            assert (await again.exited("short")).exit_status == 5
            again.client.close()
            third = Peer(peer.path, tmp_path)
            await third.listed()
            assert (await third.exited("short")).exit_status == 5
            third.forget("short")
            assert (await third.listed()).running == (long,)
            third.client.close()

    run(scenario())


def test_newest_daemon_is_told_and_the_older_let_go(tmp_path: Path, isolation: str) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path, isolation) as old:
            sandbox = old.start("c", "sh", "-c", "while [ ! -e go ]; do sleep 0.01; done")
            await old.started("c")
            assert find_supervisors(tmp_path) == [old.path]  # Looking takes nothing from the old one.
            new = Peer(old.path, tmp_path)
            await new.listed()
            await old.until_lost()
            (sandbox / "go").touch()
            assert (await new.exited("c")).exit_status == 0
            new.client.close()

    run(scenario())


def test_reports_wait_for_a_daemon_that_does_not_read(tmp_path: Path, isolation: str) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path, isolation) as peer:
            for index in range(300):
                peer.start(f"c{index}", "/bin/true" if index % 2 else "nonesuch")
            await until(
                lambda: sum(isinstance(report, Exited | StartFailed) for report in peer.reports) == 300, "300 answers"
            )

    run(scenario())


def test_nonsense_is_refused_and_harms_nobody(tmp_path: Path, isolation: str) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path, isolation) as peer:
            stranger = new_socket()
            stranger.connect(str(peer.path))
            for data in (b"\xc1", b"\x00" * 1000, b"\x81\xa4type\xa5Forge", os.urandom(5000)):
                stranger.send(data)
            read_end, write_end = os.pipe()
            socket.send_fds(stranger, [b"\xc1"], [read_end])
            os.close(read_end)
            os.close(write_end)
            await peer.until_lost()  # The stranger is of our own user, and newer.
            stranger.close()
            again = Peer(peer.path, tmp_path)
            again.start("c", "true")
            assert (await again.exited("c")).exit_status == 0
            again.send(RetireSupervisor())
            again.start("d", "true")
            assert "retires" in await again.failed("d")
            again.kill("nobody", 1.0)
            assert (await again.wait(SupervisorRefused, lambda report: True)).message == "container nobody is not here"
            again.client.close()

    run(scenario())


def test_sigterm_ends_a_supervisor_only_when_it_owns_nothing(tmp_path: Path, isolation: str) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path, isolation) as peer:
            pid = (await peer.listed()).supervisor_pid
            peer.start("c", "sleep", "1000")
            started = await peer.started("c")
            for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                os.kill(pid, signum)
            assert (await peer.listed()).running == (started,)
            peer.kill("c", 0.0)
            await peer.exited("c")
            peer.forget("c")
            await peer.listed()
            os.kill(pid, signal.SIGTERM)
            await peer.until_lost()
            await until(lambda: not is_alive(pid), "the end of the supervisor")
            assert find_supervisors(tmp_path) == []

    run(scenario())


def test_supervisor_outlives_the_process_that_started_it(tmp_path: Path, isolation: str) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path, isolation) as peer:
            pid = (await peer.listed()).supervisor_pid
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            assert int(stat[1]) != os.getpid()
            assert int(stat[3]) != os.getsid(0)
            assert "isolation is" in (tmp_path / "log").read_text()
            listed = await peer.listed()
            assert listed.isolation.startswith(isolation)
            assert ("not enforced" in listed.isolation_note) == (isolation == "posix")

    run(scenario())


def test_supervisor_that_cannot_start_says_why(tmp_path: Path, isolation: str) -> None:
    async def scenario() -> None:
        deep = tmp_path / ("d" * 100)
        with pytest.raises(IsolationError, match="too long for a socket"):
            await start_supervisor(deep, isolation=isolation, cgroup_root=CGROUP_ROOT, log_file=tmp_path / "log")
        with pytest.raises(IsolationError, match="none of auto, cgroups, posix"):
            await start_supervisor(tmp_path, isolation="jail", cgroup_root=CGROUP_ROOT, log_file=tmp_path / "log")
        with pytest.raises(IsolationError, match="log file"):
            await start_supervisor(
                tmp_path, isolation=isolation, cgroup_root=CGROUP_ROOT, log_file=tmp_path / "none" / "log"
            )
        assert find_supervisors(tmp_path) == []

    run(scenario())


def test_id_that_is_a_path_starts_nothing(tmp_path: Path, isolation: str) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path, isolation) as peer:
            peer.send(peer_start := _start_with_id(tmp_path, "../up"))
            assert "names no folder" in await peer.failed(peer_start.container_id)

    run(scenario())


def _start_with_id(folder: Path, container_id: str) -> StartContainer:
    return StartContainer(
        container_id=ContainerId(container_id), arguments=("true",), environment={}, sandbox=str(folder)
    )
