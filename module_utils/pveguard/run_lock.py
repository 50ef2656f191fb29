"""One run at a time: a lock on the node and, through the cluster file system, one for the whole cluster.

The lock on the node is ``/run/pveguard/run.lock`` (gone after a reboot). Where /etc/pve is mounted and writable the run
also makes the directory ``/etc/pve/priv/lock/pveguard``: mkdir on the cluster file system succeeds on one member only, so
that two controllers with different parts of one cluster see each other too.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import daemon_mode, pmxcfs
from .atomic import write_atomic
from .errors import PveguardError
from .run import Run
from .run import run as real_run

NODE_LOCK = Path("run/pveguard/run.lock")
CLUSTER_LOCK = Path("etc/pve/priv/lock/pveguard")
#: A write to /etc/pve on a member whose cluster connection broke can block for ever (the caller is a killable process).
_WRITE_TIMEOUT = 20.0


@dataclass(frozen=True)
class Outcome:
    """``holder`` is the run that has the lock (ours when ``acquired``), ``where`` the path it was seen at."""

    acquired: bool
    changed: bool
    holder: dict[str, Any]
    where: str = ""


def acquire(
    holder: dict[str, Any],
    takeover: str | None = None,
    check: bool = False,
    run: Run = real_run,
    root: Path = Path("/"),
    cluster: bool = True,
) -> Outcome:
    """Take the lock for ``holder`` (a JSON object with at least ``run_id``), or say who has it.

    ``takeover`` is the run id of a holder that is known to be gone; its lock is replaced. Taking a lock that is ours
    already changes nothing. With ``check`` nothing is written. Without ``cluster`` the lock is the node's alone and nothing
    is written to /etc/pve: on a member whose daemon works alone each write raises the version of its state.
    """
    mine = str(holder["run_id"])
    for path in (root / NODE_LOCK, root / CLUSTER_LOCK / "holder"):
        other = _read(path)
        if other is not None and other.get("run_id") not in (mine, takeover):
            return Outcome(False, False, other, f"/{path.relative_to(root)}")
    if check:
        return Outcome(True, False, holder)

    changed = False
    text = json.dumps({**holder, "since": holder.get("since") or _now()}, sort_keys=True)
    node_lock = root / NODE_LOCK
    if (_read(node_lock) or {}).get("run_id") != mine:
        node_lock.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if takeover is not None:
            node_lock.unlink(missing_ok=True)
        # link() is the create-if-absent that also has content from the first moment.
        temporary = node_lock.with_suffix(f".{os.getpid()}")
        write_atomic(temporary, text.encode(), 0o644)
        try:
            os.link(temporary, node_lock)
        except FileExistsError:
            other = _read(node_lock) or {}
            return Outcome(False, False, other, f"/{NODE_LOCK}")
        finally:
            temporary.unlink()
        changed = True
    try:
        refused = _acquire_cluster(text, mine, takeover, run, root) if cluster else None
    except PveguardError:
        if changed:
            node_lock.unlink(missing_ok=True)
        raise
    if refused is not None:
        if changed:
            node_lock.unlink(missing_ok=True)
        return refused
    return Outcome(True, changed, holder)


def _acquire_cluster(text: str, mine: str, takeover: str | None, run: Run, root: Path) -> Outcome | None:
    """None when the cluster's lock is ours or cannot be had on this node (no mount, no quorum)."""
    state = pmxcfs_state(root)
    if not state:
        return None
    lock = root / CLUSTER_LOCK
    if takeover is not None:
        _remove_stale(lock, takeover, run)
    if not lock.parent.is_dir():
        # Proxmox makes it with its first lock; a fresh or a restored state may not have it yet.
        run(["mkdir", "-p", str(lock.parent)], timeout=_WRITE_TIMEOUT)
    made = run(["mkdir", str(lock)], timeout=_WRITE_TIMEOUT)
    if made.ok:
        written = run(["dd", f"of={lock}/holder", "bs=64K", "status=none"], input=text, timeout=_WRITE_TIMEOUT)
        if not written.ok:
            run(["rm", "-rf", str(lock)], timeout=_WRITE_TIMEOUT)
            raise PveguardError(f"/{CLUSTER_LOCK}/holder could not be written: {written.stderr.strip()}")
        return None
    if not lock.is_dir():
        if made.rc == 124:
            raise PveguardError(
                "/etc/pve does not answer a write within "
                f"{_WRITE_TIMEOUT:g} s: look at 'journalctl -u pve-cluster' and 'corosync-quorumtool -s' on this node"
            )
        raise PveguardError(f"/{CLUSTER_LOCK} could not be made: {made.stderr.strip()}")
    # Another node of the same run may have made it a moment ago and still be writing its name into it.
    end = time.monotonic() + 5.0
    while True:
        other = _read(lock / "holder")
        if other is not None or time.monotonic() > end:
            break
        time.sleep(0.2)
    if other is None:
        other = {"run_id": "unknown", "who": "a run that left no name", "since": _mtime(lock)}
        if takeover == "unknown":
            return None
    if other.get("run_id") == mine:
        return None
    return Outcome(False, False, other, f"/{CLUSTER_LOCK}")


def _remove_stale(lock: Path, takeover: str, run: Run) -> None:
    """Remove the lock of ``takeover``. All nodes of a run do this at once, and none may remove the lock another just took:
    a second directory lets one in at a time, and who is in looks again.
    """
    gate = f"{lock}-takeover"
    end = time.monotonic() + 10.0
    while (_read(lock / "holder") or {}).get("run_id") == takeover:
        entered = run(["mkdir", gate], timeout=_WRITE_TIMEOUT).ok
        if entered or time.monotonic() > end:  # nobody needs ten seconds: its owner died
            if (_read(lock / "holder") or {}).get("run_id") == takeover:
                run(["rm", "-rf", str(lock)], timeout=_WRITE_TIMEOUT)
            run(["rmdir", gate], timeout=_WRITE_TIMEOUT)
            return
        time.sleep(0.2)


def release(run_id: str, run: Run = real_run, root: Path = Path("/")) -> bool:
    """Give the locks back if ``run_id`` holds them; True when something was removed."""
    removed = False
    lock = root / CLUSTER_LOCK
    if pmxcfs_state(root) and (_read(lock / "holder") or {}).get("run_id") == run_id:
        removed = run(["rm", "-rf", str(lock)], timeout=_WRITE_TIMEOUT).ok
    node_lock = root / NODE_LOCK
    if (_read(node_lock) or {}).get("run_id") == run_id:
        node_lock.unlink(missing_ok=True)
        removed = True
    return removed


def pmxcfs_state(root: Path) -> bool:
    """True when /etc/pve is mounted, answers and takes writes (stand-alone, or quorate)."""
    return pmxcfs.mounted(root) and daemon_mode.takes_writes(root)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _mtime(path: Path) -> str:
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(path.stat().st_mtime))
    except OSError:
        return "unknown"
