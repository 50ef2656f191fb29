#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What measures of the write diet save that are off by default: the same work without and with each, on real file systems.

    python bench/write_diet_measures.py --name measures [--seconds 600] [--json] [--out FILE]

Needs a virtual machine, and makes the lab NAME anew: one node with an emulated NVMe. Each piece of work has an ext4 on a loop
device of its own, so that its counter counts nothing else; both ends of a window are synced.

logs: 150 bytes are appended to a file each second and nobody syncs them, as an access log that is polled. ``writeback``: with
the kernel's dirty_expire_centisecs and dirty_writeback_centisecs as the role sets them; ``commit``: mounted with commit=60.
reads: 1000 files whose access times are two days old are read once, with relatime and with noatime. smartd: one check of an
NVMe with state file and attribute log, as Debian builds it in, and with -s - -A -; 48 of them are a day.

Exits 1 when a measure saves nothing, 2 when nothing could be measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "module_utils")]

from lab.errors import LabError  # noqa: E402
from lab.labs import Lab  # noqa: E402
from pveguard.diet import writeback  # noqa: E402

NODE = "pve1"
KIB = 1024
CHECKS_A_DAY = 48  # of smartd, one in 30 minutes

#: Runs on the node, with SECONDS and the two settings of the kernel before it.
PROGRAM = r'''
import json, os, subprocess, time

WORK = "/run/pveguard-measures"


def run(*argv):
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


class Place:
    """An ext4 on a loop device."""

    def __init__(self, name, options="defaults"):
        self.path = f"{WORK}/{name}"
        image = f"{self.path}.img"
        with open(image, "wb") as file:
            file.truncate(96 << 20)
        run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)
        self.loop = run("losetup", "--find", "--show", image)
        os.mkdir(self.path)
        run("mount", "-o", options, self.loop, self.path)

    def written(self):
        os.sync()
        with open(f"/sys/block/{self.loop.rpartition('/')[2]}/stat") as file:
            return int(file.read().split()[6]) * 512

    def remount(self, options):
        run("mount", "-o", f"remount,{options}", self.path)

    def close(self):
        run("umount", self.path)
        run("losetup", "--detach", self.loop)
        os.unlink(f"{self.path}.img")
        os.rmdir(self.path)


def kernel(name, value=None):
    with open(f"/proc/sys/vm/{name}", "r" if value is None else "w") as file:
        return int(file.read()) if value is None else file.write(f"{value}\n")


def append(places, seconds):
    """A line a second to a log on each; returns the bytes each device was written."""
    before = [place.written() for place in places]
    logs = [open(f"{place.path}/access.log", "a", buffering=1) for place in places]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for log in logs:
            log.write("x" * 149 + "\n")
        time.sleep(1)
    for log in logs:
        log.close()
    return [place.written() - count for place, count in zip(places, before)]


def read_all(place):
    old = time.time() - 2 * 86400
    names = [f"{place.path}/{number}" for number in range(1000)]
    for name in names:
        with open(name, "w") as file:
            file.write("x" * 512)
        os.utime(name, (old, old + 3600))
    # atime is noted where it is older than a day: the files themselves are older still.
    before = place.written()
    for name in names:
        with open(name) as file:
            file.read()
    return place.written() - before


def check_drives(place, arguments):
    before = place.written()
    # 16: some drive has something to tell; 17 and more: it did not run.
    done = subprocess.run(["/usr/sbin/smartd", "-q", "onecheck", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"smartd -q onecheck: {done.returncode}: {done.stdout.decode()[-800:]}")
    return place.written() - before


os.makedirs(WORK, exist_ok=True)
before = [kernel("dirty_expire_centisecs"), kernel("dirty_writeback_centisecs")]
places = []


def new(*given):
    places.append(Place(*given))
    return places[-1]


try:
    found = {}
    state = new("smartd")
    prefix = ["-s", f"{state.path}/smartd.", "-A", f"{state.path}/attrlog."]
    check_drives(state, prefix)  # makes the files
    found["smartd"] = [check_drives(state, prefix), check_drives(state, ["-s", "-", "-A", "-"])]
    found["mounts_atime"] = [read_all(new("relatime", "relatime")), read_all(new("noatime", "noatime"))]
    stock, commit = new("stock"), new("commit", "commit=60")
    without, with_commit = append([stock, commit], SECONDS)
    kernel("dirty_expire_centisecs", EXPIRE)
    kernel("dirty_writeback_centisecs", WAKE)
    late, both = append([stock, commit], SECONDS)
    found["mounts_commit"] = [without, with_commit]
    found["writeback"] = [without, late]
    found["writeback_and_commit"] = [without, both]
finally:
    kernel("dirty_expire_centisecs", before[0])
    kernel("dirty_writeback_centisecs", before[1])
    for place in places:
        place.close()
    os.rmdir(WORK)
print(json.dumps(found))
'''

