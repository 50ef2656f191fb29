# SPDX-License-Identifier: Apache-2.0
"""Rescue copies: states that must not go over the replica, and must not be lost either."""

from __future__ import annotations

import os
import sqlite3
import time

from ..base.atomic import fsync_dir
from ..pmxcfs.tree import INODE, LENGTH, NAME, PARENT, ROW_VERSION, path_of, read_rows, root_version
from .compare import read_change
from .exits import Damaged, NotRead, Refused, StateError, StoreError
from .files import copy_file, read_json, remove, remove_database, size_of
from .generations import cut_generation, damaged_folder, free_name, generations
from .live import open_live
from .paths import DAY, PVE_CLUSTER
from .replica import LOG_LIMIT, Store
from .rows import connect, emptied, plain_copy, read_hashes, read_only
from .system import log, printable, utc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from ..pmxcfs.tree import Rows
    from .paths import Paths

# Rescue copies of former times that are kept beside a pending one.
KEEP_RESCUED = 3


def aside_store(store: Store) -> Store:
    """The store of the rescue copy that belongs to a store, made when it is first needed."""
    if store.rescued is None:
        folder = store.paths.rescue
        try:
            if not os.path.isdir(folder):
                os.mkdir(folder, 0o700)
                fsync_dir(store.paths.store)
        except OSError as error:
            raise StoreError(f"{folder}: {error.strerror}") from error
        store.rescued = Store(store.paths.aside(), store.config, store.alone)
    return store.rescued


def keep_aside(store: Store, why: list[str], kind: str, deep: bool, exact: bool) -> dict[str, Any]:
    """Bring the rescue copy up to the live database, row by row as the replica. Returns what status says of it.

    ``kind``: ``unloadable`` (the daemon would not load it) or ``emptied``. Everybody who saves may do so at each change, so
    it costs what a save costs; a pending copy is never overwritten by another kind of state, but follows the live one.
    """
    aside = aside_store(store)
    with aside:
        rows = aside.rows()
        aside_hashes = read_hashes(aside.opened) if deep and rows else None
        change, blobs = read_change(store.paths, rows, store.config, bool(aside_hashes), aside_hashes)
        other = rows and (
            aside.state.get("kind", kind) != kind or change.rewritten or emptied(change.rows, rows)
        )
    if other:
        # No continuation of what is pending: that becomes one of former times, and this is kept anew.
        _close_aside(store)
        set_rescue_aside(store.paths)
        return keep_aside(store, why, kind, deep, exact)
    with aside:
        note = {
            "kind": kind,
            "why": why[:5],
            "replica": _age_of_replica(store),
            "raw": None,
        }
        if aside.state.get("kind") is None:
            note["since"] = utc()
        aside.update_state(**note)
        lag = root_version(change.rows) - root_version(rows)
        if not rows or change.real or change.rewritten or (exact and lag) or lag >= store.config.max_lag:
            aside.write(change, blobs)
            if aside.logged > LOG_LIMIT:
                aside.checkpoint()
    prune_rescued(store.paths)
    return {"kind": kind, "why": why[:5], "path": aside.paths.replica, "root_version": root_version(change.rows)}


def _close_aside(store: Store) -> None:
    if store.rescued is not None:
        store.rescued.close(checkpoint=False)
        store.rescued = None


def keep_whole(store: Store, unknown: str) -> dict[str, Any]:
    """Copy the live database as a whole, because its schema is not known: row by row a part of it might be lost. Returns what
    status says of it.
    """

    def copy(folder: str) -> None:
        live = open_live(store.paths)
        try:
            plain_copy(live, f"{folder}/config.db")
        finally:
            live.close()

    why = f"the schema of the live database is not known to this version of pveguard ({unknown}): it is copied as a whole"
    return keep_raw(store, why, "schema", copy)


