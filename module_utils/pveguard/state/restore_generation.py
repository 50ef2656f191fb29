# SPDX-License-Identifier: Apache-2.0
"""A chosen generation, or the other members' state, in place of the present one."""

from __future__ import annotations

import os
import sqlite3
import time

from ..base.atomic import fsync_dir
from ..base.node_name import own as node_name
from ..formats.corosync_tools import parse_quorum
from ..formats.corosync_version import config_version
from ..pmxcfs.members import NOT_MET
from ..pmxcfs.tasks import running as running_tasks
from ..pmxcfs.tree import read_rows, root_version, stored_data, tree_sha256, without_noise
from .boot import put_live, restore_at_boot, restored_result, settle
from .compare import compare
from .exits import (
    EXIT_REFUSED,
    Damaged,
    Refused,
    RestoreError,
    StateError,
    StoreError,
    SwitchError,
    UsageError,
)
from .files import (
    Lock,
    copy_file,
    ensure_store,
    read_json,
    read_text,
    remove,
    remove_database,
    size_of,
    store_lock,
    write_volatile,
)
from .generations import cut_generation, damaged_folder, find_generation, generations, left_cluster
from .live import open_live, remember_database, switched
from .login import check_login, remove_login_fallback
from .members import daemon_mode, members_file
from .node import daemon_running, fill, is_ours, live_mount, memory, resize_tmpfs, systemctl, tmpfs_sizes
from .paths import MIB, MOUNT_UNIT, PVE_CLUSTER, STATE_UNIT
from .preflight import (
    DISK_RESERVE,
    ha_resources,
    locked_guests,
    offline_members,
    program_exists,
    resolves,
)
from .replica import Store
from .rescue import keep_former, pending_rescue, rescue_is_over, set_rescue_aside
from .rows import connect, in_memory, is_member, is_placeholder, read_hashes, verify_database
from .switch import (
    after_disable,
    arm_rollback_timer,
    begin_switch,
    disarm_rollback_timer,
    live_summary,
    start_daemon,
    start_dependents,
    stop_daemon,
)
from .system import log, run, utc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any, NoReturn

    from ..pmxcfs.members import Judged
    from ..pmxcfs.tree import Noise
    from .generations import Generation
    from .paths import Paths
    from .settings import Config


def cmd_restore(paths: Paths, config: Config, args: Namespace) -> dict[str, Any]:
    if sum(map(bool, (args.generation, args.resync, args.rescued, args.replica))) > 1:
        raise UsageError("--generation, --resync, --rescued and --replica exclude each other")
    config.unsound = args.unsound
    if (args.take_down or args.check) and not (args.generation or args.resync):
        raise UsageError("--take-down and --check want --generation or --resync")
    if args.take_down and args.no_start:
        raise UsageError("--take-down starts the daemon again; it excludes --no-start")
    if args.take_down or args.check:
        return restore_down(paths, config, args)
    if args.generation:
        return restore_generation(paths, config, args)
    if args.resync:
        return restore_resync(paths, config, args)
    if args.rescued:
        return restore_rescued(paths, config, args)
    if args.replica:
        return restore_replica(paths, config, args)
    return restore_at_boot(paths, config)


def restore_rescued(paths: Paths, config: Config, args: Namespace) -> dict[str, Any]:
    """Make the rescue copy the state: a generation of it is cut, and that is restored."""
    if daemon_running(paths):
        raise Refused("the daemon runs; stop it first (systemctl stop pve-cluster), which also saves what it serves")
    found = pending_rescue(paths)
    if found is None:
        raise Refused(f"there is no rescue copy in {paths.rescue} that is newer than the replica")
    if found["kind"] == "schema":
        raise Refused(
            f"{found['path']} is of a schema that is not known, and is taken as it is when the daemon starts: "
            f"systemctl start {PVE_CLUSTER}"
        )
    problems, rows = verify_database(found["path"], sound=False)
    if problems and not (args.unsound and rows):
        raise Damaged(
            f"{found['path']}: {problems[0]}. The daemon would not start on it; 'pve-state restore --replica', and then "
            "'pve-state restore-file rescued PATH' takes files out of it"
            + (". --unsound puts it in place all the same" if rows else "")
        )
    # A state that was emptied has been chosen by this command.
    config.unsound = args.unsound or found["kind"] == "emptied"
    copy = in_memory(found["path"])
    try:
        with store_lock(paths):
            store = Store(paths, config)
            made = cut_generation(copy, paths, config, store.lineage, "rescued", unsound=bool(problems))
            config.in_use.add(made["name"])
    finally:
        copy.close()
    args.generation = made["name"]
    return restore_generation(paths, config, args)


