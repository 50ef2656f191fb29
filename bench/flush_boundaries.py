#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Record a busy minute of the store's device and check the store at every flush boundary.

On a protected node of the lab the store moves, for as long as this runs, to a device under dm-log-writes (a loop device
in the guest), which logs every write in the order in which it became durable. Then the changes of bench/changes.py run:
small ones, bursts, renames, deletes, a restart of the daemon, generations. Two seconds (the RPO) after a change was
acknowledged its number is put into the log as a mark.

The log is fetched and replayed here. A power cut can leave the device as it was after any flush (before and after the
data that a flush carries along), and after any write that went through the cache; at each such boundary the file
system's journal is replayed on a copy, and the store must be one that would be accepted: the replica verifies, every
generation agrees with its manifest, the files are the state after one moment of the sequence, not an older one than at
the boundary before, and with every change whose mark was passed.

    python -m lab --name cuts up --profile cluster && PVEGUARD_LAB=cuts ansible-playbook -i inventory/lab playbooks/protect.yml
    python bench/flush_boundaries.py --name cuts --node pve1 --seconds 60
    python bench/flush_boundaries.py --log .cache/flush_boundaries/log --node pve1 --seed 1      # the check alone

Exit status: 0 every boundary is good, 1 violations, 2 the test could not be done.

The format of the log: a superblock in the first sector (magic, version 1, number of entries, sector size), then for
each entry one sector of header (sector, number of sectors, flags, length of data; all 64 bits, little endian) and the
data. The text of a mark stands in the header's own sector; a discard has no data.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import disk  # noqa: E402
import power_cuts  # noqa: E402

from lab.errors import LabError  # noqa: E402
from lab.labs import Lab  # noqa: E402

MAGIC = 0x6A736677736872
SUPER = struct.Struct("<QQQI")
ENTRY = struct.Struct("<QQQQ")
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8

DATA_MIB = 64
LOG_MIB = 2048


class BadLog(Exception):
    """The log is not one, or ends in the middle of an entry."""


class Entry(NamedTuple):
    """One entry of the log. ``offset`` and ``length`` in bytes; ``data`` of a mark is its text."""

    offset: int
    length: int
    flags: int
    data: bytes

    @property
    def mark(self) -> str | None:
        return self.data.rstrip(b"\0").decode(errors="replace") if self.flags & MARK else None


def entries(log: BinaryIO) -> Iterator[Entry]:
    """The entries of a dm-log-writes log, in the order in which they became durable."""
    head = log.read(SUPER.size)
    if len(head) < SUPER.size:
        raise BadLog("no superblock")
    magic, version, count, sector = SUPER.unpack(head)
    if magic != MAGIC or version != 1:
        raise BadLog(f"magic {magic:#x} version {version}, wanted {MAGIC:#x} version 1")
    if sector < 512 or sector & (sector - 1):
        raise BadLog(f"sector size {sector}")
    log.seek(sector)
    for number in range(count):
        block = log.read(sector)
        if len(block) < sector:
            raise BadLog(f"entry {number} of {count} is not there")
        start, sectors, flags, length = ENTRY.unpack_from(block)
        if flags & MARK:
            yield Entry(0, 0, flags, block[ENTRY.size : ENTRY.size + min(length, sector - ENTRY.size)])
            continue
        data = b""
        if not flags & DISCARD and sectors:
            data = log.read(sectors * sector)
            if len(data) < sectors * sector:
                raise BadLog(f"entry {number} of {count} has {len(data)} bytes of {sectors * sector}")
        yield Entry(start * sector, sectors * sector, flags, data)


def apply(entry: Entry, image: BinaryIO) -> None:
    """Do to the device what the entry says. What was discarded reads as zeros."""
    if entry.flags & MARK or not entry.length:
        return
    image.seek(entry.offset)
    image.write(b"\0" * entry.length if entry.flags & DISCARD else entry.data)


def boundaries(log: BinaryIO, image: BinaryIO) -> Iterator[tuple[str, Entry]]:
    """Replay ``log`` onto ``image``. Yields ("mark", entry) for marks, and ("before", entry) or ("after", entry) each
    time the image is as a power cut may leave the device: when a flush has made durable what came before it, and when
    an entry's own data is durable as well."""
    for entry in entries(log):
        if entry.flags & MARK:
            yield "mark", entry
            continue
        if entry.flags & FLUSH:
            image.flush()
            yield "before", entry
        if not entry.length:
            continue
        apply(entry, image)
        if entry.flags & (FLUSH | FUA):
            image.flush()
            yield "after", entry


