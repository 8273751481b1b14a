"""`kill -9` of everything, at random times under load: nothing is lost, nothing runs twice.

The witness is outside Meseta: every task appends a line at its start and at its end to a file. The
seed of the kills is printed; MESETA_KILL_SEED repeats it.
"""

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from master.core import MasterCore
from master.events import MasterEvent, MasterInit
from meseta.driver_events import SchedulerEvent
from meseta.model import TaskState
from meseta.runner import replay
from meseta.scheduler_core import SchedulerCore, SchedulerInit
from slave.core import SlaveCore
from slave.events import SlaveEvent, SlaveInit
from tests.integration.real_cluster import Daemon, RealCluster, read_json_lines, read_lines, wait_for

REPOSITORY = Path(__file__).resolve().parents[2]
KILL_COUNT = 32
SLAVE_COUNT = 2
UNIT_COUNT = 60
REST_LIMIT_S = 150.0


@pytest.mark.timeout(300)
def test_thirty_kills_under_load_lose_nothing_and_run_nothing_twice(tmp_path: Path) -> None:
    seed = int(os.environ.get("MESETA_KILL_SEED") or time.time_ns() % 1_000_000)
    print(f"seed of the kills: {seed}")
    rng = random.Random(seed)
    options = ("--ping-timeout", "2s", "--max-missed-pings", "5")
    with RealCluster(tmp_path, slaves=SLAVE_COUNT, record=True, master_options=options) as cluster:
        command = ["tests.integration.witness_framework", str(tmp_path), str(UNIT_COUNT), str(seed)]
        environment = cluster.environment | {"PYTHONPATH": str(REPOSITORY)}
        framework = Daemon("witness", command, tmp_path / "witness.log", environment)
        framework.start()
        kills = kill_at_random(cluster, framework, rng, tmp_path)
        finish(framework, tmp_path)
        assert sum(kills.values()) == KILL_COUNT, (seed, kills)
        assert min(kills[kind] for kind in ("master", "slave", "supervisor", "witness")) >= 1, (seed, kills)
        compare(tmp_path, seed)
    check_replays(tmp_path)


def kill_at_random(cluster: RealCluster, framework: Daemon, rng: random.Random, folder: Path) -> Counter[str]:
    """Kill something now and then, and start it again as a keeper would; return how often what was killed."""
    kills: Counter[str] = Counter()
    wait_for(lambda: read_lines(folder / "witness"), "the first task")
    kinds = ["master", "slave", "supervisor", "witness"] * (KILL_COUNT // 4)
    rng.shuffle(kinds)
    for kind in kinds:
        time.sleep(rng.uniform(0.1, 0.8))  # The moment of a kill must not depend on what the cluster does.
        if kind == "supervisor":
            wait_for(cluster.supervisors, "a supervisor to kill")
            os.kill(rng.choice(cluster.supervisors()), signal.SIGKILL)
        else:
            daemon = {"master": cluster.master, "witness": framework}.get(kind) or rng.choice(cluster.slaves)
            daemon.kill()
            time.sleep(rng.uniform(0.0, 0.3))
            if daemon is framework:
                daemon.start()
            else:
                cluster.start(daemon)
        kills[kind] += 1
    return kills


def finish(framework: Daemon, folder: Path) -> None:
    """Wait for the end of all work; a framework that stopped because it was done stays stopped."""

    def is_done() -> bool:
        if not framework.is_running and not (folder / "done").exists():
            framework.start()
        return (folder / "done").exists()

    wait_for(is_done, "all units to live to their end", limit_s=REST_LIMIT_S)
    if framework.is_running:
        framework.end()


def compare(folder: Path, seed: int) -> None:
    """Compare what the tasks wrote with what the framework was told."""
    lines = read_lines(folder / "witness")
    starts = Counter(words[1] for words in lines if words[0] == "start")
    ends = Counter(words[1] for words in lines if words[0] == "end")
    journal = read_json_lines(folder / "journal")
    launched = {str(record["task_id"]) for record in journal if record["what"] == "launch"}
    told: dict[str, list[TaskState]] = {task_id: [] for task_id in launched}
    seen: set[tuple[object, ...]] = set()
    for record in journal:
        assert record["what"] != "error", (seed, record)
        if record["what"] == "status" and (record["task_id"], record["uuid"], record["state"]) not in seen:
            seen.add((record["task_id"], record["uuid"], record["state"]))
            told[str(record["task_id"])].append(TaskState(str(record["state"])))
    assert set(starts) <= launched, (seed, set(starts) - launched)
    assert not [task_id for task_id, count in starts.items() if count > 1], (seed, starts)
    for task_id, states in told.items():
        terminal = {state for state in states if state.is_terminal}
        assert len(terminal) == 1, (seed, task_id, states)
        (end,) = terminal
        if end is TaskState.FINISHED:
            assert (starts[task_id], ends[task_id]) == (1, 1), (seed, task_id, states)
        if task_id in ends:
            assert end in (TaskState.FINISHED, TaskState.FAILED), (seed, task_id, states)


def check_replays(folder: Path) -> None:
    """Feed every recording to a fresh core: the same inputs give the same effects."""
    counts: Counter[str] = Counter()
    for path in sorted((folder / "recordings").glob("*.rec")):
        if path.stat().st_size == 0:
            continue  # Killed before it was made.
        kind = path.name.partition("-")[0]
        if kind == "master":
            count, differing = replay(path, MasterInit, MasterEvent, MasterCore)
        elif kind == "slave":
            count, differing = replay(path, SlaveInit, SlaveEvent, SlaveCore)
        else:
            count, differing = replay(path, SchedulerInit, SchedulerEvent, SchedulerCore)
        assert differing == [], f"{path.name}: inputs {differing[:5]} of {count} have other effects"
        counts[kind] += count
    assert min(counts[kind] for kind in ("master", "slave", "scheduler")) > 0, counts
