"""Refuse modules over 600 lines and functions over 60: what no longer fits one mind is split."""

import ast
import sys
from pathlib import Path

MODULE_LINES_LIMIT = 600
FUNCTION_LINES_LIMIT = 60
ROOMS = ("meseta", "master", "slave", "isolation", "frameworks", "cli", "tests")


def breaches(path: Path) -> list[str]:
    """Return one sentence for each size in `path` that is over its limit."""
    text = path.read_text()
    found: list[str] = []
    line_count = text.count("\n")
    if line_count > MODULE_LINES_LIMIT:
        found.append(f"{path}: {line_count} lines, {MODULE_LINES_LIMIT} at most: split it")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES_LIMIT:
                found.append(f"{path}:{node.lineno}: {node.name} has {length} lines, {FUNCTION_LINES_LIMIT} at most")
    return found


def main() -> int:
    """Print every breach and return 1 if there is one."""
    paths = sorted(path for room in ROOMS for path in Path(room).rglob("*.py"))
    found = [line for path in paths for line in breaches(path)]
    for line in found:
        print(line, file=sys.stderr)
    print(f"{len(paths)} modules measured, {len(found)} over their limits")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
