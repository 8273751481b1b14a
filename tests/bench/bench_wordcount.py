"""Word count of 256 MiB on 2 workers through the shipped daemons, beside multiprocessing + Counter.

    python -P tests/bench/bench_wordcount.py

prints one JSON line. The text is the standard library's Python files, repeated, in 8 files. The
peer counts each file with `Counter.update(line.split())` in a pool of two processes, adds the counters
up and writes them sorted: what a person would write who has one machine. It runs before and
after the jobs, and its mean counts. CPU is that of all processes of each: for the jobs daemons, supervisors,
executors, workers and the `dcos` command.
"""

import multiprocessing
import resource
import sysconfig
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.bench.harness import cluster, cpu_seconds, dcos, emit, status, tree

SIZE_MIB = 256
FILES = 8
WORKERS = 2
SETTLE_LIMIT_S = 30.0
WORDCOUNT = Path(__file__).parents[2] / "frameworks" / "examples" / "wordcount.py"

MAP_LINES = """
from collections import Counter
from operator import add as combine

def map_lines(lines):
    counts = Counter()
    for line in lines:
        counts.update(line.split())
    return counts

def reduce(word, counts):
    yield word, sum(counts)
"""


def write_inputs(folder: Path) -> list[Path]:
    """Write the text; the same on every machine with the same Python."""
    library = Path(sysconfig.get_paths()["stdlib"])
    sources = sorted(path for path in library.rglob("*.py") if "site-packages" not in path.parts)
    text = b"".join(path.read_bytes() for path in sources)
    size = SIZE_MIB * (1 << 20) // FILES
    paths = []
    for index in range(FILES):
        start = index * size % len(text)
        data = text[start:] + text * (size // len(text) + 1)
        path = folder / f"text-{index}"
        path.write_bytes(data[:size])
        paths.append(path)
    return paths


def count_file(path: Path) -> "Counter[str]":
    """Count the words of one file, line by line."""
    counts: Counter[str] = Counter()
    with path.open(errors="replace", newline="\n") as file:
        for line in file:
            counts.update(line.split())
    return counts


def peer(paths: list[Path], output: Path) -> tuple[float, float]:
    """Count with a pool; return CPU and wall seconds."""
    started, before = time.perf_counter(), _own_cpu_s()
    with multiprocessing.Pool(WORKERS) as pool:
        counts: Counter[str] = Counter()
        for one in pool.imap_unordered(count_file, paths):
            counts.update(one)
        with output.open("w", errors="surrogateescape") as file:
            file.writelines(f"{word}\t{counts[word]}\n" for word in sorted(counts))
        pool.close()
        pool.join()
    return _own_cpu_s() - before, time.perf_counter() - started


def job(folder: Path, roots: list[int], job_file: Path, inputs: Path, output: Path) -> tuple[float, float]:
    """Count with a job; return CPU and wall seconds."""
    idle = len(tree(roots))
    started, before = time.perf_counter(), cpu_seconds(roots) + _own_cpu_s()
    dcos(folder, "batch", "run", str(job_file), str(inputs), "-o", str(output), "--reducers", str(WORKERS))
    wall_s = time.perf_counter() - started
    deadline = time.monotonic() + SETTLE_LIMIT_S
    while len(tree(roots)) > idle and time.monotonic() < deadline:
        time.sleep(0.05)  # Until the executors have ended: only then their CPU is seen as their supervisor's.
    return cpu_seconds(roots) + _own_cpu_s() - before, wall_s


def supervisors(folder: Path) -> list[int]:
    """Return the supervisors of a cluster: they are nobody's children."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        if b"slave.supervisor" in words and str(folder).encode() in words:
            found.append(int(path.parent.name))
    return found


def same(output: Path, plain: Path) -> bool:
    """True if the job's parts hold exactly the peer's lines."""
    lines = [line for part in sorted(output.glob("part-*")) for line in part.read_bytes().splitlines()]
    return sorted(lines) == sorted(plain.read_bytes().splitlines())


def main() -> None:
    """Print one line."""
    with tempfile.TemporaryDirectory(prefix="meseta-wordcount-") as name:
        folder = Path(name)
        (folder / "in").mkdir()
        paths = write_inputs(folder / "in")
        (folder / "lines.py").write_text(MAP_LINES)
        plain = folder / "plain"
        peers = [peer(paths, plain)]
        with cluster(slaves=WORKERS, options=("--resources", "cpus:1;mem:4GiB")) as where:
            daemons = [int(one["pid"]) for one in status(where)["daemons"]]
            roots = [*daemons, *supervisors(where)]
            lines = job(where, roots, folder / "lines.py", folder / "in", folder / "out-lines")
            pairs = job(where, roots, WORDCOUNT, folder / "in", folder / "out-pairs")
        peers.append(peer(paths, plain))
        is_right = same(folder / "out-lines", plain) and same(folder / "out-pairs", plain)
        peer_cpu_s = sum(cpu_s for cpu_s, _ in peers) / len(peers)
        emit(
            "wordcount",
            size_mib=SIZE_MIB,
            workers=WORKERS,
            is_right=is_right,
            peer_cpu_s=peer_cpu_s,
            peer_wall_s=sum(wall_s for _, wall_s in peers) / len(peers),
            map_lines_cpu_s=lines[0],
            map_lines_wall_s=lines[1],
            map_lines_ratio=lines[0] / peer_cpu_s,
            map_cpu_s=pairs[0],
            map_wall_s=pairs[1],
            map_ratio=pairs[0] / peer_cpu_s,
        )
    if not is_right:
        raise SystemExit("the answers differ")


def _own_cpu_s() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    main()