@dataclass
class Totals:
    """The summary that is printed in the end."""

    seed: str
    boundaries: int = 0
    states: int = 0  # different states of the files among them
    entries_bytes: int = 0
    flushes: int = 0
    changes_acknowledged: int = 0
    marks: int = 0
    generations: int = 0
    restarts: int = 0
    kept: int = 0  # complete changes in the last state
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)


class Checker:
    """Judges the store at one boundary after the other."""

    def __init__(self, totals: Totals, node: str, most: int, work: Path) -> None:
        self.totals, self.node, self.most, self.work = totals, node, most, work
        self.least = 0
        self.known: dict[str, list[int]] = {}

    def passed(self, mark: str) -> None:
        """A mark says that a change had to be saved by now."""
        if mark.startswith("saved-"):
            self.totals.marks += 1
            self.least = max(self.least, int(mark.removeprefix("saved-")))

    def check(self, image: Path) -> list[str]:
        """What is wrong with the store on the device as it is in ``image``."""
        copy, store = self.work / "boundary.img", self.work / "boundary"
        subprocess.run(["cp", "--sparse=always", "--reflink=auto", image, copy], check=True)
        self.totals.boundaries += 1
        try:
            disk.take_out(copy, "/", store)
        except disk.DiskError as error:
            return [str(error)]
        found = disk.problems(store)
        if any("generation" not in line for line in found):
            return found
        held = disk.digests(store / "config.db").get(self.node, {})
        key = json.dumps(held, sort_keys=True)
        if key not in self.known:
            self.known[key] = power_cuts.matches(held, self.totals.seed, self.node, self.most)
        good = self.known[key]
        if not good:
            found.append(f"the files are in no state they ever were in: {power_cuts.short(held)}")
        elif max(good) < self.least:
            found.append(f"{max(good)} changes are there, {self.least} had to be")
        else:
            self.totals.kept = max(good)
            # The state may not go back from here: the least of the numbers that it can mean.
            self.least = min(number for number in good if number >= self.least)
        return found


def check(log: Path, seed: str, node: str, most: int, work: Path) -> Totals:
    """Replay a log and judge every boundary after the mark ``begin``."""
    totals = Totals(seed, entries_bytes=log.stat().st_size)
    checker = Checker(totals, node, most, work)
    device = work / "device.img"
    begun = False
    with log.open("rb") as stream, device.open("w+b") as image:
        image.truncate(DATA_MIB << 20)
        for number, (when, entry) in enumerate(boundaries(stream, image), 1):
            if when == "mark":
                begun = begun or entry.mark == "begin"
                if entry.mark == "end":
                    break
                checker.passed(entry.mark or "")
                continue
            if not begun:
                continue
            totals.flushes += when == "before"
            for problem in checker.check(device):
                totals.violations.append(
                    f"boundary {number} ({when} {entry.length} bytes at {entry.offset}): {problem}"
                )
    totals.states = len(checker.known)
    if not begun or not totals.boundaries:
        raise BadLog("it holds no boundary after the mark 'begin'")
    return totals


# --- recording -----------------------------------------------------------------------------------------------------

BEGIN = f"""
set -e
modprobe loop; modprobe dm-log-writes
mkdir -p /srv/flush && truncate -s {DATA_MIB}M /srv/flush/data && truncate -s {LOG_MIB}M /srv/flush/log
data=$(losetup --find --show /srv/flush/data) && log=$(losetup --find --show /srv/flush/log)
dmsetup create flush --table "0 $(blockdev --getsz $data) log-writes $data $log"
mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 /dev/mapper/flush
systemctl stop pve-cluster.service pveguard-state.service
mount /dev/mapper/flush /mnt && cp -a /var/lib/pveguard/state/. /mnt/ && umount /mnt
mount /dev/mapper/flush /var/lib/pveguard/state
systemctl start pve-cluster.service
"""
END = """
set -e
sync; dmsetup message flush 0 mark end
systemctl stop pve-cluster.service pveguard-state.service
umount /var/lib/pveguard/state
dmsetup status flush
dmsetup remove flush
"""
PUT_BACK = """
systemctl stop pve-cluster.service pveguard-state.service
if mountpoint -q /var/lib/pveguard/state; then umount /var/lib/pveguard/state; fi
if test -e /dev/mapper/flush; then dmsetup remove flush; fi
data=$(losetup --noheadings --output NAME --associated /srv/flush/data)
if test -n "$data"; then
    mount "$data" /mnt && rm -rf /var/lib/pveguard/state/* && cp -a /mnt/. /var/lib/pveguard/state/ && umount /mnt
    rmdir /var/lib/pveguard/state/lost+found
fi
losetup --noheadings --output NAME --associated /srv/flush/log | xargs -r losetup -d
test -z "$data" || losetup -d "$data"
rm -rf /srv/flush
systemctl start pve-cluster.service
"""


