# SPDX-License-Identifier: Apache-2.0
"""What the state of a node is, for people and for programs."""

from __future__ import annotations

import os
import sqlite3
import time

from ..base.findings import read
from ..pmxcfs import pmxcfs_findings
from ..pmxcfs.live_database import unknown_schema
from ..pmxcfs.members import NOT_MET, unknown_members
from ..pmxcfs.tree import FILE, MTIME, TYPE, path_of, read_rows, root_version
from . import status_findings
from .compare import compare
from .exits import EXIT_DAMAGED, EXIT_ERROR, StateError, UsageError
from .files import read_json, write_volatile_text
from .generations import (
    LISTED,
    check_generations,
    checked,
    find_generation,
    generations,
    left_cluster,
    restore_fix,
)
from .live import open_live, switched
from .members import daemon_mode, members_said
from .metrics import metrics_text
from .node import daemon_running, fill, is_ours, live_mount, pve_mounted, unit_states
from .paths import FORMAT, MIB, PVE_CLUSTER, STATE_UNIT, WATCH_UNIT
from .preflight import ha_masked, ha_resources
from .rescue import pending_rescue, rescue_text, rows_of, some_of
from .rows import (
    NO_COROSYNC_CONF,
    SCHEMA_UNKNOWN,
    check_connection,
    in_memory,
    is_member,
    is_placeholder,
    verify_database,
)
from .show import last_written
from .system import epoch, log, printable, utc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping, Sequence
    from typing import Any

    from ..base.findings import Finding
    from ..pmxcfs.tree import Rows
    from .compare import Change
    from .generations import Generation
    from .paths import Paths
    from .settings import Config

# How long a status looks at generations that were not verified in this boot, and how many it names.
CHECK_SECONDS = 2.0
SHOWN_GENERATIONS = 5


def tell(paths: Paths, config: Config) -> None:
    """Metrics of a moment in which no watcher runs. They are no reason for a failure."""
    try:
        write_metrics(paths, node_status(paths, config))
    except Exception as error:
        log("warning", f"{paths.metrics}: {type(error).__name__}: {error}")


def write_metrics(paths: Paths, status: dict[str, Any]) -> None:
    """The metrics where a collector of text files reads them; it need not be root."""
    write_volatile_text(paths.metrics, metrics_text(status), 0o644)


def figures(status: dict[str, Any]) -> dict[str, Any]:
    keys = ("state", "tmpfs_bytes", "used_bytes", "root_version", "saved_root_version", "ready")
    return {key: status.get(key) for key in keys}


def node_status(paths: Paths, config: Config) -> dict[str, Any]:
    """The state of this node as one dict; see "The status as JSON" in docs/ram-state.md."""
    mount = live_mount(paths)
    ours = is_ours(mount)
    units = unit_states(PVE_CLUSTER, STATE_UNIT, WATCH_UNIT)
    watch = read_json(paths.watch_file)
    restored = read_json(paths.restore_file)
    found = generations(paths)
    results = check_generations(paths, found, seconds=CHECK_SECONDS)
    kept = read_json(paths.state_file)
    # What the watcher says of HA is judged here anew.
    told = [each for each in map(read, watch.get("findings") or []) if not each.id.startswith("ha-")]
    status = {
        "format": FORMAT,
        "state": "disabled",
        "reason": "",
        "fix": "",
        "mounted": ours,
        "tmpfs_bytes": 0,
        "used_bytes": 0,
        "fill_percent": 0,
        "noswap": bool(ours and mount and "noswap" in mount[3].split(",")),
        "daemon_running": daemon_running(paths),
        "units": {unit: state[0] for unit, state in units.items()},
        "root_version": None,
        "saved_root_version": None,
        "lag_versions": None,
        "lag_seconds": None,
        "unsaved_files": None,
        "last_save": watch.get("last_save"),
        "last_real_change": watch.get("last_real_change"),
        "watcher_running": units[WATCH_UNIT][0] == "active",
        "watcher_started": watch.get("started"),
        "saves": watch.get("saves"),
        "save_failures": watch.get("save_failures"),
        "watch_error": watch.get("error"),
        "warnings": [w for w in watch.get("warnings") or [] if not w.startswith("HA ")],
        "ready": bool(watch.get("ready")),
        "answers": None,
        "quorate": None,
        "daemon_mode": None,
        "met_corosync": None,
        "ha_resources": [],
        "ha_masked": ha_masked(paths),
        "ha_resources_while_masked": 0,
        "restore": restored or None,
        "would_lose": None,
        "would_restore": None,
        "rescue": None,
        "lineage": kept.get("lineage"),
        "lineage_since": kept.get("lineage_since"),
        "lineage_reason": kept.get("lineage_reason"),
        "generations": len(found),
        "generations_damaged": sum(bool(entry["problems"]) for entry in results.values()),
        "newest_generation": found[0].name if found else None,
        "newest_generation_time": found[0].manifest.get("time") if found else None,
        "generation_list": [
            {key: entry.get(key) for key in LISTED}
            for entry in (generation_entry(g, results, is_member(paths)) for g in found)
        ],
        "metrics": paths.metrics,
        "metrics_dir": config.metrics_dir,
        "member": is_member(paths),
    }
    if ours:
        limit, used = fill(paths)
        status.update(tmpfs_bytes=limit, used_bytes=used, fill_percent=round(100 * used / limit, 1) if limit else 0)
    notes = [*_status_daemon(paths, status), *_status_states(paths, config, status, ours, watch)]
    health = _status_health(paths, status, units, ours)
    noted = [each for each in [*notes, *status_findings.noted(status)] if each is not None]
    status["warnings"] += [each.sentence for each in noted]
    status["findings"] = [each.as_dict() for each in status_findings.findings(status, health, [*told, *noted])]
    return status


