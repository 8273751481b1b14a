"""Access rules at work: who may read whose sandbox, and run tasks as whom."""

import shutil
from pathlib import Path

from meseta.keys import create_cluster_keys
from tests.integration.real_cluster import RealCluster, wait_for

RULES = """
default = "allow"

[[rules]]
principals = ["ann"]
actions = ["access_sandbox", "run_task"]
allow = false
"""


def test_slave_shows_a_sandbox_only_to_those_whom_the_rules_let(tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text(RULES)
    create_cluster_keys(tmp_path, ("ann",))
    acl = ("--acl", str(rules))
    with RealCluster(tmp_path, slaves=1, master_options=acl, slave_options=acl) as cluster:
        wait_for(lambda: "active" in cluster.dcos("node", "list").stdout, "the slave")
        ran = cluster.dcos("run", "--name", "secret", "--", "echo", "for your eyes only")
        assert (ran.returncode, ran.stdout) == (0, "for your eyes only\n"), ran.stderr
        ann = ("--key", str(tmp_path / "keys" / "ann.json"))
        seen = cluster.dcos("task", "log", "secret", *ann)
        assert seen.returncode == 1
        assert seen.stdout == ""
        assert "rule 1 forbids principal ann to access_sandbox" in seen.stderr
        refused = cluster.dcos("run", *ann, "--", "true")
        assert refused.returncode == 1
        assert "rule 1 forbids principal ann to run_task" in refused.stderr
        mine = cluster.dcos("task", "log", "secret")
        assert (mine.returncode, mine.stdout) == (0, "for your eyes only\n"), mine.stderr
        (frameworks,) = (tmp_path / "slave-0" / "slaves").glob("*/frameworks")
        shutil.rmtree(frameworks)
        gone = cluster.dcos("task", "log", "secret")
        assert gone.returncode == 1
        assert "is gone: No such file or directory" in gone.stderr
        assert cluster.slaves[0].is_running
