"""RAM state of a node: its files, the switch to RAM, and the way back.

The work itself is done on the node by the program ``pve-state``, which is told through ``--json`` and runs detached. What
is only asked is answered by this process's own code (:mod:`.program`), so that a refusal or a check run leaves no file behind.
"""

from __future__ import annotations

import functools
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..base import managed_file, node_program, ssh_login
from ..base.detached import DetachedError, run_detached
from ..base.errors import PveguardError
from ..base.kernel import noswap_supported
from ..base.managed_file import Change, FileSpec
from ..base.program_version import version
from ..base.run import Result, Run
from ..base.run import run as real_run
from ..base.systemd import properties
from . import program
from .installed import CONFIG, DROP_IN, DROP_IN_SOURCE, UNIT_DIR, WATCH_UNIT, metrics_dir, metrics_link
from .program import PVE_STATE

#: What pve-state says of a switch-over that is under way, or of the last one in this boot.
SWITCH = "/run/pveguard/switch.json"
#: Prometheus metrics, written by the watcher.
METRICS = "/run/pveguard/metrics.prom"
EXIT_REFUSED = 3
Ask = Callable[[Sequence[str], float], Result]
_UNIT_NAME = re.compile(r"[A-Za-z0-9@:_.\\-]+\.(?:service|mount)")


@dataclass(frozen=True)
class Options:
    """What a node's RAM state shall be.

    ``units`` maps unit names to their text (``@NOSWAP@`` stands for the
    mount option
    where the kernel has it), ``drop_in`` is the text of pve-cluster's drop-in, ``config`` the settings of
    state.json, ``deadline_s`` the seconds after which a switch-over is undone, ``connection`` the ssh connection
    in use ("" for a local session).
    """

    units: Mapping[str, str] = field(default_factory=dict)
    drop_in: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    allow_ha: bool = False
    allow_offline_members: bool = False
    login_fallback: bool = True
    deadline_s: float = 300.0
    connection: str | None = None


def specs(options: Options, former_metrics_dir: str = "", release: str | None = None) -> list[FileSpec]:
    """The files that RAM state needs beside the program, in the order in which they are written; the drop-in in use is not
    among them.

    ``former_metrics_dir``: where the link to the metrics is now; it is removed where another place is wanted. ``release``: of
    the node's kernel, this machine's without it.
    """
    for name in options.units:
        if not _UNIT_NAME.fullmatch(name):
            raise PveguardError(f"{name!r} is not a name of a service or mount unit")
    noswap = ",noswap" if noswap_supported(release) else ""
    config = json.dumps(dict(options.config), indent=2, sort_keys=True) + "\n"
    found = [
        FileSpec(CONFIG, config),
        FileSpec(DROP_IN_SOURCE, options.drop_in),
        *(
            FileSpec(f"{UNIT_DIR}/{name}", text.replace("@NOSWAP@", noswap))
            for name, text in sorted(options.units.items())
        ),
    ]
    wanted = options.config.get("metrics_dir") or ""
    if former_metrics_dir and former_metrics_dir != wanted:
        found.append(FileSpec(metrics_link(former_metrics_dir), present=False, link=METRICS))
    if wanted:
        found.append(FileSpec(metrics_link(wanted), link=METRICS))
    return found


def is_current(node: Mapping[str, Any], options: Options) -> bool:
    """Whether :func:`enable` would find nothing to do or to say, by the facts of node_info. Asked on the controller, whose cores
    are those that a module would be sent with.
    """
    state = node.get("ram_state") or {}
    found = state.get("installed") or {}
    watcher = (node.get("units") or {}).get(WATCH_UNIT) or {}
    if state.get("state") != "enabled" or state.get("warnings") or watcher.get("active") != "active":
        return False
    if found.get("program") != program_version():
        return False
    wanted = [*specs(options, release=str(node.get("kernel") or "")), FileSpec(DROP_IN, options.drop_in)]
    return found.get("files") == {spec.path: managed_file.wanted(spec) for spec in wanted}


@functools.cache
def program_version() -> str:
    """The version of pve-state that these cores would install."""
    return version(node_program.files(PVE_STATE))


def status(run: Run = real_run) -> dict[str, Any]:
    """``pve-state status --json``, or ``{"state": "absent"}`` when the program is not installed."""
    if not os.path.exists(PVE_STATE.command):
        return {"state": "absent"}
    return _object(run([PVE_STATE.command, "status", "--json"], timeout=120), "pve-state status")


