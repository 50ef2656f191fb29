# SPDX-License-Identifier: Apache-2.0
"""One save: the live database compared with the replica, and what changed committed."""

from __future__ import annotations

import os
import sqlite3
import time

from ..base.node_name import own as node_name
from ..pmxcfs.live_database import unknown_schema
from ..pmxcfs.tree import root_version
from .compare import read_change
from .exits import EXIT_DAMAGED, Damaged, Refused, StoreError
from .files import ensure_store, store_lock, write_volatile
from .live import advance_pending, live_database, read_live, remember_database, replaced_database, switched
from .node import daemon_running, is_ours, live_mount
from .replica import Store
from .rescue import day_passed, find_row, keep_aside, keep_former, keep_raw, keep_whole, rescue_is_over
from .rows import content_sha256, emptied, read_hashes, suspicious, unloadable
from .system import log, utc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

    from ..pmxcfs.tree import Rows
    from .paths import Paths
    from .settings import Config


def save(
    store: Store, deep: bool = False, exact: bool = False, replaced: str | None = None, checkpoint: bool = True
) -> dict[str, Any]:
    """Bring the replica up to the live database. Returns what was done as a dict.

    ``deep`` compares the data's hashes as well. ``exact`` saves the root version even when nothing else differs.
    ``replaced`` is a reason to treat the live database as a new lineage. Looks at the live database are over before
    anything is written to the store.

    What the daemon serves reaches the disk. A state that it would not load, or one that is all but empty, does not go over
    the replica: it is kept beside it, see :func:`keep_aside`, and the result says so under ``rescued``.
    """
    paths, config = store.paths, store.config
    started = time.monotonic()
    ensure_store(paths)
    with store_lock(paths), store:
        replica = store.rows()
        empty = not replica
        # Before a generation of the day carries it on, what is in the replica is compared byte by byte.
        daily = not empty and day_passed(paths)
        deep = (deep or replaced is not None or daily) and not empty
        try:
            unknown = read_live(paths, unknown_schema)
            if unknown:
                return {**_nothing_saved(store, replica), "rescued": keep_whole(store, unknown)}
            replica_hashes = read_hashes(store.opened) if deep else None
            change, blobs = read_change(paths, replica, config, deep, replica_hashes)
            if change.rewritten and not deep and not empty:
                # Something that one history cannot do: look again, at the data as well.
                replica_hashes = read_hashes(store.opened)
                change, blobs = read_change(paths, replica, config, True, replica_hashes)
        except Damaged as error:
            return {**_nothing_saved(store, replica), "rescued": keep_raw(store, str(error))}
        live_root = root_version(change.rows)
        last_root = root_version(replica)
        result = {
            **_nothing_saved(store, replica),
            "rows_changed": len(change.upsert),
            "rows_deleted": len(change.delete),
            "live_root_version": live_root,
        }
        lag = live_root - last_root if not empty else 0
        differs = empty or change.real or change.rewritten
        if differs:
            why = unloadable(change.rows)
            bare = emptied(change.rows, replica)
            if why or bare:
                result["rescued"] = keep_aside(store, why or [bare or ""], "unloadable" if why else "emptied", deep, exact)
                return result
            result["warnings"] = suspicious(change.rows)[:5]
        if not (differs or (exact and lag) or lag >= config.max_lag):
            rescue_is_over(store)
            return result
        reason = change.rewritten or (replaced if change.real or lag else None)
        if reason and not empty:
            log("warning", f"a new lineage begins: {reason}; the former state is kept as a generation")
            keep_former(store, f"before {'the state was replaced' if replaced else 'a new lineage'}")
            store.new_lineage(reason)
        # The lineage that a store begins with is on disk before anything carries it.
        store.update_state()
        conf = find_row(replica, b"corosync.conf"), find_row(change.rows, b"corosync.conf")
        store.write(change, blobs)
        if checkpoint:
            store.checkpoint()
        result.update(saved=True, root_version=live_root, lineage=store.lineage)
        event = None
        if conf[0] != conf[1] and not empty:
            event = "join" if conf[0] is None else "corosync.conf changed"
        elif reason:
            event = "new lineage"
        elif empty:
            event = "first save"
        elif change.real and daily:
            event = "daily"
        if event:
            result["generation"] = _cut(store, event)
        rescue_is_over(store)
        result["seconds"] = round(time.monotonic() - started, 3)
        return result


