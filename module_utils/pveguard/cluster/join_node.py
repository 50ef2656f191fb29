# SPDX-License-Identifier: Apache-2.0
"""The node that joins or leaves: its places, commands, files, database, tasks and quorum."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import signal
import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from ..base.atomic import fsync_dir, fsync_file, read_or_none, write_atomic
from ..base.run import CommandMissing, Result, run
from ..base.systemd import properties_of
from ..formats.corosync_tools import parse_quorum
from ..formats.corosync_version import config_version
from ..pmxcfs import mount, places, tasks, tree
from ..pmxcfs.live_database import Unreadable, snapshot

PVE_STATE = "/usr/local/sbin/pve-state"
DAEMON, COROSYNC = "pve-cluster.service", "corosync.service"
WATCH = "pveguard-state-watch.service"
POLL_S = 0.5
# One call to a daemon whose connection to the cluster broke never comes back.
ANSWER_S = 20.0
# What a membership that forms anew explains, so that it may be over in a moment.
PASSING = (errno.EACCES, errno.EROFS, errno.EPERM, errno.EIO, errno.EBUSY, errno.EAGAIN)
#: The signals that ask a process to end.
ENDINGS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Failure(Exception):
    """Something an operator can act on; the node is put back."""


class Node:
    """The places this program works on. ``root`` is / except in tests."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pve = root / places.MOUNT.lstrip("/")
        self.corosync = root / "etc/corosync"
        self.lib = root / places.FOLDER.lstrip("/")
        self.database = self.lib / "config.db"
        self.generations = root / "var/lib/pveguard/state/generations"
        self.root_ssh = root / "root/.ssh"
        self.tasks = root / tasks.ACTIVE
        self.ring_state = root / "var/lib/corosync"


def command(*argv: str, timeout: float = 120.0) -> Result:
    """Run a command; a missing program counts as code 127."""
    try:
        return run(argv, timeout=timeout)
    except CommandMissing:
        return Result(127, "", f"{argv[0]} is not installed")


def systemctl(*argv: str, must: bool = True) -> str:
    done = command("systemctl", *argv)
    if must and done.rc != 0:
        said = (done.stderr or done.stdout).strip() or f"code {done.rc}"
        journal = command("journalctl", "-u", argv[-1], "-n", "8", "--no-pager", "-o", "cat").stdout.strip()
        raise Failure(f"systemctl {' '.join(argv)} failed: {said}" + (f"\n{journal}" if journal else ""))
    return done.stdout


def active(*units: str) -> dict[str, bool]:
    """Which units run, in one call."""
    shown = properties_of(units, ["ActiveState"], run)
    return {unit: values.get("ActiveState") in ("active", "activating", "reloading") for unit, values in shown.items()}


def write_in_place(path: Path, data: bytes) -> None:
    """On /etc/pve: no chmod, no temporary file."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]
    finally:
        os.close(fd)


def patiently(action: Callable[[], object], deadline: float) -> None:
    """Change /etc/pve by an action that may be done twice, again until ``deadline`` as long as a passing loss of quorum
    explains that it fails."""
    while True:
        try:
            action()
            return
        except OSError as error:
            if error.errno not in PASSING or time.monotonic() > deadline:
                raise
        time.sleep(POLL_S)


def is_mounted(node: Node) -> bool:
    """A FUSE file system answers on /etc/pve."""
    return mount.answers(str(node.pve))


def read_tree(database: Path) -> tuple[int, tree.Entries]:
    """Root version and tree of one consistent state; raises Failure when it is no sound database."""
    try:
        return tree.read_tree(str(database), whole=True)
    except Unreadable as error:
        raise Failure(f"{database} cannot be read: {str(error).removeprefix(f'{database}: ')}") from error


def copied(database: Path) -> sqlite3.Connection:
    """A copy in memory of one consistent state."""
    try:
        return snapshot(str(database))
    except Unreadable as error:
        raise Failure(str(error)) from error


def save_generation(node: Node, node_name: str, reason: str) -> str:
    """Keep the whole database in the store: backup API, verified, fsync, rename, fsync of the directory,
    manifest."""
    node.generations.mkdir(parents=True, exist_ok=True)
    for directory in (node.generations.parent.parent, node.generations.parent, node.generations):
        os.chmod(directory, 0o700)
    now = datetime.now(UTC)
    fd, name = tempfile.mkstemp(prefix=".new-", dir=node.generations)
    os.close(fd)
    temporary = Path(name)
    try:
        with closing(copied(node.database)) as source:
            with closing(sqlite3.connect(temporary)) as target:
                source.backup(target)
                target.execute("PRAGMA journal_mode=DELETE").fetchone()
        version, held = read_tree(temporary)
        fsync_file(temporary)
        with open(temporary, "rb") as handle:
            sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
        conf = held.get("corosync.conf", (tree.FILE, b""))[1].decode("utf-8", "replace")
        manifest = {
            "sha256": sha256,
            "root_version": version,
            "config_version": config_version(conf),
            "mode": "member" if "corosync.conf" in held else "standalone",
            "node": node_name,
            "time": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "reason": reason,
            "lineage": _lineage(node),
        }
        label = f"{now:%Y%m%dT%H%M%SZ}-v{version}-{reason}"
        write_atomic(
            node.generations / f"{label}.json", json.dumps(manifest, indent=1, sort_keys=True).encode(), 0o600
        )
        os.rename(temporary, node.generations / f"{label}.db")
        fsync_dir(node.generations)
    except sqlite3.Error as error:
        raise Failure(f"{node.database} cannot be saved to {node.generations}: {error}") from error
    finally:
        for suffix in ("", "-journal", "-wal", "-shm"):
            Path(f"{temporary}{suffix}").unlink(missing_ok=True)
    return label


def _lineage(node: Node) -> object:
    try:
        return json.loads((node.generations.parent / "state.json").read_text()).get("lineage")
    except (OSError, ValueError, AttributeError):
        return None


def dump_sql(node: Node) -> Path:
    """The database as SQL text beside it, where Proxmox VE keeps such dumps too."""
    directory = node.lib / "backup"
    directory.mkdir(mode=0o755, exist_ok=True)
    target = directory / f"config-{int(time.time())}.sql.gz"
    with closing(copied(node.database)) as connection:
        connection.text_factory = lambda name: name.decode("utf-8", "surrogateescape")
        text = "\n".join(connection.iterdump()) + "\n"
    write_atomic(target, gzip.compress(text.encode("utf-8", "surrogateescape")), 0o600)
    return target


def remove_database(node: Node) -> None:
    # A stale -wal beside a new database would be replayed into it.
    for suffix in ("-wal", "-shm", ""):
        Path(f"{node.database}{suffix}").unlink(missing_ok=True)
    fsync_dir(node.lib)


def locked_guests(held: tree.Entries, node_name: str) -> list[tuple[str, str]]:
    """(path, lock) of this node's guest configurations that hold a lock."""
    locks = ((path, tree.guest_lock(held[path][1])) for path in tree.own_guests(held, node_name))
    return [(path, lock) for path, lock in locks if lock]


