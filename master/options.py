"""The master's command line: flags, `MESETA_*` variables and a TOML file become `MasterSettings`."""

import asyncio
import sys
from pathlib import Path

import click

from master.daemon import MasterDaemon, MasterSettings
from master.events import MAX_MISSED_PINGS, MasterConfig
from meseta import __version__
from meseta.errors import InvalidInput
from meseta.keys import PrincipalsFile, cluster_folder, read_key_file
from meseta.log_output import start_logging
from meseta.options import DURATION, DaemonCommand, daemon_options, read_acls

_FOLDER = click.Path(file_okay=False, path_type=Path)
_PORT, _EVENTS_PORT = "5055", 5056
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("master", cls=DaemonCommand)
@click.option("--bind", default="tcp://127.0.0.1:5055", help="Where slaves, frameworks and operators connect.")
@click.option(
    "--events-bind",
    help="Where the event stream is followed; default port 5056 beside --bind's 5055, else one chosen by the system.",
)
@click.option("--work-dir", type=_FOLDER, help="For the registry; default master/ in ~/.meseta, or in MESETA_DIR.")
@click.option("--key", type=_FILE, help="The master's key file; default keys/master.json in that folder.")
@click.option("--principals", type=_FILE, help="Whose keys are known; default keys/principals.json in that folder.")
@click.option("--acl", type=_FILE, help="Rules of who may do what (docs/acl.md); without, known keys may do all.")
@click.option("--insecure", is_flag=True, help="No keys: whoever can connect may do all. For tests only.")
@click.option("--ping-timeout", type=DURATION, default="15s", help="Time between pings.")
@click.option(
    "--max-missed-pings",
    type=click.IntRange(1, 1000),
    default=MAX_MISSED_PINGS,
    help="So many unanswered ones, and a slave is unreachable or a framework disconnected.",
)
@click.option("--offer-timeout", type=DURATION, default="30s", help="Offers not answered within it are rescinded.")
@click.option("--reregister-timeout", type=DURATION, default="10m", help="For slaves to come back to a new master.")
@click.option(
    "--slave-removal-interval",
    type=DURATION,
    default="1s",
    help="At most one slave is made unreachable in so much time.",
)
@click.option("--weights", default="", help="Of roles, as eng=2,ads=0.5; others have 1.")
@daemon_options
def command(
    *,
    bind: str,
    events_bind: str | None,
    work_dir: Path | None,
    key: Path | None,
    principals: Path | None,
    acl: Path | None,
    insecure: bool,
    ping_timeout: float,
    max_missed_pings: int,
    offer_timeout: float,
    reregister_timeout: float,
    slave_removal_interval: float,
    weights: str,
    record: Path | None,
    log_level: str,
) -> None:
    """Run a master daemon in the foreground. SIGTERM ends it; slaves and tasks go on."""
    start_logging(log_level)
    folder = cluster_folder()
    config = MasterConfig(
        ping_timeout_s=_positive("--ping-timeout", ping_timeout),
        max_missed_pings=max_missed_pings,
        offer_timeout_s=_positive("--offer-timeout", offer_timeout),
        reregister_timeout_s=reregister_timeout,
        slave_removal_interval_s=slave_removal_interval,
        weights=parse_weights(weights),
        acls="" if acl is None else read_acls(acl),
        is_insecure=insecure,
        version=__version__,
    )
    settings = MasterSettings(
        bind=bind,
        events_bind=events_bind or default_events_bind(bind),
        work_dir=(work_dir or folder / "master").absolute(),
        config=config,
        keys=None if insecure else read_key_file(key or folder / "keys" / "master.json").pair,
        principals={} if insecure else PrincipalsFile(principals or folder / "keys" / "principals.json"),
        record=record,
    )
    sys.exit(asyncio.run(MasterDaemon(settings).run()))


def default_events_bind(bind: str) -> str:
    """Return where the event stream is for a master at `bind`; only the well-known port has a well-known neighbour."""
    host, _, port = bind.rpartition(":")
    return f"{host}:{_EVENTS_PORT if port == _PORT else 0}" if host.startswith("tcp:") else "tcp://127.0.0.1:0"


def parse_weights(text: str) -> dict[str, float]:
    """Read `role=weight,role=weight`.

    Raises:
        InvalidInput: names the part that is wrong.
    """
    weights: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        role, _, number = part.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = 0.0
        if not role or not 0.001 <= weight <= 1e6:
            raise InvalidInput(f"--weights: {part!r} is no weight; write ROLE=NUMBER within 0.001 and 1000000")
        if role in weights:
            raise InvalidInput(f"--weights: {role} is given twice; give each role once")
        weights[role] = weight
    return weights


def _positive(flag: str, seconds: float) -> float:
    if seconds <= 0:
        raise InvalidInput(f"{flag}: must be longer than nothing, as 15s")
    return seconds
