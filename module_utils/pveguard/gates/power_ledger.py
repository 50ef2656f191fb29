"""A ledger that a power cut proves a drive by: records that were acknowledged as durable have to be there afterwards.

This file is also the program that writes the ledger on the node: the controller sends it to ``python3 -`` over ssh, so it
imports nothing of its own project.

The ledger is one file of :data:`SLOTS` records of :data:`RECORD` bytes, allocated and synced before the first record.
Record n goes to slot n modulo SLOTS, is synced with fsync, and only then acknowledged by its number on standard output.
So the file stays small however long the operator waits, and after a cut the last SLOTS acknowledged records can be
checked one by one.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import signal
import struct
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

#: 4 MiB. A record is one block, so that no two of them share a sector.
SLOTS = 1024
RECORD = 4096

DIRECTORY = ".pveguard-power-cut"
FILE = "ledger"

_HEAD = struct.Struct(">8s16sQQ")
_MAGIC = b"PVGLEDG1"
#: Slot SLOTS, behind the records: written when the writer was stopped in good order, so that nothing is proved.
_RUNNING, _STOPPED = 0, 1


class Found(NamedTuple):
    """A ledger as it lies on a disk: the record number in each slot (None: none, torn or of another run)."""

    slots: list[int | None]
    stopped: bool


def record(run: str, number: int, flag: int = _RUNNING) -> bytes:
    """One record; ``run`` is 32 hex digits. Its hash covers all of it, so a torn one is not taken for a whole one."""
    body = _HEAD.pack(_MAGIC, bytes.fromhex(run), number, flag)
    body += hashlib.sha256(body).digest() * ((RECORD - len(body) - 32) // 32)
    body = body.ljust(RECORD - 32, b".")
    return body + hashlib.sha256(body).digest()


def parse(block: bytes, run: str) -> tuple[int, int] | None:
    """(number, flag) of a whole record of this run, else None."""
    if len(block) != RECORD or hashlib.sha256(block[:-32]).digest() != block[-32:]:
        return None
    magic, of, number, flag = _HEAD.unpack_from(block)
    return (number, flag) if magic == _MAGIC and of == bytes.fromhex(run) else None


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def create(parent: str, run: str) -> int:
    """A new ledger in ``parent``, durable with its name; the descriptor holds a lock on it. An old one is replaced."""
    remove(parent)
    folder = os.path.join(parent, DIRECTORY)
    os.mkdir(folder, 0o700)
    descriptor = os.open(
        os.path.join(folder, FILE), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600
    )
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    for number in range(SLOTS + 1):
        os.pwrite(descriptor, bytes(RECORD), number * RECORD)
    os.pwrite(descriptor, record(run, 0, _RUNNING), SLOTS * RECORD)
    os.fsync(descriptor)
    _sync_directory(folder)
    _sync_directory(parent)
    return descriptor


def append(descriptor: int, run: str, number: int) -> None:
    """Make record ``number`` (from 1) durable."""
    if os.pwrite(descriptor, record(run, number), number % SLOTS * RECORD) != RECORD:
        raise OSError("a short write")
    os.fsync(descriptor)


def stop(descriptor: int, run: str) -> None:
    """Note that the writer ended in good order."""
    os.pwrite(descriptor, record(run, 0, _STOPPED), SLOTS * RECORD)
    os.fsync(descriptor)


def exists(parent: str) -> bool:
    return os.path.lexists(os.path.join(parent, DIRECTORY))


def remove(parent: str) -> bool:
    """Remove the ledger in ``parent``; whether there was one. OSError EBUSY while it is written."""
    folder = os.path.join(parent, DIRECTORY)
    try:
        descriptor = os.open(os.path.join(folder, FILE), os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        descriptor = -1
    if descriptor >= 0:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(errno.EBUSY, f"{folder} is being written by another run") from None
        finally:
            os.close(descriptor)
        os.unlink(os.path.join(folder, FILE))
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return False
    _sync_directory(parent)
    return True


def read(parent: str, run: str) -> Found | None:
    """The ledger in ``parent``; None when its file is not there."""
    try:
        descriptor = os.open(os.path.join(parent, DIRECTORY, FILE), os.O_RDONLY | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return None
    slots: list[int | None] = []
    with os.fdopen(descriptor, "rb") as stream:
        for slot in range(SLOTS):
            found = parse(stream.read(RECORD), run)
            # A record in a slot that is not its own was never written by us.
            slots.append(found[0] if found and found[0] % SLOTS == slot else None)
        end = parse(stream.read(RECORD), run)
    return Found(slots, bool(end and end[1] == _STOPPED))


def judge(found: Found | None, acknowledged: int) -> dict[str, Any]:
    """The verdict on a drive: ``verdict`` (``acquitted``, ``convicted``, ``inconclusive``), ``evidence``, ``lost``
    (acknowledged records that are not there, among the last SLOTS), ``highest`` (record number found), ``acknowledged``.

    ``acknowledged``: the highest record number that reached the controller. What was written but not acknowledged may
    be there or not, and so may one slot be torn: that of the record which was being written.
    """

    def verdict(kind: str, evidence: str, lost: int = 0, highest: int | None = None) -> dict[str, Any]:
        return {
            "verdict": kind,
            "evidence": evidence,
            "lost": lost,
            "highest": highest,
            "acknowledged": acknowledged,
        }

    if acknowledged < 1:
        return verdict("inconclusive", "no record was acknowledged before the power went")
    if found is None:
        return verdict(
            "convicted",
            f"the ledger's file, which was synced before its {acknowledged} records, is not there",
            min(acknowledged, SLOTS),
        )
    if found.stopped:
        return verdict(
            "inconclusive", "the writer was stopped in good order, so the power was not cut while it wrote"
        )
    highest = max((number for number in found.slots if number is not None), default=0)
    being_written = (highest + 1) % SLOTS
    lost = []
    for number in range(max(1, acknowledged - SLOTS + 1), acknowledged + 1):
        there = found.slots[number % SLOTS]
        if (there is None or there < number) and not (
            highest >= acknowledged and number % SLOTS == being_written
        ):
            lost.append(number)
    if lost:
        return verdict(
            "convicted",
            f"{len(lost)} of the last {min(acknowledged, SLOTS)} acknowledged records are not there: "
            f"{lost[0]}{f' to {lost[-1]}' if len(lost) > 1 else ''}; the highest found is {highest}",
            len(lost),
            highest,
        )
    return verdict(
        "acquitted",
        f"all of the last {min(acknowledged, SLOTS)} records of {acknowledged} acknowledged ones are there",
        0,
        highest,
    )


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as stream:
        return stream.read().strip()


class _Stop(Exception):
    """Ended from outside in good order."""


def write(parent: str, run: str, seconds: float, say: Callable[[str], None]) -> None:
    """Write records until ``seconds`` are over (then the ledger is removed, nobody cut the power) or somebody stops us
    (then it says so, and stays for the verdict). ``say`` raises OSError when nobody listens any more."""

    def ended(*_: object) -> None:
        raise _Stop

    for ending in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(ending, ended)
    descriptor = create(parent, run)
    end = time.monotonic() + seconds
    number = 0
    try:
        say(json.dumps({"run": run, "boot_id": boot_id(), "slots": SLOTS, "path": parent}))
        while time.monotonic() < end:
            number += 1
            append(descriptor, run, number)
            say(str(number))
    except (_Stop, BrokenPipeError, ConnectionError):
        stop(descriptor, run)
        os.close(descriptor)
        return
    os.close(descriptor)
    remove(parent)
    say(json.dumps({"expired": seconds}))


def main(argv: list[str]) -> int:
    """PARENT RUN SECONDS, on the node."""
    parent, run, seconds = argv

    def say(line: str) -> None:
        os.write(1, f"{line}\n".encode())

    try:
        write(parent, run, float(seconds), say)
    except OSError as error:
        say(json.dumps({"error": f"{parent}: {error.strerror or error}"}))
        return 1
    return 0


if __name__ == "__main__" and sys.argv[0] == "-":
    sys.exit(main(sys.argv[1:]))
