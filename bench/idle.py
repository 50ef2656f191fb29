#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What protected nodes write while nobody asks for anything: sectors of the store's device, transactions a minute.

One program per node counts for the whole time and is asked only at its end, so that no login falls into the window.
Exits 1 when a sector was written.

    python bench/idle.py -i inventory/lab --seconds 600 [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import ad_hoc

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ROOT / "molecule" / "default" / "files" / "look.py"
READER = PROGRAM.with_name("with_reader.py")
CORES = ROOT / "module_utils" / "pveguard/pmxcfs"


def one_program() -> str:
    """PROGRAM and the cores that it imports as one file: the node has none of them."""
    return (
        "import io, sys\n"
        f"sys.argv[1:1] = {[(CORES / name).read_text() for name in ('live_database.py', 'tree.py')]!r}\n"
        f"sys.stdin = io.StringIO({PROGRAM.read_text()!r})\n"
        f"exec({READER.read_text()!r})\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-i", "--inventory", default="inventory/lab")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    with tempfile.NamedTemporaryFile("w", suffix=".py") as program:
        program.write(one_program())
        program.flush()
        script = f"{program.name} {options.seconds} executable=/usr/bin/python3"
        try:
            results = ad_hoc.run("all", options.inventory, "ansible.builtin.script", script)
        except ad_hoc.ModuleFailed as error:
            print(f"the nodes could not be observed: {error}", file=sys.stderr)
            return 2
    idle = {name: json.loads(result["stdout"])["idle"] for name, result in results.items()}
    if options.json:
        print(json.dumps({"seconds": options.seconds, "nodes": idle}, indent=2))
    else:
        print(f"{'node':20} {'sectors':>8} {'transactions/min':>17}   in {options.seconds} s")
        for name, figures in idle.items():
            print(f"{name:20} {figures['sectors']:8} {figures['transactions_per_minute']:17.1f}")
    return 1 if any(figures["sectors"] for figures in idle.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
