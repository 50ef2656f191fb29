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

from ..base import node_name
from ..base.atomic import write_atomic
from ..base.errors import PveguardError
from ..base.run import Run
from ..base.run import run as real_run
from . import daemon_mode, pmxcfs, pve_lock

NODE_LOCK = Path("run/pveguard/run.lock")
CLUSTER_LOCK = Path("etc/pve/priv/lock/pveguard")
#: A write to /etc/pve on a member whose cluster connection broke can block for ever (the caller is a killable process).
_WRITE_TIMEOUT = 20.0
#: Seconds for which taking a lock, and giving it back, is tried: a membership that forms anew has no quorum meanwhile.
_TAKE_S = 15.0
_RELEASE_S = 30.0
_POLL_S = 0.5


@dataclass(frozen=True)
class Outcome:
    """``holder`` is the run that has the lock (ours when ``acquired``), ``where`` the path it was seen at."""

    acquired: bool
    changed: bool
    holder: dict[str, Any]
    where: str = ""

    @property
    def refusal(self) -> str:
        """Who has the lock and what helps, for the operator; empty when ``acquired``."""
        if self.acquired:
            return ""
        said = {key: self.holder.get(key) or unknown for key, unknown in _UNKNOWN.items()}
        return (
            f"Another run works on this node or its cluster: {said['who']} (process {said['pid']}, {said['command']!r}) has held "
            f"{self.where} since {said['since']}. Wait for it to end. If it is certainly gone, run again with "
            f"-e pveguard_lock_takeover={said['run_id']}"
        )

    def as_dict(self) -> dict[str, Any]:
        """What a module returns of it: ``acquired``, ``holder``, ``where`` and ``refusal``."""
        return {"acquired": self.acquired, "holder": self.holder, "where": self.where, "refusal": self.refusal}


#: The option ``lock`` of a module that takes the lock before it does anything else; its documentation is that of run_lock.
OPTION: dict[str, Any] = {
    "type": "dict",
    "options": {
        "holder": {"type": "dict", "required": True},
        "takeover": {"type": "str"},
        "cluster": {"type": "bool", "default": True},
    },
}
#: What is said of a holder that left less than its name.
_UNKNOWN = {"who": "unknown", "pid": "?", "command": "?", "since": "an unknown time", "run_id": "unknown"}


def take(option: dict[str, Any] | None, check: bool = False) -> Outcome | None:
    """Take the lock as the parameter of :data:`OPTION` says, None where it was not given."""
    if option is None:
        return None
    return acquire(option["holder"], option["takeover"], check=check, cluster=option["cluster"])


def require(option: dict[str, Any] | None, check: bool = False) -> None:
    """:func:`take` for what must not go on without: PveguardError, with nothing done, where another run has the lock."""
    outcome = take(option, check)
    if outcome is not None and not outcome.acquired:
        raise PveguardError(f"nothing was changed: {outcome.refusal}")


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
    mine = str(holder.get("run_id") or "")
    if not mine:
        raise PveguardError("holder: run_id is missing")
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
    if not pmxcfs_state(root):
        return None
    lock = root / CLUSTER_LOCK
    if takeover is not None:
        _remove_stale(lock, takeover, run)
    begun = end = time.monotonic()
    end += _TAKE_S
    unanswered: list[tuple[float, float]] = []
    while True:
        if not lock.parent.is_dir():
            # Proxmox makes it with its first lock; a fresh or a restored state may not have it yet.
            run(["mkdir", "-p", str(lock.parent)], timeout=_WRITE_TIMEOUT)
        tried = time.time()
        made = run(["mkdir", str(lock)], timeout=_WRITE_TIMEOUT)
        if made.ok:
            _write_holder(lock, text, run)
            return None
        if pve_lock.is_unanswered(made):
            unanswered.append((tried, time.time()))
        if lock.is_dir():
            break
        if time.monotonic() >= end:
            if made.rc == 124:
                raise PveguardError(
                    "/etc/pve does not answer a write within "
                    f"{_WRITE_TIMEOUT:g} s: look at 'journalctl -u pve-cluster' and 'corosync-quorumtool -s' on this node"
                )
            raise PveguardError(
                f"/{CLUSTER_LOCK} could not be made for {time.monotonic() - begun:.0f} s: {made.stderr.strip()}: see "
                "'corosync-quorumtool -s' and 'journalctl -u pve-cluster' on this node"
            )
        time.sleep(_POLL_S)
    # Another node of the same run may have made it a moment ago and still be writing its name into it.
    end = time.monotonic() + 5.0
    while True:
        other = _read(lock / "holder")
        if other is not None or time.monotonic() > end:
            break
        time.sleep(0.2)
    if other is None:
        if takeover == "unknown" or pve_lock.is_made_here(lock, unanswered, root):
            # Without a name in it nobody would ever give it back.
            _write_holder(lock, text, run)
            return None
        other = {"run_id": "unknown", "who": "a run that left no name", "since": _mtime(lock)}
    if other.get("run_id") == mine:
        return None
    return Outcome(False, False, other, f"/{CLUSTER_LOCK}")


