"""How fast a file system makes small writes durable, with percentiles and an interval of confidence.

Three methods, in interleaved short rounds:

``pveperf``
    The loop of Proxmox's pveperf, call for call: rotate over 300 files ``tf_N.dat``, open with truncate, fsync, write
    4001 bytes, close. pveperf prints into Perl's buffer before its fsync, so the data reaches the kernel after it: the
    figure is that of syncing a truncated file, none of the data is waited for. Its documentation calls more than 200
    fsyncs per second acceptable, and runs it for three seconds; published figures are of this loop.
``fdatasync``
    Blocks of 2300 bytes one after the other into a preallocated file, fdatasync after each, as etcd's check with fio
    does (``fio --rw=write --ioengine=sync --fdatasync=1 --size=22m --bs=2300``; fio preallocates, and so does etcd's
    log). etcd wants the 99th percentile of fdatasync below 10 ms.
``commit``
    Transactions as the daemon of the cluster file system makes them: its schema, ``journal_mode=WAL``,
    ``synchronous=NORMAL``, a checkpoint every 1000 pages. Between two checkpoints nothing is synced, so the median
    says little and the maximum is a checkpoint.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import math
import os
import platform
import re
import sqlite3
import stat
import struct
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..base import stats, supervised
from ..base.errors import PveguardError
from ..base.run import Run, run
from ..base.units import bytes_text, number_text
from ..disk import block_device
from . import suspicion

METHODS = ("pveperf", "fdatasync", "commit")

#: From pveperf's loop.
FILES = 300
BLOCK = b"A" * 4000 + b"\n"
#: What the rate of each method is of. A result that says something else (or nothing: pveperf's loop once wrote before
#: it synced) cannot be compared with it.
MEASURES = {
    "pveperf": "fsync of a truncated file, written to afterwards",
    "fdatasync": "fdatasync of 2300 bytes just written",
    "commit": "transactions of SQLite",
}
#: The methods that wait for data, so that a warning can rest on them.
HONEST = ("fdatasync", "commit")
DEFAULT_DURATION_S = 3.0

#: From etcd's check (--bs=2300). Its file has 22 MiB; ours starts anew after 3, to stay below NEEDED_BYTES.
APPEND_BLOCK = b"A" * 2300
APPEND_BYTES = 3 << 20

#: What an idle LRM rewrites every five seconds has 83 bytes.
COMMIT_DATA = b"A" * 83
_SCHEMA = """
CREATE TABLE tree (inode INTEGER PRIMARY KEY NOT NULL,
    parent INTEGER NOT NULL CHECK(typeof(parent)='integer'), version INTEGER NOT NULL CHECK(typeof(version)='integer'),
    writer INTEGER NOT NULL CHECK(typeof(writer)='integer'), mtime INTEGER NOT NULL CHECK(typeof(mtime)='integer'),
    type INTEGER NOT NULL CHECK(typeof(type)='integer'), name TEXT NOT NULL, data BLOB)
