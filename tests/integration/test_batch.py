"""Batch jobs on a cluster of real daemons: right answers, clear failures, and nothing lost to kill -9."""

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from frameworks.batch.core import BatchCore, BatchInit
from frameworks.batch.events import Event
from meseta.runner import replay
from tests.integration.cli_cluster import CliCluster
from tests.integration.real_cluster import wait_for

pytestmark = pytest.mark.timeout(120)

WORDCOUNT = Path(__file__).parents[2] / "frameworks" / "examples" / "wordcount.py"
WORDS = [f"word{number}" for number in range(500)]
SLOW = """
import time
from operator import add as combine

def map(line):
    if line == "pause":
        time.sleep({pause_s})
    for word in line.split():
        yield word, 1

def reduce(key, values):
    yield key, sum(values)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CliCluster]:
    one = CliCluster(tmp_path_factory.mktemp("cluster"))
    one.dcos("up", "--slaves", "2", "--resources", "cpus:2;mem:2GiB", "--port", str(one.port), "--record")
    try:
        yield one
    finally:
        one.dcos("down")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with an input of eight files of words."""
    rng = random.Random(5)
    (tmp_path / "in").mkdir()
    for number in range(8):
        lines = [" ".join(rng.choices(WORDS, k=8)) for _ in range(300)]
        (tmp_path / "in" / f"f{number}.txt").write_text("pause\n" + "\n".join(lines))
    return tmp_path


def counted(folder: Path) -> Counter[str]:
    words: Counter[str] = Counter()
    for path in (folder / "in").iterdir():
        words.update(path.read_text().split())
    return words


def results(output: Path) -> dict[str, int]:
    assert (output / "_SUCCESS").exists()
    assert not (output / "_temporary").exists()
    found: dict[str, int] = {}
    for part in sorted(output.glob("part-*")):
        keys = []
        for line in part.read_text().splitlines():
            key, _, value = line.partition("\t")
            keys.append(key)
            assert key not in found, "a key is in one part only"
            found[key] = int(value)
        assert keys == sorted(keys)
    return found


def run(cluster: CliCluster, folder: Path, *arguments: str, status: int | None = 0) -> Any:
    """Run a job to its end; return what `--json` says of it."""
    output = str(folder / "out")
    done = cluster.dcos("batch", "run", *arguments, "-o", output, "--json", status=status)
    return json.loads(done.stdout)["job"] if done.stdout else done.stderr


def test_word_count_is_that_of_a_plain_count(cluster: CliCluster, folder: Path) -> None:
    job = run(cluster, folder, str(WORDCOUNT), str(folder / "in"), "--reducers", "3", "--split-size", "4KiB")
    assert results(folder / "out") == counted(folder)
    assert len(list((folder / "out").glob("part-*"))) == 3
    counters = job["counters"]["batch"]
    assert counters["map input records"] == 8 * 301
    assert counters["map output records"] == sum(counted(folder).values())
    assert counters["reduce output records"] == len(counted(folder))
    assert counters["map input bytes"] == sum(path.stat().st_size for path in (folder / "in").iterdir())
    assert counters["shuffle bytes"] > 0, "both slaves mapped, and the reducers fetched from the other one"
    assert job["maps_total"] > 8


def test_map_lines_and_user_counters_count_once(cluster: CliCluster, folder: Path) -> None:
    job_file = folder / "lines.py"
    job_file.write_text(
        "from collections import Counter\n"
        "from frameworks.batch import counter\n"
        "def map_lines(lines):\n"
        "    counts = Counter()\n"
        "    for line in lines:\n"
        "        counts.update(line.split())\n"
        "        counter('lines', 'seen')\n"
        "    return counts\n"
        "def reduce(key, values):\n"
        "    yield key, sum(values)\n"
    )
    job = run(cluster, folder, str(job_file), str(folder / "in" / "*.txt"), "--split-size", "16KiB")
    assert results(folder / "out") == counted(folder)
    assert job["counters"]["lines"] == {"seen": 8 * 301}