def _cut(store: Store, reason: str) -> str | None:
    """The name of a generation cut from what was just saved, None where that failed."""
    try:
        return str(store.cut(reason)["name"])
    except (StoreError, Damaged, sqlite3.Error) as error:
        # The save itself stands; history is worth a loud line and another try, not a failed save.
        log("error", f"{error}; the state itself is saved")
        return None


def _nothing_saved(store: Store, replica: Rows) -> dict[str, Any]:
    return {
        "saved": False,
        "rescued": None,
        "warnings": [],
        "rows_changed": 0,
        "rows_deleted": 0,
        "root_version": root_version(replica) if replica else None,
        "live_root_version": None,
        "generation": None,
        "lineage": store.lineage,
    }


def cmd_save(paths: Paths, config: Config, args: Namespace) -> dict[str, Any]:
    if args.if_enabled and not (switched(paths) and is_ours(live_mount(paths))):
        return {"saved": False, "message": "this node does not run from RAM"}
    if switched(paths) and not is_ours(live_mount(paths)) and not args.force:
        raise Refused(f"{paths.live} is not the RAM file system; nothing was saved. See 'pve-state status'")
    live_database(paths)
    store = Store(paths, config)
    try:
        # While the daemon is stopped anybody may edit the file and leave its versions as they are.
        deep = args.deep or not daemon_running(paths)
        result = save(store, deep=deep, exact=True, replaced=replaced_database(paths))
        if args.generation and not result["rescued"]:
            with store_lock(paths):
                store.open()
                result["generation"] = store.cut(args.reason)["name"]
        remember_database(paths)
    finally:
        store.close(checkpoint=False)
    return _told(result)


def _told(result: dict[str, Any]) -> dict[str, Any]:
    """What a save returns, with its message, warnings in the journal, and the exit code where it went beside the
    replica.
    """
    for warning in result["warnings"]:
        log("warning", f"the state is saved, and a restore will refuse it without --unsound: {warning}")
    result = {**result, "message": saved_text(result)}
    if result["rescued"]:
        log("error", result["message"])
        result.update(error=result["message"], _exit=EXIT_DAMAGED)
    return result


def saved_text(result: dict[str, Any]) -> str:
    """What a save did, for people."""
    if result["rescued"]:
        kept = result["rescued"]
        return (
            f"the replica is kept as it is, and the live state beside it in {kept['path']}: {'; '.join(kept['why'])}. "
            "See 'pve-state status'"
        )
    text = f"saved up to root version {result['live_root_version']}"
    changed, deleted = result["rows_changed"], result["rows_deleted"]
    text += f": {changed} row(s) changed, {deleted} deleted" if changed or deleted else ": no real change"
    return text + (f"; generation {result['generation']}" if result["generation"] else "")


def cmd_final_save(paths: Paths, config: Config, args: Namespace) -> dict[str, Any]:
    """The save when the unit stops: after the daemon, before the RAM file system goes."""
    if not is_ours(live_mount(paths)):
        raise Refused(f"{paths.live} is not the RAM file system; nothing was saved")
    if not os.path.exists(paths.live_db):
        if os.path.exists(paths.marker):
            # Someone removed it on purpose (a join does): it must not come back in this boot.
            write_volatile(paths.removed_file, {"time": utc()})
        raise Refused(f"{paths.live_db} does not exist; the replica is kept as it is")
    running = daemon_running(paths)
    live_database(paths)
    store = Store(paths, config)
    try:
        result = save(store, deep=True, exact=True, replaced=replaced_database(paths))
        with store_lock(paths):
            store.open()
            clean = not running and not advance_pending(paths) and not result["rescued"]
            store.update_state(
                clean=clean,
                clean_root_version=result["live_root_version"],
                clean_sha256=content_sha256(store.opened),
                node=node_name(),
            )
    finally:
        store.close()
    if running:
        log("warning", "the daemon still runs: later changes are not in this save")
    return _told(result)
