"""The batch daemon's command line: flags, `MESETA_*` variables and a TOML file become `BatchSettings`."""

import asyncio
import os
import pwd
import sys
from pathlib import Path

import click

from frameworks.batch.daemon import BatchDaemon, BatchSettings
from meseta.keys import PrincipalsFile, cluster_folder, read_cluster, read_key_file
from meseta.log_output import start_logging
from meseta.options import DaemonCommand, daemon_options

_FOLDER = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("batch", cls=DaemonCommand)
@click.option("--cluster", type=_FILE, help="The cluster's file; default ~/.meseta/cluster.json, or in MESETA_DIR.")
@click.option("--key", type=_FILE, help="This framework's key file; default keys/batch.json beside the cluster's file.")
@click.option("--principals", type=_FILE, help="Who may submit jobs; default keys/principals.json beside it.")
@click.option("--work-dir", type=_FOLDER, help="For the jobs' records; default batch/ beside the cluster's file.")
@click.option("--bind", default="tcp://127.0.0.1:0", help="Where clients reach this daemon.")
@daemon_options
def command(
    *,
    cluster: Path | None,
    key: Path | None,
    principals: Path | None,
    work_dir: Path | None,
    bind: str,
    record: Path | None,
    log_level: str,
) -> None:
    """Run the batch daemon in the foreground. SIGTERM leaves its jobs' tasks running, for the next one to take over."""
    start_logging(log_level)
    cluster_file = cluster or cluster_folder() / "cluster.json"
    folder = cluster_file.parent
    known = read_cluster(cluster_file)
    keys = None  # A cluster that runs with --insecure.
    if known.master_public_key is not None:
        keys = read_key_file(key or folder / "keys" / "batch.json").pair
    settings = BatchSettings(
        master=known.master,
        master_public_key=known.master_public_key,
        keys=keys,
        principals={} if keys is None else PrincipalsFile(principals or folder / "keys" / "principals.json"),
        work_dir=(work_dir or folder / "batch").absolute(),
        user=pwd.getpwuid(os.geteuid()).pw_name,  # Not what the environment says: root after `su` is root.
        bind=bind,
        record=record,
    )
    sys.exit(asyncio.run(BatchDaemon(settings).run()))