def _status_daemon(paths: Paths, status: dict[str, Any]) -> list[Finding | None]:
    """How the daemon works. Returns the findings on what cannot be known."""
    if not (status["daemon_running"] and pve_mounted(paths)):
        return []
    members = members_said(paths)
    status["answers"] = members is not None
    unknown = unknown_members(members)
    if unknown:
        why = f"{paths.pve}/.members is not as it is known ({unknown}): quorum is not known"
        return [pmxcfs_findings.understood(why)] if status["answers"] else []
    mode = daemon_mode(paths, members)
    status["daemon_mode"], status["quorate"] = mode.name, mode.quorate
    status["met_corosync"] = mode.met if mode.name == "cluster" else None
    return []


def generation_entry(g: Generation, results: dict[str, Any], member: bool) -> dict[str, Any]:
    """A generation as status and list show it. ``problems`` (what is wrong with the file) and ``verified`` are None
    where it was not verified in this boot. ``refused`` says why a file, good or not looked at, is no state for this
    node, or is None; ``restorable`` is None where only a verification can tell.
    """
    result = results.get(g.name) or {}
    problems = result.get("problems")
    verified = None if problems is None else not problems
    refused = None
    if member and g.manifest.get("mode") == "standalone":
        refused = f"from before the join: {NO_COROSYNC_CONF}"
    elif left_cluster(g, member):
        refused = "from a member of a cluster, and this node is none"
    return {
        "name": g.name,
        **g.manifest,
        "problems": problems,
        "verified": verified,
        "restorable": False if refused else verified,
        "refused": refused,
        "checked": result.get("time"),
    }


def _status_states(
    paths: Paths, config: Config, status: dict[str, Any], ours: bool, watch: dict[str, Any]
) -> list[Finding | None]:
    """What is live, what is saved, what differs. Returns the findings on what cannot be known."""
    replica = None
    if os.path.exists(paths.replica):
        problems: list[str] = []
        rows: Rows = {}
        try:
            # Without the store's lock: a look that was torn is taken again.
            connection = in_memory(paths.replica)
            try:
                problems, rows = check_connection(connection, status["member"])
            finally:
                connection.close()
        except (sqlite3.Error, StateError) as error:
            problems = [str(error)]
        replica = rows or None
        root = root_version(rows) if rows else None
        status["would_restore"] = {"source": "replica", "root_version": root, "problems": problems}
        status["rescue"] = pending_rescue(paths, rows)
        status["saved_root_version"] = root
        status["last_save"] = status["last_save"] or last_written(paths)
        status["last_real_change"] = status["last_real_change"] or newest_change(rows)
    else:
        status["rescue"] = pending_rescue(paths, {})
    if not status["daemon_running"] or (status["mounted"] != ours):
        return []
    try:
        live = open_live(paths)
        try:
            unknown = unknown_schema(live)
            if unknown:
                why = f"{paths.live_db}: {SCHEMA_UNKNOWN} ({unknown}), so what it holds is not known"
                told = pmxcfs_findings.understood(why)
                return [told] if told else []
            rows = read_rows(live)
            status["ha_resources"] = ha_resources(live)
        finally:
            live.close()
    except (sqlite3.Error, StateError) as error:
        return [status_findings.unreadable(error)]
    status["root_version"] = root_version(rows)
    if not ours:
        return []
    if status["ha_masked"]:
        status["ha_resources_while_masked"] = len(status["ha_resources"])
    # What is kept beside the replica is not lost.
    held = (rows_of(status["rescue"]["path"]) if status["rescue"] else None) or replica
    if held:
        change = compare(rows, held, config.noise)
        names = changed_paths(rows, held, change)
        status["would_lose"] = sorted({*names, *(watch.get("unsaved_paths") or ())})
        status["unsaved_files"] = len(status["would_lose"])
        status["lag_seconds"] = _lag_seconds(status, watch, [rows[i][MTIME] for i in change.upsert])
        if None not in (status["root_version"], status["saved_root_version"]):
            status["lag_versions"] = status["root_version"] - status["saved_root_version"]
    return []