def restore_replica(paths: Paths, config: Config, args: Namespace) -> dict[str, Any]:
    """Start from the replica although a rescue copy is newer, which stays as one of former times."""
    if daemon_running(paths):
        raise Refused("the daemon runs; there is nothing to decide. 'pve-state status' shows what is saved")
    if not switched(paths):
        raise Refused("this node does not run from RAM; 'pve-state restore --generation NAME' restores to disk")
    kept: list[str] = []
    with store_lock(paths):
        set_rescue_aside(paths)
    if is_ours(live_mount(paths)):
        # In the boot in which the daemon ended: what it left is there, and the unit that restores has done its work.
        if os.path.exists(paths.live_db):
            kept, _ = _keep_live(paths, config, Store(paths, config))
        remove_database(paths.live_db)
        remove(paths.marker)
        remove(paths.removed_file)
        result = {**restore_at_boot(paths, config), "kept": kept}
    else:
        result = {"restored": False, "kept": kept, "message": "the replica is restored when pve-cluster starts"}
    if not args.no_start:
        _start_daemon_now(paths)
        result["message"] = "the daemon is started from the replica"
    return result


def restore_generation(paths: Paths, config: Config, args: Namespace) -> dict[str, Any]:
    """Make a generation the state: verify it, keep what is there, put it in place, start the daemon."""
    g = find_generation(paths, args.generation)
    problems = g.problems(is_member(paths))
    if problems and not (config.unsound and verify_database(g.db)[1]):
        hint = "; --unsound restores it all the same" if not g.problems(sound=False) else ""
        raise Damaged(f"generation {g.name} is not restored: {problems[0]}{hint}")
    foreign = left_cluster(g, is_member(paths))
    if foreign:
        raise Refused(foreign)
    if daemon_running(paths):
        raise Refused(
            "the daemon runs. On a member of a cluster an old state is overwritten by the others, or worse, "
            "wins. To restore on purpose, with every check and a way back on failure: pve-state restore "
            f"--generation {args.generation} --take-down"
        )
    if is_member(paths) and not args.peers_down and outranks(paths, g):
        raise Refused(
            f"generation {g.name} is of a former lineage, and its version {g.manifest.get('root_version')} is above the "
            "present one: where another member's daemon runs it would become the leader and roll all members back. "
            "--peers-down says that none runs; 'pve-state restore-file' takes files out of it"
        )
    config.in_use.add(g.name)
    kept, _ = keep_what_is_there(paths, config)
    result = place_generation(paths, config, g, kept)
    if not args.no_start:
        _start_daemon_now(paths)
        result["message"] += "; the daemon is started"
    return result


def outranks(paths: Paths, g: Generation) -> bool:
    """Whether a generation of a former lineage has a higher version than what this node held last."""
    found = generations(paths)
    lineage = max(int(found[0].manifest.get("lineage") or 0), int(read_json(paths.state_file).get("lineage") or 0))
    versions = [int(o.manifest.get("root_version") or 0) for o in found if o.manifest.get("lineage") == lineage]
    problems, rows = verify_database(paths.replica, sound=False)
    if not problems:
        versions.append(root_version(rows))
    if not versions or g.manifest.get("lineage") == lineage:
        return False
    return int(g.manifest.get("root_version") or 0) > max(versions)


def keep_what_is_there(paths: Paths, config: Config) -> tuple[list[str], str | None]:
    """Keep what a restore replaces: the database in place, and the replica where it is another state.

    Returns ([generations and folders that hold it now], name of the generation that is the way back or None).
    """
    store = Store(paths, config)
    kept: list[str] = []
    former = None
    try:
        if os.path.exists(paths.live_db) and not is_placeholder(paths.live_db):
            kept, former = _keep_live(paths, config, store)
        if os.path.exists(paths.replica):
            with store_lock(paths):
                store.open()
                if store.rows() and not _is_kept(store, former):
                    name = keep_former(store, "before a restore")
                    kept += [name] if name and name not in kept else []
                    former = former or name
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"{paths.store}: what is there could not be kept: {error}") from error
    finally:
        store.close(checkpoint=False)
    return kept, former


