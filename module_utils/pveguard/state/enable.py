# SPDX-License-Identifier: Apache-2.0
"""From the disk to RAM, and back to stock."""

from __future__ import annotations

import os
import sqlite3
import time

from ..base.atomic import fsync_dir, write_atomic
from ..base.node_name import own as node_name
from ..pmxcfs.live_database import unknown_schema
from ..pmxcfs.members import CLUSTER
from ..pmxcfs.tasks import running as running_tasks
from ..pmxcfs.tree import read_rows, root_version, without_noise
from .exits import Refused, StateError, SwitchError
from .files import (
    Lock,
    copy_file,
    ensure_store,
    remove,
    remove_database,
    store_lock,
    write_volatile,
)
from .generations import cut_generation, generations
from .live import merge_live_log, open_live, replaced_database, switched
from .login import check_login, remove_login_fallback
from .members import daemon_mode, members_file, said_quorate
from .node import daemon_running, is_ours, live_mount, pve_mounted, state_bytes, systemctl
from .paths import BACKUP_UNIT, MIB, MOUNT_UNIT, PVE_CLUSTER, STATE_UNIT, WATCH_UNIT
from .preflight import DISK_RESERVE, locked_guests, offline_members, preflight
from .replica import Store
from .rescue import pending_rescue
from .rows import (
    content_sha256,
    in_memory,
    is_member,
    is_placeholder,
    placeholder_text,
    plain_copy,
    read_hashes,
    read_only,
    verify_database,
)
from .save import save, saved_text
from .status import figures, node_status
from .switch import (
    after_disable,
    arm_rollback_timer,
    begin_switch,
    copy_backups,
    daemon_reload,
    disarm_rollback_timer,
    live_summary,
    start_daemon,
    start_dependents,
    stop_daemon,
    wait_for,
)
from .system import log, utc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any, NoReturn

    from ..pmxcfs.tree import Rows
    from .paths import Paths
    from .settings import Config


def cmd_enable(paths: Paths, config: Config, args: Namespace) -> dict[str, Any]:
    with Lock(f"{paths.run}/switch.lock", "a switch-over runs already", create=True):
        if switched(paths):
            status = node_status(paths, config)
            if status["state"] in ("enabled", "starting"):
                return {"changed": False, "message": "already enabled", **figures(status)}
            raise Refused(f"RAM state is set up but not healthy: {status['reason']}. {status['fix']}")
        found = preflight(paths, config, args)
        if found["refusals"]:
            raise Refused("; ".join(found["refusals"]))
        for unit in (MOUNT_UNIT, BACKUP_UNIT, STATE_UNIT, WATCH_UNIT):
            if not os.path.exists(paths.at(f"/etc/systemd/system/{unit}")):
                raise Refused(f"/etc/systemd/system/{unit} is missing; the role ram_state installs it")
        if not os.path.exists(paths.drop_in_source):
            raise Refused(f"{paths.drop_in_source} is missing; the role ram_state installs it")
        login = check_login(paths, args.connection, args.login_fallback, write=True)
        if not login["independent"]:
            raise Refused(f"the login in use depends on /etc/pve: {login['how']}")
        return _enable(paths, config, args, login)


def _enable(paths: Paths, config: Config, args: Namespace, login: dict[str, Any]) -> dict[str, Any]:
    deadline = time.monotonic() + config.deadline
    cluster = daemon_mode(paths, members_file(paths)).name == CLUSTER
    ensure_store(paths)
    store = Store(paths, config)
    # Most of the copying is done while the daemon still works.
    try:
        _require_saved(save(store, deep=True, exact=True))
        before = live_summary(paths, config)
    finally:
        store.close(checkpoint=False)
    os.makedirs(paths.backup, mode=0o700, exist_ok=True)
    copy_backups(paths.backup_live, paths.backup)
    # The way on may take the deadline, and so may the way back: it must not be killed half way.
    arm_rollback_timer(paths, 2 * config.deadline)
    begin_switch(paths, "enable", config)
    try:
        down = time.monotonic()
        stop_daemon(paths, deadline)
        kept = _move_to_store(paths, config)
        served = start_daemon(paths, deadline, cluster, watcher=True)
        if not is_ours(live_mount(paths)):
            raise SwitchError(f"pve-cluster runs, but {paths.live} is not the RAM file system")
        after = live_summary(paths, config)
        if after[0] < kept["root_version"]:
            raise SwitchError(f"the root version went back from {kept['root_version']} to {after[0]}")
        if not cluster and after[1] != kept["tree_sha256"] and after[0] == kept["root_version"]:
            raise SwitchError("the restored tree differs from the one on disk")
    except BaseException as error:
        _undo(paths, config, error)
    start_dependents(paths)
    write_volatile(paths.switch_file, {"kind": "enable", "done": utc()})
    disarm_rollback_timer(paths)
    return {
        "changed": True,
        "message": "the state is in RAM",
        "downtime_seconds": round(served - down, 2),
        "login": login,
        "root_version_before": before[0],
        **figures(node_status(paths, config)),
        "tree_sha256": after[1],
    }


