#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Copy the reader of a live database into the programs that are one file each and so cannot import it.

    scripts/carry.py            write the copies
    scripts/carry.py --check    exit 1 when one differs
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "module_utils/pveguard/pmxcfs/live_database.py"
PROGRAMS = (ROOT / "roles/ram_state/files/pve-state", ROOT / "roles/corosync/files/cluster-member")
BEGIN, END = "# --- live_database: from here", "# --- live_database: its end"


def block(text: str) -> tuple[int, int]:
    """Where the block lies in a text, with both of its marks."""
    start = text.index(BEGIN)
    return start, text.index("\n", text.index(END, start)) + 1


def main(argv: list[str]) -> int:
    core = CORE.read_text()
    start, end = block(core)
    different = []
    for program in PROGRAMS:
        text = program.read_text()
        first, last = block(text)
        new = text[:first] + core[start:end] + text[last:]
        if new != text:
            different.append(program)
            if "--check" not in argv:
                program.write_text(new)
    for program in different:
        print(f"{program.relative_to(ROOT)}: {'differs from' if '--check' in argv else 'now as'} {CORE.name}")
    return 1 if different and "--check" in argv else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
