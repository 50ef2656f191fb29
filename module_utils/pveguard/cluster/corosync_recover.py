"""One step of a recovery on one node: looked at again before it is done, awaited after.

What is to be done is decided where all nodes are seen (core ``recovery_plan``). Between that and the step a person may
have thought for an hour, so each step first compares what it was decided by with what is there now, and refuses when that
has moved on.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..base import node_name, ssh_login
from ..base.atomic import fsync_dir, fsync_file, read_or_none, write_atomic
from ..base.errors import PveguardError
from ..base.run import CommandMissing, Run
from ..base.run import run as real_run
from ..corosync import corosync_change, corosync_info, corosync_restart
from ..formats import corosync_conf
from ..ha import ha_info
from ..pmxcfs import live_database, pmxcfs, pve_file
from ..state import program, ram_state
from . import cluster_member, corosync_views
from . import node_info as node_facts

#: Where the state of a node is kept before anything is changed, a directory for each time.
SAVED = Path("var/lib/pveguard/recover")
#: Bytes that must stay free on the disk that the state is saved to.
RESERVE_BYTES = 16 * 2**20
#: Seconds for which a membership must stay the same to be called formed; Corosync's default token is as long.
SETTLED_S = 3.0
#: How a node that is said to be off is asked, and for how many seconds.
SSH_PORT = 22
ANSWER_S = 3.0
_COPIES = (("cluster", "corosync.conf.cluster"), ("host", "corosync.conf.host"))


@dataclass
class Request:
    """A step with what it was decided by.

    ``seen``: ``cluster_sha256``, ``host_sha256`` (empty: no copy), ``running``, ``quorate`` as they were. ``text`` of
    corosync.conf. ``live_member_ids``: the membership then. ``max_root_version``: of the members that run, above which no
    state may meet them (None: none runs). ``votes`` to expect, ``others``: addresses that must not answer. ``mode`` of the
    daemon then. ``deadline_s``: seconds to wait for what a step brings. ``noise``: as ``ram_state_noise``, None
    for the default list.
    """

    step: str
    seen: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    live_member_ids: Sequence[int] = ()
    max_root_version: int | None = None
    votes: int = 0
    others: Sequence[str] = ()
    mode: str = ""
    deadline_s: float = 60.0
    noise: Sequence[str] | None = None


def answers(address: str) -> bool:
    """Whether a host is there: a port that is closed is an answer as well. Silence proves nothing (a firewall, a link)."""
    try:
        with socket.create_connection((address, SSH_PORT), timeout=ANSWER_S):
            return True
    except ConnectionRefusedError:
        return True
    except OSError:
        pass
    try:
        return real_run(["ping", "-n", "-c", "1", "-W", "1", address], timeout=ANSWER_S + 2).ok
    except CommandMissing:
        return False


@dataclass
class Node:
    """Where a step is done, how it runs commands and waits, whether an address answers it, and how it asks pve-state."""

    run: Run = real_run
    root: Path = Path("/")
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    answers: Callable[[str], bool] = answers
    ask: ram_state.Ask = program.ask

    def info(self) -> dict[str, Any]:
        return corosync_info.collect(run=self.run, root=self.root)


def carry_out(request: Request, check: bool = False, node: Node | None = None) -> dict[str, Any]:
    """Do one step, or with ``check`` refuse what a real run would refuse. Raises PveguardError, with nothing changed when
    the message says refused.

    Returns ``{changed, before, after}`` (texts of corosync.conf, empty where it is not about one) and what the step adds:
    ``directory`` of a save, ``arrived`` of a reload.
    """
    steps: dict[str, Callable[[Request, bool, Node], dict[str, Any]]] = {
        "save": _save,
        "publish": _publish,
        "host_copy": _host_copy,
        "reload": _reload,
        "restart": _restart,
        "start_corosync": _start_corosync,
        "quorum": _quorum,
        "stop_daemon": _stop_daemon,
        "start_daemon": _start_daemon,
    }
    return {"before": "", "after": "", **steps[request.step](request, check, node or Node())}


def masked(text: str) -> str:
    """A corosync.conf that may be shown or kept where others read it; also one that cannot be parsed."""
    return re.sub(r"(?im)^([ \t]*\S*(?:key|secret|password)[ \t]*:[ \t]*)\S.*$", r"\1(not shown)", text)


# The state before anything


def _save(request: Request, check: bool, node: Node) -> dict[str, Any]:
    """Both copies of corosync.conf and the database, unless the last save holds just these.

    The store of pveguard is not touched: what is live may be empty, and must not follow a good state into it.
    """
    info, facts = node.info(), pmxcfs.collect(node.root, patterns=request.noise)
    holds = {
        "cluster_sha256": (info["cluster"] or {}).get("sha256"),
        "host_sha256": (info["host"] or {}).get("sha256"),
        "database": facts["tree_sha256"] or _files_sha256(node.root / pmxcfs.DATABASE),
    }
    base = node.root / SAVED
    last = max((path for path in base.glob("*/manifest.json") if path.parent.is_dir()), default=None)
    if last is not None and (_json(last).get("holds") == holds):
        return {"changed": False, "directory": _shown(last.parent, node.root)}
    name = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    target = next(path for number in range(1, 1000) if not (path := base / f"{name}{f'-{number}' * (number > 1)}").exists())
    result = {"changed": True, "directory": _shown(target, node.root)}
    _refuse_full(base, node.root / pmxcfs.DATABASE)
    if check:
        return result
    os.makedirs(base, mode=0o700, exist_ok=True)
    # Renamed when it is whole: half a save is not one.
    work = base / f".{target.name}.{os.getpid()}"
    os.mkdir(work, mode=0o700)
    try:
        for key, file in _COPIES:
            data = read_or_none(node.root / (corosync_info.CLUSTER_COPY if key == "cluster" else corosync_info.HOST_COPY))
            if data is not None:
                write_atomic(work / file, data, 0o600)
        manifest = {
            "time": name,
            "node": node_name.own(),
            "holds": holds,
            "root_version": facts["root_version"],
            "mode": facts["mode"],
            "config_versions": {key: (info[key] or {}).get("config_version") for key, _ in _COPIES},
            "running_config_version": info["running_config_version"],
            "live_member_ids": info["live_member_ids"],
            "database": _copy_database(node.root / pmxcfs.DATABASE, work / "config.db"),
        }
        write_atomic(work / "manifest.json", (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode(), 0o600)
        os.rename(work, target)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    fsync_dir(base)
    return result


def _copy_database(source: Path, target: Path) -> str:
    """Copy a database, one consistent state of it where it can be read, else its files as they are; in words how good the
    copy is.
    """
    if not source.exists():
        return "there is none"
    os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600))
    try:
        live = live_database.snapshot(str(source))
        copy = sqlite3.connect(target)
        try:
            live.backup(copy)
        finally:
            live.close()
            copy.close()
        fsync_file(target)
    except (live_database.Unreadable, sqlite3.Error):
        # The log last: what is copied into the database meanwhile is in it.
        for suffix in ("", "-wal"):
            data = read_or_none(f"{source}{suffix}")
            if data is not None:
                write_atomic(f"{target}{suffix}", data, 0o600)
    return _judged(target)


def _judged(copy: Path) -> str:
    """The copy itself is not opened where it has a log: that would be written back into it."""
    wal = Path(f"{copy}-wal")
    if wal.exists() and wal.stat().st_size:
        return "a copy with its log; open it to merge the two"
    try:
        connection = sqlite3.connect(f"file:{copy}?immutable=1", uri=True)
        try:
            (said,) = connection.execute("PRAGMA integrity_check").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        return f"damaged: {error}"
    return "whole" if said == "ok" else f"damaged: {said}"


def _files_sha256(database: Path) -> str | None:
    if not database.exists():
        return None
    digest = hashlib.sha256()
    for suffix in ("", "-wal"):
        digest.update(read_or_none(f"{database}{suffix}") or b"")
    return digest.hexdigest()


def _refuse_full(base: Path, database: Path) -> None:
    size = sum(path.stat().st_size for path in (database, Path(f"{database}-wal")) if path.exists())
    folder = base
    while not folder.is_dir():
        folder = folder.parent
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if free < size + RESERVE_BYTES:
        raise PveguardError(
            f"{folder} has {free // 2**20} MiB free, the state needs {(size + RESERVE_BYTES) // 2**20} MiB: make room; nothing "
            "is changed before it is saved"
        )


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _shown(path: Path, root: Path) -> str:
    return f"/{path.relative_to(root)}"


# One text


def _publish(request: Request, check: bool, node: Node) -> dict[str, Any]:
    info = _unchanged(request, node)
    if sorted(info["live_member_ids"]) != sorted(request.live_member_ids):
        raise PveguardError(
            f"refused: the membership is {info['live_member_ids']}, it was {list(request.live_member_ids)}: run again"
        )
    state = pmxcfs.collect(node.root)
    if state["mode"] != "cluster" or state.get("met_corosync") is False:
        raise PveguardError("refused: the cluster file system of this node is not connected to its cluster")
    done = corosync_change.publish(
        request.text,
        request.deadline_s,
        request.live_member_ids,
        check,
        node.run,
        node.root,
        node.sleep,
        node.clock,
    )
    return {"changed": done.changed, "before": done.before, "after": done.after}


def _host_copy(request: Request, check: bool, node: Node) -> dict[str, Any]:
    info = _unchanged(request, node)
    bad = corosync_views.unusable(request.text, "the text to be written")
    if bad:
        raise PveguardError(f"refused: {bad}")
    new = corosync_conf.parse(request.text)
    target = node.root / corosync_info.HOST_COPY
    before = read_or_none(target)
    after = request.text.encode("utf-8", "surrogateescape")
    if info["running"] and info["cluster_name"] not in (None, new.cluster_name):
        raise PveguardError(f"refused: Corosync runs the cluster {info['cluster_name']!r}, the text is of {new.cluster_name!r}")
    former = (info["host"] or {}).get("config_version") or 0
    if former > (new.config_version or 0):
        raise PveguardError(
            f"refused: {corosync_views.HOST_COPY} has config_version {former}, above {new.config_version} of the text: run "
            "again"
        )
    corosync_change.validate(request.text, node.run, node.root / "run/pveguard")
    result = {"changed": before != after, "before": (before or b"").decode("utf-8", "replace"), "after": request.text}
    if result["changed"] and not check:
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_atomic(target, after, 0o644)
    return result


# Corosync


def _reload(request: Request, check: bool, node: Node) -> dict[str, Any]:
    info = _unchanged(request, node)
    wanted = (info["host"] or {}).get("config_version")
    if not info["running"] or not info["copies_equal"]:
        raise PveguardError("refused: Corosync does not run, or the two copies of corosync.conf differ here: run again")
    if not _lagging(info, wanted):
        return {"changed": False, "arrived": True}
    if check:
        return {"changed": True, "arrived": False}
    done = node.run(["corosync-cfgtool", "-R"], timeout=30)
    if not done.ok:
        raise PveguardError(f"corosync-cfgtool -R: {' '.join((done.stderr or done.stdout).split()) or f'code {done.rc}'}")
    # Where it does not help the setting needs a restart; that is another step.
    arrived = _wait(node, request.deadline_s, lambda: [] if not _lagging(node.info(), wanted) else ["late"]) == []
    return {"changed": True, "arrived": arrived}


def _lagging(info: Mapping[str, Any], wanted: int | None) -> bool:
    return {info["running_config_version"], *info["member_config_versions"].values()} != {wanted}


def _restart(request: Request, check: bool, node: Node) -> dict[str, Any]:
    _unchanged(request, node)
    if check:
        corosync_restart.judge(run=node.run, root=node.root)
    else:
        corosync_restart.restart(
            request.deadline_s, run=node.run, root=node.root, sleep=node.sleep, clock=node.clock
        )
    return {"changed": True}


def _start_corosync(request: Request, check: bool, node: Node) -> dict[str, Any]:
    info = _unchanged(request, node)
    if info["running"] and info["quorate"]:
        raise PveguardError("refused: Corosync runs here and has quorum by now: run again")
    if info["host"] is None:
        raise PveguardError(f"refused: there is no {corosync_views.HOST_COPY}")
    bad = corosync_views.unusable(info["host"]["text"], corosync_views.HOST_COPY)
    if bad:
        raise PveguardError(f"refused: {bad}")
    if info["authkey_sha256"] is None:
        raise PveguardError("refused: there is no /etc/corosync/authkey")
    _refuse_ha(node)
    state = pmxcfs.collect(node.root)
    if state["mode"] == "cluster":
        _refuse_leader(state, request.max_root_version, node)
    corosync_change.validate(info["host"]["text"], node.run, node.root / "run/pveguard")
    if check:
        return {"changed": True}
    started = time.time()
    _systemctl(node, "restart" if info["running"] else "start", "corosync.service")
    settled = _Settled(node)
    missing = _wait(
        node, request.deadline_s, lambda: _not_there(node, info["host"]["config_version"], request, settled, state["mode"])
    )
    if missing:
        said = corosync_change.journal_since(started, node.run)
        raise PveguardError(
            "\n".join([f"Corosync was started and after {request.deadline_s:g} s: {'; '.join(missing)}", *said])
        )
    return {"changed": True}


class _Settled:
    """Whether the membership has stayed the same for SETTLED_S seconds."""

    def __init__(self, node: Node) -> None:
        self.node, self.live, self.since = node, [-1], node.clock()

    def look(self, live: list[int]) -> bool:
        if live != self.live:
            self.live, self.since = live, self.node.clock()
        return self.node.clock() - self.since >= SETTLED_S


def _not_there(node: Node, version: int | None, request: Request, settled: _Settled, mode: str) -> list[str]:
    info = node.info()
    missing = corosync_info.missing(
        info, {"live_member_ids": list(request.live_member_ids), "quorate": True if request.live_member_ids else None}
    )
    if info["running"] and info["running_config_version"] != version:
        missing.append(f"it runs config_version {info['running_config_version']}, wanted {version}")
    if not settled.look(info["live_member_ids"]):
        missing.append("the membership is still being formed")
    if info["quorate"] and mode == "cluster" and not pve_file.has_quorum(node.root):
        missing.append("/etc/pve is still read-only")
    return missing


def _quorum(request: Request, check: bool, node: Node) -> dict[str, Any]:
    info = _unchanged(request, node)
    if not info["running"] or info["quorate"]:
        raise PveguardError("refused: Corosync does not run here, or there is quorum by now: run again")
    if sorted(info["live_member_ids"]) != sorted(request.live_member_ids):
        raise PveguardError(
            f"refused: the membership is {info['live_member_ids']}, it was {list(request.live_member_ids)}: run again"
        )
    if info["qdevice"]:
        raise PveguardError("refused: there is a QDevice, which may have given its vote to the other side")
    mode = _mode(node)
    if mode == "local":
        raise PveguardError("refused: the daemon of this node works alone (local mode)")
    answering = [address for address in request.others if node.answers(address)]
    if answering:
        raise PveguardError(
            f"refused: {', '.join(answering)} answers, so that node is not off. Repair the links to it, or switch it off"
        )
    if check:
        return {"changed": True}
    done = node.run(["corosync-quorumtool", "-e", str(request.votes)], timeout=30)

    def lacking() -> list[str]:
        missing = [] if node.info()["quorate"] else ["no quorum"]
        return missing if mode != "cluster" or pve_file.has_quorum(node.root) else [*missing, "/etc/pve is still read-only"]

    missing = _wait(node, request.deadline_s, lacking)
    if missing:
        raise PveguardError(
            f"'corosync-quorumtool -e {request.votes}' was run and after {request.deadline_s:g} s: {'; '.join(missing)} "
            f"({' '.join((done.stderr or done.stdout).split())[:200]})"
        )
    return {"changed": True}


# The daemon


def _stop_daemon(request: Request, check: bool, node: Node) -> dict[str, Any]:
    _unchanged(request, node)
    mode = _mode(node)
    if mode == "down":
        return {"changed": False}
    if mode != request.mode:
        raise PveguardError(f"refused: the daemon is in the mode {mode!r}, it was {request.mode!r}: run again")
    _refuse_ha(node)
    tasks = cluster_member.task_refusals(node.root)
    if tasks:
        raise PveguardError(f"refused: {tasks[0]}")
    _refuse_login(node)
    if check:
        return {"changed": True}
    _systemctl(node, "stop", "pve-cluster.service")
    missing = _wait(node, request.deadline_s, lambda: ["/etc/pve is still mounted"] if pmxcfs.mounted(node.root) else [])
    if missing:
        raise PveguardError(f"pve-cluster was stopped and after {request.deadline_s:g} s: {missing[0]}")
    return {"changed": True}


def _refuse_login(node: Node) -> None:
    """The next connection may depend on a key that lies on /etc/pve."""
    done = node.ask(["check-login", "--connection", ssh_login.connection()], 60)
    try:
        login = json.loads(done.stdout)
    except ValueError:
        login = {"how": f"it could not be judged: {done.stderr.strip()[-300:]}"}
    if not login.get("independent"):
        raise PveguardError(
            f"refused: the login in use depends on /etc/pve, which goes away: {login.get('how') or login.get('error')}. Put the "
            "key into /root/.ssh/authorized_keys2 and run again"
        )


def _start_daemon(request: Request, check: bool, node: Node) -> dict[str, Any]:
    info = _unchanged(request, node)
    state = pmxcfs.collect(node.root)
    if state["mode"] == "cluster":
        return {"changed": False}
    if state["mode"] == "local":
        raise PveguardError("refused: the daemon runs and works alone (local mode): run again")
    if info["host"] is None or info["example_conf"]:
        raise PveguardError(f"refused: without {corosync_views.HOST_COPY} the daemon may work alone")
    if state["database_bytes"] is None:
        raise PveguardError(f"refused: there is no /{pmxcfs.DATABASE}, so the daemon would begin empty")
    if state["root_version"] is not None and not state["has_corosync_conf"]:
        raise PveguardError("refused: the database holds no corosync.conf, so the daemon would work alone")
    _refuse_leader(state, request.max_root_version, node)
    if check:
        return {"changed": True}
    started = time.time()
    _systemctl(node, "start", "pve-cluster.service")

    def lacking() -> list[str]:
        mode = _mode(node)
        missing = [] if mode == "cluster" else [f"the daemon is {mode}"]
        if node.info()["quorate"] and not pve_file.has_quorum(node.root):
            missing.append("/etc/pve is still read-only")
        return missing

    missing = _wait(node, request.deadline_s, lacking)
    if missing:
        said = corosync_change.journal_since(started, node.run)
        raise PveguardError(
            "\n".join([f"pve-cluster was started and after {request.deadline_s:g} s: {'; '.join(missing)}", *said])
        )
    return {"changed": True}


# What must still be so


def _unchanged(request: Request, node: Node) -> dict[str, Any]:
    """The facts of now. Raises PveguardError when they are not those that the step was decided by."""
    info = node.info()
    now = {
        "cluster_sha256": (info["cluster"] or {}).get("sha256", ""),
        "host_sha256": (info["host"] or {}).get("sha256", ""),
        "running": info["running"],
        "quorate": bool(info["quorate"]),
    }
    moved = [
        f"{key}: {str(now[key])[:12] or 'none'}, it was {str(request.seen[key])[:12] or 'none'}"
        for key in now
        if key in request.seen and request.seen[key] != now[key]
    ]
    if moved:
        raise PveguardError(f"refused: this node has changed since it was looked at ({'; '.join(moved)}): run again")
    return info


def _refuse_leader(state: Mapping[str, Any], limit: int | None, node: Node) -> None:
    saved = node_saved_version(node)
    known = [version for version in (state["root_version"], saved) if version is not None]
    if not known:
        raise PveguardError(
            f"refused: the root version of this node's state is not known ({state['error'] or 'there is no database'}); with a "
            "higher one it would roll the members back"
        )
    if limit is not None and max(known) > limit:
        raise PveguardError(
            f"refused: this node holds root version {max(known)}, the members that run have {limit}; once they meet, all of them "
            "are rolled back to it. Stop pve-cluster here and let it fetch theirs (run again)"
        )


def node_saved_version(node: Node) -> int | None:
    """Root version of the replica of RAM state, None without one."""
    saved = node_facts.ram_state(node.run, node.root).get("saved_root_version")
    return saved if isinstance(saved, int) else None


def _refuse_ha(node: Node) -> None:
    ha = ha_info.collect(run=node.run, root=node.root)
    if ha["resources"]:
        raise PveguardError(
            f"refused: the cluster has HA resources ({', '.join(ha['resources'][:5])}), so this node may be reset: stop HA first "
            "(role ha, ha_state: disabled)"
        )
    if ha["watchdog_active"]:
        raise PveguardError(
            "refused: a client holds the watchdog (/run/watchdog-mux.active), so this node may be reset: stop HA first (role ha, "
            "ha_state: disabled)"
        )


def _mode(node: Node) -> str:
    return str(pmxcfs.collect(node.root)["mode"])


def _systemctl(node: Node, verb: str, unit: str) -> None:
    if verb != "stop":
        # A unit that failed too often is not started before that is forgotten.
        node.run(["systemctl", "reset-failed", unit], timeout=30)
    started = time.time()
    done = node.run(["systemctl", verb, unit], timeout=120)
    if not done.ok:
        said = " ".join((done.stderr or done.stdout).split()) or f"code {done.rc}"
        lines = corosync_change.journal_since(started, node.run)
        raise PveguardError("\n".join([f"'systemctl {verb} {unit}' failed: {said}", *lines]))


def _wait(node: Node, deadline_s: float, lacking: Callable[[], list[str]]) -> list[str]:
    """What is still lacking after ``deadline_s`` seconds; empty as soon as nothing is."""
    end = node.clock() + deadline_s
    while True:
        missing = lacking()
        if not missing or node.clock() >= end:
            return missing
        node.sleep(0.5)