def changed_paths(rows: Rows, replica: Rows, change: Change) -> list[str]:
    """Sorted paths of the files in which a table and the replica differ."""
    names = [path_of(i, rows) or f"row {i}" for i in change.upsert]
    names += [path_of(i, replica) or f"row {i}" for i in change.delete]
    return sorted(set(names))


def _lag_seconds(status: dict[str, Any], watch: dict[str, Any], mtimes: Sequence[int]) -> float:
    """Age of the oldest change that is not saved: as the watcher saw it, else by the files, but not before the
    last save.
    """
    if not status["would_lose"]:
        return 0.0
    since = epoch(watch.get("unsaved_since"))
    if since is None:
        since = max([epoch(status["last_save"]) or 0, min(mtimes, default=0)])
    return max(0.0, round(time.time() - since, 1))


def newest_change(rows: Rows) -> str | None:
    """UTC text of the youngest mtime of a file, None when there is none. One from the future is no change."""
    now = time.time()
    times = [row[MTIME] for row in rows.values() if row[TYPE] == FILE and 0 < row[MTIME] <= now]
    return utc(max(times)) if times else None


def _status_health(
    paths: Paths, status: dict[str, Any], units: dict[str, tuple[str, bool]], ours: bool
) -> status_findings.Health:
    """Whether it works as set up: ``state``, ``reason`` and ``fix``, and the core's word on them."""
    set_up = switched(paths)
    found = status_findings.health(
        status,
        set_up=set_up,
        placeholder=not set_up and not ours and is_placeholder(paths.live_db),
        active={unit: state[0] for unit, state in units.items()},
        starting=[unit for unit, state in units.items() if state[1]],
        switch=read_json(paths.switch_file),
        restore_fix=restore_fix(paths) if (status["restore"] or {}).get("error") else "",
        rescue_text=rescue_text(status["rescue"]) if status["rescue"] else "",
        live=paths.live,
    )
    status.update(state=found.state, reason=found.reason, fix=found.fix)
    return found


def cmd_status(paths: Paths, config: Config, args: Namespace) -> dict[str, Any]:
    if args.prometheus and args.json:
        raise UsageError("--prometheus and --json do not go together")
    status = node_status(paths, config)
    if status["state"] == "failed":
        status["_exit"] = EXIT_ERROR
    if args.prometheus:
        status["message"] = metrics_text(status).rstrip("\n")
    elif not args.json:
        status["message"] = status_text(status)
    return status


def status_text(status: dict[str, Any]) -> str:
    """The status as one screen of text."""
    lines = []

    def line(name: str, text: str) -> None:
        lines.append(f"{name:15}{text}")

    line("RAM state", status["state"] + ("" if status["state"] != "enabled" else ", healthy"))
    if status["reason"]:
        line("reason", status["reason"])
    if status["fix"]:
        line("fix", status["fix"])
    if status["mounted"]:
        line(
            "RAM",
            f"mounted, {status['used_bytes'] / MIB:.1f} of {status['tmpfs_bytes'] / MIB:.0f} MiB used "
            f"({status['fill_percent']} %), {'never swapped' if status['noswap'] else 'may be swapped'}",
        )
    else:
        line("RAM", "not mounted")
    line("daemon", _daemon_text(status))
    line("last change", f"{status['last_real_change'] or '-'} (heartbeats and locks aside)")
    line("last save", f"{status['last_save'] or '-'}{_saves_text(status)}")
    if status["lag_versions"] is not None:
        line(
            "lag",
            f"{status['lag_seconds']:g} s, {status['lag_versions']} versions (live {status['root_version']}, "
            f"saved {status['saved_root_version']})",
        )
    since = (
        f", since {status['lineage_since']}: {status['lineage_reason']}" if status["lineage_since"] else ""
    )
    if status["lineage"] is not None:
        line("lineage", f"{status['lineage']}{since}")
    line("generations", _generations_text(status))
    for g in status["generation_list"][:SHOWN_GENERATIONS]:
        lines.append(f"  {generation_line(g)}")
    line("would restore", _restore_text(status))
    if status["rescue"]:
        found = status["rescue"]
        line("rescue copy", f"{found['path']}, {found['time']}, root version {found['root_version']}")
        line("", "differs in " + ("rows that cannot be read" if found["differs"] is None else some_of(found["differs"])))
        for what, command in found["choices"].items():
            line("", f"{command}  ({what})")
    for warning in status["warnings"]:
        line("warning", warning)
    if status["would_lose"] is not None:
        lost = status["would_lose"]
        text = ", ".join(printable(path, "") for path in lost[:10]) or "nothing"
        more = f" and {len(lost) - 10} more" if len(lost) > 10 else ""
        lines.append(f"if power failed now you would lose: {text}{more}")
    return "\n".join(lines)


