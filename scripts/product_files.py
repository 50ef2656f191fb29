#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Lists the Python files of the product, whatever their extension or lack of one: scripts/product_files.py [FOLDER...]

The product is what git tracks, or would, outside tests/, lab/tests/ and molecule/*/tests/.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = re.compile(r"(tests|lab/tests|molecule/[^/]+/tests)/|conftest\.py$")
SHEBANG = re.compile(rb"#!.*[/ ]python3?( |\n)")


def product_files(root: Path = ROOT) -> list[str]:
    """Paths below ``root``, sorted; links are left out. RuntimeError if it is no git checkout."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.decode(errors="replace").strip())
    names = sorted({name for name in done.stdout.decode().split("\0") if name and not TESTS.match(name)})
    return [name for name in names if (root / name).is_file() and not (root / name).is_symlink()]


def is_python(path: Path) -> bool:
    """By its extension, else by its first line."""
    if path.suffix in (".py", ".pyi"):
        return True
    with path.open("rb") as stream:
        return SHEBANG.match(stream.readline(200)) is not None


def python_files(root: Path = ROOT) -> list[str]:
    return [name for name in product_files(root) if is_python(root / name)]


def main() -> int:
    folders = tuple(f"{folder.rstrip('/')}/" for folder in sys.argv[1:])
    for name in python_files():
        if not folders or name.startswith(folders):
            print(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
