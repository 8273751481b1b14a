"""What a slave finds out of its machine, what it is told, and its sandboxes."""

import os
from pathlib import Path

import psutil
import pytest

from meseta.errors import InvalidInput, IsolationError
from meseta.ids import ContainerId, FrameworkId
from slave import sandbox as sandbox_module
from slave.discovery import boot_id, discover, measure, parse_attributes
from slave.sandbox import Sandboxes

FRAMEWORK = FrameworkId("f-1")


def run_folder(work_dir: Path, container_id: str, task_id: str = "t-1") -> str:
    return f"{work_dir}/slaves/s-1/frameworks/{FRAMEWORK}/tasks/{task_id}.{container_id}"


def test_machine_keeps_a_part_of_memory_and_disk_for_itself(tmp_path: Path) -> None:
    measured = measure(tmp_path)
    total_mib = psutil.virtual_memory().total // (1 << 20)
    assert measured.get("cpus") == (os.cpu_count() or 1) * 1000
    assert measured.get("mem") // 1000 in range(total_mib - 1024 - 1, total_mib - min(1024, total_mib // 2) + 1)
    assert 0 < measured.get("disk") // 1000 < psutil.disk_usage(str(tmp_path)).total // (1 << 20)
    assert measured.ranges == {"ports": ((31000, 32000),)}


def test_told_resources_replace_measured_ones_by_name(tmp_path: Path) -> None:
    told = discover(tmp_path, "cpus:1.5;ports:[40000-40010];gpus:{a}")
    assert told.get("cpus") == 1500
    assert told.ranges == {"ports": ((40000, 40010),)}
    assert told.sets == {"gpus": ("a",)}
    assert told.get("mem") == measure(tmp_path).get("mem")
    assert discover(tmp_path, "mem:0").get("mem") == 0
    assert discover(tmp_path, None) == measure(tmp_path)


def test_misspelt_resources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="--resources: 'cpus=2' is not NAME:VALUE"):
        discover(tmp_path, "cpus=2")


def test_attributes_are_read_and_nonsense_is_refused() -> None:
    assert parse_attributes("rack:r1; zone:a:b") == {"rack": "r1", "zone": "a:b"}
    assert parse_attributes(None) == {}
    for text in ("rack", ":x", "rack:", "rack:1;rack:2"):
        with pytest.raises(InvalidInput, match="--attributes"):
            parse_attributes(text)


def test_boot_id_is_the_kernels() -> None:
    assert len(boot_id()) == 36


def test_sandbox_is_made_once_and_may_exist(tmp_path: Path) -> None:
    sandboxes = Sandboxes(tmp_path)
    for container in ("c-1", "c-2", "c-1"):
        sandboxes.make(FRAMEWORK, ContainerId(container), run_folder(tmp_path, container), None)
    assert sandboxes.find(FRAMEWORK, ContainerId("c-1")) == Path(run_folder(tmp_path, "c-1"))
    assert sandboxes.find(FrameworkId("other"), ContainerId("c-1")) is None


@pytest.mark.parametrize("user", ["no-such-user", "root\0", "", "\n"])
def test_sandbox_of_a_user_that_cannot_be_is_refused(tmp_path: Path, user: str) -> None:
    with pytest.raises(IsolationError, match="this machine has no user"):
        Sandboxes(tmp_path).make(FRAMEWORK, ContainerId("c"), run_folder(tmp_path, "c"), user)


def test_sandbox_that_the_disk_refuses_is_told(tmp_path: Path) -> None:
    (tmp_path / "slaves").write_text("a file in the way")
    with pytest.raises(IsolationError, match="cannot be made"):
        Sandboxes(tmp_path).make(FRAMEWORK, ContainerId("c"), run_folder(tmp_path, "c"), None)


def test_sandboxes_on_disk_are_found_again(tmp_path: Path) -> None:
    first = Sandboxes(tmp_path)
    for task in ("t-1", "t-2"):
        first.make(FRAMEWORK, ContainerId(f"c-{task}"), run_folder(tmp_path, f"c-{task}", task), None)
    executor = f"{tmp_path}/slaves/s-1/frameworks/{FRAMEWORK}/executors/e.c-e"
    first.make(FRAMEWORK, ContainerId("c-e"), executor, None)
    second = Sandboxes(tmp_path)
    assert second.find(FRAMEWORK, ContainerId("c-t-1")) is None
    second.index(second.scan())
    for container in ("c-t-1", "c-t-2", "c-e"):
        assert second.find(FRAMEWORK, ContainerId(container)) == first.find(FRAMEWORK, ContainerId(container))


def test_index_keeps_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_module, "INDEX_LIMIT", 2)
    sandboxes = Sandboxes(tmp_path)
    for number in range(4):
        container = ContainerId(f"c-{number}")
        path = run_folder(tmp_path, container)
        sandboxes.make(FRAMEWORK, container, path, None)
        os.utime(path, (number, number))
    assert sandboxes.find(FRAMEWORK, ContainerId("c-1")) is None
    assert sandboxes.find(FRAMEWORK, ContainerId("c-3")) is not None
    assert [key[1] for key, _ in sandboxes.scan()] == ["c-2", "c-3"]