def _require_saved(result: dict[str, Any]) -> None:
    if result["rescued"]:
        raise Refused(saved_text(result))


def _move_to_store(paths: Paths, config: Config) -> dict[str, Any]:
    """With the daemon down: complete the replica, make RAM state the way to start, move the database to the
    store.

    The order makes every point safe against a power cut: until the drop-in is on disk the node starts from
    the disk as
    ever; from then on from the replica, which is complete.
    """
    store = Store(paths, config)
    live = open_live(paths)
    try:
        _require_saved(save(store, deep=True, exact=True))
        with store_lock(paths):
            store.open()
            # The whole table, noise included, so that nothing at all is lost with the file on disk.
            kept = cut_generation(live, paths, config, store.lineage, "enable")
            wanted = without_noise(read_rows(live), config.noise)
            hashes = read_hashes(live)
            if wanted != store.rows() or any(
                hashes[i] != h for i, h in read_hashes(store.opened).items()
            ):
                raise SwitchError("the replica differs from the database on disk")
            store.update_state(
                clean=True,
                clean_root_version=kept["root_version"],
                clean_sha256=content_sha256(store.opened),
                node=node_name(),
            )
    finally:
        live.close()
        store.close()
    problems, _ = verify_database(paths.replica, is_member(paths))
    if problems:
        raise SwitchError(f"the replica does not pass verification: {problems[0]}")
    for file in (paths.marker, paths.removed_file):
        remove(file)
    os.makedirs(paths.drop_in_dir, exist_ok=True)
    with open(paths.drop_in_source, "rb") as handle:
        write_atomic(paths.drop_in, handle.read(), 0o644)
    fsync_dir(os.path.dirname(paths.drop_in_dir))
    daemon_reload()
    # Without its log the file would be an older state until the next line has replaced it.
    merge_live_log(paths)
    remove(paths.live_db + "-shm")
    write_atomic(paths.live_db, placeholder_text(), 0o600)
    return kept


def _undo(paths: Paths, config: Config, error: BaseException) -> NoReturn:
    """Put stock back after a failed switch, then report the first error."""
    log("error", f"the switch-over failed: {error}; stock is put back")
    try:
        put_stock_back(paths, config, f"after a failure: {error}")
    except BaseException as second:
        # The rollback timer stays armed: it tries again.
        raise SwitchError(
            f"{error}; putting stock back failed as well: {second}. Run 'pve-state rollback'"
        ) from error
    write_volatile(paths.switch_file, {"done": utc(), "error": str(error)})
    disarm_rollback_timer(paths)
    raise SwitchError(f"{error}; stock was put back and runs") from error


class LeftBehind(SwitchError):
    """What the daemon served last would be left behind; nobody said so."""


def put_stock_back(paths: Paths, config: Config, reason: str, leave: bool = True) -> dict[str, Any]:
    """Return to the database on disk, from wherever the node is. Safe to repeat. ``leave``: also where what the daemon
    served last is kept beside the replica only, which then stays as it is.

    Newest wins: the live database in RAM when there is a valid one, else the replica or a newer copy staged by a
    former try, else the newest good generation.
    A real database on the disk stays only when RAM state never ran over it.
    """
    deadline = time.monotonic() + config.deadline
    down = time.monotonic()
    source = None
    staged = f"{paths.switch}/stock.db"
    # Who had not met its Corosync before does not wait for quorum afterwards.
    met = not pve_mounted(paths) or daemon_mode(paths, members_file(paths)).met
    try:
        stop_daemon(paths, deadline)
        if is_ours(live_mount(paths)):
            source = _stage_live(paths, config, staged, leave)
            for unit in (STATE_UNIT, BACKUP_UNIT, MOUNT_UNIT):
                systemctl("stop", unit)
            wait_for(f"{paths.live} to be unmounted", lambda: live_mount(paths) is None, deadline)
        if live_mount(paths) is not None:
            raise SwitchError(f"{paths.live} is a foreign mount")
        on_disk, disk_rows = verify_database(paths.live_db, sound=False)
        if source is None and on_disk:
            source = _stage_store(paths, config, staged, on_disk[0])
        elif source is None and switched(paths) and _outlived(paths, config, disk_rows):
            # RAM state ran over it: the switch was cut before the placeholder was written.
            source = _stage_store(paths, config, staged, f"{paths.live_db} is older than the replica")
        if source is not None:
            if not on_disk and disk_rows:
                _keep_disk(paths, config)
            _put_disk(paths, staged)
            copy_backups(paths.backup, paths.backup_live)
        remove(paths.drop_in)
        try:
            os.rmdir(paths.drop_in_dir)
        except OSError:
            pass
        fsync_dir(os.path.dirname(paths.drop_in_dir))
        daemon_reload()
    except BaseException:
        # Whatever can run shall run: with the drop-in in place that is the RAM state again, and what was staged
        # from it would be stale when the next switch-over comes.
        if is_ours(live_mount(paths)) and not verify_database(paths.live_db, sound=False)[0]:
            remove_database(staged)
        systemctl("start", PVE_CLUSTER)
        raise
    cluster = is_member(paths) and met
    served = start_daemon(paths, deadline, cluster=False, watcher=False)
    start_dependents(paths)
    remove_database(staged)
    try:
        os.rmdir(paths.switch)
    except OSError:
        pass
    if cluster:
        wait_for("quorum", lambda: said_quorate(paths), deadline, 0.5)
    return {"source": source or "disk", "downtime_seconds": round(served - down, 2), "reason": reason}