def _is_kept(store: Store, name: str | None) -> bool:
    """Whether the replica is the state of a generation, noise aside."""
    manifest = next((g.manifest for g in generations(store.paths) if g.name == name), None)
    rows = store.rows()
    if manifest is None or not rows or manifest.get("root_version") != root_version(rows):
        return False
    return bool(manifest.get("tree_sha256") == tree_sha256(store.opened, store.config.noise))


def place_generation(paths: Paths, config: Config, g: Generation, kept: list[str]) -> dict[str, Any]:
    """Put a verified generation in the place of the database and of the replica. The daemon must not run."""
    in_ram = switched(paths)
    if in_ram and not is_ours(live_mount(paths)):
        done = systemctl("start", MOUNT_UNIT)
        if done.rc or not is_ours(live_mount(paths)):
            raise RestoreError(f"{paths.live} could not be mounted: {done.stderr.strip()}")
    if in_ram:
        # The former state stays until the new one is complete beside it.
        wanted = max(tmpfs_sizes(size_of(g.db), config, memory()[0])[0], fill(paths)[1] + size_of(g.db) + MIB)
        if fill(paths)[0] < wanted:
            resize_tmpfs(paths, wanted)
    store = Store(paths, config)
    staged = f"{paths.live}/.pveguard-restore.db"
    try:
        copy_file(g.db, staged)
        _without_noise_rows(staged, config.noise)
        rows = settle(staged, is_member(paths), g.db, config)
        with store_lock(paths):
            store.open()
            source = connect(staged, "immutable")
            try:
                change = compare(rows, store.rows(), config.noise, True, read_hashes(source), _hashes(store))
                blobs = {
                    i: stored_data(source, i) for i in change.upsert | ({0} & rows.keys())
                }
                tree = tree_sha256(source, config.noise)
            finally:
                source.close()
            store.new_lineage(f"restore of {g.name}")
            store.write(change, blobs)
            store.checkpoint()
            # A state was chosen: what was pending beside the former one is history.
            rescue_is_over(store)
            store.update_state(clean=False)
            put_live(paths, staged)
            fsync_dir(paths.live)
    except (OSError, sqlite3.Error) as error:
        raise RestoreError(f"generation {g.name} could not be put in place: {error}") from error
    finally:
        remove_database(staged)
        store.close(checkpoint=False)
    # The version of a restored file is never raised: it would make an old state the leader of a running
    # cluster.
    result = {**restored_result(g.name, rows, {}, config, clean=False), "kept": kept, "tree_sha256": tree}
    result.pop("advance_to")
    result["message"] = f"generation {g.name} (root version {result['root_version']}) is in place"
    if in_ram:
        remove(paths.removed_file)
        write_volatile(paths.marker, {"source": g.name, "time": utc()})
        write_volatile(paths.restore_file, result)
        remember_database(paths)
    return result


def _without_noise_rows(path: str, noise: Noise) -> None:
    """Delete noise from a copy of a generation: the locks and heartbeats of its time are nobody's any more."""
    connection = connect(path, "rw")
    try:
        rows = read_rows(connection)
        noisy = rows.keys() - without_noise(rows, noise).keys()
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("DELETE FROM tree WHERE inode=?", [(inode,) for inode in sorted(noisy)])
        connection.execute("COMMIT")
    finally:
        connection.close()


def _start_daemon_now(paths: Paths) -> None:
    systemctl("reset-failed", STATE_UNIT, PVE_CLUSTER)
    done = systemctl("start", PVE_CLUSTER)
    if done.rc:
        raise RestoreError(f"the state is in place but pve-cluster does not start: {done.stderr.strip()}")


def _hashes(store: Store) -> dict[int, bytes]:
    return read_hashes(store.opened)