"""

#: Rounds of each method. Student's t for a two-sided interval of 95 % by degrees of freedom.
ROUNDS = 6
_STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571}

#: What must be free: 1.2 MiB for pveperf's files, 3 for the appends, a write-ahead log of 4.1, and room for the journal.
NEEDED_BYTES = 10 * 1024 * 1024
NEEDED_INODES = FILES + 6

#: A disk that has not answered for this long after the time is up is given up on.
STALL_S = 30.0

PREFIX = ".pveguard-fsync-bench."
_FILE = re.compile(r"(tf_[0-9]+\.dat|append\.dat|commit\.db(-wal|-shm|-journal)?)\Z")

_FIGURES = ("p50_ms", "p90_ms", "p99_ms", "p99_9_ms", "max_ms")
#: Keys of block_device.describe that are repeated at the top of a result.
DEVICE_KEYS = (
    "device",
    "disk",
    "filesystem",
    "mount_options",
    "in_memory",
    "class",
    "class_rule",
    "rotational",
    "transport",
    "write_cache",
    "power_loss_protection",
    "drive_identity",
)


def bench(
    path: str,
    duration: float = DEFAULT_DURATION_S,
    *,
    methods: Sequence[str] = ("pveperf",),
    min_fsyncs_per_second: float = 0,
    warn_p99_ms: float = 0,
    nearest_parent: bool = False,
    threshold_name: str = "min_fsyncs_per_second",
    p99_threshold_name: str = "warn_p99_ms",
    power_cut: Mapping[str, Any] | None = None,
    stall_s: float = STALL_S,
    run: Run = run,
) -> dict[str, Any]:
    """Measure the file system of the directory ``path`` for ``duration`` seconds in all and judge it.

    ``methods``: of :data:`METHODS`, each gets an equal share of the time, in interleaved rounds.
    ``min_fsyncs_per_second``: a lower rate of pveperf's loop is a ``fail``. ``warn_p99_ms``: a 99th percentile of
    fdatasync or commit of this or more is a ``warn``. 0 measures without judging. The two ``..._name`` are named in
    messages.
    ``nearest_parent``: where ``path`` does not exist, or is in RAM, measure its nearest parent that exists on a
    disk. ``power_cut``: see :func:`judge`.

    Never raises for what the disk does. The result:

    ``verdict`` (``pass``, ``warn``, ``fail``), ``reason`` (``ok``; ``latency``, ``suspect``, ``health``; ``slow``, ``lying``,
    ``missing``, ``not_a_directory``, ``read_only``, ``full``, ``denied``, ``stalled``, ``io_error``), ``message``;
    ``methods``: for each method the dict of :func:`summary`;
    ``method``: the one whose figures are repeated at the top, pveperf where it was run, else the first; ``measures``:
    what these are of (:data:`MEASURES`);
    ``fsyncs_per_second`` and ``fsyncs_per_second_interval`` (its ``operations_per_second``), ``p50_ms p90_ms p99_ms
    p99_9_ms max_ms samples duration_seconds``;
    ``suspect``: as of :mod:`suspicion`; ``block_device``: as of :func:`block_device.describe`, of which ``device disk
    filesystem mount_options in_memory class class_rule rotational transport write_cache power_loss_protection
    drive_identity`` are repeated at the top;
    ``path``, ``measured_path``, ``free_bytes``, ``kernel`` (release), ``time`` (UTC). Figures that could not be had
    are None.
    """
    result = look(path, nearest_parent=nearest_parent, run=run)
    measured, source = result["measured_path"], result["device"] or result["block_device"]["source"]
    if obstacle := _obstacle(path, result, nearest_parent):
        return _fail(result, *obstacle)
    try:
        result["methods"] = _supervised(measured, tuple(methods), duration, stall_s)
    except supervised.Interrupted as interrupted:
        # Everything is cleaned up: end as if it had not been caught.
        os.kill(os.getpid(), interrupted.number)
        raise
    except supervised.Stalled:
        return _fail(
            result,
            "stalled",
            f"{measured}: the disk did not answer for {stall_s:g} s (device {source}); "
            "look at 'dmesg' and 'smartctl -x'",
        )
    except OSError as error:
        return _fail(
            result, _REASONS.get(error.errno or 0, "io_error"), f"{measured}: {error.strerror or error}"
        )
    except PveguardError as error:
        return _fail(result, "io_error", str(error))
    result["method"] = "pveperf" if "pveperf" in methods else methods[0]
    result["measures"] = MEASURES[result["method"]]
    shown = result["methods"][result["method"]]
    result.update({key: shown[key] for key in (*_FIGURES, "samples", "duration_seconds")})
    result["fsyncs_per_second"] = shown["operations_per_second"]
    result["fsyncs_per_second_interval"] = shown["operations_per_second_interval"]
    result["suspect"] = suspicion.suspects(result["block_device"], result["methods"])
    judge(
        result,
        min_fsyncs_per_second=min_fsyncs_per_second,
        warn_p99_ms=warn_p99_ms,
        threshold_name=threshold_name,
        p99_threshold_name=p99_threshold_name,
        power_cut=power_cut,
    )
    return result


def _obstacle(path: str, result: dict[str, Any], nearest_parent: bool) -> tuple[str, str] | None:
    """Why nothing can be measured there (reason and message); else ``free_bytes`` is set."""
    measured = result["measured_path"]
    if not nearest_parent and not os.path.lexists(path):
        return "missing", f"{path} does not exist, expected a directory on the disk to be measured"
    if not os.path.isdir(measured):
        return "not_a_directory", f"{measured} is not a directory, so there is nothing to measure on"
    space = os.statvfs(measured)
    if space.f_flag & os.ST_RDONLY:
        return "read_only", f"{measured} is on a read-only file system ({result['filesystem']})"
    remove_stale(measured)
    result["free_bytes"] = _free_bytes(measured)
    space = os.statvfs(measured)
    # File systems without a fixed number of inodes say 0 of 0.
    if result["free_bytes"] < NEEDED_BYTES or (space.f_files and space.f_ffree < NEEDED_INODES):
        inodes = f" and {space.f_ffree} inodes" if space.f_files else ""
        return (
            "full",
            f"{measured} has {bytes_text(result['free_bytes'])}{inodes} free, "
            f"wanted {bytes_text(NEEDED_BYTES)} and {NEEDED_INODES} inodes",
        )
    return None


def look(path: str, *, nearest_parent: bool = False, run: Run = run) -> dict[str, Any]:
    """The result of :func:`bench` before anything was measured: nothing is written."""
    where = block_device.describe(path, skip_memory=nearest_parent, run=run)
    exact = not nearest_parent and os.path.lexists(path)
    return {
        "method": None,
        "measures": None,
        "methods": {},
        "fsyncs_per_second": None,
        "fsyncs_per_second_interval": None,
        **dict.fromkeys(_FIGURES),
        "samples": 0,
        "duration_seconds": 0.0,
        "suspect": [],
        "path": path,
        "measured_path": path if exact else where["measured_path"],
        **{key: where[key] for key in DEVICE_KEYS},
        "block_device": where,
        "free_bytes": where["free_bytes"],
        "kernel": platform.release(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def judge(
    result: dict[str, Any],
    *,
    min_fsyncs_per_second: float = 0,
    warn_p99_ms: float = 0,
    threshold_name: str = "min_fsyncs_per_second",
    p99_threshold_name: str = "warn_p99_ms",
    power_cut: Mapping[str, Any] | None = None,
) -> None:
    """Set ``verdict``, ``reason`` and ``message`` of a measured ``result`` by its figures; see :func:`bench`.

    ``power_cut``: verdict of :mod:`power_cut`; where it is of this drive, a conviction is a ``fail`` (``lying``) and
    an acquittal outweighs every suspicion, unless the drive's power-loss protection has failed.
    """
    measured, device = result["measured_path"], result["device"] or result["block_device"]["source"]
    rate, interval = result["fsyncs_per_second"], result["fsyncs_per_second_interval"]
    what = {"commit": "commits", "fdatasync": "fdatasyncs"}.get(result["method"], "fsyncs")
    seen = f"{number_text(rate)} {what} per second"
    if interval:
        seen += f" (95 % interval {number_text(interval[0])} to {number_text(interval[1])})"
    seen += f", p99 {number_text(result['p99_ms'])} ms, on {measured}"
    proof = dict(power_cut or {})
    if not proof.get("drive_identity") or proof["drive_identity"] != result["drive_identity"]:
        proof = {}
    if proof.get("verdict") == "convicted":
        _fail(
            result,
            "lying",
            f"{measured}: {device} acknowledged what it had not stored, as a power cut proved at {proof.get('time')}: "
            f"{proof.get('evidence')}. Replace it; 'fsync_gate_power_cut=prepare' proves another one",
        )
        return
    if "pveperf" in result["methods"] and min_fsyncs_per_second and rate < min_fsyncs_per_second:
        _fail(
            result,
            "slow",
            f"{seen} ({result['filesystem']} on {device}); wanted at least "
            f"{number_text(min_fsyncs_per_second)} ({threshold_name}). A slow disk stalls the token of the whole "
            "cluster",
        )
        return
    warnings: list[tuple[str, str]] = []
    late = {
        name: p99
        for name in HONEST
        if (p99 := (result["methods"].get(name) or {}).get("p99_ms")) is not None
        and 0 < warn_p99_ms <= p99
    }
    if late:
        is_of = " and ".join(f"p99 of {name} is {number_text(p99)} ms" for name, p99 in late.items())
        warnings.append(
            (
                "latency",
                f"{is_of} ({result['filesystem']} on {device}), wanted below "
                f"{number_text(warn_p99_ms)} ms ({p99_threshold_name})",
            )
        )
    disks = (result.get("block_device") or {}).get("disks") or []
    # A power cut that was survived with a protection says nothing of the drive without.
    unprotected = any(disk.get("power_loss_failed") for disk in disks)
    if result["suspect"] and (unprotected or proof.get("verdict") != "acquitted"):
        evidence = "; ".join(entry["evidence"] for entry in result["suspect"])
        warnings.append(
            ("suspect", f"may acknowledge what it has not stored: {evidence}. Only a power cut proves it")
        )
    complaints = [
        f"{disk['name']}: {text}"
        for disk in disks
        for text in disk.get("health") or []
    ]
    if complaints:
        warnings.append(("health", "; ".join(complaints)))
    note = "; it is in memory, so this says nothing about a disk" if result["in_memory"] else ""
    result.update(
        verdict="warn" if warnings else "pass",
        reason=warnings[0][0] if warnings else "ok",
        message="; ".join([seen + note, *(text for _, text in warnings)]),
    )


def data_p99_ms(result: Mapping[str, Any]) -> float | None:
    """99th percentile of a sync that waits for data: that of fdatasync where it was measured, else what stands at the top."""
    figures = (result.get("methods") or {}).get("fdatasync") or result
    found = figures.get("p99_ms")
    return None if found is None else float(found)


def summary(rounds: Sequence[tuple[Sequence[int], int]]) -> dict[str, Any]:
    """Figures of one method from its ``rounds``: latencies and the time of the whole round, in nanoseconds.

    ``operations_per_second`` of all rounds; ``operations_per_second_interval``: 95 % by Student's t over the rates of
    the rounds, None with one round; ``rounds_per_second``; ``p50_ms p90_ms p99_ms p99_9_ms max_ms`` by nearest rank;
    ``p99_ms_interval``: 95 % by order statistics, which assume no distribution, None with fewer than 500 samples (the
    upper rank does not exist then); ``samples``; ``duration_seconds``; ``histogram``: ``[upper limit in ms, count]``
    of each bucket that is not empty, limits a factor of the square root of 2 apart.
    """
    ranked = sorted(latency for latencies, _ in rounds for latency in latencies)
    count = len(ranked)
    rates = [len(latencies) * 1e9 / max(1, elapsed) for latencies, elapsed in rounds]
    elapsed = sum(elapsed for _, elapsed in rounds)

    p99_ranks = _p99_ranks(count)
    return {
        "operations_per_second": round(count * 1e9 / max(1, elapsed), 2),
        "operations_per_second_interval": _interval(rates),
        "rounds_per_second": [round(rate, 2) for rate in rates],
        **{
            f"{name}_ms": round(stats.percentile(ranked, fraction) / 1e6, 3)
            for name, fraction in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99_9", 0.999))
        },
        "max_ms": round(ranked[-1] / 1e6, 3),
        "p99_ms_interval": p99_ranks and [round(ranked[rank - 1] / 1e6, 3) for rank in p99_ranks],
        "samples": count,
        "duration_seconds": round(elapsed / 1e9, 3),
        "histogram": _histogram(ranked),
    }


def _interval(rates: Sequence[float]) -> list[float] | None:
    count = len(rates)
    if count < 2:
        return None
    mean = sum(rates) / count
    deviation = math.sqrt(sum((rate - mean) ** 2 for rate in rates) / (count - 1))
    half = _STUDENT.get(count - 1, _STUDENT[max(_STUDENT)]) * deviation / math.sqrt(count)
    return [round(max(0.0, mean - half), 2), round(mean + half, 2)]


def _p99_ranks(count: int) -> tuple[int, int] | None:
    half = 1.96 * math.sqrt(count * 0.99 * 0.01)
    upper = math.ceil(count * 0.99 + half) + 1
    return (math.floor(count * 0.99 - half), upper) if upper <= count else None


def _histogram(ranked: Sequence[int]) -> list[list[float]]:
    """Buckets from 1 microsecond up: limit k is 0.001 ms * 2 ** (k / 2)."""
    counts: dict[int, int] = {}
    for latency in ranked:
        bucket = max(0, math.ceil(2 * math.log2(max(1, latency) / 1000)))
        counts[bucket] = counts.get(bucket, 0) + 1
    return [[float(f"{0.001 * 2 ** (bucket / 2):.3g}"), count] for bucket, count in sorted(counts.items())]


def remove_stale(parent: str) -> list[str]:
    """Remove what killed measurements left in ``parent``; returns their names.

    A running measurement holds a lock on its directory, so it is never taken away under it.
    """
    removed = []
    for name in sorted(os.listdir(parent)):
        path = os.path.join(parent, name)
        if not name.startswith(PREFIX) or not _is_ours(path):
            continue
        descriptor = _lock(path)
        if descriptor is not None:
            _remove(path)
            os.close(descriptor)
            removed.append(name)
    return removed


_REASONS = {
    errno.ENOSPC: "full",
    errno.EDQUOT: "full",
    errno.EROFS: "read_only",
    errno.EACCES: "denied",
    errno.EPERM: "denied",
}
_SQLITE = {13: errno.ENOSPC, 8: errno.EROFS, 14: errno.EACCES}  # FULL, READONLY, CANTOPEN


def _free_bytes(path: str) -> int:
    space = os.statvfs(path)
    return (space.f_bfree if os.geteuid() == 0 else space.f_bavail) * space.f_frsize


def _fail(result: dict[str, Any], reason: str, message: str) -> dict[str, Any]:
    result.update(verdict="fail", reason=reason, message=message)
    return result


def _supervised(parent: str, methods: tuple[str, ...], duration: float, stall_s: float) -> dict[str, Any]:
    """Measure in a child process, so that a disk that hangs cannot hang the caller.

    Whichever of the two processes is ended, the other one removes the directory; when both are killed at
    once, the next measurement does.
    """

    def work(caller: supervised.Caller) -> dict[str, Any]:
        # A collection in the middle of a round would be taken for a slow disk.
        gc.disable()
        try:
            return measure(directory, methods, duration, caller.waits)
        except sqlite3.Error as error:
            # The low byte is the primary result code (sqlite.org/rescode.html).
            number = _SQLITE.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, errno.EIO)
            raise OSError(number, os.strerror(number)) from error

    with supervised.endings() as signals:
        directory, lock = _private_directory(parent)
        child = supervised.Child(work, lambda: _remove(directory))
        hung = False
        try:
            answer = child.run(signals, duration + stall_s, stall_s)
        except supervised.Stalled:
            hung = True
            raise
        finally:
            # Nor is a disk asked that no longer answered, but let the child be killed.
            with signals.held():
                if not (hung or child.hung):
                    _remove(directory)
                os.close(lock)
    if not answer:
        raise PveguardError(f"{parent}: the measurement ended without a result; run again")
    return answer


class _Method(Protocol):
    """One way to make writes durable, with its files in a directory of its own."""

    def round(self, end: int, wanted: Callable[[], bool]) -> tuple[list[int], int]:
        """Once or more until ``end`` of the clock, or until ``wanted`` says no: latencies and elapsed time (ns)."""

    def close(self) -> dict[str, Any]:
        """Release what is open; more figures."""


class Pveperf:
    """pveperf's loop; the latency is that of the fsync alone, the rate that of the whole loop.

    The write comes after the fsync, as in the original.
    """

    def __init__(self, directory: str) -> None:
        self.names = [f"{directory}/tf_{number}.dat" for number in range(FILES)]
        self.turn = 0

    def round(self, end: int, wanted: Callable[[], bool]) -> tuple[list[int], int]:
        names, turn, clock = self.names, self.turn, time.perf_counter_ns
        opened, write, fsync, close = os.open, os.write, os.fsync, os.close
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        latencies: list[int] = []
        note = latencies.append
        began = clock()
        while True:
            descriptor = opened(names[turn], flags, 0o600)
            try:
                before = clock()
                fsync(descriptor)
                after = clock()
                if write(descriptor, BLOCK) != len(BLOCK):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                close(descriptor)
            note(after - before)
            turn = turn + 1 if turn < FILES - 1 else 0
            if after >= end or not wanted():
                break
        self.turn = turn
        return latencies, clock() - began

    def close(self) -> dict[str, Any]:
        return {}


class Fdatasync:
    """Blocks of 2300 bytes into a preallocated file; the latency is that of the fdatasync alone."""

    def __init__(self, directory: str) -> None:
        self.descriptor = os.open(
            f"{directory}/append.dat", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600
        )
        self.turns = self.left = APPEND_BYTES // len(APPEND_BLOCK)
        self._anew()

    def _anew(self) -> None:
        os.ftruncate(self.descriptor, 0)
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        try:
            os.posix_fallocate(self.descriptor, 0, APPEND_BYTES)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
        self.left = self.turns

    def round(self, end: int, wanted: Callable[[], bool]) -> tuple[list[int], int]:
        descriptor, clock, write, sync = self.descriptor, time.perf_counter_ns, os.write, os.fdatasync
        latencies: list[int] = []
        note = latencies.append
        began = clock()
        while True:
            if not self.left:
                self._anew()
            self.left -= 1
            if write(descriptor, APPEND_BLOCK) != len(APPEND_BLOCK):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            before = clock()
            sync(descriptor)
            after = clock()
            note(after - before)
            if after >= end or not wanted():
                return latencies, clock() - began

    def close(self) -> dict[str, Any]:
        os.close(self.descriptor)
        return {}


class Commit:
    """Transactions as the daemon makes them; the latency is that of COMMIT, which writes and checkpoints."""

    def __init__(self, directory: str) -> None:
        self.path = f"{directory}/commit.db"
        self.database = sqlite3.connect(self.path, isolation_level=None)
        execute = self.database.execute
        execute("PRAGMA journal_mode=WAL")
        execute("PRAGMA synchronous=NORMAL")
        execute("PRAGMA wal_autocheckpoint=1000")
        execute(_SCHEMA)
        self.version = 2
        insert = "INSERT INTO tree VALUES (?,0,?,1,0,?,?,?)"
        execute(insert, (0, self.version, 4, "__version__", None))
        execute(insert, (2, self.version, 8, "lrm_status", COMMIT_DATA))
        self.first = self._sequence()

    def _sequence(self) -> int:
        """Checkpoint sequence number of the write-ahead log (sqlite.org/fileformat2.html, section 4.1)."""
        with open(f"{self.path}-wal", "rb") as stream:
            head = stream.read(16)
        return int(struct.unpack_from(">I", head, 12)[0]) if len(head) == 16 else 0

    def round(self, end: int, wanted: Callable[[], bool]) -> tuple[list[int], int]:
        execute, clock, version = self.database.execute, time.perf_counter_ns, self.version
        latencies: list[int] = []
        note = latencies.append
        began = clock()
        while True:
            version += 1
            execute("BEGIN IMMEDIATE")
            execute("UPDATE tree SET version=?, data=? WHERE inode=2", (version, COMMIT_DATA))
            execute("UPDATE tree SET version=? WHERE inode=0", (version,))
            before = clock()
            execute("COMMIT")
            after = clock()
            note(after - before)
            if after >= end or not wanted():
                break
        self.version = version
        return latencies, clock() - began

    def close(self) -> dict[str, Any]:
        checkpoints = self._sequence() - self.first
        self.database.close()
        return {"checkpoints": checkpoints}


_LOOPS: dict[str, Callable[[str], _Method]] = {"pveperf": Pveperf, "fdatasync": Fdatasync, "commit": Commit}


def measure(
    directory: str, methods: Sequence[str], duration: float, wanted: Callable[[], bool] = lambda: True
) -> dict[str, Any]:
    """Run ``methods`` in ``directory`` for ``duration`` seconds in all: ``{method: summary}``. Raises OSError and
    sqlite3.Error. Rounds that a slow one before left no time for are not run, but each method runs once."""
    clock = time.perf_counter_ns
    began = clock()
    loops = {name: _LOOPS[name](directory) for name in methods}
    rounds: dict[str, list[tuple[list[int], int]]] = {name: [] for name in loops}
    total = ROUNDS * len(loops)
    for number in range(total):
        name = list(loops)[number % len(loops)]
        end = began + round(duration * 1e9 * (number + 1) / total)
        if rounds[name] and (clock() >= end or not wanted()):
            continue
        rounds[name].append(loops[name].round(end, wanted))
    return {name: {**summary(rounds[name]), **loop.close()} for name, loop in loops.items()}


def _private_directory(parent: str) -> tuple[str, int]:
    """A new directory and the descriptor that holds its lock."""
    while True:
        path = tempfile.mkdtemp(prefix=PREFIX, dir=parent)
        descriptor = _lock(path)
        if descriptor is not None and os.path.isdir(path):
            return path, descriptor
        # Another measurement took it for a stale one between its making and its locking.
        if descriptor is not None:
            os.close(descriptor)


def _lock(path: str) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _is_ours(path: str) -> bool:
    status = os.lstat(path)
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def _remove(directory: str) -> None:
    """Remove our files and the directory; nothing else is ever touched."""
    try:
        for name in os.listdir(directory):
            if _FILE.match(name):
                Path(directory, name).unlink(missing_ok=True)
        os.rmdir(directory)
    except OSError:
        pass  # the next measurement tries again
