#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What 1 MiB written to /etc/pve costs in blocks of 512 B, 4 KiB, 128 KiB and 1 MiB, beside the published figures.

    python bench/write_amplification.py -i inventory/lab [--node NAME] [--json]
    python bench/write_amplification.py --double [--json]

Writes 3.3 GB to the disk of EACH member of the node's cluster, so it is for a lab. The first form runs the module
write_amplification on one node. The second needs root, FUSE and loop devices but no virtual machine: a pmxcfs (the double,
or the one named by PMXCFS) in namespaces of its own, its database on an ext4 in memory, fresh for each block size.

Published: pmxcfs 9.1.6, SQLite 3.46, ext4, a fresh database. Exits 1 when a figure is more than 15 % off, 2 when nothing
could be measured. Where the database is in memory there is nothing to compare: no byte reaches a device.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import ad_hoc  # noqa: E402

MIB = 1 << 20
TOLERANCE = 0.15
#: 1 MiB of random data into a new file, by block size. The factor is that of the device bytes.
PUBLISHED: dict[int, dict[str, float]] = {
    512: {
        "transactions": 2049,
        "pmxcfs_write_bytes": 2_794_303_488,
        "device_bytes": 2_803_302_400,
        "factor": 2673,
    },
    4 << 10: {
        "transactions": 257,
        "pmxcfs_write_bytes": 349_794_304,
        "device_bytes": 351_576_064,
        "factor": 335,
    },
    128 << 10: {
        "transactions": 9,
        "pmxcfs_write_bytes": 9_998_336,
        "device_bytes": 10_072_064,
        "factor": 9.6,
    },
    MIB: {"transactions": 9, "pmxcfs_write_bytes": 9_998_336, "device_bytes": 10_072_064, "factor": 9.6},
}

CORE = """
import json, sys
sys.path.insert(0, sys.argv[1])
from pveguard.writes import write_amplification
print(json.dumps(write_amplification.measure(**json.loads(sys.argv[2]))))
"""


class NotMeasuredError(Exception):
    """Nothing could be measured."""


def on_node(inventory: str, node: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The module's result on a node of an inventory."""
    try:
        results = ad_hoc.run(node, inventory, "write_amplification", arguments)
    except ad_hoc.ModuleFailed as error:
        said = [result["msg"] for result in error.results.values() if result.get("msg")]
        raise NotMeasuredError("; ".join(said) or str(error)) from None
    # ``node`` is a pattern, such as all[0], and not the host's name.
    if len(results) != 1:
        raise NotMeasuredError(f"--node {node} names {len(results)} hosts ({', '.join(results)}), wanted one")
    return next(iter(results.values()))


def on_double(arguments: dict[str, Any]) -> dict[str, Any]:
    """The core's result in nodes of namespaces, a fresh one for each case."""
    from lab.tests.doubles.harness import LoopDevice, Node, why_not

    if (reason := why_not()) is not None:
        raise NotMeasuredError(reason)
    results = []
    for case in arguments["cases"]:
        folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
        node = Node()
        try:
            device = LoopDevice(folder)
            try:
                device.mount(node, "/var/lib/pve-cluster", "relatime")
                node.start()
                given = json.dumps({**arguments, "cases": [case]})
                done = node.run("/usr/bin/python3", "-c", CORE, str(ROOT / "module_utils"), given, timeout=900)
            finally:
                device.unpin()
                node.close()
                device.close()
        finally:
            node.close()
            shutil.rmtree(folder)
        if done.returncode:
            raise NotMeasuredError(done.stderr.strip())
        results.append(json.loads(done.stdout))
    return {
        **results[0],
        "cases": [case for result in results for case in result["cases"]],
        "spent_bytes": sum(result["spent_bytes"] for result in results),
        "notes": list(dict.fromkeys(note for result in results for note in result["notes"])),
    }


def compare(result: dict[str, Any]) -> dict[str, Any]:
    """``result`` with the published figures, ours by theirs, and which of them are within the tolerance.

    Transactions are compared exactly, unless others made some in the idle window.
    """
    missed = []
    quiet = not (result["idle"] or {}).get("transactions")
    for case in result["cases"]:
        published = PUBLISHED[case["block_bytes"]]
        case["published"] = published
        case["ratio"] = {
            key: round(case[key] / value, 3) for key, value in published.items() if case[key] is not None
        }
        if case["skipped"] or result["database_in_memory"]:
            continue
        for key in published:
            bound = 0 if key == "transactions" and quiet else TOLERANCE * published[key]
            if case[key] is None or abs(case[key] - published[key]) > bound:
                missed.append(f"{key} in blocks of {case['block_bytes']}")
    return {**result, "missed": missed}


def table(report: dict[str, Any]) -> str:
    """The comparison as text."""
    lines = [f"{'block':>8}  {'':20} {'ours':>15} {'published':>15} {'ratio':>7}"]
    for case in report["cases"]:
        for key, value in case["published"].items():
            first = case["block_bytes"] if key == "transactions" else ""
            ours = "unknown" if case[key] is None else f"{case[key]:,}"
            ratio = case["ratio"].get(key)
            lines.append(
                f"{first:>8}  {key:20} {ours:>15} {value:>15,} {'' if ratio is None else f'{ratio:.3f}':>7}"
            )
    skipped = [f"{case['block_bytes']}: {case['skipped']}" for case in report["cases"] if case["skipped"]]
    lines += [*skipped, *report["notes"], *(f"more than 15 % off: {what}" for what in report["missed"])]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-i", "--inventory", default="inventory/lab")
    parser.add_argument("--node", default="all[0]", help="a host of the inventory (default: the first)")
    parser.add_argument("--double", action="store_true", help="a pmxcfs in namespaces instead of a node")
    parser.add_argument("--blocks", type=int, nargs="+", choices=sorted(PUBLISHED), default=sorted(PUBLISHED)[::-1])
    parser.add_argument("--budget", type=int, default=32 << 30, help="bytes for all members together")
    parser.add_argument("--idle-seconds", type=float, default=10.0, help="how long others are observed before")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    arguments = {
        "cases": [{"file_bytes": MIB, "block_bytes": block} for block in options.blocks],
        "device_write_budget_bytes": options.budget,
        "idle_seconds": options.idle_seconds,
    }
    try:
        result = on_double(arguments) if options.double else on_node(options.inventory, options.node, arguments)
    except NotMeasuredError as error:
        print(f"nothing could be measured: {error}", file=sys.stderr)
        return 2
    report = compare(result)
    print(json.dumps(report, indent=2) if options.json else table(report))
    return 1 if report["missed"] or all(case["skipped"] for case in report["cases"]) else 0


if __name__ == "__main__":
    sys.exit(main())
