"""What is particular to cgroup v2. `make test-cgroup2` runs this in a virtual machine that has it."""

import subprocess
import sys
from pathlib import Path

from slave.supervisor_messages import Limits
from tests.integration.supervisor_peer import run, supervisor

MIB = 1 << 20
EAT = "data = bytearray(200 << 20)"
ASK = """
import sys
from isolation.cgroups import available
for root in sys.argv[1:]:
    print(available(root, "00000001"))
"""


def test_lack_of_memory_ends_the_whole_container(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with supervisor(tmp_path, "cgroups") as peer:
            script = f"{sys.executable} -I -S -c '{EAT}'; echo survived"
            sandbox = peer.start("c", "sh", "-c", script, limits=Limits(mem_bytes=64 * MIB))
            exited = await peer.exited("c")
            assert (exited.exit_status, exited.oom_kills >= 1) == (137, True)
            assert (sandbox / "stdout").read_text() == ""

    run(scenario())


def test_group_that_holds_processes_hands_down_nothing_and_says_so() -> None:
    group = Path("/sys/fs/cgroup/meseta-busy")
    group.mkdir()
    try:
        result = subprocess.run(
            (
                "sh",
                "-c",
                'echo $$ > "$0/cgroup.procs"; "$@"',
                group,
                sys.executable,
                "-c",
                ASK,
                "meseta",
                "/meseta-test",
            ),
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )
        below, absolute = result.stdout.splitlines()
        assert "holds processes" in below
        assert "/meseta" in below
        assert absolute == "None"
        assert list(group.glob("meseta*")) == []
    finally:
        group.rmdir()
