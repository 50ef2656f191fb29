# SPDX-License-Identifier: Apache-2.0
"""The state that the daemon starts on, restored at boot."""

from __future__ import annotations

import os
import sqlite3

from ..pmxcfs.tree import ROW_VERSION, path_of, read_rows, root_version, stored_data, without_noise
from .exits import RestoreError, StateError, StoreError
from .files import copy_file, read_json, remove, remove_database, size_of, store_lock, write_volatile
from .generations import cut_generation, generations, restore_fix
from .node import fill, is_ours, live_mount, memory, resize_tmpfs, tmpfs_sizes
from .paths import MIB
from .replica import Store
from .rescue import pending_rescue, rescue_text
from .rows import (
    INSERT,
    check_connection,
    connect,
    content_sha256,
    is_member,
    read_hashes,
    unloadable,
    verify_database,
)
from .status import tell
from .system import log, utc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..pmxcfs.tree import Rows
    from .paths import Paths
    from .settings import Config


def restore_at_boot(paths: Paths, config: Config) -> dict[str, Any]:
    """What the unit runs before the daemon: the replica into the RAM file system, or nothing, and then no daemon."""
    try:
        result = restore_boot(paths, config)
    except Exception as error:
        # Whatever it is, the daemon must not start on it.
        message = f"{error}. The daemon is not started (fail closed)"
        if not isinstance(error, Undecided):
            message += f". 'pve-state list' shows what there is; the fix is one command: {restore_fix(paths)}"
        write_volatile(paths.restore_file, {"error": str(error), "time": utc()})
        tell(paths, config)
        raise RestoreError(message) from error
    write_volatile(paths.restore_file, result)
    if result["restored"]:
        remove(paths.live_file)
        try:
            # From here on the state on disk is not the one of a clean stop.
            Store(paths, config).update_state(clean=False)
        except StoreError as error:
            log("error", f"{error}; the state is restored, but nothing can be saved")
        try:
            _drop_staged(paths, config, result["root_version"])
        except (StateError, OSError, sqlite3.Error) as error:
            log("warning", f"{paths.switch}/stock.db: {error}")
    # main() prints the message, which is what the journal gets as well.
    return result


class Undecided(RestoreError):
    """There are two states, and which one to start from is for an operator to say; the text names the commands."""


def restore_boot(paths: Paths, config: Config) -> dict[str, Any]:
    """Fill the fresh RAM file system from the replica, once. Never touches the store."""
    mount = live_mount(paths)
    if mount is None:
        raise RestoreError(f"{paths.live} is not mounted: nothing may be restored onto the disk")
    if not is_ours(mount):
        raise RestoreError(f"{paths.live} is a foreign mount ({mount[1]} from {mount[2]})")
    former = read_json(paths.restore_file)
    if os.path.exists(paths.marker):
        former.pop("error", None)
        return {**former, "restored": False, "message": "already restored since this file system was mounted"}
    if os.path.exists(paths.removed_file):
        raise RestoreError(
            f"config.db was removed earlier in this boot (see {paths.removed_file}) and is not resurrected; "
            "remove that file to restore the replica"
        )
    if os.path.exists(paths.live_db):
        # Put there by hand, or a restore that was cut after its last step: accepted only as a state that
        # verifies.
        problems, rows = verify_database(paths.live_db, is_member(paths), not config.unsound)
        if problems:
            raise RestoreError(f"{paths.live_db} is there already and does not pass: {problems[0]}")
        write_volatile(paths.marker, {"source": "found", "time": utc()})
        return restored_result("found", rows, former, config, clean=False)
    if not os.path.isdir(paths.store):
        raise RestoreError(f"the store {paths.store} does not exist")
    pending = pending_rescue(paths)
    if pending and pending["kind"] == "schema":
        return _restore_whole(paths, config, pending)
    if pending:
        raise Undecided(rescue_text(pending))
    if not os.path.exists(paths.replica):
        raise RestoreError(f"the store is empty: {paths.replica} does not exist")
    _make_room(paths, config, size_of(paths.replica) + size_of(paths.replica + "-wal"))
    state = read_json(paths.state_file)
    staged = f"{paths.live}/.pveguard-restore.db"
    remove_database(staged)
    try:
        with store_lock(paths):
            # The files as they are, log included: SQLite replays it here, and the store is not written at
            # all.
            for suffix in ("-journal", "-wal", ""):
                if os.path.exists(paths.replica + suffix):
                    copy_file(paths.replica + suffix, staged + suffix)
        rows = settle(staged, is_member(paths), paths.replica, config)
        mended = _mend(paths, state, staged, rows)
        if mended:
            rows = settle(staged, is_member(paths), paths.replica, config)
        clean = bool(state.get("clean")) and state.get("clean_root_version") == root_version(rows)
        if clean:
            _same_as_at_stop(paths, state, staged)
            _with_noise(paths, config, state, staged, rows)
        put_live(paths, staged)
    except (OSError, sqlite3.Error) as error:
        raise RestoreError(f"{paths.replica} could not be copied to RAM: {error}") from error
    finally:
        remove_database(staged)
    write_volatile(paths.marker, {"source": "replica", "time": utc(), "root_version": root_version(rows)})
    result = restored_result("replica", rows, {}, config, clean)
    if mended:
        result["mended"] = mended
        result["message"] += f"; {len(mended)} damaged row(s) were taken from a generation: {', '.join(mended[:5])}"
    return result


