# SPDX-License-Identifier: Apache-2.0
"""The store as it lies on a disk image: taken out without mounting anything, judged without the node.

Needs e2fsprogs (e2fsck replays the journal, as the kernel does when it mounts) and, for a disk of the lab, qemu-img.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import changes

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "module_utils"))

from pveguard.state.generations import generations  # noqa: E402
from pveguard.state.paths import Paths  # noqa: E402
from pveguard.state.rows import verify_database  # noqa: E402


class DiskError(Exception):
    """A disk image could not be read; the message says which command said what."""


def _run(argv: list[str], good: tuple[int, ...] = (0,)) -> str:
    # The tools of a file system are in /sbin, which not every PATH holds.
    environment = {**os.environ, "LC_ALL": "C", "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", env=environment
        )
    except FileNotFoundError:
        raise DiskError(f"{argv[0]} is not installed") from None
    if done.returncode not in good:
        raise DiskError(
            f"{argv[0]} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-300:]}"
        )
    return done.stdout


def raw_copy(overlay: Path, target: Path) -> None:
    """A raw, sparse copy of a qcow2 disk that no QEMU has open."""
    _run(["qemu-img", "convert", "-O", "raw", str(overlay), str(target)])


def take_out(image: Path, folder: str, target: Path) -> None:
    """Replay the journal of the ext4 in ``image`` (which is changed by that) and copy ``folder`` to ``target``."""
    # 1: the journal was replayed, or an error was corrected, which nothing but a replay can here.
    _run(["e2fsck", "-y", "-E", "journal_only", str(image)], good=(0, 1))
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    _run(["debugfs", "-R", f"rdump {folder} {target}", str(image)])
    name = folder.rstrip("/").rpartition("/")[2]
    if name and (target / name).is_dir():
        for path in (target / name).iterdir():
            path.rename(target / path.name)
        (target / name).rmdir()


def digests(database: Path) -> dict[str, changes.Digests]:
    """{node: the files of its sequence} in a database of the daemon's schema; a log beside it is read as well."""
    connection = sqlite3.connect(database)
    try:
        rows = connection.execute(
            "SELECT inode, parent, type, name, data FROM tree WHERE inode<>0"
        ).fetchall()
    finally:
        connection.close()
    names = {inode: (parent, name) for inode, parent, _, name, _ in rows}
    found: dict[str, changes.Digests] = {}
    for inode, _, kind, _, data in rows:
        parts: list[str] = []
        at = inode
        while at:
            at, name = names[at]
            parts.insert(0, name)
        if len(parts) > 2 and parts[0] == "nodes" and changes.ours(path := "/".join(parts[2:])):
            found.setdefault(parts[1], {})[path] = changes.digest(None if kind == 4 else data or b"")
    return found


def problems(store: Path) -> list[str]:
    """What is wrong with a store that was taken out: the replica, and each generation with its manifest."""
    replica = store / "config.db"
    if not replica.exists():
        return [f"{replica.name} is missing"]
    found = [f"replica: {problem}" for problem in verify(replica)]
    paths = Paths("/")
    paths.generations = str(store / "generations")
    for generation in generations(paths):
        found += [f"generation {generation.name}: {problem}" for problem in generation.problems()]
    return found


def verify(database: Path) -> list[str]:
    """Problems of a database with its log, which is checkpointed first, on this copy."""
    try:
        connection = sqlite3.connect(database)
        try:
            connection.execute("PRAGMA journal_mode=DELETE").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        return [str(error)]
    return list(verify_database(str(database), False)[0])
