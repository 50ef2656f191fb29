"""How fast a file system makes small writes durable: the fsync loop of Proxmox's pveperf, with percentiles.

pveperf rotates for three seconds over 300 files ``tf_N.dat``: open with truncate, write 4001 bytes, fsync,
close. Its documentation calls more than 200 fsyncs per second acceptable.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import select
import signal
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from . import block_writes
from .errors import PveguardError
from .units import bytes_text, number_text

#: From pveperf's loop.
FILES = 300
BLOCK = b"A" * 4000 + b"\n"
DEFAULT_DURATION_S = 3.0

#: What must be free: 300 files of one block each are 1.2 MiB, and a journal wants room too.
NEEDED_BYTES = 10 * 1024 * 1024
NEEDED_INODES = FILES + 2

#: A disk that has not answered for this long after the time is up is given up on.
STALL_S = 30.0

PREFIX = ".pveguard-fsync-bench."
_FILE = re.compile(r"tf_[0-9]+\.dat\Z")

_UNMEASURED: dict[str, Any] = {
    "fsyncs_per_second": None,
    "p50_ms": None,
    "p90_ms": None,
    "p99_ms": None,
    "p99_9_ms": None,
    "max_ms": None,
    "samples": 0,
    "duration_seconds": 0.0,
}


def bench(
    path: str,
    duration: float = DEFAULT_DURATION_S,
    *,
    min_fsyncs_per_second: float = 0,
    nearest_parent: bool = False,
    threshold_name: str = "min_fsyncs_per_second",
    stall_s: float = STALL_S,
) -> dict[str, Any]:
    """Measure the file system of the directory ``path`` for ``duration`` seconds and judge it.

    ``nearest_parent``: where ``path`` does not exist, or is in RAM, measure its nearest parent that exists on
    a disk. ``min_fsyncs_per_second``: 0 measures without judging the rate. ``threshold_name`` is named in the
    message.

    Never raises for what the disk does. Returns ``verdict`` (``pass`` or ``fail``), ``reason`` (``ok``,
    ``slow``, ``missing``, ``not_a_directory``, ``read_only``, ``full``, ``denied``, ``stalled``,
    ``io_error``), ``message``, ``fsyncs_per_second`` (of the whole loop), ``p50_ms p90_ms p99_ms p99_9_ms
    max_ms`` (of the fsync alone), ``samples``, ``duration_seconds``, ``path``, ``measured_path``, ``device``,
    ``disk``, ``filesystem``, ``mount_options``, ``in_memory``, ``free_bytes`` and ``time``. Figures that
    could not be had are None.
    """
    where = block_writes.device_behind(path, skip_memory=True) if nearest_parent else _exact(path)
    measured = where["measured_path"]
    result: dict[str, Any] = {
        **_UNMEASURED,
        "path": path,
        "measured_path": measured,
        **{key: where[key] for key in ("device", "disk", "filesystem", "mount_options", "in_memory")},
        "free_bytes": None,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if not nearest_parent and not os.path.lexists(path):
        return _fail(
            result, "missing", f"{path} does not exist, expected a directory on the disk to be measured"
        )
    if not os.path.isdir(measured):
        return _fail(
            result, "not_a_directory", f"{measured} is not a directory, so there is nothing to measure on"
        )
    space = os.statvfs(measured)
    free_blocks = space.f_bfree if os.geteuid() == 0 else space.f_bavail
    result["free_bytes"] = free_blocks * space.f_frsize
    if space.f_flag & os.ST_RDONLY:
        return _fail(result, "read_only", f"{measured} is on a read-only file system ({where['filesystem']})")
    remove_stale(measured)
    # File systems without a fixed number of inodes say 0 of 0.
    if result["free_bytes"] < NEEDED_BYTES or (space.f_files and space.f_ffree < NEEDED_INODES):
        inodes = f" and {space.f_ffree} inodes" if space.f_files else ""
        return _fail(
            result,
            "full",
            f"{measured} has {bytes_text(result['free_bytes'])}{inodes} free, "
            f"wanted {bytes_text(NEEDED_BYTES)} and {NEEDED_INODES} inodes",
        )
    try:
        result.update(_supervised(measured, duration, stall_s))
    except _Interrupted as signal_seen:
        os.kill(
            os.getpid(), signal_seen.args[0]
        )  # everything is cleaned up: end as if it had not been caught
        raise
    except _Stalled:
        return _fail(
            result,
            "stalled",
            f"{measured}: the disk did not answer for {stall_s:g} s (device "
            f"{where['device'] or where['source']}); "
            "look at 'dmesg' and 'smartctl -x'",
        )
    except OSError as error:
        return _fail(
            result, _REASONS.get(error.errno or 0, "io_error"), f"{measured}: {error.strerror or error}"
        )
    except PveguardError as error:
        return _fail(result, "io_error", str(error))
    rate = result["fsyncs_per_second"]
    seen = f"{number_text(rate)} fsyncs per second, p99 {number_text(result['p99_ms'])} ms, on {measured}"
    if min_fsyncs_per_second and rate < min_fsyncs_per_second:
        return _fail(
            result,
            "slow",
            f"{seen} ({where['filesystem']} on {where['device'] or where['source']}); "
            f"wanted at least {number_text(min_fsyncs_per_second)} ({threshold_name}). A slow disk stalls "
            "the "
            "token of the whole cluster",
        )
    note = "; it is in memory, so this says nothing about a disk" if where["in_memory"] else ""
    result.update(verdict="pass", reason="ok", message=seen + note)
    return result


def summary(latencies: list[float], elapsed: float) -> dict[str, Any]:
    """Rate and percentiles (nearest rank) of ``latencies`` in seconds, taken in ``elapsed`` seconds."""
    ranked = sorted(latencies)

    def ms(fraction: float) -> float:
        rank = max(1, -(-len(ranked) * fraction // 1))
        return round(ranked[min(len(ranked), int(rank)) - 1] * 1000, 3)

    return {
        "fsyncs_per_second": round(len(ranked) / elapsed, 2),
        "p50_ms": ms(0.5),
        "p90_ms": ms(0.9),
        "p99_ms": ms(0.99),
        "p99_9_ms": ms(0.999),
        "max_ms": round(ranked[-1] * 1000, 3),
        "samples": len(ranked),
        "duration_seconds": round(elapsed, 3),
    }


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


class _Stalled(Exception):
    """The disk did not answer."""


class _Interrupted(BaseException):
    """A signal ended the measurement."""


_ENDINGS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_REASONS = {
    errno.ENOSPC: "full",
    errno.EDQUOT: "full",
    errno.EROFS: "read_only",
    errno.EACCES: "denied",
    errno.EPERM: "denied",
}


def _exact(path: str) -> dict[str, Any]:
    where = block_writes.device_behind(path, skip_memory=False)
    return {**where, "measured_path": path if os.path.lexists(path) else where["measured_path"]}


def _fail(result: dict[str, Any], reason: str, message: str) -> dict[str, Any]:
    result.update(verdict="fail", reason=reason, message=message)
    return result


def _supervised(parent: str, duration: float, stall_s: float) -> dict[str, Any]:
    """Measure in a child process, so that a disk that hangs cannot hang the caller.

    Whichever of the two processes is ended, the other one removes the directory; when both are killed at
    once, the next measurement does.
    """
    directory, lock = _private_directory(parent)
    reader, writer = os.pipe()
    caller = os.getpid()
    previous: dict[int, Any] = {}

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise _Interrupted(signum)

    child = os.fork()
    if child == 0:
        os.close(reader)
        _child(directory, duration, caller, writer)
    os.close(writer)
    hung = False
    try:
        for ending in _ENDINGS:
            # A caller that ignores a signal, as nohup does, goes on ignoring it.
            if signal.getsignal(ending) is not signal.SIG_IGN:
                previous[ending] = signal.signal(ending, interrupt)
        answer = _read_all(reader, time.monotonic() + duration + stall_s)
    except BaseException as error:
        hung = isinstance(error, _Stalled)
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        os.close(reader)
        for number, handler in previous.items():
            signal.signal(number, handler)
        # A process in an uninterruptible call cannot be waited for.
        os.waitpid(child, os.WNOHANG if hung else 0)
        if not hung:
            _remove(directory)
        os.close(lock)
    if "errno" in answer:
        raise OSError(answer["errno"], os.strerror(answer["errno"]))
    if not answer:
        raise PveguardError(f"{parent}: the measurement ended without a result; run again")
    return answer


def _child(directory: str, duration: float, caller: int, writer: int) -> None:
    """Body of the child process; never returns."""
    for ending in _ENDINGS:
        signal.signal(ending, signal.SIG_DFL)
    try:
        # The caller's output must not stay open on behalf of a child that hangs.
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        try:
            latencies, elapsed = _loop(directory, duration, lambda: os.getppid() == caller)
            answer = summary(latencies, elapsed)
        except OSError as error:
            answer = {"errno": error.errno or errno.EIO}
        if os.getppid() != caller:
            _remove(directory)
        else:
            with os.fdopen(writer, "w") as stream:
                json.dump(answer, stream)
    finally:
        os._exit(0)


def _loop(directory: str, duration: float, wanted: Callable[[], bool]) -> tuple[list[float], float]:
    """pveperf's loop, ended early when ``wanted`` says no: latencies of fsync and elapsed time (seconds)."""
    latencies: list[float] = []
    began = now = time.perf_counter()
    end = began + duration
    while now < end and wanted():
        name = f"{directory}/tf_{len(latencies) % FILES}.dat"
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        try:
            if os.write(descriptor, BLOCK) != len(BLOCK):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            before = time.perf_counter()
            os.fsync(descriptor)
            latencies.append(time.perf_counter() - before)
        finally:
            os.close(descriptor)
        now = time.perf_counter()
    return latencies, now - began


def _read_all(reader: int, deadline: float) -> dict[str, Any]:
    chunks = []
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([reader], [], [], left)[0]:
            raise _Stalled
        chunk = os.read(reader, 65536)
        if not chunk:
            break
        chunks.append(chunk)
    text = b"".join(chunks)
    answer: dict[str, Any] = json.loads(text) if text else {}
    return answer


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
