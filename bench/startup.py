#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a start of pve-state costs: processor time and peak memory of ``pve-state status --json``, before and after.

    python bench/startup.py [--json] [--runs N] [--revision REV | --former FILE]

``former`` is the program as one file, as it was at a git revision; ``present`` is the package of this checkout, installed
as on a node (compiled, by its launcher). Both look at a node directory with a store of three generations, by turns; the
figures are medians. ``cpu_ms`` is user + system time in milliseconds, ``memory_kib`` the peak of the resident memory. Exits 1
when a ratio is above its aim, 2 when nothing could be measured.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "module_utils"))

from pveguard.base import node_program  # noqa: E402
from pveguard.state.program import PVE_STATE  # noqa: E402

#: The last revision at which the program was one file.
REVISION = "9ae2df4"
FILE = "roles/ram_state/files/pve-state"
AIMS = {"cpu": 0.5, "memory": 0.6}
#: A process that begins takes over the peak memory of the one that began it, so that must be a small one.
RUNNER = """\
import os, sys
pid = os.fork()
if not pid:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.execv(sys.argv[1], sys.argv[1:])
_, status, used = os.wait4(pid, 0)
print(os.waitstatus_to_exitcode(status), 1000 * (used.ru_utime + used.ru_stime), used.ru_maxrss)
"""
SCHEMA = (
    "CREATE TABLE tree (inode INTEGER PRIMARY KEY NOT NULL,"
    " parent INTEGER NOT NULL CHECK(typeof(parent)=='integer'),"
    " version INTEGER NOT NULL CHECK(typeof(version)=='integer'),"
    " writer INTEGER NOT NULL CHECK(typeof(writer)=='integer'),"
    " mtime INTEGER NOT NULL CHECK(typeof(mtime)=='integer'),"
    " type INTEGER NOT NULL CHECK(typeof(type)=='integer'), name TEXT NOT NULL, data BLOB)"
)
GUESTS = 40


class NothingMeasured(Exception):
    """What is missing."""


def former_program(revision: str, target: Path) -> Path:
    """The program as it was at a revision, written to ``target``."""
    done = subprocess.run(["git", "show", f"{revision}:{FILE}"], cwd=ROOT, capture_output=True)
    if done.returncode:
        raise NothingMeasured(f"git show {revision}:{FILE}: {done.stderr.decode().strip()}")
    target.write_bytes(done.stdout)
    return target


def present_program(root: Path) -> Path:
    """The package of this checkout, installed below ``root``; the path that it is called by."""
    node_program.install(PVE_STATE, root)
    return root / PVE_STATE.command.lstrip("/")


def prepare(node: Path, program: Path) -> None:
    """A node directory: the daemon's database with some guests, and a store with three generations, verified."""
    live = node / "var/lib/pve-cluster"
    live.mkdir(parents=True)
    database = sqlite3.connect(live / "config.db", isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute(SCHEMA)
    rows: list[tuple[int, int, int, str, bytes | None]] = [(0, 0, 4, "__version__", None)]
    rows += [(1, 0, 4, "nodes", None), (2, 1, 4, "pve1", None), (3, 2, 4, "qemu-server", None)]
    rows += [(10 + i, 3, 8, f"{100 + i}.conf", b"name: guest\ncores: 2\nmemory: 2048\n" * 8) for i in range(GUESTS)]
    top = 100
    filled = [(i, up, i or top, kind, name, data) for i, up, kind, name, data in rows]
    database.executemany("INSERT INTO tree VALUES(?,?,?,0,1700000000,?,?,?)", filled)
    for number in range(3):
        database.execute("UPDATE tree SET version=? WHERE inode IN (0, 10)", (top + number,))
        _run([sys.executable, "-IS", str(program), "--root", str(node), "save", "--generation", "--reason", f"bench {number}"])
    database.close()


def _run(argv: list[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise NothingMeasured(f"{' '.join(argv)}: exit code {done.returncode}: {done.stderr.strip()}")


def measure(program: Path, node: Path) -> tuple[float, int]:
    """(milliseconds of processor time, KiB of peak memory) of one ``status --json``."""
    argv = [sys.executable, "-IS", str(program), "--root", str(node), "status", "--json"]
    done = subprocess.run([sys.executable, "-IS", "-c", RUNNER, *argv], capture_output=True, text=True, check=True)
    code, cpu, memory = done.stdout.split()
    if code != "0":
        raise NothingMeasured(f"{' '.join(argv)}: exit code {code}: {done.stderr.strip()}")
    return float(cpu), int(memory)


def compare(programs: dict[str, Path], nodes: dict[str, Path], runs: int) -> dict[str, Any]:
    """Medians of ``runs`` runs each, by turns, and their ratios. One run before them is not counted: it fills caches."""
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in programs}
    for number in range(runs + 1):
        for name, program in programs.items():
            figures = measure(program, nodes[name])
            if number:
                found[name].append(figures)
    cpu = {name: round(statistics.median(one[0] for one in each), 1) for name, each in found.items()}
    memory = {name: round(statistics.median(one[1] for one in each)) for name, each in found.items()}
    ratios = {
        "cpu": round(cpu["present"] / cpu["former"], 3),
        "memory": round(memory["present"] / memory["former"], 3),
    }
    return {
        "python": platform.python_version(),
        "runs": runs,
        "cpu_ms": cpu,
        "memory_kib": memory,
        "ratios": ratios,
        "aims": AIMS,
        "met": all(ratios[key] <= aim for key, aim in AIMS.items()),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What a start of pve-state costs, before and after it became a package.")
    parser.add_argument("--runs", type=int, default=21, metavar="N", help="runs of each program (default: 21)")
    parser.add_argument("--revision", default=REVISION, metavar="REV", help=f"git revision of the former program ({REVISION})")
    parser.add_argument("--former", type=Path, metavar="FILE", help="the former program itself, instead of --revision")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="pveguard-startup-") as folder:
        work = Path(folder)
        try:
            former = options.former or former_program(options.revision, work / "former")
            programs = {"former": former, "present": present_program(work / "installed")}
            prepare(work / "node", programs["present"])
            nodes = {name: work / f"node-{name}" for name in programs}
            for node in nodes.values():
                shutil.copytree(work / "node", node)
            result = {"former": str(options.former or options.revision), **compare(programs, nodes, options.runs)}
        except NothingMeasured as error:
            print(f"startup: {error}", file=sys.stderr)
            return 2
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        print(f"pve-state status --json, Python {result['python']}, medians of {result['runs']} runs\n")
        print(f"{'':22} {'former':>10} {'present':>10} {'ratio':>7} {'aim':>5}")
        for key, title, unit in (("cpu", "processor time, ms", "cpu_ms"), ("memory", "peak memory, KiB", "memory_kib")):
            two = result[unit]
            print(f"{title:22} {two['former']:>10} {two['present']:>10} {result['ratios'][key]:>7} {AIMS[key]:>5}")
    return 0 if result["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
