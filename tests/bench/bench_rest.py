"""What a cluster costs at rest: memory and CPU of the master, one slave and its supervisor."""

import argparse
import time

from tests.bench.harness import cluster, cpu_seconds, daemon_pids, emit, pss_mib

SETTLE_S = 3.0  # For what daemons still do after their start.


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    with cluster(slaves=1, options=["--without", "batch"]) as folder:
        time.sleep(SETTLE_S)
        pids = daemon_pids(folder)
        before = {name: cpu_seconds([pid]) for name, pid in pids.items()}
        started = time.monotonic()
        time.sleep(options.seconds)  # At rest nothing happens that could be waited for.
        took_s = time.monotonic() - started
        used = {name: cpu_seconds([pid]) - before[name] for name, pid in pids.items()}
        memory = {f"{name}_pss_mib": pss_mib(pid) for name, pid in pids.items()}
        emit(
            "rest",
            pss_mib=sum(memory.values()),
            cpu_percent=100 * sum(used.values()) / took_s,
            seconds=took_s,
            **memory,
        )


if __name__ == "__main__":
    main()