def _stage_live(paths: Paths, config: Config, staged: str, leave: bool) -> str | None:
    """Save the live state from RAM and stage a full copy of it, verified; None when there is none that the daemon would
    load, or only an all but empty one. That is kept beside the replica then.
    """
    if not os.path.exists(paths.live_db) or is_placeholder(paths.live_db):
        return None
    store = Store(paths, config)
    result: dict[str, Any] | None = None
    problem: Exception | None = None
    try:
        result = save(store, deep=True, exact=True, replaced=replaced_database(paths))
    except (StateError, sqlite3.Error) as error:
        problem = error
    finally:
        store.close(checkpoint=False)
    if result and result["rescued"] and result["rescued"]["kind"] != "schema":
        if not leave:
            raise LeftBehind(f"nothing was moved: {saved_text(result)}")
        log("error", saved_text(result))
        return None
    problems, _ = verify_database(paths.live_db, sound=False)
    if problems:
        log("error", f"the state in RAM is not one that the daemon would load: {problems[0]}")
        return None
    os.makedirs(paths.switch, mode=0o700, exist_ok=True)
    live = open_live(paths)
    try:
        plain_copy(live, staged)
        problems, _ = verify_database(staged, sound=False)
        if problems:
            raise SwitchError(f"the copy of the state in RAM does not pass verification: {problems[0]}")
        fsync_dir(paths.switch)
        if result is not None and not result["rescued"]:
            try:
                with store_lock(paths):
                    cut_generation(live, paths, config, Store(paths, config).lineage, "disable")
            except (StateError, sqlite3.Error) as error:
                problem = error
        if problem is not None:
            log("error", f"the replica was not brought up to date: {problem}; the staged copy is complete")
    except (OSError, sqlite3.Error) as error:
        raise SwitchError(f"{staged}: {error}") from error
    finally:
        live.close()
    return "ram"


def _stage_store(paths: Paths, config: Config, staged: str, why: str) -> str:
    """Stage the newest of the replica and the copy that a former try staged, else the newest good generation."""
    os.makedirs(paths.switch, mode=0o700, exist_ok=True)
    problems, staged_rows = verify_database(staged, is_member(paths), sound=False)
    staged_good = not problems
    problems, rows = verify_database(paths.replica, is_member(paths), sound=False)
    replica_good = not problems and bool(rows)
    if staged_good:
        # One of an unknown schema is younger: the replica was not written since.
        if not replica_good or read_only(staged, unknown_schema):
            return "staged"
        age = _age(paths, config, staged_rows)
        replica_age = (Store(paths, config).lineage, root_version(rows))
        # At the same version the staged copy is the same state with its noise.
        same = age == replica_age and without_noise(staged_rows, config.noise) == rows
        if age > replica_age or same:
            return "staged"
    if replica_good:
        replica = in_memory(paths.replica)
        try:
            plain_copy(replica, staged)
        finally:
            replica.close()
        return "replica"
    for g in generations(paths):
        if not g.problems(is_member(paths)):
            copy_file(g.db, staged)
            return g.name
    raise SwitchError(
        f"there is no state to put back: {why}; replica: {problems[0]}; and no generation verifies"
    )


def _age(paths: Paths, config: Config, rows: Rows) -> tuple[int, int]:
    """(lineage, root version) of a database that is not the replica. Its lineage is that of the generation that
    was cut from it; without one it is taken for the current.
    """
    root = root_version(rows)
    known = [
        int(g.manifest["lineage"])
        for g in generations(paths)
        if g.manifest.get("lineage")
        and (g.manifest.get("root_version"), g.manifest.get("rows")) == (root, len(rows))
    ]
    return max(known, default=Store(paths, config).lineage), root