def _restore_whole(paths: Paths, config: Config, pending: dict[str, Any]) -> dict[str, Any]:
    """Put back a database whose schema is not known, as it was: the daemon that wrote it reads it."""
    source = pending["path"]
    staged = f"{paths.live}/.pveguard-restore.db"
    remove_database(staged)
    try:
        _make_room(paths, config, size_of(source))
        copy_file(source, staged)
        problems, rows = verify_database(staged, sound=False)
        if problems:
            raise RestoreError(f"{source} does not pass verification: {problems[0]}")
        put_live(paths, staged)
    except (OSError, sqlite3.Error) as error:
        raise RestoreError(f"{source} could not be copied to RAM: {error}") from error
    finally:
        remove_database(staged)
    write_volatile(paths.marker, {"source": "rescue copy", "time": utc(), "root_version": root_version(rows)})
    log("warning", f"{pending['why'][0]}, and restored as a whole from {source}")
    result = restored_result("rescue copy", rows, {}, config, clean=False)
    if not rows:
        # Its versions are not known either.
        del result["advance_to"]
        result.update(root_version=None, message=f"restored a database of an unknown schema, as it was, from {source}")
    return result


def _make_room(paths: Paths, config: Config, size: int) -> None:
    """Give the RAM file system the limit that a state of ``size`` bytes needs. Raises RestoreError when it does not fit."""
    limit, need = tmpfs_sizes(size, config, memory()[0])
    if fill(paths)[0] != limit:
        resize_tmpfs(paths, limit)
    if fill(paths)[0] < size:
        raise RestoreError(
            f"{paths.live} holds {fill(paths)[0] // MIB} MiB; the state needs {need // MIB} MiB"
        )


def _mend(paths: Paths, state: dict[str, Any], staged: str, rows: Rows) -> list[str]:
    """SQLite has no checksum of what is in a page, so a byte that a disk lost is not seen by an integrity check. A
    generation has one, and within a lineage every later change has a version above its root: the other rows must be
    as they are there. Takes those that are not from the newest generation; returns their paths.
    """
    wanted = state.get("lineage")
    for g in generations(paths):
        m = g.manifest
        if not (m.get("replica") and m.get("lineage") == wanted and m["root_version"] <= root_version(rows)):
            continue
        if g.problems():
            continue
        source, copy = connect(g.db, "immutable"), connect(staged, "rw")
        try:
            good, hashes, other = read_rows(source), read_hashes(source), read_hashes(copy)
            old = [i for i, row in rows.items() if i and row[ROW_VERSION] <= m["root_version"]]
            strange = [i for i in old if i not in good]
            if strange:
                raise RestoreError(
                    f"{paths.replica}: row {strange[0]} has version {rows[strange[0]][ROW_VERSION]} and is not in "
                    f"generation {g.name}: the disk has lost or changed data"
                )
            bad = sorted(i for i in old if rows[i] != good[i] or other[i] != hashes[i])
            for inode in bad:
                copy.execute(INSERT, (*good[inode][:7], stored_data(source, inode)))
        finally:
            copy.close()
            source.close()
        found = [path_of(i, good) or f"row {i}" for i in bad]
        for path in found:
            log("error", f"{path} is damaged in {paths.replica}: taken from generation {g.name}. Look at the disk")
        return found
    return []


