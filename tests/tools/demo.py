"""The demonstration behind `make demo`: real daemons, real files, a slave killed in the middle, a checked answer.

Everything goes through the `dcos` command, as an operator would type it. It ends with a non-zero
status, and says why, if anything at all is wrong.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
DCOS = str(Path(sys.executable).with_name("dcos"))
SLAVES = 3
REDUCERS = 3
KILL_AT = 0.3  # Of the maps.
VICTIM = "slave-2"
JOB_LIMIT_S = 300.0  # For slow machines; about 10 s on two idle cores.
TOP = 10
TASK_EXIT = 7


class DemoFailed(Exception):
    """What went wrong, in a sentence."""


def say(text: str) -> None:
    """Print a heading between the outputs of the commands."""
    print(f"\n==> {text}", flush=True)


def shown(folder: Path, *arguments: str, expect: int = 0) -> None:
    """Run a `dcos` command before the reader's eyes."""
    print(f"$ dcos {shlex.join(arguments)}", flush=True)
    status = subprocess.run([DCOS, *arguments], env=environment(folder), check=False).returncode
    if status != expect:
        raise DemoFailed(f"dcos {shlex.join(arguments)} ended with {status}, expected {expect}")


def asked(folder: Path, *arguments: str) -> Any:
    """Return what a `dcos` command says with --json."""
    result = subprocess.run(
        [DCOS, *arguments, "--json"], env=environment(folder), capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise DemoFailed(f"dcos {' '.join(arguments)} failed: {result.stderr.strip()}")
    return json.loads(result.stdout)


def environment(folder: Path) -> dict[str, str]:
    """Return the environment in which `dcos` finds the demonstration's cluster."""
    return os.environ | {"MESETA_DIR": str(folder)}


def library_globs() -> list[str]:
    """Return patterns for all .py files of the standard library, third-party packages left out."""
    library = Path(sysconfig.get_path("stdlib"))
    folders = [
        folder
        for folder in sorted(library.iterdir())
        if folder.is_dir() and not folder.name.startswith((".", "_")) and folder.name != "site-packages"
    ]
    with_code = [folder for folder in folders if next(folder.rglob("*.py"), None) is not None]
    return [f"{library}/*.py", *(f"{folder}/**/*.py" for folder in with_code)]


def library_files() -> list[Path]:
    """Return the files that the patterns mean, found without Meseta."""
    library = Path(sysconfig.get_path("stdlib"))
    files: list[Path] = []
    for pattern in library_globs():
        files += library.glob(pattern.removeprefix(f"{library}/"))
    hidden = [path for path in files if any(part.startswith(".") for part in path.relative_to(library).parts)]
    return sorted(set(files) - set(hidden))


def plain_count(files: list[Path]) -> Counter[str]:
    """Count the words in one process, in the plainest way."""
    counts: Counter[str] = Counter()
    for path in files:
        for line in path.read_bytes().decode("utf-8", errors="replace").split("\n"):
            counts.update(line.split())
    return counts


def kill_slave_in_the_middle(folder: Path, job: subprocess.Popen[bytes]) -> None:
    """Wait until a part of the maps is done, then `kill -9` a slave and all that runs under it."""
    deadline = time.monotonic() + JOB_LIMIT_S
    while True:
        jobs = asked(folder, "batch", "list")["jobs"]
        if jobs and jobs[0]["map_progress"] >= KILL_AT:
            break
        if job.poll() is not None:
            raise DemoFailed("the job ended before a slave could be killed")
        if time.monotonic() > deadline:
            raise DemoFailed(f"the maps did not get to {KILL_AT:.0%} in {JOB_LIMIT_S:.0f} s")
    victims = family(str(folder / VICTIM))
    for victim in victims:
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            continue  # It was a task, and ended just now.
    print(f"\n    kill -9: {VICTIM}, its supervisor and its tasks, {len(victims)} processes", flush=True)


def family(work_dir: str) -> list[int]:
    """Return the processes that name a slave's work folder (daemon, supervisor) and all that descends from them."""
    parents: dict[int, int] = {}
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if any(word == work_dir or word.startswith(f"{work_dir}/") for word in words):
                found.append(int(entry.name))
    for one in found:  # Grows on the way, so that children of children are found.
        found += [child for child, parent in parents.items() if parent == one and child not in found]
    if len(found) < 2:
        raise DemoFailed(f"{VICTIM} has no supervisor to kill: {found}")
    return found


def check_answer(output: Path, expected: Counter[str]) -> Counter[str]:
    """Compare the job's output with the plain count, word for word."""
    if not (output / "_SUCCESS").exists():
        raise DemoFailed(f"{output} has no _SUCCESS")
    counts: Counter[str] = Counter()
    for part in sorted(output.glob("part-*")):
        for line in part.read_text(encoding="utf-8").split("\n"):
            word, tab, count = line.partition("\t")
            if tab:
                counts[word] += int(count)
    if counts != expected:
        differing = [word for word in counts | expected if counts[word] != expected[word]]
        word = differing[0]
        raise DemoFailed(
            f"{len(differing)} words differ from the plain count, {word!r}: {counts[word]}, not {expected[word]}"
        )
    return counts


def run_job(folder: Path, output: Path) -> float:
    """Run the word count with a slave killed on the way; return how long it took."""
    example = str(REPOSITORY / "frameworks" / "examples" / "wordcount.py")
    options = ["-o", str(output), "--reducers", str(REDUCERS), "--split-size", "1MiB"]
    started = time.monotonic()
    print(f"$ dcos batch run wordcount.py LIBRARY... {' '.join(options)}", flush=True)
    job = subprocess.Popen([DCOS, "batch", "run", example, *library_globs(), *options], env=environment(folder))
    try:
        kill_slave_in_the_middle(folder, job)
        status = job.wait(JOB_LIMIT_S)
    finally:
        if job.poll() is None:
            job.kill()
    if status != 0:
        raise DemoFailed(f"dcos batch run ended with {status}")
    return time.monotonic() - started


def play(folder: Path) -> None:
    """Everything that needs the cluster."""
    files = library_files()
    size_mib = sum(path.stat().st_size for path in files) / (1 << 20)
    say(f"Count the words of {len(files)} files, {size_mib:.0f} MiB, and kill a slave in the middle")
    output = folder / "words"
    took_s = run_job(folder, output)
    counts = check_answer(output, plain_count(files))
    print(f"\n{sum(counts.values()):,} words, {len(counts):,} different, in {took_s:.1f} s; same as a plain count")
    for word, count in counts.most_common(TOP):
        print(f"{count:10,}  {word}")
    say("Run a command somewhere; its output and exit status come back")
    shown(folder, "run", "--", "sh", "-c", f"echo hello from a task; exit {TASK_EXIT}", expect=TASK_EXIT)
    say("The machines, and some of what ran")
    shown(folder, "node", "list")
    shown(folder, "batch", "list")
    shown(folder, "task", "list", "--all")


def main() -> int:
    """Play the demonstration and take everything down again."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="meseta-demo-") as name:
        folder = Path(name)
        try:
            say(f"A cluster of a master and {SLAVES} slaves")
            shown(folder, "up", "--slaves", str(SLAVES), "--dir", name)
            try:
                play(folder)
            finally:
                say("Take it all down")
                shown(folder, "down", "--dir", name)
        except DemoFailed as failed:
            print(f"\nThe demonstration failed: {failed}", file=sys.stderr)
            return 1
    print(f"\nAll is well, in {time.monotonic() - started:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
