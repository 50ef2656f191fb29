#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What it costs to observe: device bytes and processor time that the method ``database`` of pmxcfs_writes adds.

    sudo python bench/observation.py [--seconds 60] [--rounds 3] [--json]

Needs root, FUSE and loop devices, no virtual machine. Three nodes, each with a device of its own behind the database of its
daemon, get the same heartbeats at the same time (one every five seconds, as an idle LRM makes them). One is left alone, one
is only written back (``sync -f``) at both ends of the window, as every window that counts device bytes is, and one is
observed; they change places with each round. Shown for databases of 200 and of 4,000 guest configurations. The processor
time is that of the observing process during the window, its start left out, as a share of one core.

Aims: at most 16 KiB more at the device for the samples of a window (median of the rounds), and less than 1 % of a core with
200 configurations. What the write-back adds is shown: bytes that were due anyway, but would have been written together with
later ones. Exits 1 when an aim is missed, 2 when nothing could be measured.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ram_subjects import HEARTBEAT_SECONDS, Stock, seed  # noqa: E402

from lab.tests.doubles.harness import why_not  # noqa: E402

#: Guest configurations in the database; the aims are for the first.
GUESTS = (200, 4000)
SAMPLES_BYTES = 16 << 10
CORE_PERCENT = 1.0
MEDIANS = ("samples_device_bytes", "write_back_device_bytes", "cpu_percent")
#: What the module does, once it runs. Prints the result with the time that it took of a processor.
OBSERVE = """
import json, resource, sys
sys.path.insert(0, sys.argv[1])
from pveguard.writes import pmxcfs_writes
def spent():
    parts = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in parts)
before = spent()
found = pmxcfs_writes.measure(
    window_seconds=float(sys.argv[2]), sample_seconds=float(sys.argv[3]), store="/var/lib/pve-cluster"
)["window"]
print(json.dumps({**found, "cpu_seconds": spent() - before}))
"""


def observe(node: Stock, seconds: float, sample_seconds: float) -> subprocess.Popen[str]:
    arguments = [OBSERVE, str(ROOT / "module_utils"), str(seconds), str(sample_seconds)]
    return subprocess.Popen(
        node.node.enter(["/usr/bin/python3", "-c", *arguments]), stdout=subprocess.PIPE, text=True
    )


def one_round(nodes: list[Stock], seconds: float) -> dict[str, Any]:
    """The figures of one window: the first node is observed, the second only written back, the third left alone."""
    before = [node.settled() for node in nodes]
    processes = [observe(nodes[0], seconds, 1.0), observe(nodes[1], seconds, seconds)]
    begun = beat = time.monotonic()
    # The window outlasts the last heartbeat, so that all nodes are the same when it ends.
    while beat < begun + seconds - HEARTBEAT_SECONDS:
        for node in nodes:
            node.heartbeat()
        beat += HEARTBEAT_SECONDS
        time.sleep(max(0.0, beat - time.monotonic()))
    output = [process.communicate(timeout=seconds + 120)[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError("the observing process failed")
    found = json.loads(output[0])
    observed, written_back, alone = (node.settled() - base for node, base in zip(nodes, before, strict=True))
    return {
        "observed_device_bytes": observed,
        "written_back_device_bytes": written_back,
        "alone_device_bytes": alone,
        "samples_device_bytes": observed - written_back,
        "write_back_device_bytes": written_back - alone,
        "cpu_percent": round(100 * found["cpu_seconds"] / found["seconds"], 3),
        "transactions": found["transactions"],
        "transactions_of_ha": sum(part["transactions"] for part in found["classes"] if part["class"] == "ha"),
    }


def measure(seconds: float, rounds: int) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    result: dict[str, Any] = {"window_seconds": seconds, "databases": []}
    try:
        for guests in GUESTS:
            seed(folder / f"{guests}.db", guests=guests)
            nodes: list[Stock] = []
            try:
                for side in "abc":
                    nodes.append(Stock(folder / f"{guests}-{side}", "ext4", folder / f"{guests}.db"))
                # The first checkpoint of a log, and what a file system does on its first writes, are not the window's.
                for node in nodes:
                    node.heartbeat()
                done = [one_round(nodes[n % 3 :] + nodes[: n % 3], seconds) for n in range(rounds)]
            finally:
                for node in nodes:
                    node.close()
            result["databases"].append(
                {
                    "guests": guests,
                    **{key: statistics.median(part[key] for part in done) for key in MEDIANS},
                    "rounds": done,
                }
            )
    finally:
        shutil.rmtree(folder)
    first = result["databases"][0]
    result["missed"] = [
        text
        for text, missed in (
            (
                f"samples_device_bytes {first['samples_device_bytes']} > {SAMPLES_BYTES}",
                first["samples_device_bytes"] > SAMPLES_BYTES,
            ),
            (f"cpu_percent {first['cpu_percent']} >= {CORE_PERCENT:g}", first["cpu_percent"] >= CORE_PERCENT),
        )
        if missed
    ]
    return result


def table(result: dict[str, Any]) -> str:
    head = ("guests", "observed B", "written back", "alone", "samples", "write-back", "of a core", "transactions, of HA")
    lines = ["".join(f"{text:>14}" for text in head[:-1]) + f"{head[-1]:>22}"]
    for database in result["databases"]:
        for part in database["rounds"]:
            figures = [
                part[f"{key}_device_bytes"] for key in ("observed", "written_back", "alone", "samples", "write_back")
            ]
            lines.append(
                f"{database['guests']:>14,}"
                + "".join(f"{figure:>14,}" for figure in figures)
                + f"{part['cpu_percent']:>12.2f} %{part['transactions']:>18}, {part['transactions_of_ha']}"
            )
    return "\n".join([*lines, *(f"missed: {text}" for text in result["missed"])])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="length of a window (default 60)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if (reason := why_not()) is not None:
        print(f"observation: {reason}", file=sys.stderr)
        return 2
    try:
        result = measure(arguments.seconds, arguments.rounds)
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        print(f"observation: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result, indent=2) if arguments.json else table(result))
    return 1 if result["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