def _same_as_at_stop(paths: Paths, state: dict[str, Any], staged: str) -> None:
    """After a clean stop every byte of the state is known."""
    wanted = state.get("clean_sha256")
    connection = connect(staged, "immutable")
    try:
        if wanted and content_sha256(connection) != wanted:
            raise RestoreError(
                f"{paths.replica} does not hold what the clean stop saved (sha256): the disk has lost or changed data"
            )
    finally:
        connection.close()


def _with_noise(paths: Paths, config: Config, state: dict[str, Any], staged: str, rows: Rows) -> None:
    """After a clean stop, put the full copy that was cut at it in the place of the staged replica, so that locks
    outlive the switch to RAM. Only when it is the same state, noise aside; else the replica stays.
    """
    full = f"{paths.live}/.pveguard-restore-full.db"
    wanted = (state.get("lineage"), root_version(rows))
    try:
        for g in generations(paths):
            if (g.manifest.get("lineage"), g.manifest.get("root_version")) != wanted:
                continue
            if int(g.manifest.get("rows") or 0) <= len(rows) or g.problems(is_member(paths)):
                continue
            copy_file(g.db, full)
            if settle(full, is_member(paths), g.db, config).get(0) == rows.get(0) and _same_but_noise(config, full, staged):
                os.rename(full, staged)
                return
    except (OSError, StateError, sqlite3.Error) as error:
        log("warning", f"the full copy is not used: {error}")
    finally:
        remove_database(full)


def _same_but_noise(config: Config, full: str, staged: str) -> bool:
    one = connect(full, "immutable")
    try:
        other = connect(staged, "immutable")
        try:
            hashes = read_hashes(one)
            return without_noise(read_rows(one), config.noise) == read_rows(other) and all(
                hashes[i] == h for i, h in read_hashes(other).items()
            )
        finally:
            other.close()
    finally:
        one.close()


def settle(staged: str, member: bool, origin: str, config: Config) -> Rows:
    """Replay the log of a staged copy, verify it, leave it as one plain file. Returns its rows."""
    if size_of(staged) == 0 and size_of(staged + "-wal") == 0:
        raise RestoreError(f"{origin} is empty (0 bytes)")
    try:
        connection = connect(staged, "rw")
        try:
            problems, rows = check_connection(connection, member)
            if problems and rows and config.unsound:
                log("warning", f"{origin}: {problems[0]}; accepted, as asked")
                problems = []
            if not problems:
                mode = connection.execute("PRAGMA journal_mode=DELETE").fetchone()[0]
                if mode != "delete":
                    problems = [f"no checkpoint of its log (journal mode {mode})"]
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise RestoreError(f"{origin} does not pass verification: {error}") from error
    if problems:
        hint = "; --unsound restores it all the same" if rows and not unloadable(rows) else ""
        raise RestoreError(f"{origin} does not pass verification: {problems[0]}{hint}")
    return rows


def put_live(paths: Paths, staged: str) -> None:
    """Make a verified file the live database. A stale log beside it would be replayed into it: those go
    first.
    """
    for suffix in ("-wal", "-shm", "-journal"):
        remove(paths.live_db + suffix)
    os.chmod(staged, 0o600)
    os.rename(staged, paths.live_db)


def restored_result(source: str, rows: Rows, former: dict[str, Any], config: Config, clean: bool) -> dict[str, Any]:
    root = root_version(rows)
    result = {
        "restored": source != "found",
        "source": source,
        "root_version": root,
        "rows": len(rows),
        "clean": clean,
        "time": utc(),
        "message": f"restored root version {root} ({len(rows)} rows) from the {source}, "
        + ("after a clean stop" if clean else "after an unclean stop"),
    }
    if not clean:
        # Root versions up to this one may have been seen by others before power failed.
        result["advance_to"] = former.get("advance_to") or root + config.max_lag + 1
    return result


def _drop_staged(paths: Paths, config: Config, restored_root: int) -> None:
    """RAM state goes on: a copy that a switch back to disk left is stale from here on. One that is newer than what
    was restored is kept as a generation.
    """
    staged = f"{paths.switch}/stock.db"
    if not os.path.exists(staged):
        return
    problems, rows = verify_database(staged, sound=False)
    if not problems and root_version(rows) > restored_root:
        copy = connect(staged, "rw")
        try:
            with store_lock(paths):
                cut_generation(copy, paths, config, Store(paths, config).lineage, "staged")
        finally:
            copy.close()
    remove_database(staged)