def enable(options: Options, check: bool = False, run: Run = real_run, ask: Ask = program.ask) -> dict[str, Any]:
    """Bring a node to RAM state, or its files up to date where it is there already.

    Returns ``{changed, files: [Change], switched, status, restarted, preflight, ...}``; ``switched`` is True
    when the daemon
    was (or in check mode would be) restarted onto RAM. Raises PveguardError for a refusal, with nothing
    changed.
    """
    files = specs(options, metrics_dir())
    if os.path.exists(DROP_IN):
        return _update(options, files, check, run, ask)
    changes = node_program.plan(PVE_STATE) + managed_file.plan(files)
    found = _preflight(options, ask)
    result: dict[str, Any] = {
        "changed": True,
        "files": changes,
        "switched": True,
        "restarted": [],
        "preflight": found,
    }
    if not found.get("installed") and check:
        # In a real run the package is there by now.
        return result
    if found["refusals"]:
        raise PveguardError("RAM state is refused, nothing was changed: " + "; ".join(found["refusals"]))
    if check:
        return result
    made = {change.path for change in changes if change.what == "created"}
    created = [replace(spec, present=False) for spec in files if spec.path in made]
    node_program.install(PVE_STATE)
    # systemd reads them when pve-state has put the drop-in in place.
    managed_file.apply(files)
    argv = [PVE_STATE.command, "enable", "--json", "--result", "/run/pveguard/pveguard-enable.json"]
    argv += ["--connection", found["login"]["connection"] or ""]
    argv += ["--allow-ha"] if options.allow_ha else []
    argv += ["--allow-offline-members"] if options.allow_offline_members else []
    argv += ["--login-fallback"] if options.login_fallback else []
    try:
        done = run_detached("pveguard-enable", argv, 2 * options.deadline_s + 60, run)
    except DetachedError:
        if not os.path.exists(DROP_IN) and _over(run):
            # Stock is back: leave nothing of the switch behind.
            managed_file.apply(created)
            if PVE_STATE.command in made:
                node_program.remove(PVE_STATE)
            _daemon_reload(run)
        raise
    return {**result, **done, "changed": True}


def _over(run: Run) -> bool:
    """Whether nothing of a switch-over goes on: the unit ended, and the rollback timer needs no program."""
    shown = properties("pveguard-enable.service", ["ActiveState"], run)
    if shown.get("ActiveState") in ("active", "activating", "deactivating", "reloading"):
        return False
    try:
        switch = json.loads(Path(SWITCH).read_text())
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    return isinstance(switch, dict) and bool(switch.get("done"))


def _update(options: Options, files: Sequence[FileSpec], check: bool, run: Run, ask: Ask) -> dict[str, Any]:
    """A node that runs from RAM: files up to date, the watcher restarted if need be, the daemon untouched."""
    files = [*files, FileSpec(DROP_IN, options.drop_in)]
    changes = node_program.plan(PVE_STATE) + managed_file.plan(files)
    now = _wait(options.deadline_s, run, lambda state: state != "starting")
    units = now.get("units") or {}
    watcher_down = units.get(WATCH_UNIT) not in ("active", "activating", "reloading")
    healthy = now.get("state") == "enabled"
    result: dict[str, Any] = {
        "changed": bool(changes) or (watcher_down and not healthy),
        "files": changes,
        "switched": False,
        "restarted": [WATCH_UNIT] if changes or watcher_down else [],
        "status": now,
    }
    if not healthy and not changes and not watcher_down:
        raise _unhealthy(now)
    if any(change.path in (CONFIG, PVE_STATE.command) for change in changes):
        # Settings that the watcher would not start with must not replace those it runs with.
        settings = json.dumps(dict(options.config), sort_keys=True)
        _object(ask(["check-config", "--config", settings], 120), "pve-state check-config")
    if check or not result["changed"]:
        return result
    # First: units of this version want a program of this version.
    node_program.install(PVE_STATE)
    managed_file.apply(files)
    if any(change.path.startswith(UNIT_DIR) for change in changes):
        _daemon_reload(run)
    done = run(["systemctl", "restart", WATCH_UNIT], timeout=options.deadline_s)
    if not done.ok:
        raise PveguardError(
            f"{WATCH_UNIT} does not start: {done.stderr.strip()}. Look with 'journalctl -u {WATCH_UNIT}'"
        )
    result["status"] = now = _wait(options.deadline_s, run, lambda state: state == "enabled")
    if now.get("state") != "enabled":
        raise _unhealthy(now)
    return result


