#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Does a power cut convict a disk that lies, and acquit one that does not? On a virtual machine of the lab, in 2 minutes.

    python -m lab --name cuts up --nodes 1
    python bench/lying_disk.py --name cuts --node pve1 [--json]

The node gets two ext4 file systems on loop devices, one of them under dm-flakey. The role fsync_gate prepares the proof
on both at once (-e fsync_gate_power_cut=prepare). When some records are acknowledged, dm-flakey begins to drop what is
written, while flushes go on to succeed (drop_writes): that is a drive which acknowledges what it does not store. After
some more records the virtual machine loses its power. Started again, both are verified.

Exit status: 0 the liar was convicted and the other acquitted, 1 anything else was said, 2 the test could not be done.
Nothing stays on the node.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lab.errors import LabError  # noqa: E402
from lab.labs import Lab  # noqa: E402

WANTED = {"lying": "convicted", "plain": "acquitted"}
FOLDER = "/srv/pveguard-lying-disk"
#: Records acknowledged before the drive begins to lie, and after.
RECORDS = 100
DEADLINE_S = 300.0

BEGIN = f"""
set -e
modprobe loop; modprobe dm-flakey
mkdir -p {FOLDER}/lying {FOLDER}/plain
cd {FOLDER}
truncate -s 64M lying.img plain.img
lying=$(losetup --find --show lying.img) && plain=$(losetup --find --show plain.img)
dmsetup create pveguard-lying --table "0 $(blockdev --getsz $lying) flakey $lying 0 3600 0"
for device in /dev/mapper/pveguard-lying $plain; do
    mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 $device
done
mount /dev/mapper/pveguard-lying lying
mount $plain plain
sync -f lying; sync -f plain; sync -f .
"""
LIE = """
set -e
table=$(dmsetup table pveguard-lying)
set -- $table
dmsetup load pveguard-lying --table "$1 $2 flakey $4 0 0 3600 1 drop_writes"
dmsetup suspend --noflush --nolockfs pveguard-lying
dmsetup resume pveguard-lying
dmsetup table pveguard-lying | grep drop_writes
"""
AFTER = f"""
set -e
cd {FOLDER}
mount -o loop lying.img lying
mount -o loop plain.img plain
"""
END = f"""
for name in lying plain; do
    if mountpoint -q {FOLDER}/$name; then umount {FOLDER}/$name; fi
done
if test -e /dev/mapper/pveguard-lying; then dmsetup remove --force pveguard-lying; fi
for image in {FOLDER}/*.img; do
    losetup --noheadings --output NAME --associated $image | xargs -r losetup -d
done
rm -rf {FOLDER}
"""
PLAY = """---
- name: Prove a disk by a power cut
  hosts: all
  gather_facts: false
  roles:
    - role: fsync_gate
"""


class CannotTest(Exception):
    """The test could not be done; the message says why."""


def on_node(lab: Lab, node: str, script: str, seconds: float = 120) -> None:
    status, text = lab.machine(node).console.run(script, seconds)
    if status:
        raise CannotTest(f"{node}: {text.strip()[-500:]}")


def play(lab: Lab, node: str, work: Path, name: str, step: str) -> subprocess.Popen[str]:
    """The role on one of the two file systems, with reports of its own."""
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "PVEGUARD_LAB": lab.name}
    values = {
        "fsync_gate_power_cut": step,
        "fsync_gate_path": f"{FOLDER}/{name}",
        "fsync_gate_power_cut_confirm": node,
        "fsync_gate_power_cut_minutes": DEADLINE_S / 60,
        "fsync_gate_reports_dir": str(work / name),
    }
    argv = [
        str(Path(sys.executable).parent / "ansible-playbook"),
        *(
            "-i",
            str(ROOT / "inventory/lab"),
            "--limit",
            node,
            "-e",
            json.dumps(values),
            str(work / "play.yml"),
        ),
    ]
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def wait_for_records(
    plays: dict[str, subprocess.Popen[str]], work: Path, node: str, least: dict[str, int]
) -> dict[str, int]:
    """Wait until so many records of each are acknowledged; how many there are."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        seen = {}
        for name in plays:
            notes = work / name / "power_cut" / f"{node}.acknowledged"
            seen[name] = notes.read_text().count("\n") - 1 if notes.exists() else 0
        if all(seen[name] >= least[name] for name in plays):
            return seen
        for name, process in plays.items():
            if process.poll() is not None:
                raise CannotTest(f"{name}: {process.communicate()[0][-1500:]}")
        if time.monotonic() > deadline:
            raise CannotTest(f"acknowledged in {DEADLINE_S:g} s: {seen}, wanted {least}")
        time.sleep(0.2)


def prove(lab: Lab, node: str, work: Path) -> dict[str, Any]:
    """Prepare, lie, cut, start, verify: what was said of each."""
    (work / "play.yml").write_text(PLAY)
    on_node(lab, node, BEGIN)
    plays = {name: play(lab, node, work, name, "prepare") for name in WANTED}
    try:
        seen = wait_for_records(plays, work, node, dict.fromkeys(WANTED, RECORDS))
        on_node(lab, node, LIE)
        wait_for_records(plays, work, node, {name: count + RECORDS for name, count in seen.items()})
        lab.power_cut([node])
        for name, process in plays.items():
            output = process.communicate(timeout=120)[0]
            if process.returncode:
                raise CannotTest(f"{name}: prepare ended with {process.returncode}: {output[-1500:]}")
    finally:
        for process in plays.values():
            if process.poll() is None:
                process.kill()
                process.wait()
        if not lab.machine(node).running:
            lab.start([node])
    on_node(lab, node, AFTER)
    plays = {name: play(lab, node, work, name, "verify") for name in WANTED}
    found: dict[str, Any] = {"before_the_lie": seen}
    for name, process in plays.items():
        output = process.communicate(timeout=180)[0]
        verdict = work / name / "power_cut" / f"{node}.json"
        if not verdict.exists():
            raise CannotTest(f"{name}: verify ended with {process.returncode}: {output[-1500:]}")
        found[name] = {**json.loads(verdict.read_text()), "exit_status": process.returncode}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--name", default=os.environ.get("PVEGUARD_LAB") or "default", help="the lab (default: $PVEGUARD_LAB)"
    )
    parser.add_argument("--node", default="pve1")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args()
    began = time.monotonic()
    try:
        lab = Lab(options.name)
        lab.select([options.node], running=True)
        with tempfile.TemporaryDirectory() as work:
            try:
                found = prove(lab, options.node, Path(work))
            finally:
                on_node(lab, options.node, END)
    except (CannotTest, LabError, subprocess.TimeoutExpired) as error:
        print(f"lying_disk: {error}", file=sys.stderr)
        return 2
    found["seconds"] = round(time.monotonic() - began, 1)
    good = all(
        found[name]["verdict"] == verdict and (found[name]["exit_status"] == 0) == (verdict == "acquitted")
        for name, verdict in WANTED.items()
    )
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        for name in WANTED:
            print(f"{name}: {found[name]['verdict']}: {found[name]['evidence']}")
        print(f"{found['seconds']} s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