def _outlived(paths: Paths, config: Config, disk_rows: Rows) -> bool:
    """Whether the replica is good and newer than the database that lies on the disk."""
    problems, rows = verify_database(paths.replica, is_member(paths), sound=False)
    if problems or not rows:
        return False
    return (Store(paths, config).lineage, root_version(rows)) > _age(paths, config, disk_rows)


def _keep_disk(paths: Paths, config: Config) -> None:
    """Keep a real database that lies beneath the RAM file system before it is replaced."""
    disk = open_live(paths)
    try:
        cut_generation(disk, paths, config, Store(paths, config).lineage, "beneath the mount")
    finally:
        disk.close()


def _put_disk(paths: Paths, staged: str) -> None:
    """Put the staged file in the place of the database on disk, verified, stale logs first."""
    target = f"{paths.live}/.pveguard-stock.db"
    try:
        copy_file(staged, target)
        problems, _ = verify_database(target, sound=False)
        if problems:
            raise SwitchError(f"the copy on disk does not pass verification: {problems[0]}")
        for suffix in ("-wal", "-shm", "-journal"):
            remove(paths.live_db + suffix)
        os.rename(target, paths.live_db)
        fsync_dir(paths.live)
    except OSError as error:
        raise SwitchError(f"{paths.live_db}: {error}") from error
    finally:
        remove_database(target)


def cmd_disable(paths: Paths, config: Config, args: Namespace) -> dict[str, Any]:
    with Lock(f"{paths.run}/switch.lock", "a switch-over runs already", create=True):
        if not switched(paths) and not is_ours(live_mount(paths)) and not is_placeholder(paths.live_db):
            return {"changed": False, "message": "the state is on disk already"}
        refusals = _preflight_disable(paths, config, args)
        if refusals and not args.force:
            raise Refused("; ".join(refusals))
        login = check_login(paths, args.connection, args.login_fallback, write=True)
        if not login["independent"] and not args.force:
            raise Refused(f"the login in use depends on /etc/pve: {login['how']}")
        before = None
        if daemon_running(paths) and is_ours(live_mount(paths)):
            before = live_summary(paths, config)
        arm_rollback_timer(paths, 2 * config.deadline)
        begin_switch(paths, "disable", config)
        try:
            done = put_stock_back(paths, config, "disable", leave=args.force)
            after = live_summary(paths, config)
            was, root = before[0] if before else None, after[0]
            if was is not None and root is not None and root < was:
                raise SwitchError(f"the root version went back from {was} to {root}")
        except LeftBehind as error:
            # Trying again by itself would leave it behind all the same.
            write_volatile(paths.switch_file, {"kind": "disable", "done": utc(), "error": str(error)})
            disarm_rollback_timer(paths)
            raise
        except BaseException as error:
            write_volatile(paths.switch_file, {"error": str(error)})
            raise SwitchError(
                f"{error}; the rollback timer tries again, see 'pve-state status'"
            ) from error
        write_volatile(paths.switch_file, {"kind": "disable", "done": utc()})
        disarm_rollback_timer(paths)
        after_disable(paths, config)
        return {
            "changed": True,
            "message": "the state is on disk again",
            "source": done["source"],
            "downtime_seconds": done["downtime_seconds"],
            "root_version": after[0],
            "tree_sha256": after[1],
            "login_fallback_removed": remove_login_fallback(paths),
        }


def _preflight_disable(paths: Paths, config: Config, args: Namespace) -> list[str]:
    refusals = []
    pending = pending_rescue(paths)
    if pending and not (pending["kind"] == "schema" and daemon_running(paths)):
        refusals.append(
            f"the live state would be left behind: {'; '.join(pending['why'])}. Mend that on /etc/pve first, or "
            f"decide with the daemon stopped: {' or '.join(list(pending['choices'].values())[:2])}"
        )
    tasks = running_tasks(paths.tasks)
    if tasks:
        refusals.append(f"{len(tasks)} Proxmox task(s) run, the first is {tasks[0]}; wait for their end")
    size = state_bytes(paths.live_db)
    disk = os.statvfs(paths.store if os.path.isdir(paths.store) else "/")
    if disk.f_bavail * disk.f_frsize < 4 * size + DISK_RESERVE // 4:
        refusals.append(
            f"{paths.store} has {disk.f_bavail * disk.f_frsize // MIB} MiB free; that is not enough"
        )
    if daemon_running(paths):
        refusals.extend(offline_members(paths, args))
        try:
            live = open_live(paths)
            try:
                for path, lock in locked_guests(live, node_name()):
                    refusals.append(f"/etc/pve/{path} is locked ({lock}): wait for the end of that task")
            finally:
                live.close()
        except (StateError, sqlite3.Error) as error:
            log("warning", str(error))
    return refusals
