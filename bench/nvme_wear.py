#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Does what disk_wear reports as written move as the drive's own counter does? On a virtual machine with an emulated NVMe.

    python -m lab --name wear up --nodes 1 --nvme pve1
    python bench/nvme_wear.py --name wear --node pve1 [--mib 200] [--json]

The node's /var/lib is on an emulated NVMe, which counts data_units_written from QEMU's own accounting. The module is asked
before and after a file of the given size was written there, with the kernel's counter of the device read outside of both.
So what the module saw lies between the file's size and what the kernel counted; one unit (512,000 bytes) is allowed at
each end, because the drive rounds up to whole units.

Exit status: 0 it does, 1 it does not, 2 the test could not be done. Nothing stays on the node.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import ad_hoc  # noqa: E402

from lab.errors import LabError  # noqa: E402
from lab.labs import Lab  # noqa: E402

#: NVM Express: thousands of units of 512 bytes.
UNIT_BYTES = 512_000
MIB = 1 << 20
FOLDER = "/var/lib"
FILE = f"{FOLDER}/pveguard-nvme-wear"


class CannotTest(Exception):
    """The test could not be done; the message says why."""


def on_node(lab: Lab, node: str, script: str, seconds: float = 300) -> str:
    status, text = lab.machine(node).console.run(script, seconds)
    if status:
        raise CannotTest(f"{node}: {text.strip()[-500:]}")
    return text


def kernel_bytes(lab: Lab, node: str, device: str) -> int:
    """Bytes that the kernel wrote to the device since boot, after what was pending."""
    text = on_node(lab, node, f"sync -f {FOLDER} && cat /sys/block/{device}/stat")
    return int(text.split()[6]) * 512


def wear(node: str, inventory: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """The module's result for the disk under /var/lib, run as a role runs it."""
    arguments = {"paths": [FOLDER]}
    try:
        found = ad_hoc.run(node, inventory, "disk_wear", arguments, environment=environment, timeout=300)
    except ad_hoc.ModuleFailed as error:
        raise CannotTest(str(error)) from None
    return disk_of(found[node])


def disk_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """The first disk of what disk_wear returned."""
    if not result.get("disks"):
        raise CannotTest(f"no disk behind {FOLDER}: {'; '.join(result.get('notes', []))}")
    disk: dict[str, Any] = result["disks"][0]
    return disk


def judge(payload: int, module: int, kernel: int) -> tuple[bool, str]:
    """Whether the module's bytes lie between those of the file and those of the kernel, and the reason."""
    if module < payload - UNIT_BYTES:
        return False, f"{payload - module:,} bytes of the file are missing from the module's figure"
    if module > kernel + UNIT_BYTES:
        return False, f"the module's figure is {module - kernel:,} bytes above what the kernel wrote"
    return True, "the module's figure lies between the file's size and what the kernel wrote"


def measure(lab: Lab, node: str, payload: int) -> dict[str, Any]:
    machine = lab.select([node], running=True)[0]
    if not machine.nvme:
        raise CannotTest(
            f"{node} has no NVMe; python -m lab --name {lab.name} up --fresh --nodes 1 --nvme {node}"
        )
    inventory, environment = ROOT / "inventory/lab", {"PVEGUARD_LAB": lab.name}
    disk = wear(node, inventory, environment)  # also warms up what the first run writes
    device = disk["disk"]
    if disk["written_bytes"] is None:
        raise CannotTest(f"{device}: {'; '.join(disk['notes'])}")
    try:
        kernel_before = kernel_bytes(lab, node, device)
        before = wear(node, inventory, environment)
        on_node(
            lab, node, f"dd if=/dev/zero of={FILE} bs=1M count={payload // MIB} conv=fsync && sync -f {FOLDER}"
        )
        after = wear(node, inventory, environment)
        kernel_after = kernel_bytes(lab, node, device)
    finally:
        on_node(lab, node, f"rm -f {FILE}")
    module, kernel = after["written_bytes"] - before["written_bytes"], kernel_after - kernel_before
    good, reason = judge(payload, module, kernel)
    return {
        "disk": device,
        "model": after["model"],
        "tool": after["tool"],
        "from": after["written_from"],
        "file_bytes": payload,
        "module_bytes": module,
        "kernel_bytes": kernel,
        "data_units_written": [entry["written_bytes"] // UNIT_BYTES for entry in (before, after)],
        "good": good,
        "reason": reason,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--name", default=os.environ.get("PVEGUARD_LAB") or "default", help="the lab (default: $PVEGUARD_LAB)"
    )
    parser.add_argument("--node", default="pve1")
    parser.add_argument("--mib", type=int, default=200, help="size of the file in MiB (default 200)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args()
    if not 1 <= options.mib <= 1024:
        parser.error(f"--mib is {options.mib}, expected 1 to 1024")
    try:
        found = measure(Lab(options.name), options.node, options.mib * MIB)
    except (CannotTest, LabError, subprocess.TimeoutExpired) as error:
        print(f"nvme_wear: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        first, last = found["data_units_written"]
        print(f"{found['disk']} ({found['model']}, {found['tool']}, {found['from']})")
        print(f"data units written  {first:,} -> {last:,}")
        for label, key in (("the file", "file_bytes"), ("the module", "module_bytes"), ("the kernel", "kernel_bytes")):
            print(f"{label:<18}{found[key]:>14,} bytes")
        print(found["reason"])
    return 0 if found["good"] else 1


if __name__ == "__main__":
    sys.exit(main())