def quorum() -> tuple[bool, list[int]]:
    """Quorate, and the ids of the live members."""
    found = parse_quorum(command("corosync-quorumtool", "-s", timeout=20).stdout)
    return found["quorate"] is True, found["live_member_ids"]


def missing(node: Node, request: dict[str, object]) -> list[str]:
    """What a member of the cluster must have and this node has not yet, in words."""
    quorate, live = quorum()
    if not quorate:
        return [f"no quorum (members seen: {live or 'none'})"]
    absent = sorted(set(request["expected_ids"]) - set(live))  # type: ignore[call-overload]
    if absent:
        return [f"node ids {absent} are not in the membership {live}"]
    if not is_mounted(node):
        return [f"{node.pve} is not mounted"]
    try:
        if not os.lstat(node.pve / "local").st_mode & 0o222:
            return [f"{node.pve} is read-only although corosync is quorate"]
    except FileNotFoundError:
        pass
    except OSError as error:
        return [f"{node.pve}: {error.strerror}"]
    try:
        cluster, host = (
            read_or_none(node.pve / "corosync.conf"),
            read_or_none(node.corosync / "corosync.conf"),
        )
    except OSError as error:
        return [f"{node.pve}/corosync.conf: {error.strerror}"]
    if cluster is None:
        return [f"{node.pve}/corosync.conf has not arrived"]
    if cluster != host:
        return [f"{node.corosync}/corosync.conf differs from {node.pve}/corosync.conf"]
    return []


def not_alone(node: Node) -> list[str]:
    """What a node by itself must have, or must not, and this node has not yet, in words."""
    if not is_mounted(node):
        return [f"{node.pve} is not mounted"]
    if active(COROSYNC)[COROSYNC]:
        return [f"{COROSYNC} runs"]
    try:
        if (node.pve / "corosync.conf").exists():
            return [f"{node.pve}/corosync.conf exists"]
        if not os.lstat(node.pve / "local").st_mode & 0o222:
            return [f"{node.pve} is read-only"]
    except FileNotFoundError:
        pass
    except OSError as error:
        return [f"{node.pve}: {error.strerror}"]
    return []


def prove_writable(node: Node, name: str, deadline: float) -> None:
    """Make a directory and remove it, until ``deadline``: the members may form anew this moment. One that an interrupted run
    left is only removed; an answer that was lost does not count, what is there does."""
    probe = node.pve / f"pveguard-{name}"
    for program, is_done in (("mkdir", probe.is_dir), ("rmdir", lambda: not probe.exists())):
        while True:
            said = command(program, str(probe), timeout=ANSWER_S)
            if said.rc == 0 or is_done():
                break
            if time.monotonic() > deadline:
                raise Failure(f"{node.pve} cannot be written although the node is quorate: {said.stderr.strip()}")
            time.sleep(POLL_S)