def _keep_live(paths: Paths, config: Config, store: Store) -> tuple[list[str], str | None]:
    """Keep what lies in the live place before it is replaced: as a generation, or as it is when it is
    damaged. Returns ([generation or folder], name of the generation or None).
    """
    problems, _ = verify_database(paths.live_db, sound=False)
    if not problems:
        live = open_live(paths)
        try:
            ensure_store(paths)
            with store_lock(paths):
                name = cut_generation(live, paths, config, store.lineage, "before a restore live")["name"]
        finally:
            live.close()
        return [name], name
    folder = paths.damaged
    try:
        folder = damaged_folder(paths, "-live")
        for suffix in ("", "-wal"):
            if os.path.exists(paths.live_db + suffix):
                copy_file(paths.live_db + suffix, f"{folder}/config.db{suffix}")
    except OSError as error:
        raise StoreError(f"{folder}: {error.strerror}") from error
    return [folder], None


def restore_resync(paths: Paths, config: Config, args: Namespace) -> dict[str, Any]:
    """Start without a database so that a member fetches everything from the others."""
    if not is_member(paths):
        raise Refused(f"{paths.corosync_conf} is not a cluster's: there is nobody to fetch the state from")
    if daemon_running(paths):
        raise Refused(
            "the daemon runs; add --take-down to stop it, with every check and a way back on failure"
        )
    kept, _ = keep_what_is_there(paths, config)
    result = place_nothing(paths, kept)
    if not args.no_start:
        _start_daemon_now(paths)
    return result


def place_nothing(paths: Paths, kept: list[str]) -> dict[str, Any]:
    """Remove the database, so that the daemon begins without one and fetches the others' state."""
    if switched(paths) and not is_ours(live_mount(paths)):
        done = systemctl("start", MOUNT_UNIT)
        if done.rc or not is_ours(live_mount(paths)):
            raise RestoreError(f"{paths.live} could not be mounted: {done.stderr.strip()}")
    if os.path.isdir(paths.rescue):
        with store_lock(paths):
            # The state of the others was chosen.
            set_rescue_aside(paths)
    remove_database(paths.live_db)
    result = {"restored": False, "source": "resync", "kept": kept, "clean": True, "time": utc()}
    result["message"] = "the database is removed; the other members' state is fetched at start"
    if switched(paths):
        remove(paths.removed_file)
        write_volatile(paths.marker, {"source": "resync", "time": utc()})
        write_volatile(paths.restore_file, result)
    return result


def judge_restore(paths: Paths, config: Config, args: Namespace) -> dict[str, Any]:
    """Everything that a restore with the daemon taken down depends on, without changing anything.

    Returns {generation: manifest with ``name`` or None, member, daemon_running, in_ram, quorate, online, offline,
    config_version, database_bytes, login, refusals, warnings}; ``online`` and ``offline`` are the other members as the
    daemon shows them (empty when it does not run), ``config_version`` is that of the host's corosync.conf.
    """
    g = find_generation(paths, args.generation) if args.generation else None
    running = daemon_running(paths)
    shown = members_file(paths) if running else {}
    mode = daemon_mode(paths, shown)
    nodes = shown.get("nodelist")
    nodes = nodes if isinstance(nodes, dict) else {}
    own = shown.get("nodename") or node_name()
    up = {name for name, node in nodes.items() if isinstance(node, dict) and node.get("online")}
    result: dict[str, Any] = {
        "generation": {"name": g.name, **g.manifest} if g else None,
        "member": is_member(paths),
        "daemon_running": running,
        "in_ram": switched(paths),
        "quorate": None if not running or mode.name == "local" else mode.quorate,
        "online": sorted(up - {own}),
        "offline": sorted(set(nodes) - up - {own}),
        "config_version": config_version(read_text(paths.corosync_conf)) or None,
        "database_bytes": size_of(paths.live_db) + size_of(paths.live_db + "-wal"),
        "login": None,
        "refusals": [],
        "warnings": [],
    }
    refusals = result["refusals"]
    if not program_exists(paths, "pmxcfs"):
        refusals.append("pve-cluster is not installed (the program pmxcfs is missing)")
    mount = live_mount(paths)
    if mount is not None and not is_ours(mount):
        refusals.append(f"{paths.live} is a foreign mount ({mount[1]} from {mount[2]})")
    if g:
        _judge_generation(paths, g, result, args)
    else:
        _judge_resync(paths, mode, result, args)
    _judge_room(paths, config, g, result)
    address = resolves(node_name())
    if address is None or address.startswith("127.") or address == "::1":
        refusals.append(
            f"the host name {node_name()} resolves to {address or 'nothing'}: the daemon would not start "
            "again; put its address into /etc/hosts"
        )
    tasks = running_tasks(paths.tasks)
    if tasks:
        refusals.append(f"{len(tasks)} Proxmox task(s) run, the first is {tasks[0]}; wait for their end")
    _judge_live(paths, result)
    login = check_login(paths, args.connection, fallback=args.login_fallback)
    result["login"] = login
    if not login["independent"] and not (args.login_fallback and login["fallback_file"]):
        refusals.append(
            f"the login in use depends on /etc/pve, which goes away for seconds: {login['how']}. Put the key "
            "into /root/.ssh/authorized_keys2, or set ram_state_login_fallback: true"
        )
    return result