def test_two_commands_are_a_job(cluster: CliCluster, folder: Path) -> None:
    script = folder / "sum.py"
    script.write_text(
        f"#!{sys.executable}\n"
        "import sys\nfrom itertools import groupby\n"
        "pairs = (line.rstrip('\\n').split('\\t') for line in sys.stdin)\n"
        "for key, group in groupby(pairs, key=lambda pair: pair[0]):\n"
        "    print(key, sum(int(value) for _, value in group), sep='\\t')\n"
        "print('reporter:counter:reducers,ended,1', file=sys.stderr)\n"
    )
    mapper = "tr ' ' '\\n' | sed 's/$/\\t1/'"
    job = run(
        cluster, folder, "--mapper", mapper, "--reducer", "./sum.py", "--file", str(script), str(folder / "in"),
        "--reducers", "2",
    )  # fmt: skip
    assert results(folder / "out") == counted(folder)
    assert job["counters"]["reducers"] == {"ended": 2}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("raise ValueError('no good')", "ValueError: no good"),
        ("import os; os._exit(3)", "the worker exited with 3"),
        ("import ctypes; ctypes.string_at(0)", "the worker was ended by SIGSEGV"),
        ("return [1]", "map yields 1; let it yield pairs, as in: yield word, 1"),
        ("return [({}, 1)]", "map yields the key {}; a key is str, bytes, a number, or a tuple of them"),
        ("return [(1, object())]", "a key or value cannot be written"),
    ],
)
def test_broken_job_code_fails_the_job_with_its_reason_and_leaves_nothing(
    cluster: CliCluster, folder: Path, line: str, reason: str
) -> None:
    job_file = folder / "broken.py"
    job_file.write_text(f"def map(line):\n    {line}\n    return ()\ndef reduce(key, values):\n    yield key, 1\n")
    job = run(cluster, folder, str(job_file), str(folder / "in" / "f1.txt"), status=1)
    assert job["state"] == "failed"
    assert "map 0 failed 4 times" in job["reason"]
    assert reason in job["reason"]
    assert job["failed_attempts"] == 4
    assert not (folder / "out").exists()


def test_a_command_that_fails_fails_the_job(cluster: CliCluster, folder: Path) -> None:
    mapper = "echo went wrong >&2; exit 7"
    job = run(cluster, folder, "--mapper", mapper, "--reducer", "cat", str(folder / "in"), status=1)
    assert "the mapper exited with 7" in job["reason"]
    assert "went wrong" in job["reason"]


def test_too_much_memory_ends_the_attempt_and_not_the_executor(cluster: CliCluster, folder: Path) -> None:
    job_file = folder / "hog.py"
    job_file.write_text(
        "import time\nheld = []\n"
        "def map(line):\n    held.append(bytearray(1 << 20))\n    time.sleep(0.001)\n    yield line, 1\n"
        "def reduce(key, values):\n    yield key, 1\n"
    )
    job = run(cluster, folder, str(job_file), str(folder / "in" / "f1.txt"), "--mem", "64MiB", status=1)
    assert "memory" in job["reason"]
    assert job["failed_attempts"] == 4


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{folder}/absent"], "input {folder}/absent: no slave sees it (asked: "),
        (["{folder}/in", "{folder}/none*"], "input {folder}/none*: no slave sees it (asked: "),
    ],
)
def test_inputs_that_no_slave_sees_are_refused_in_words(
    cluster: CliCluster, folder: Path, arguments: list[str], sentence: str
) -> None:
    job = run(cluster, folder, str(WORDCOUNT), *[one.format(folder=folder) for one in arguments], status=1)
    assert job["reason"].startswith(sentence.format(folder=folder))


def test_output_goes_to_a_new_folder_only(cluster: CliCluster, folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "mine").touch()
    job = run(cluster, folder, str(WORDCOUNT), str(folder / "in"), status=1)
    assert "exists" in job["reason"]
    assert os.listdir(folder / "out") == ["mine"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{job}", "{in}", "--cpus", "64"], "--cpus 64: no slave has as much; the largest has 2"),
        (["{job}", "{in}", "--mem", "64"], "--mem: '64' is no size"),
        (["{job}"], "no input is given"),
        (["{in}/f1.txt", "{in}"], "f1.txt line 2 is no Python"),
        (["{in}", "--mapper", "cat"], "--reducer is missing"),
        (["{job}", "{in}", "--reducrs", "2"], "--reducers"),
    ],
)
def test_wrong_submissions_are_refused_at_once(
    cluster: CliCluster, folder: Path, arguments: list[str], sentence: str
) -> None:
    names = {"job": str(WORDCOUNT), "in": str(folder / "in")}
    done = cluster.dcos("batch", "run", *[one.format(**names) for one in arguments], "-o", "/tmp/x", status=2)
    assert sentence in done.stderr


def slow_job(folder: Path, pause_s: float) -> str:
    path = folder / "slow.py"
    path.write_text(SLOW.format(pause_s=pause_s))
    return str(path)