def disable(options: Options, check: bool = False, run: Run = real_run, ask: Ask = program.ask) -> dict[str, Any]:
    """Bring a node back to the database on disk and remove pveguard's files; the store's generations stay.

    Returns ``{changed, files, switched, ...}`` and what ``pve-state disable`` measured.
    """
    drop_in = os.path.exists(DROP_IN)
    now: dict[str, Any] = {"state": "absent"}
    if drop_in or os.path.lexists(PVE_STATE.command):
        # Asked with the program of this checkout: the installed one may be damaged, old or gone.
        try:
            now = _object(ask(["status"], 120), "pve-state status")
        except PveguardError as error:
            now = {"state": "failed", "reason": str(error)}
    in_ram = drop_in or now.get("state") == "failed"
    files = [replace(spec, present=False) for spec in reversed(specs(options, metrics_dir()))]
    removed = managed_file.plan([*([FileSpec(DROP_IN, present=False)] if drop_in else []), *files])
    removed += node_program.plan_removal(PVE_STATE)
    result: dict[str, Any] = {
        "changed": bool(removed) or in_ram,
        "files": removed,
        "switched": in_ram,
        "status": now,
    }
    if check or not result["changed"]:
        return result
    if in_ram:
        # The way back is taken with the program of this checkout: the installed one may be damaged or old.
        node_program.install(PVE_STATE)
        argv = [PVE_STATE.command, "disable", "--json", "--result", "/run/pveguard/pveguard-disable.json"]
        argv += ["--connection", _connection(options)]
        argv += ["--allow-offline-members"] if options.allow_offline_members else []
        argv += ["--login-fallback"] if options.login_fallback else []
        result.update(run_detached("pveguard-disable", argv, 2 * options.deadline_s + 60, run))
    managed_file.apply(files)
    node_program.remove(PVE_STATE)
    _daemon_reload(run)
    result["changed"] = True
    return result


def _preflight(options: Options, ask: Ask) -> dict[str, Any]:
    argv = ["preflight", "--connection", _connection(options)]
    argv += ["--allow-ha"] if options.allow_ha else []
    argv += ["--allow-offline-members"] if options.allow_offline_members else []
    argv += ["--login-fallback"] if options.login_fallback else []
    argv += ["--config", json.dumps(dict(options.config), sort_keys=True)]
    return _object(ask(argv, 180), "pve-state preflight")


def _connection(options: Options) -> str:
    return options.connection if options.connection is not None else ssh_login.connection()


def _wait(deadline_s: float, run: Run, until: Callable[[Any], bool]) -> dict[str, Any]:
    """The first status whose state is as wanted, or the last one before the deadline (at most two minutes)."""
    end = time.monotonic() + min(deadline_s, 120.0)
    while True:
        now = status(run)
        if until(now.get("state")) or time.monotonic() > end:
            return now
        time.sleep(0.5)


def _unhealthy(now: Mapping[str, Any]) -> PveguardError:
    reason, fix = now.get("reason") or now.get("error") or "unknown", now.get("fix") or "pve-state status"
    return PveguardError(f"RAM state is set up but not healthy: {reason}. What helps: {fix}")


def _daemon_reload(run: Run) -> None:
    done = run(["systemctl", "daemon-reload"], timeout=120)
    if not done.ok:
        raise PveguardError(f"systemctl daemon-reload failed: {done.stderr.strip()}")


def _object(result: Any, what: str) -> dict[str, Any]:
    try:
        value = json.loads(result.stdout)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise PveguardError(f"{what} gave no answer (exit code {result.rc}): {result.stderr.strip()[-400:]}")
    if "error" in value and "state" not in value:
        raise PveguardError(f"{what}: {value['error']}")
    return value


def diff(changes: Sequence[Change]) -> list[dict[str, str]]:
    """Ansible's diff of file changes; the program itself is shown by its version."""
    return [
        {
            "before": change.before,
            "after": change.after,
            "before_header": change.path,
            "after_header": f"{change.path} ({change.what})",
        }
        for change in changes
    ]