def keep_raw(store: Store, why: str, kind: str = "damaged", copy: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Copy the live database as it is, log included, because it cannot be read. Returns what status says of it.

    ``copy`` makes the copy in a folder; None copies the files.
    """
    paths = store.paths
    aside = aside_store(store)
    aside._read_state()
    former = aside.state.get("raw")
    try:
        seen = [[s, *_look_of(paths.live_db + s)] for s in ("", "-wal") if os.path.exists(paths.live_db + s)]
    except OSError as error:
        raise NotRead(f"{paths.live_db}: {error.strerror}") from error
    names = [str(suffix) for suffix, *_ in seen]
    if "" not in names:
        raise Refused(f"{paths.live_db} does not exist; nothing was saved")
    folder = f"{paths.rescue}/{former}" if former else None
    if not (folder and os.path.isdir(folder) and aside.state.get("seen") == seen):
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        name = free_name(paths.rescue, f"{stamp}-raw")
        folder = f"{paths.rescue}/{name}"
        try:
            os.mkdir(f"{folder}.tmp", 0o700)
            if copy:
                copy(f"{folder}.tmp")
            else:
                for suffix in names:
                    copy_file(paths.live_db + suffix, f"{folder}.tmp/config.db{suffix}")
            fsync_dir(f"{folder}.tmp")
            os.rename(f"{folder}.tmp", folder)
            fsync_dir(paths.rescue)
        except (OSError, sqlite3.Error) as error:
            _discard_folder(f"{folder}.tmp")
            raise StoreError(f"{folder}: {error}") from error
        aside.update_state(kind=kind, why=[why], replica=_age_of_replica(store), raw=name, seen=seen)
        prune_rescued(paths)
    return {"kind": kind, "why": [why], "path": f"{folder}/config.db", "root_version": None}


def _look_of(path: str) -> tuple[int, int, int]:
    found = os.stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns


def _age_of_replica(store: Store) -> list[int | None]:
    """What changes when the replica takes another state: what is newer, it or a rescue copy, is told by that."""
    rows = store.rows()
    return [read_json(store.paths.state_file).get("lineage"), root_version(rows) if rows else None]


def rescue_is_over(store: Store) -> None:
    """The replica holds what the daemon serves (again): a pending rescue copy becomes one of former times."""
    paths = store.paths
    if not os.path.exists(paths.aside().state_file):
        return
    try:
        _close_aside(store)
        set_rescue_aside(paths)
    except StateError as error:
        # What is in the replica now tells that it is over as well.
        log("error", str(error))
    else:
        log("info", f"what the daemon serves is in the replica again; the rescue copy is kept in {paths.rescue}")


def set_rescue_aside(paths: Paths) -> None:
    """Make the pending rescue copy one of former times. It is decided on once its note is gone."""
    aside = paths.aside()
    try:
        if os.path.exists(aside.replica):
            name = f"{paths.rescue}/{free_name(paths.rescue, time.strftime('%Y%m%dT%H%M%SZ', time.gmtime()))}"
            if _merged(aside.replica):
                os.rename(aside.replica, f"{name}.db")
            else:
                os.mkdir(f"{name}-raw", 0o700)
                for suffix in ("-wal", "-shm", ""):
                    if os.path.exists(aside.replica + suffix):
                        os.rename(aside.replica + suffix, f"{name}-raw/config.db{suffix}")
        remove(aside.state_file)
        fsync_dir(paths.rescue)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"{paths.rescue}: {error}") from error
    prune_rescued(paths)


def _merged(path: str) -> bool:
    """Make one file the whole state of a database of ours; False where it is damaged."""
    try:
        connection = connect(path, "rw")
        try:
            return bool(connection.execute("PRAGMA journal_mode=DELETE").fetchone() == ("delete",))
        finally:
            connection.close()
    except (sqlite3.Error, Damaged):
        return False


def prune_rescued(paths: Paths) -> None:
    """Remove rescue copies of former times beyond the newest few; the pending one stays."""
    pending = read_json(paths.aside().state_file).get("raw")
    try:
        found = sorted(
            (e for e in os.listdir(paths.rescue) if e[:1].isdigit() and e != pending),
            key=lambda e: os.stat(f"{paths.rescue}/{e}").st_mtime_ns,
        )
        for entry in found[: max(0, len(found) - KEEP_RESCUED)]:
            path = f"{paths.rescue}/{entry}"
            _discard_folder(path) if os.path.isdir(path) else remove(path)
    except OSError as error:
        log("warning", f"{paths.rescue}: old rescue copies were not removed: {error.strerror}")


def _discard_folder(path: str) -> None:
    import shutil

    shutil.rmtree(path, ignore_errors=True)


def pending_rescue(paths: Paths, replica: Rows | None = None) -> dict[str, Any] | None:
    """The rescue copy that is newer than the replica, None where there is none.

    {kind, why, since, path, root_version, time, differs, choices}: ``differs`` are the paths in which it and the replica
    differ, ``choices`` the command for each thing that can be done. ``replica``: the replica's rows, where they are known.
    """
    aside = paths.aside()
    note = read_json(aside.state_file)
    if not note.get("kind"):
        return None
    if replica is None:
        replica = rows_of(paths.replica)
    noted, lineage = note.get("replica") or [None, None], read_json(paths.state_file).get("lineage")
    # A replica that cannot be read is not newer than anything.
    if replica and (noted[1] != root_version(replica) or None not in (noted[0], lineage) and noted[0] != lineage):
        # It was saved after that; only the note was not taken away before power failed.
        return None
    raw = note.get("raw")
    path = f"{paths.rescue}/{raw}/config.db" if raw else aside.replica
    if not os.path.exists(path):
        return None
    rows = rows_of(path)
    return {
        "kind": note["kind"],
        "why": note.get("why") or [],
        "since": note.get("since"),
        "path": path,
        "root_version": root_version(rows) if rows else None,
        "time": utc(max(modified(path), modified(path + "-wal"))),
        "differs": _paths_between(rows, replica) if rows else None,
        "choices": {
            "the state that the daemon served last, as it is": f"systemctl start {PVE_CLUSTER}",
            "the older state of the replica": "pve-state restore --replica",
        }
        if note["kind"] == "schema"
        else {
            "the state that the daemon served last": "pve-state restore --rescued"
            + ("" if note["kind"] == "emptied" else " --unsound"),
            "the older state of the replica": "pve-state restore --replica",
            "the older state, then single files": "pve-state restore --replica, then "
            "pve-state restore-file rescued PATH",
        },
    }


def rows_of(path: str) -> Rows:
    """Rows of a database file, {} where it is missing, empty or cannot be read."""
    if size_of(path) == 0 and size_of(path + "-wal") == 0:
        return {}
    try:
        return read_only(path, read_rows)
    except (Damaged, sqlite3.Error):
        return {}


def _paths_between(one: Rows, other: Rows) -> list[str]:
    """Sorted paths in which two tables differ, the root aside."""
    differs = {row[0] for row in one.items() ^ other.items()} - {0}
    names = {path_of(i, one if i in one else other) or f"row {i}" for i in differs}
    return sorted(names)


def rescue_text(found: dict[str, Any]) -> str:
    """What is pending, for people: why, what differs, what can be done."""
    differs = found["differs"]
    some = "its rows cannot be read" if differs is None else some_of(differs)
    ways = "; ".join(f"{command} ({what})" for what, command in found["choices"].items())
    return (
        f"a rescue copy is newer than the replica: {found['path']} of {found['time']}, kept because "
        f"{'; '.join(found['why'])}. They differ in {some}. Choose: {ways}"
    )


def some_of(names: Sequence[str]) -> str:
    text = ", ".join(printable(name, "") for name in names[:10]) or "nothing but the root version"
    return text + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def keep_former(store: Store, reason: str) -> str | None:
    """Keep the replica as a generation before it is overwritten. A replica too damaged for that is copied as
    it is. Returns the name of the generation, None for a copy.
    """
    try:
        return str(cut_generation(store.opened, store.paths, store.config, store.lineage, reason, replica=True)["name"])
    except Damaged as error:
        folder = store.paths.damaged
        try:
            folder = damaged_folder(store.paths)
            try:
                plain_copy(store.opened, f"{folder}/config.db")
            except BaseException:
                # It is tried again every few seconds: no heap of halves.
                remove_database(f"{folder}/config.db")
                os.rmdir(folder)
                raise
        except (OSError, sqlite3.Error) as second:
            raise StoreError(f"{folder}: {second}") from second
        log("error", f"{error}; it is kept in {folder}")
        return None


def find_row(rows: Rows, name: bytes) -> tuple[int, int | None] | None:
    """(version, length) of a top-level file, None when it is not there."""
    for row in rows.values():
        if row[PARENT] == 0 and row[NAME] == name and row[INODE] != 0:
            return (row[ROW_VERSION], row[LENGTH])
    return None


def day_passed(paths: Paths) -> bool:
    """True when the newest generation is a day old, or from the future (the clock was set back). The newest by
    version: one with a later time would call for a generation at every save until the clock has caught up with it.
    """
    newest = next((g.manifest.get("time") or "" for g in generations(paths)), "")
    return not utc(time.time() - DAY) < newest <= utc(time.time() + 60)


def modified(path: str) -> float:
    """mtime in seconds, 0 for a file that does not exist."""
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0