def submit(cluster: CliCluster, folder: Path, pause_s: float, *more: str) -> str:
    arguments = [slow_job(folder, pause_s), str(folder / "in"), "-o", str(folder / "out"), "--split-size", "16KiB"]
    job_id: str = cluster.json("batch", "run", *arguments, "--detach", *more)["job_id"]
    return job_id


def show(cluster: CliCluster, job_id: str) -> Any:
    return cluster.json("batch", "show", job_id)["job"]


def test_killed_job_ends_its_attempts_and_leaves_nothing(cluster: CliCluster, folder: Path) -> None:
    job_id = submit(cluster, folder, 60.0)
    wait_for(lambda: show(cluster, job_id)["running"] and show(cluster, job_id)["state"] == "running", "attempts")
    cluster.dcos("batch", "kill", job_id[:12])
    wait_for(lambda: show(cluster, job_id)["state"] == "killed", "the job's end")
    assert not (folder / "out").exists()
    tasks = cluster.json("task", "list")["tasks"]
    assert [task for task in tasks if task["id"].startswith(job_id)] == []
    done = cluster.dcos("batch", "kill", job_id, status=1)
    assert "has ended already: killed" in done.stderr


def test_interrupt_kills_the_job(cluster: CliCluster, folder: Path) -> None:
    command = cluster.command("batch", "run", slow_job(folder, 60.0), str(folder / "in"), "-o", str(folder / "out"))
    process = subprocess.Popen(command, env=cluster.environment(), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "submitted" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=40) == 130
    assert "killed" in process.stderr.read()
    process.stderr.close()
    assert not (folder / "out").exists()


def test_jobs_go_on_over_the_daemons_death_and_finished_maps_are_kept(cluster: CliCluster, folder: Path) -> None:
    job_id = submit(cluster, folder, 1.0)
    wait_for(lambda: show(cluster, job_id)["maps_done"] >= 2, "two finished maps")
    cluster.kill9("batch")
    wait_for(lambda: cluster.dcos("batch", "show", job_id, status=None).returncode == 0, "the next daemon")
    assert show(cluster, job_id)["maps_done"] >= 2
    wait_for(lambda: show(cluster, job_id)["state"] == "succeeded", "the job's end", limit_s=60)
    assert results(folder / "out") == counted(folder)
    assert show(cluster, job_id)["failed_attempts"] == 0


@pytest.mark.parametrize("name", ["slave-1", "master"])
def test_jobs_go_on_over_a_death(cluster: CliCluster, folder: Path, name: str) -> None:
    job_id = submit(cluster, folder, 1.0)
    wait_for(lambda: show(cluster, job_id)["maps_done"] >= 2, "two finished maps")
    cluster.kill9(name)
    wait_for(
        lambda: (
            json.loads(cluster.dcos("batch", "show", job_id, "--json", status=None).stdout or "{}")
            .get("job", {})
            .get("state")
            == "succeeded"
        ),
        "the job's end",
        limit_s=60,
    )
    assert results(folder / "out") == counted(folder)


@pytest.mark.slow
def test_a_machine_that_stops_answering_loses_nothing(cluster: CliCluster, folder: Path) -> None:
    """All of one slave stands still, as if its cable was pulled: neither master nor batch is told."""
    job_id = submit(cluster, folder, 1.0)
    wait_for(lambda: show(cluster, job_id)["maps_done"] >= 2, "two finished maps")
    stopped = machine_of(cluster, "slave-2")
    assert len(stopped) > 2
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        wait_for(lambda: show(cluster, job_id)["state"] == "succeeded", "the job's end", limit_s=80)
        assert results(folder / "out") == counted(folder)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    wait_for(lambda: len(machine_of(cluster, "slave-2")) == 2, "the end of the executor that came back")


def machine_of(cluster: CliCluster, name: str) -> list[int]:
    """Return a slave, its supervisor and what runs in its sandboxes."""
    sandboxes = f"{cluster.layout.work_dir(name)}/"
    runtime_dir = str(cluster.layout.runtime_dir(name)).encode()
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(path / "cwd").startswith(sandboxes) or runtime_dir in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


def test_recordings_replay_to_identical_effects(cluster: CliCluster, folder: Path) -> None:
    """After all the tests above, with their kills."""
    count = 0
    for path in sorted(cluster.layout.records_dir.glob("batch-*.rec")):
        inputs, differing = replay(path, BatchInit, Event, BatchCore)
        assert differing == []
        count += inputs
    assert count > 100