def _judge_generation(paths: Paths, g: Generation, result: dict[str, Any], args: Namespace) -> None:
    problems = g.problems(result["member"])
    if problems:
        result["refusals"].append(f"generation {g.name}: {problems[0]}")
        return
    foreign = left_cluster(g, result["member"])
    if foreign:
        result["refusals"].append(foreign)
    if result["member"] and not args.peers_down:
        result["refusals"].append(
            "this node is a member of a cluster. While the daemon of another member runs, the state with the highest "
            "root version wins: a lower one is overwritten at once, a higher one rolls all members back. Say "
            "--peers-down when none of them runs, or take files out of the generation instead"
        )
    source = connect(g.db, "immutable")
    try:
        resources = ha_resources(source)
        locked = locked_guests(source, node_name())
    finally:
        source.close()
    if resources and result["in_ram"]:
        result["warnings"].append(
            f"in the generation HA manages {', '.join(resources[:5])}, but the state of this node is in RAM: "
            "remove the resources afterwards (ha-manager remove)"
        )
    for path, lock in locked:
        guest = os.path.basename(path).removesuffix(".conf")
        result["warnings"].append(
            f"in the generation guest {guest} is locked ({lock}) by a task that is over: unlock it afterwards"
        )


def _judge_resync(paths: Paths, mode: Judged, result: dict[str, Any], args: Namespace) -> None:
    refusals = result["refusals"]
    if not result["member"]:
        refusals.append(f"{paths.corosync_conf} is not a cluster's: there is nobody to fetch the state from")
    elif result["daemon_running"] and not (mode.name == "cluster" and mode.quorate and result["online"]):
        why = "no other member is online, or the cluster is not quorate"
        refusals.append(
            f"{why if mode.met else NOT_MET}: with nobody to fetch the state from, /etc/pve would hold corosync.conf and "
            "nothing else"
        )
    elif not result["daemon_running"]:
        shown = run(["corosync-quorumtool", "-s"]).stdout
        result["quorate"] = parse_quorum(shown)["quorate"] is True
        if not result["quorate"]:
            refusals.append("this node has no quorum (corosync-quorumtool -s); bring it to quorum first")
    refusals.extend(offline_members(paths, args) if mode.met else [])


def _judge_room(paths: Paths, config: Config, g: Generation | None, result: dict[str, Any]) -> None:
    folder = paths.store
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    disk = os.statvfs(folder)
    new = size_of(g.db) if g else 0
    # What is there is kept twice at most, the replica and its log take the new state, and so does a disk.
    free, wanted = disk.f_bavail * disk.f_frsize, 2 * result["database_bytes"] + 4 * new + DISK_RESERVE // 4
    if free < wanted:
        result["refusals"].append(f"{folder} has {free // MIB} MiB free; {wanted // MIB} MiB are needed")
    need = tmpfs_sizes(new, config, memory()[0])[1] if result["in_ram"] else 0
    if memory()[1] < need:
        result["refusals"].append(
            f"{memory()[1] // MIB} MiB of RAM are available; {need // MIB} MiB are needed"
        )


def _judge_live(paths: Paths, result: dict[str, Any]) -> None:
    """Guests in the middle of a task: their last change would be lost with the daemon."""
    if not result["daemon_running"]:
        return
    try:
        live = open_live(paths)
        try:
            for path, lock in locked_guests(live, node_name()):
                result["refusals"].append(
                    f"/etc/pve/{path} is locked ({lock}): wait for the end of that task"
                )
        finally:
            live.close()
    except (StateError, sqlite3.Error) as error:
        result["warnings"].append(f"the live database cannot be read: {error}")


