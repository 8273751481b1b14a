"""What an operator waits for: `dcos --help`, `dcos up` with three slaves, `dcos node list`."""

import tempfile
import time
from pathlib import Path

from tests.bench.harness import DCOS, dcos, emit, percentile, timed

ROUNDS = 10
UP_ROUNDS = 3


def main() -> None:
    """Print one line."""
    help_s = timed([DCOS, "--help"], repeat=ROUNDS)
    up_s: list[float] = []
    node_list_s: list[float] = []
    for _ in range(UP_ROUNDS):
        with tempfile.TemporaryDirectory(prefix="meseta-bench-") as name:
            folder = Path(name)
            started = time.perf_counter()
            dcos(folder, "up", "--slaves", "3", "--dir", name)
            up_s.append(time.perf_counter() - started)
            try:
                nodes = timed([DCOS, "node", "list", "--json"], repeat=ROUNDS, environment={"MESETA_DIR": name})
                node_list_s += nodes
            finally:
                dcos(folder, "down", "--dir", name)
    emit(
        "commands",
        help_median_s=percentile(help_s, 0.5),
        up_3_slaves_median_s=percentile(sorted(up_s), 0.5),
        up_3_slaves_max_s=max(up_s),
        node_list_median_s=percentile(sorted(node_list_s), 0.5),
    )


if __name__ == "__main__":
    main()
