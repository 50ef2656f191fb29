"""What one file written to /etc/pve costs: transactions, bytes of the log, of the daemon and of the device.

Every write(2) replaces the whole blob of the file, on every member of the cluster, so the same mebibyte costs ten or
thousands of times its size. The probe writes a file of its own in blocks of a given size and counts. What a case
will cost is known before it is written (:func:`predict`), and no case is written whose cost does not fit into what is
left of a budget.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base import supervised, text_table
from ..base.detached import RESULT_DIR
from ..base.errors import PveguardError
from ..base.run import Run
from ..base.run import run as real_run
from ..base.units import UNKNOWN, bytes_text, duration_text, number_text
from ..corosync import probe_members
from ..disk import block_writes
from ..pmxcfs import pve_file
from ..pmxcfs.members import NOT_MET
from ..pmxcfs.members import read as read_members
from . import pmxcfs_writes

MIB = 1 << 20
BUDGET_BYTES = 64 * MIB
IDLE_SECONDS = 5.0
#: The cheapest way to write the largest file, which has a published figure, and a small file as stdio writes it.
CASES = ({"file_bytes": MIB, "block_bytes": 128 << 10}, {"file_bytes": 64 << 10, "block_bytes": 4 << 10})

#: A name that nobody else uses, and whose end makes it noise to everything that saves /etc/pve (tree.NOISE).
PREFIX = "pveguard-write-amplification-"

#: Measured on pmxcfs 9.1.6: max_write of its FUSE mount. A larger write(2) reaches the daemon in such pieces.
FUSE_MAX_WRITE = 128 << 10
#: SQLite as the daemon opens it, measured: page size, pages in the log that make a commit checkpoint it.
PAGE, CHECKPOINT_FRAMES = 4096, 1000
#: sqlite.org/fileformat2.html: headers of the log and of a frame in it (4.1), bytes of a row in its leaf page at most
#: and at least, bytes in each overflow page (1.6; page size 4096).
LOG_HEADER, FRAME_HEADER = 32, 24
LEAF_MOST, LEAF_LEAST, OVERFLOW = 4061, 489, 4092
#: Pages of a transaction beside the blob's: leaves of the two rows, the first page and a trunk of the list of free pages.
OTHER_PAGES = 4
#: What a sync adds at the device: a commit of the file system's journal. Device less daemon in the table of small
#: operations of pmxcfs 9.1.6 on ext4 (53,248 - 20,480).
JOURNAL_COMMIT = 32 << 10

#: The log at its longest, the largest blob twice in it and twice in the database, and a reserve: a daemon whose disk is
#: full stops taking writes for good.
FREE_BYTES = 32 * MIB
#: A write that has not come back after this long is given up on.
STALL_S = 60.0

#: sqlite.org/walformat.html, 2.1.1: change counter, page size, frames in the log, salts; in native byte order.
_INDEX = struct.Struct("=8xI2xHI12x8s8x")


def predict(file_bytes: int, block_bytes: int) -> dict[str, int]:
    """What a new file of ``file_bytes`` in blocks of ``block_bytes`` costs each member whose database is on a disk.

    ``transactions`` (the file's creation and each piece of at most 128 KiB); ``write_bytes`` (by the daemon) and
    ``device_bytes`` of the writing; ``removal_bytes`` at the device of removing the file; ``cost_bytes``, both.

    Each transaction writes the pages of the whole blob so far into the log, and those of the former blob once more:
    Debian's SQLite is built with SECURE_DELETE, which overwrites what it frees. A log of 1000 pages is copied into the
    database, each page once. Beside the figures measured on pmxcfs 9.1.6 (1 MiB in 512 B, 4 KiB, 128 KiB:
    2,794,303,488, 349,794,304, 9,998,336 bytes by the daemon) this is 1.3, 1.5 and 0.8 % too much. That was a fresh
    database: a log that others began and the free pages of a used one spread the blob over more pages, which is why
    a case is watched while it is written.
    """
    log = _Log()
    log.transaction(0, 0)
    before = 0
    for size in _blobs(file_bytes, block_bytes):
        log.transaction(size, before)
        before = size
    writing = log.write_bytes, log.device_bytes + JOURNAL_COMMIT
    transactions = log.transactions
    log.transaction(0, before)
    removal = log.device_bytes + 2 * JOURNAL_COMMIT - writing[1]
    return {
        "transactions": transactions,
        "write_bytes": writing[0],
        "device_bytes": writing[1],
        "removal_bytes": removal,
        "cost_bytes": writing[1] + removal,
    }


class _Log:
    """The daemon's write-ahead log as a model: what goes into it and from it into the database."""

    def __init__(self) -> None:
        self.transactions = self.write_bytes = self.checkpoints = 0
        self._frames = self._distinct = 0

    def transaction(self, blob: int, former: int) -> None:
        """Replace a blob of ``former`` bytes by one of ``blob``; 0: no blob."""
        pages = _pages(blob) + _pages(former) + OTHER_PAGES
        self.transactions += 1
        self.write_bytes += pages * (PAGE + FRAME_HEADER)
        self._frames += pages
        # The new blob takes the pages that the one before the former had: those of the largest are all there are.
        self._distinct = max(self._distinct, pages)
        if self._frames >= CHECKPOINT_FRAMES:
            self.write_bytes += min(self._frames, self._distinct) * PAGE
            self.checkpoints += 1
            self._frames = self._distinct = 0

    @property
    def device_bytes(self) -> int:
        return self.write_bytes + self.checkpoints * JOURNAL_COMMIT


def _pages(blob: int) -> int:
    return 0 if blob <= LEAF_MOST else -(-(blob - LEAF_LEAST) // OVERFLOW)


def _blobs(file_bytes: int, block_bytes: int) -> Iterator[int]:
    """Size of the file after each piece that the daemon gets."""
    at = 0
    while at < file_bytes:
        end = min(file_bytes, at + block_bytes)
        while at < end:
            at = min(end, at + FUSE_MAX_WRITE)
            yield at


def validate(cases: Sequence[Mapping[str, Any]], budget_bytes: int, idle_seconds: float) -> None:
    """Raise PveguardError for what cannot be measured."""
    if not cases:
        raise PveguardError("cases is empty, wanted one or more of file_bytes and block_bytes")
    for number, case in enumerate(cases):
        for key in ("file_bytes", "block_bytes"):
            value = case.get(key)
            if not isinstance(value, int) or not 1 <= value <= pve_file.MAX_BYTES:
                raise PveguardError(
                    f"cases[{number}].{key} is {value}, wanted 1 to {pve_file.MAX_BYTES}: the cluster file system takes "
                    f"at most {bytes_text(pve_file.MAX_BYTES)} per file"
                )
    if budget_bytes < 0:
        raise PveguardError(f"device_write_budget_bytes is {budget_bytes}, wanted 0 or more")
    if not 0 < idle_seconds <= 600:
        raise PveguardError(f"idle_seconds is {idle_seconds:g}, wanted above 0 and at most 600")


def over_budget(
    case: Mapping[str, Any], left_bytes: int, budget_bytes: int, payers: int, budget_name: str
) -> str | None:
    """Why a case does not fit into what is left of the budget; None when it does."""
    cost = predict(case["file_bytes"], case["block_bytes"])["cost_bytes"]
    if cost * payers <= left_bytes:
        return None
    whom = "one node" if payers == 1 else f"each of {payers} nodes, {bytes_text(cost * payers)} in all"
    needed = budget_bytes - left_bytes + cost * payers
    return (
        f"it is predicted to cost {bytes_text(cost)} of device writes on {whom}, and {bytes_text(left_bytes)} of the "
        f"budget of {bytes_text(budget_bytes)} are left: set {budget_name} to {needed} or more to allow it"
    )


def plan(
    cases: Sequence[Mapping[str, Any]], budget_bytes: int, payers: int, budget_name: str
) -> list[dict[str, Any]]:
    """The cases with their predicted cost and, where the budget does not reach, the reason in ``skipped``.

    ``payers``: members that pay with device bytes, each the same.
    """
    left, planned = budget_bytes, []
    for case in cases:
        entry = _entry(case)
        entry["skipped"] = over_budget(case, left, budget_bytes, payers, budget_name)
        if entry["skipped"] is None:
            left -= entry["predicted_cost_bytes"] * payers
        planned.append(entry)
    return planned


def _entry(case: Mapping[str, Any]) -> dict[str, Any]:
    cost = predict(case["file_bytes"], case["block_bytes"])
    return {
        "file_bytes": case["file_bytes"],
        "block_bytes": case["block_bytes"],
        "transactions": None,
        "wal_bytes": None,
        "pmxcfs_write_bytes": None,
        "device_bytes": None,
        "noise_bytes": None,
        "factor": None,
        "skipped": None,
        "seconds": None,
        "removal_device_bytes": None,
        "predicted_transactions": cost["transactions"],
        "predicted_device_bytes": cost["device_bytes"],
        "predicted_cost_bytes": cost["cost_bytes"],
    }


def members(root: Path = Path("/"), run: Run = real_run) -> tuple[str, list[str]]:
    """This node's name and the members that are online, itself among them, as the daemon says.

    Raises PveguardError without quorum, or when it does not say.
    """
    try:
        value = read_members(str(root / pve_file.MOUNT.lstrip("/")), run)
        node = str(value["nodename"])
    except (PveguardError, KeyError) as error:
        raise PveguardError(
            f"{pve_file.MOUNT}/.members does not name the members ({error}), so what the probe costs is not known: "
            "see 'journalctl -u pve-cluster'"
        ) from error
    cluster = value.get("cluster")
    if not cluster and not pve_file.has_quorum(root):
        raise PveguardError(f"{node} is a member of a cluster and {NOT_MET}. See 'systemctl status corosync'")
    if cluster and not cluster.get("quorate"):
        raise PveguardError(
            f"{node} has no quorum, and a write may block until it has: see 'corosync-quorumtool -s' and bring the "
            "other members back first"
        )
    online = [name for name, about in (value.get("nodelist") or {}).items() if about.get("online")]
    return node, sorted({node, *online}) if cluster else [node]


def measure(
    cases: Sequence[Mapping[str, Any]] = CASES,
    device_write_budget_bytes: int = BUDGET_BYTES,
    idle_seconds: float = IDLE_SECONDS,
    *,
    check_mode: bool = False,
    database: str = block_writes.DATABASE,
    pid_file: str = block_writes.PID_FILE,
    store: str = block_writes.STORE,
    budget_name: str = "device_write_budget_bytes",
    lock_dir: Path = RESULT_DIR,
    root: Path = Path("/"),
    stall_s: float = STALL_S,
    run: Run = real_run,
) -> dict[str, Any]:
    """Write each of ``cases`` to /etc/pve, count, and remove it; the result is that of the module.

    ``device_write_budget_bytes`` is for the device writes of all members together; ``idle_seconds`` is how long what
    others write is observed before the first case; ``budget_name`` is named in messages. With ``check_mode`` nothing is
    written and only the predictions are there.

    Raises PveguardError, before anything is written, for cases that cannot be, without the mounted file system or
    quorum, without a daemon that uses the database, with too little room for it, and while another probe runs; later
    when a write fails or is interrupted. The file is removed in each case, unless the file system no longer answers.
    """
    validate(cases, device_write_budget_bytes, idle_seconds)
    pve_file.require_writable(root)
    node, online = members(root, run)
    where = block_writes.device_behind(database, skip_memory=False)
    _require_room(database, where)
    in_memory = bool(where["in_memory"])
    # A database in memory costs its node nothing; nobody knows of the others' from here.
    payers = len(online) - in_memory
    folder = root / pve_file.MOUNT.lstrip("/")
    file = _File(folder / f"{PREFIX}{node}.tmp.{os.getpid()}")
    notes: list[str] = []
    result: dict[str, Any] = {
        "cases": plan(cases, device_write_budget_bytes, payers, budget_name),
        "device_write_budget_bytes": device_write_budget_bytes,
        "spent_bytes": 0,
        "node": node,
        "members": online,
        "path": file.name,
        "database_in_memory": in_memory,
        "device": where["device"],
        "idle": None,
        "removed_leftovers": [],
        "notes": notes,
    }
    meter = _Meter(database, pid_file, where, store, run)
    meter.version()
    stale, foreign = leftovers(folder, node)
    notes += [
        f"{pve_file.MOUNT}/{name} is of a probe on another member: it runs, or was killed and is removed by the next one "
        "there, or by 'rm'"
        for name in foreign
    ]
    if check_mode:
        notes += [f"{pve_file.MOUNT}/{name} was left by a killed probe and would be removed" for name in stale]
        return result
    with _only_one(lock_dir), _removed_at_the_end(file) as signals:
        # Nobody else holds the lock, so whatever has our name is of a dead probe.
        for name in leftovers(folder, node)[0]:
            (folder / name).unlink(missing_ok=True)
            result["removed_leftovers"].append(name)
            notes.append(f"{pve_file.MOUNT}/{name} was left by a killed probe and is removed now")
        if any(case["skipped"] is None for case in result["cases"]):
            result["idle"] = meter.idle(idle_seconds)
            _run_cases(result, file, meter, payers, budget_name, signals, stall_s)
    notes += meter.notes(result)
    return result


HEADER = ("file", "each write", "transactions", "daemon's bytes", "device bytes", "of others", "factor")


def render(result: Mapping[str, Any]) -> list[str]:
    """The result of :func:`measure` as lines of text: a table of the cases, below it what was not written and the notes."""
    rows, skipped = [], []
    for case in result["cases"]:
        name = bytes_text(case["file_bytes"]), bytes_text(case["block_bytes"])
        rows.append(
            (
                *name,
                number_text(case["transactions"]),
                *(bytes_text(case[key]) for key in ("pmxcfs_write_bytes", "device_bytes", "noise_bytes")),
                UNKNOWN if case["factor"] is None else number_text(case["factor"]),
            )
        )
        if case["transactions"] is None and not case["skipped"]:
            skipped.append(
                f"{name[0]} in writes of {name[1]}: not written; it would cost {bytes_text(case['predicted_cost_bytes'])} of "
                "device writes on each member"
            )
        if case["skipped"]:
            skipped.append(f"{name[0]} in writes of {name[1]}: {case['skipped']}")
    return [*text_table.lines(HEADER, rows), *skipped, *result["notes"]]


def measuring_hosts(nodes: Mapping[str, Mapping[str, Any] | None]) -> list[str]:
    """Where to measure: the first live member of each cluster, as each member pays for all, and each node without one.

    ``nodes``: host -> facts of node_info, in order. A node that is down or has no quorum is not asked, nor is a probe.
    """
    chosen: dict[tuple[str, str], str] = {}
    for host, node in nodes.items():
        if probe_members.is_one(node):
            continue
        pmxcfs = (node or {}).get("pmxcfs") or {}
        if pmxcfs.get("mode") == "local":
            chosen[("node", host)] = host
        elif pmxcfs.get("mode") == "cluster" and pmxcfs.get("quorate"):
            name = ((node or {}).get("corosync") or {}).get("cluster_name")
            chosen.setdefault(("cluster", str(name)), host)
    return list(chosen.values())


def _run_cases(
    result: dict[str, Any],
    file: _File,
    meter: _Meter,
    payers: int,
    budget_name: str,
    signals: supervised.Endings,
    stall_s: float,
) -> None:
    budget = result["device_write_budget_bytes"]
    for entry in result["cases"]:
        left = budget - result["spent_bytes"]
        entry["skipped"] = over_budget(entry, left, budget, payers, budget_name)
        if entry["skipped"] is not None:
            continue
        # What this node pays stands for what each of the others does; one whose own database is in memory cannot
        # see what they pay, and has the prediction.
        limit = None
        if payers and not result["database_in_memory"]:
            limit = left // payers - (entry["predicted_cost_bytes"] - entry["predicted_device_bytes"])
        before = meter.read()
        try:
            answer = _Writing(file, entry, meter, before, limit).write(signals, stall_s)
            written = meter.read()
        finally:
            file.remove()
        removed = meter.read()
        meter.fill(entry, before, written, removed, answer)
        if result["database_in_memory"]:
            spent = entry["predicted_cost_bytes"]
        else:
            spent = meter.spent(before, removed)
        result["spent_bytes"] += spent * payers
        if answer["stopped"]:
            entry["skipped"] = (
                f"stopped after {answer['bytes']} of {entry['file_bytes']} bytes: {bytes_text(spent)} of device writes on "
                f"this node, more than predicted, and {bytes_text(left)} of the budget for all of {payers} were left: "
                f"raise {budget_name} ({budget}) to allow it"
            )


class _Meter:
    """The counters that a case is measured by."""

    def __init__(
        self, database: str, pid_file: str, where: Mapping[str, Any], store: str, run: Run
    ) -> None:
        self.database = database
        self.pid_file = pid_file
        self.where = where
        self.store = block_writes.device_behind(store) if where["in_memory"] else None
        self._run = run
        self._idle: dict[str, Any] = {}
        self._log_gaps = False
        self._restarted = False

    def version(self) -> int:
        """Of the database; raises PveguardError where the daemon does not use it."""
        version = pmxcfs_writes.root_version(self.database)
        if version is None:
            raise PveguardError(
                f"{self.database} cannot be read, or no daemon uses it: see 'systemctl status pve-cluster'"
            )
        return version

    def device_bytes(self) -> int | None:
        return 0 if self.where["in_memory"] else block_writes.device_counters(self.where["device_number"])[0]

    def read(self) -> dict[str, Any]:
        """All counters, once what was written so far is on the device."""
        version = self.version()
        for path in {self.where["measured_path"], (self.store or self.where)["measured_path"]}:
            pmxcfs_writes.write_back(path, self._run)
        return {
            "clock": time.monotonic(),
            "version": version,
            "device": self.device_bytes(),
            "store": block_writes.device_counters(self.store["device_number"])[0] if self.store else None,
            "pmxcfs": block_writes.daemon(self.pid_file),
        }

    def idle(self, seconds: float) -> dict[str, Any]:
        """What others write while nothing is probed: seconds, transactions, device_bytes, pmxcfs_write_bytes."""
        before = self.read()
        time.sleep(seconds)
        after = self.read()
        self._idle = {
            "seconds": round(after["clock"] - before["clock"], 3),
            "transactions": after["version"] - before["version"],
            "device_bytes": block_writes.rise(before["device"], after["device"]),
            "pmxcfs_write_bytes": self._daemon_rise(before, after),
        }
        return self._idle

    def noise(self, seconds: float) -> int | None:
        """Device bytes that others write in ``seconds``, by the idle window; never more than were seen in it: what comes once
        a minute may have come in those few seconds.
        """
        seen = self._idle["device_bytes"]
        return None if seen is None else round(seen * min(1.0, seconds / self._idle["seconds"]))

    def so_far(self, before: Mapping[str, Any]) -> int:
        """Device bytes of a case while it is written: the daemon's at once, those of the device as they get there."""
        net = 0
        if (device := block_writes.rise(before["device"], self.device_bytes())) is not None:
            net = device - (self.noise(time.monotonic() - before["clock"]) or 0)
        written = block_writes.daemon(self.pid_file)["write_bytes"]
        return max(net, block_writes.rise(before["pmxcfs"]["write_bytes"], written) or 0)

    def spent(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> int:
        """Device bytes of a case and its removal, those of others taken off."""
        device = block_writes.rise(before["device"], after["device"])
        if device is None:
            return self._daemon_rise(before, after) or 0
        return max(0, device - (self.noise(after["clock"] - before["clock"]) or 0))

    def fill(
        self,
        entry: dict[str, Any],
        before: Mapping[str, Any],
        written: Mapping[str, Any],
        removed: Mapping[str, Any],
        answer: Mapping[str, Any],
    ) -> None:
        """Put what was measured into the entry of its case."""
        seconds = written["clock"] - before["clock"]
        entry["seconds"] = round(seconds, 3)
        entry["transactions"] = written["version"] - before["version"]
        entry["wal_bytes"] = answer["wal_bytes"]
        entry["pmxcfs_write_bytes"] = self._daemon_rise(before, written)
        entry["device_bytes"] = block_writes.rise(before["device"], written["device"])
        entry["noise_bytes"] = self.noise(seconds)
        entry["removal_device_bytes"] = block_writes.rise(written["device"], removed["device"])
        if self.store:
            entry["store_device_bytes"] = block_writes.rise(before["store"], written["store"])
        if entry["device_bytes"] is not None and not answer["stopped"]:
            net = max(0, entry["device_bytes"] - (entry["noise_bytes"] or 0))
            entry["factor"] = round(net / entry["file_bytes"], 2)
        self._log_gaps |= answer["wal_bytes"] is None

    def notes(self, result: Mapping[str, Any]) -> list[str]:
        """Sentences for what the figures alone do not say."""
        found = []
        if result["database_in_memory"]:
            found.append(
                "the database is in memory, so no device is behind it; store_device_bytes is what everything wrote to "
                f"the disk behind {self.store['path'] if self.store else 'the store'} meanwhile"
            )
        elif self.where["device_number"] is None:
            found.append(
                f"no block device is known behind {self.database} ({self.where['filesystem']}): device bytes and factor "
                "are not known, and the budget counts the daemon's bytes"
            )
        measured = [case for case in result["cases"] if case["factor"] is not None]
        if any((case["noise_bytes"] or 0) * 10 > case["device_bytes"] > 0 for case in measured):
            found.append(
                f"others write to {self.where['device']} too ({bytes_text(self._idle['device_bytes'])} in "
                f"{duration_text(self._idle['seconds'])}): more than a tenth of what was counted, so the factor is "
                "uncertain; measure again when the node is quieter"
            )
        if self._idle.get("device_bytes") and any((case.get("seconds") or 0) > self._idle["seconds"] for case in measured):
            found.append(
                f"a case took longer than the {duration_text(self._idle['seconds'])} in which others were watched, and is not "
                "credited with more than was seen then: its factor may be too high; raise idle_seconds"
            )
        if (result["idle"] or {}).get("transactions"):
            found.append(
                f"{self._idle['transactions']} transactions of others in {duration_text(self._idle['seconds'])}: those "
                "that fell into a case are in its transactions and bytes"
            )
        if self._log_gaps:
            found.append("wal_bytes is not known where the log was restarted unseen, or cannot be read")
        if self._restarted:
            found.append("the daemon of the cluster file system was restarted meanwhile: its bytes are not known")
        if len(result["members"]) > 1:
            found.append(f"each of {len(result['members'])} members carried out the same writes")
        return found

    def _daemon_rise(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> int | None:
        if not block_writes.same_daemon(before, after):
            self._restarted = True
            return None
        return block_writes.rise(before["pmxcfs"]["write_bytes"], after["pmxcfs"]["write_bytes"])


class WalCounter:
    """Bytes appended to a write-ahead log, by the index that SQLite keeps beside it; nothing is written.

    ``bytes`` is exact, and None when the log was started anew between two readings in a way that hides what the former
    one got last: read it once in each transaction, or often.
    """

    def __init__(self, database: str) -> None:
        self.bytes: int | None = 0
        self._lock = threading.Lock()
        try:
            self._shm, self._wal = _quietly(f"{database}-shm"), _quietly(f"{database}-wal")
            self._last = self._index()
        except (OSError, ValueError):
            self.bytes = None

    def read(self) -> None:
        """Count what was appended since the last reading."""
        with self._lock:
            if self.bytes is None:
                return
            try:
                self._count()
            except (OSError, ValueError):
                self.bytes = None

    def _count(self) -> None:
        assert self.bytes is not None
        before, _, counted, former = self._last
        while True:
            now = change, page, frames, salt = self._index()
            size = page + FRAME_HEADER
            if salt == former:
                new = frames - counted
                break
            if change - before == 1:
                new = frames  # the one transaction is what the new log holds
                break
            # The first salt goes up by one with each new log. Behind its end the frames of the former one are still there.
            if int.from_bytes(salt[:4], "big") - int.from_bytes(former[:4], "big") != 1:
                raise ValueError("more than one log was begun since the last reading")
            first = end = max(counted, frames)
            while os.pread(self._wal, 8, LOG_HEADER + end * size + 8) == former:
                end += 1
            if end == first > counted:
                raise ValueError("the end of the former log was written over")
            if self._index() == now:
                new = frames + end - counted
                break
        self._last = now
        self.bytes += new * size

    def _index(self) -> tuple[int, int, int, bytes]:
        """Change counter, page size, frames, salts. The header is there twice, and is right when both are equal."""
        for _ in range(1000):
            both = os.pread(self._shm, 2 * _INDEX.size, 0)
            if len(both) == 2 * _INDEX.size and both[: _INDEX.size] == both[_INDEX.size :]:
                change, page, frames, salt = _INDEX.unpack(both[: _INDEX.size])
                # 65536 does not fit into 16 bits and is written as 1.
                return change, 65536 if page == 1 else page, frames, salt
        raise ValueError("the header of the index of the log does not come to rest")


def _quietly(path: str) -> int:
    """Open for reading, without a note of it in the inode where that is allowed."""
    flags = os.O_RDONLY | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_NOATIME)
    except PermissionError:
        return os.open(path, flags)


def leftovers(folder: Path, node: str) -> tuple[list[str], list[str]]:
    """Names in ``folder`` of files of probes: those of this node, and those of others."""
    names = sorted(name for name in os.listdir(folder) if re.match(rf"{PREFIX}.+\.tmp\.[0-9]+\Z", name))
    ours = [name for name in names if re.match(rf"{PREFIX}{re.escape(node)}\.tmp\.[0-9]+\Z", name)]
    return ours, [name for name in names if name not in ours]


class _File:
    """The file that is written, and whether the file system still answers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = f"{pve_file.MOUNT}/{path.name}"
        self.hung = False

    def remove(self) -> None:
        """Remove it, if it is there. A file system that hangs is not asked again."""
        if self.hung:
            return
        try:
            pve_file.patiently(lambda: self.path.unlink(missing_ok=True), None)
        except OSError as error:
            raise PveguardError(
                f"{self.name} cannot be removed: {error.strerror}; the next probe on this node removes it, or 'rm' does "
                "once there is quorum"
            ) from error


@dataclass(frozen=True)
class _Writing:
    """One case to be written: by ``meter``'s counters, which were ``before``, and until ``limit`` device bytes are seen.

    ``limit`` None: however many.
    """

    file: _File
    entry: Mapping[str, Any]
    meter: _Meter
    before: Mapping[str, Any]
    limit: int | None

    def write(self, signals: supervised.Endings, stall_s: float) -> dict[str, Any]:
        """Write the file in a child process, so that a file system that no longer answers cannot hang the caller.

        Returns ``bytes`` written, ``wal_bytes`` and ``stopped`` (more than ``limit`` device bytes were seen).
        """
        child = supervised.Child(self.blocks, self.file.remove)
        name = self.file.name
        try:
            answer = child.run(signals, stall_s, stall_s)
        except supervised.Stalled:
            raise PveguardError(
                f"{name}: a write has not come back within {stall_s:g} s. The daemon waits for the "
                "other members or its disk is full: see 'journalctl -u pve-cluster'. Once it answers again, the next probe "
                "removes the file, or 'rm' does"
            ) from None
        except OSError as error:
            raise PveguardError(
                f"{name} cannot be written: {error.strerror}"
                + (
                    ": quorum was lost, or the file system is read-only; see 'corosync-quorumtool -s'"
                    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
                    else "; see 'journalctl -u pve-cluster'"
                )
            ) from error
        finally:
            self.file.hung = child.hung
        if not answer:
            raise PveguardError(f"{name}: the writing process was ended; run again")
        return answer

    def blocks(self, caller: supervised.Caller) -> dict[str, Any]:
        """What the child does."""
        size, block = self.entry["file_bytes"], self.entry["block_bytes"]
        data = memoryview(os.urandom(size))
        log = WalCounter(self.meter.database)
        at, stopped = 0, False
        with _following(log, block > FUSE_MAX_WRITE):
            descriptor = os.open(self.file.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
            try:
                log.read()
                while at < size:
                    at += os.write(descriptor, data[at : min(size, at + block)])
                    log.read()
                    caller.progress()
                    if self.limit is not None and self.meter.so_far(self.before) > self.limit:
                        stopped = at < size
                        break
            finally:
                os.close(descriptor)
        log.read()
        return {"bytes": at, "wal_bytes": log.bytes, "stopped": stopped}


@contextmanager
def _following(log: WalCounter, wanted: bool) -> Iterator[None]:
    """Read the log in a thread of its own: a write(2) of several pieces is several transactions."""
    done = threading.Event()

    def follow() -> None:
        while not done.wait(0.0005):
            log.read()

    thread = threading.Thread(target=follow, daemon=True)
    if wanted:
        thread.start()
    try:
        yield
    finally:
        done.set()
        if wanted:
            thread.join()


@contextmanager
def _removed_at_the_end(file: _File) -> Iterator[supervised.Endings]:
    """A signal that would end the process ends the probe and removes its file."""
    try:
        with supervised.endings() as signals:
            try:
                yield signals
            except supervised.Interrupted:
                file.remove()
                raise
    except supervised.Interrupted as interrupted:
        raise PveguardError(
            f"the probe was ended by signal {interrupted.number} (process {os.getpid()}); its file is removed"
        ) from None


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """One probe at a time on a node: two would count each other's writes."""
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    descriptor = os.open(folder / "write_amplification.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise PveguardError(
                f"another probe runs on this node (it holds {folder / 'write_amplification.lock'}): wait for its end"
            ) from error
        yield
    finally:
        os.close(descriptor)


def _require_room(database: str, where: Mapping[str, Any]) -> None:
    try:
        space = os.statvfs(os.path.dirname(database))
    except OSError as error:
        raise PveguardError(f"{database}: {error.strerror}: the daemon of the cluster file system never ran") from error
    free = space.f_bavail * space.f_frsize
    if free < FREE_BYTES:
        raise PveguardError(
            f"{where['mount_point']} ({where['filesystem']}) has {bytes_text(free)} free, wanted {bytes_text(FREE_BYTES)}: a "
            "daemon whose database cannot grow stops taking writes until it is restarted; make room first"
        )