def restore_down(paths: Paths, config: Config, args: Namespace) -> dict[str, Any]:
    """Restore as a switch-over: the daemon is taken down and started by this process, with a timer behind it, and on
    a failure the state that was there is put back.
    """
    if args.check:
        found = judge_restore(paths, config, args)
        found["message"] = "; ".join(found["refusals"]) or "ready"
        if found["refusals"]:
            found["_exit"] = EXIT_REFUSED
        return found
    with Lock(f"{paths.run}/switch.lock", "a switch-over runs already", create=True):
        found = judge_restore(paths, config, args)
        if found["refusals"]:
            raise Refused("; ".join(found["refusals"]))
        login = check_login(paths, args.connection, args.login_fallback, write=True)
        if not login["independent"]:
            raise Refused(f"the login in use depends on /etc/pve: {login['how']}")
        g = find_generation(paths, found["generation"]["name"]) if found["generation"] else None
        if g:
            config.in_use.add(g.name)
        arm_rollback_timer(paths, 2 * config.deadline)
        begin_switch(paths, "restore", config)
        deadline = time.monotonic() + config.deadline
        down = time.monotonic()
        try:
            stop_daemon(paths, deadline)
            kept, former = keep_what_is_there(paths, config)
            # From here on the way back is this generation.
            write_volatile(paths.switch_file, {**read_json(paths.switch_file), "former": former})
            placed = place_generation(paths, config, g, kept) if g else place_nothing(paths, kept)
            served = start_daemon(paths, deadline, cluster=not g, watcher=switched(paths))
            after = live_summary(paths, config)
            if g and after[0] < placed["root_version"]:
                raise SwitchError(
                    f"the root version is {after[0]}, below the restored {placed['root_version']}"
                )
            if g and after[0] == placed["root_version"] and after[1] != placed["tree_sha256"]:
                raise SwitchError("the tree that the daemon serves is not the one of the generation")
        except BaseException as error:
            _undo_restore(paths, config, error)
        start_dependents(paths)
        write_volatile(paths.switch_file, {"kind": "restore", "done": utc()})
        disarm_rollback_timer(paths)
        if not switched(paths):
            # On a node that works from disk nothing keeps a replica up to date.
            after_disable(paths, config)
            remove_login_fallback(paths)
        return {
            "changed": True,
            "message": f"generation {g.name} is restored" if g else "the others' state is fetched",
            "generation": g.name if g else None,
            "former": former,
            "kept": kept,
            "downtime_seconds": round(served - down, 2),
            "root_version": after[0],
            "tree_sha256": after[1],
            "generation_tree_sha256": placed["tree_sha256"] if g else None,
            "warnings": found["warnings"],
        }


def _undo_restore(paths: Paths, config: Config, error: BaseException) -> NoReturn:
    """Put the former state back after a failed restore, then report the first error."""
    log("error", f"the restore failed: {error}; what was there is put back")
    try:
        done = put_former_back(paths, config)
    except BaseException as second:
        # The rollback timer stays armed: it tries again.
        raise SwitchError(
            f"{error}; putting back what was there failed as well: {second}. Run 'pve-state rollback'"
        ) from error
    write_volatile(paths.switch_file, {"kind": "restore", "done": utc(), "error": str(error)})
    disarm_rollback_timer(paths)
    raise SwitchError(f"{error}; {done['message']}") from error


def put_former_back(paths: Paths, config: Config) -> dict[str, Any]:
    """Return to the state from before a restore, as switch.json names it, and start the daemon. Safe to repeat."""
    former = read_json(paths.switch_file).get("former")
    deadline = time.monotonic() + config.deadline
    stop_daemon(paths, deadline)
    if former:
        g = find_generation(paths, former)
        config.in_use.add(g.name)
        problems = g.problems(is_member(paths))
        if problems:
            raise Damaged(f"generation {g.name}: {problems[0]}")
        place_generation(paths, config, g, [])
    # Without a name nothing was replaced yet, or there was no state that passes verification.
    start_daemon(paths, deadline, cluster=False, watcher=switched(paths))
    start_dependents(paths)
    if not switched(paths):
        remove_login_fallback(paths)
    return {
        "source": former or "what was in place",
        "message": "the state from before the restore is back and runs",
    }