#: Measure -> what was done.
WORK: dict[str, str] = {
    "smartd": "one check of an NVMe",
    "mounts_atime": "1000 files read, once",
    "mounts_commit": "a log of a line a second, commit=60",
    "writeback": "the same log, written after 120 s",
    "writeback_and_commit": "both",
}


class NotMeasuredError(Exception):
    """Nothing could be measured, and why."""


def report(found: Mapping[str, Sequence[int]], seconds: float) -> dict[str, Any]:
    """``{seconds, measures: {name: {work, without_bytes, with_bytes, factor, bytes_per_day_saved}}}``; a day of reads is one."""
    scale = {"smartd": CHECKS_A_DAY, "mounts_atime": 1}
    measures = {}
    for name, work in WORK.items():
        without, kept = found[name]
        measures[name] = {
            "work": work,
            "without_bytes": without,
            "with_bytes": kept,
            "factor": without / kept if kept else None,
            "bytes_per_day_saved": round((without - kept) * scale.get(name, 86400 / seconds)),
        }
    return {"seconds": seconds, "measures": measures}


def text(result: Mapping[str, Any]) -> str:
    """The report for a terminal."""
    lines = [f"{'':44}{'without':>12}{'with':>12}{'times less':>12}{'saved a day':>14}"]
    for name, each in result["measures"].items():
        factor = "-" if each["factor"] is None else f"{each['factor']:.1f}"
        lines.append(
            f"{name + ': ' + each['work']:44.43}{each['without_bytes'] / KIB:>8.0f} KiB{each['with_bytes'] / KIB:>8.0f} KiB"
            f"{factor:>12}{each['bytes_per_day_saved'] / KIB / KIB:>10.1f} MiB"
        )
    lines.append(f"logs: two windows of {result['seconds']:g} s; reads: once a day; smartd: {CHECKS_A_DAY} checks a day")
    return "\n".join(lines)


def measure(name: str, seconds: float) -> dict[str, Any]:
    """Raises NotMeasuredError and LabError."""
    lab = Lab(name)
    lab.up(profile="pve", nodes=1, nvme=[NODE], fresh=True)
    wanted = writeback.settings({})
    given = f"SECONDS, EXPIRE, WAKE = {seconds!r}, {wanted[writeback.EXPIRE]}, {wanted[writeback.WAKE]}\n{PROGRAM}"
    done = subprocess.run(
        lab.ssh_argv(NODE, ["exec /usr/bin/python3 -"]), input=given.encode(), capture_output=True, timeout=2 * seconds + 900
    )
    if done.returncode:
        raise NotMeasuredError(done.stderr.decode(errors="replace").strip()[-2000:])
    return report(json.loads(done.stdout), seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True, help="the lab, which is made anew")
    parser.add_argument("--seconds", type=float, default=600, help="of each of the two windows of the logs (default 600)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="write the JSON here as well")
    options = parser.parse_args()
    try:
        result = measure(options.name, options.seconds)
    except (NotMeasuredError, LabError, subprocess.SubprocessError) as error:
        print(f"nothing measured: {error}", file=sys.stderr)
        return 2
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2) if options.json else text(result))
    return 1 if any(each["bytes_per_day_saved"] <= 0 for each in result["measures"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
