"""The slave's command line: flags, `MESETA_*` variables and a TOML file become `SlaveSettings`."""

import asyncio
import sys
from pathlib import Path

import click

from meseta.acls import parse_acls
from meseta.keys import PrincipalsFile, cluster_folder, read_cluster, read_key_file
from meseta.log_output import start_logging
from meseta.options import DaemonCommand, daemon_options, read_acls
from slave.daemon import SlaveDaemon, SlaveSettings
from slave.discovery import parse_attributes

_FOLDER = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("slave", cls=DaemonCommand)
@click.option("--cluster", type=_FILE, help="The cluster's file; default ~/.meseta/cluster.json, or in MESETA_DIR.")
@click.option("--key", type=_FILE, help="This slave's key file; default keys/slave.json beside the cluster's file.")
@click.option("--principals", type=_FILE, help="Who may read sandboxes; default keys/principals.json beside it.")
@click.option(
    "--work-dir", type=_FOLDER, help="For checkpoint and sandboxes; default slave/ beside the cluster's file."
)
@click.option("--runtime-dir", type=_FOLDER, help="For sockets; default below /run/meseta or XDG_RUNTIME_DIR.")
@click.option("--bind", default="tcp://127.0.0.1:0", help="Where sandbox files are served.")
@click.option("--hostname", help="How others reach this machine; default its own name.")
@click.option("--resources", help="Instead of what is measured, as cpus:2;mem:4GiB;ports:[31000-31100].")
@click.option("--attributes", help="Told in offers, as rack:r1;zone:z.")
@click.option(
    "--isolation",
    type=click.Choice(["auto", "cgroups", "posix"]),
    default="auto",
    help="auto: cgroups where there are rights, else posix, which enforces no limits.",
)
@click.option("--acl", type=_FILE, help="Who may see whose sandboxes (docs/acl.md); without, known keys may all.")
@daemon_options
def command(
    *,
    cluster: Path | None,
    key: Path | None,
    principals: Path | None,
    work_dir: Path | None,
    runtime_dir: Path | None,
    bind: str,
    hostname: str | None,
    resources: str | None,
    attributes: str | None,
    isolation: str,
    acl: Path | None,
    record: Path | None,
    log_level: str,
) -> None:
    """Run a slave daemon in the foreground. SIGTERM leaves its tasks running, SIGUSR1 ends them first."""
    start_logging(log_level)
    cluster_file = cluster or cluster_folder() / "cluster.json"
    folder = cluster_file.parent
    known = read_cluster(cluster_file)
    keys = None  # A cluster that runs with --insecure.
    if known.master_public_key is not None:
        keys = read_key_file(key or folder / "keys" / "slave.json").pair
    settings = SlaveSettings(
        master=known.master,
        master_public_key=known.master_public_key,
        keys=keys,
        principals={} if keys is None else PrincipalsFile(principals or folder / "keys" / "principals.json"),
        work_dir=(work_dir or folder / "slave").absolute(),
        runtime_dir=None if runtime_dir is None else runtime_dir.absolute(),
        bind=bind,
        hostname=hostname,
        resources=resources,
        attributes=parse_attributes(attributes),
        isolation=isolation,
        record=record,
        acls=None if acl is None else parse_acls(read_acls(acl)),
    )
    sys.exit(asyncio.run(SlaveDaemon(settings).run()))