def _daemon_text(status: dict[str, Any]) -> str:
    if not status["daemon_running"]:
        return "does not run"
    if not status["answers"]:
        return (
            "runs, but /etc/pve does not answer"
            if status["answers"] is False
            else "runs, /etc/pve not mounted"
        )
    kind = "member of a cluster" if status["member"] or status["daemon_mode"] == "cluster" else "stand-alone"
    if status["daemon_mode"] == "local":
        quorum = ", but WORKS ALONE (local mode)" if status["member"] else ""
    elif status["met_corosync"] is False:
        quorum = f", NO QUORUM: {NOT_MET}"
    else:
        quorum = ", quorate" if status["quorate"] else ", NO QUORUM: /etc/pve is read-only"
    ready = ""
    if status["state"] != "disabled":
        ready = ", ready" if status["ready"] else ", not ready: see 'The false leader' in docs/ram-state.md"
    return f"runs, {kind}{quorum}{ready}"


def _saves_text(status: dict[str, Any]) -> str:
    if status["saves"] is None:
        return ""
    failures = f", {status['save_failures']} failed" if status["save_failures"] else ""
    return f" ({status['saves']} since {status['watcher_started']}{failures})"


def _generations_text(status: dict[str, Any]) -> str:
    if not status["generations"]:
        return "none"
    known = [g["problems"] for g in status["generation_list"] if g["problems"] is not None]
    damaged = sum(bool(problems) for problems in known)
    parts = [f"{len(known) - damaged} verified"]
    parts += [f"{damaged} DAMAGED"] if damaged else []
    rest = status["generations"] - len(known)
    parts += [f"{rest} not looked at in this boot ('pve-state verify')"] if rest else []
    more = f"; the newest {SHOWN_GENERATIONS}:" if status["generations"] > SHOWN_GENERATIONS else ":"
    return f"{status['generations']}: {', '.join(parts)}{more}"


def generation_line(g: Mapping[str, Any]) -> str:
    """One line on a generation: name, history, size of the claim that it is good."""
    verdict = (
        "not verified"
        if g["problems"] is None
        else "good"
        if not g["problems"]
        else f"BAD: {g['problems'][0]}"
    )
    if g["refused"] and not g["problems"]:
        verdict += f", not restorable here: {g['refused']}"
    return (
        f"{g['name']}  lineage {g.get('lineage')}  version {g.get('root_version')}  {g.get('mode')}  "
        f"{g.get('time')}  {verdict}"
    )


def _restore_text(status: dict[str, Any]) -> str:
    """What a start would put in place now."""
    if status["state"] == "disabled":
        return "nothing: the daemon starts from the database on disk"
    restore = status["would_restore"]
    if status["rescue"]:
        return "NOTHING, the daemon would not start: a rescue copy is newer than the replica"
    if restore and not restore["problems"]:
        return f"the replica, version {restore['root_version']}: passes verification"
    why = restore["problems"][0] if restore else "the store is empty"
    good = next((g["name"] for g in status["generation_list"] if g["restorable"]), None)
    then = f"; good is generation {good}" if good else "; and no generation is known that could be restored"
    return f"NOTHING, the daemon would not start: {why}{then}"


def cmd_list(paths: Paths, config: Config, args: Namespace) -> dict[str, Any]:
    found = generations(paths)
    member = is_member(paths)
    results = check_generations(paths, found, anew=True) if args.verify else checked(paths, found)
    entries = [generation_entry(g, results, member) for g in found]
    lines = [generation_line(entry) for entry in entries]
    return {"generations": entries, "message": "\n".join(lines) or "no generation"}


def cmd_verify(paths: Paths, config: Config, args: Namespace) -> dict[str, Any]:
    member = is_member(paths)
    checks = {}
    if args.generation:
        g = find_generation(paths, args.generation)
        checks[g.name] = g.problems(member)
    elif args.file:
        checks[args.file] = verify_database(os.path.abspath(args.file), member)[0]
    else:
        if os.path.exists(paths.replica) or switched(paths):
            checks["replica"] = verify_database(paths.replica, member)[0]
        # Copies from before a join are history, not damage.
        results = check_generations(paths, generations(paths), anew=True)
        checks.update({name: entry["problems"] for name, entry in results.items()})
    bad = {name: problems for name, problems in checks.items() if problems}
    lines = [f"{name}: {'; '.join(problems) if problems else 'good'}" for name, problems in checks.items()]
    result = {"checks": checks, "good": not bad, "message": "\n".join(lines) or "nothing to verify"}
    if bad:
        result["_exit"] = EXIT_DAMAGED
    return result