def on_node(lab: Lab, node: str, script: str, seconds: float = 300) -> str:
    status, text = lab.machine(node).console.run(script, seconds)
    if status != 0:
        raise power_cuts.CannotTest(f"{node}: {text.strip()[-500:]}")
    return text


def record(lab: Lab, node: str, seed: str, seconds: float, rpo: float, log: Path) -> power_cuts.Ledger:
    """Run the changes for so many seconds on a recorded device; the log goes to ``log``."""
    members = len(lab.machines())
    before = power_cuts.look(lab, node, members)
    if power_cuts.health(node, before):
        raise power_cuts.CannotTest("; ".join(power_cuts.health(node, before)))
    try:
        on_node(lab, node, BEGIN)
        seen = power_cuts.look(lab, node, members)
        if power_cuts.health(node, seen):
            raise power_cuts.CannotTest("; ".join(power_cuts.health(node, seen)))
        writer = power_cuts.Writer(lab, node, seed, "--marks", "flush", "--mark-after", f"{rpo:g}")
        try:
            if not writer.started.wait(power_cuts.START_SECONDS) or writer.ledger.started is None:
                raise power_cuts.CannotTest(
                    f"{node}: the changes did not begin: {writer.ledger.error or 'no answer'}"
                )
            # From here on nothing of an earlier sequence may be there.
            time.sleep(rpo + 1)
            on_node(lab, node, "dmsetup message flush 0 mark begin")
            time.sleep(seconds)
            writer.finish()
        finally:
            if writer.process.poll() is None:
                writer.kill()
        status = on_node(lab, node, END)
        # 0 SECTORS log-writes ENTRIES HIGHEST-SECTOR
        sectors = int(status.split()[-1]) + 1
        with log.open("wb") as target:
            argv = lab.ssh_argv(node, [f"head -c {sectors * 512} /srv/flush/log"])
            subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=target, check=True)
    finally:
        on_node(lab, node, PUT_BACK)
    return writer.ledger


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    top.add_argument(
        "--name", default=os.environ.get("PVEGUARD_LAB") or "default", help="the lab (default: $PVEGUARD_LAB)"
    )
    top.add_argument("--node", default="pve1")
    top.add_argument("--seconds", type=float, default=60)
    top.add_argument("--seed", default="1")
    top.add_argument(
        "--rpo", type=float, default=2.0, metavar="SECONDS", help="ram_state_rpo_seconds (default 2)"
    )
    top.add_argument("--log", type=Path, help="check this log instead of recording one")
    top.add_argument(
        "--work", type=Path, default=ROOT / ".cache/flush_boundaries", help="where log and copies are kept"
    )
    top.add_argument("--json", action="store_true", help="print the summary as JSON")
    return top


def main() -> int:
    options = parser().parse_args()
    begin = time.monotonic()
    work: Path = options.work
    try:
        ledger = None
        log = options.log
        if log is None:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            log = work / "log"
            lab = Lab(options.name)
            lab.select([options.node], running=True)
            ledger = record(lab, options.node, options.seed, options.seconds, options.rpo, log)
            print(f"{len(ledger.acknowledged)} changes, {log.stat().st_size} bytes of log", file=sys.stderr)
        most = len(ledger.acknowledged) if ledger else 100_000
        totals = check(log, options.seed, options.node, most, work)
    except (BadLog, LabError, power_cuts.CannotTest, subprocess.CalledProcessError) as error:
        print(f"flush_boundaries: {error}", file=sys.stderr)
        return 2
    if ledger:
        totals.changes_acknowledged = len(ledger.acknowledged)
        totals.restarts = ledger.events.count("restart")
        totals.generations = ledger.events.count("generation")
    totals.seconds = round(time.monotonic() - begin, 1)
    show(vars(totals), options.json)
    return 1 if totals.violations else 0


def show(totals: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(totals, indent=2))
        return
    for key, value in totals.items():
        if key != "violations":
            print(f"{key.replace('_', ' '):28} {value}")
    for line in totals["violations"][:50]:
        print(line)


if __name__ == "__main__":
    sys.exit(main())
