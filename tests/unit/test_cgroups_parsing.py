"""Where a process stands in the cgroup hierarchies, read from the two files of /proc."""

import pytest

from isolation.cgroup_files import Hierarchy, parse_hierarchies, supervisor_folder

SYSTEMD_V2_MOUNTS = """\
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
"""
HYBRID_MOUNTS = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
42 31 0:32 / /mnt/again rw,relatime - cgroup cgroup rw,memory
"""
HYBRID_GROUPS = """\
9:name=systemd:/init.scope
5:pids:/
4:memory:/jobs/one
2:cpu,cpuacct:/
0::/init.scope
"""


def test_v2_has_one_hierarchy_and_our_group_in_it() -> None:
    found = parse_hierarchies(SYSTEMD_V2_MOUNTS, "0::/system.slice/meseta.service\n")
    assert found == [
        Hierarchy(
            mount="/sys/fs/cgroup",
            own="/sys/fs/cgroup/system.slice/meseta.service",
            controllers=frozenset(),
            is_v2=True,
        )
    ]


def test_hybrid_layout_shows_each_hierarchy_with_our_group_and_its_controllers() -> None:
    found = {hierarchy.mount: hierarchy for hierarchy in parse_hierarchies(HYBRID_MOUNTS, HYBRID_GROUPS)}
    assert found["/sys/fs/cgroup/memory"].own == "/sys/fs/cgroup/memory/jobs/one"
    assert found["/sys/fs/cgroup/pids"].own == "/sys/fs/cgroup/pids"
    assert found["/sys/fs/cgroup/cpu,cpuacct"].controllers == {"cpu", "cpuacct"}
    assert [hierarchy.mount for hierarchy in found.values() if hierarchy.is_v2] == ["/sys/fs/cgroup/unified"]


def test_second_mount_of_one_hierarchy_is_left_alone() -> None:
    assert "/mnt/again" not in [hierarchy.mount for hierarchy in parse_hierarchies(HYBRID_MOUNTS, HYBRID_GROUPS)]


@pytest.mark.parametrize(
    ("root", "group", "own"),
    [
        ("/docker/ab", "/docker/ab", "/cg"),
        ("/docker/ab", "/docker/ab/inner", "/cg/inner"),
        ("/docker/ab", "/elsewhere", "/cg"),
        ("/docker/ab", "/docker/abc", "/cg"),
        ("/", "/", "/cg"),
    ],
)
def test_group_is_seen_from_the_root_of_the_mount(root: str, group: str, own: str) -> None:
    (found,) = parse_hierarchies(f"30 23 0:26 {root} /cg rw - cgroup2 cgroup2 rw\n", f"0::{group}\n")
    assert found.own == own


def test_blanks_in_a_mount_point_are_read() -> None:
    (found,) = parse_hierarchies("30 23 0:26 / /my\\040groups rw - cgroup2 cgroup2 rw\n", "0::/a\n")
    assert found.own == "/my groups/a"


def test_groups_go_below_our_own_or_where_an_absolute_root_says() -> None:
    hierarchy = Hierarchy(mount="/cg", own="/cg/mine", controllers=frozenset(), is_v2=True)
    assert supervisor_folder(hierarchy, "meseta", "12345678") == "/cg/mine/meseta/12345678"
    assert supervisor_folder(hierarchy, "/meseta", "12345678") == "/cg/meseta/12345678"