def _write_holder(lock: Path, text: str, run: Run) -> None:
    end = time.monotonic() + _TAKE_S
    while True:
        written = run(["dd", f"of={lock}/holder", "bs=64K", "status=none"], input=text, timeout=_WRITE_TIMEOUT)
        if written.ok or _read(lock / "holder") == json.loads(text):
            return
        if time.monotonic() >= end or not pve_lock.is_passing(written):
            break
        time.sleep(_POLL_S)
    kept = _remove(lock, run, _RELEASE_S)
    more = f". Nor could /{CLUSTER_LOCK} be removed again: {kept}; {_help('unknown')}" if kept else ""
    raise PveguardError(f"/{CLUSTER_LOCK}/holder could not be written: {written.stderr.strip()}{more}")


def _remove(lock: Path, run: Run, deadline_s: float) -> str:
    """Remove a lock and what is in it; empty when it is gone, else why it is not after ``deadline_s`` seconds.

    Half removed it bears no name, so it is told by its inode from one that somebody takes meanwhile.
    """
    try:
        inode = os.lstat(lock).st_ino
    except FileNotFoundError:
        return ""
    except OSError as error:
        return str(error.strerror)
    end = time.monotonic() + deadline_s
    while True:
        done = run(["rm", "-rf", str(lock)], timeout=_WRITE_TIMEOUT)
        try:
            if os.lstat(lock).st_ino != inode:
                return ""
        except FileNotFoundError:
            return ""
        except OSError as error:
            return str(error.strerror)
        if done.ok or time.monotonic() >= end:
            # Where rm is content and it is there, another run has just taken it.
            return "" if done.ok else " ".join(done.stderr.split()) or f"rm: code {done.rc}"
        time.sleep(_POLL_S)


def _help(run_id: str) -> str:
    return (
        "once /etc/pve takes writes ('corosync-quorumtool -s') the next run takes it over with "
        f"-e pveguard_lock_takeover={run_id}"
    )


def _remove_stale(lock: Path, takeover: str, run: Run) -> None:
    """Remove the lock of ``takeover``. All nodes of a run do this at once, and none may remove the lock another just took:
    a second directory lets one in at a time, and who is in looks again. Raises PveguardError when it cannot be removed.
    """
    gate = Path(f"{lock}-takeover")
    end = time.monotonic() + 10.0
    while (_read(lock / "holder") or {}).get("run_id") == takeover:
        entered = run(["mkdir", str(gate)], timeout=_WRITE_TIMEOUT).ok
        if entered or time.monotonic() > end:  # nobody needs ten seconds: its owner died
            kept = ""
            if (_read(lock / "holder") or {}).get("run_id") == takeover:
                kept = _remove(lock, run, _TAKE_S)
            left = _remove(gate, run, _TAKE_S)
            if kept or left:
                raise PveguardError(
                    f"{node_name.own()}: the lock of {takeover} cannot be taken over: "
                    + "; ".join(f"{path} could not be removed: {why}" for path, why in ((lock, kept), (gate, left)) if why)
                    + ": see 'corosync-quorumtool -s' on this node, and run again"
                )
            return
        time.sleep(0.2)


def release(run_id: str, run: Run = real_run, root: Path = Path("/")) -> bool:
    """Give the locks back if ``run_id`` holds them; True when something was removed.

    Raises PveguardError when that of the cluster could not be removed within 30 s; that of the node is gone then.
    """
    removed, kept = False, ""
    lock = root / CLUSTER_LOCK
    # It can be read without quorum; whoever of the cluster's nodes comes first removes it for all.
    if (_read(lock / "holder") or {}).get("run_id") == run_id:
        kept = _remove(lock, run, _RELEASE_S)
        removed = not kept
    node_lock = root / NODE_LOCK
    if (_read(node_lock) or {}).get("run_id") == run_id:
        node_lock.unlink(missing_ok=True)
        removed = True
    if kept:
        who = run_id if (_read(lock / "holder") or {}).get("run_id") == run_id else "unknown"
        raise PveguardError(
            f"{node_name.own()}: the lock of this run, /{CLUSTER_LOCK}, could not be given back for {_RELEASE_S:g} s: "
            f"{kept}. Unless another member has done it: {_help(who)}; a run of this controller does so by itself"
        )
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
