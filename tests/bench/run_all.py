"""Run every benchmark, one after the other; each prints its JSON line."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]


def main() -> int:
    """Return 1 if a benchmark failed."""
    failed: list[str] = []
    for path in sorted(HERE.glob("bench_*.py")):
        module = f"tests.bench.{path.stem}"
        result = subprocess.run([sys.executable, "-m", module], cwd=REPOSITORY, check=False)
        if result.returncode != 0:
            failed.append(module)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
