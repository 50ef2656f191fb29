"""Run a node program so that it finishes even when the ssh connection that started it is lost.

Work that takes the cluster file system down may take the login down with it (root's authorized_keys is a link into
/etc/pve), so it must never depend on the connection. It runs as a transient systemd unit and leaves its result in
``/run/pveguard/UNIT.json``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import PveguardError
from .run import Run
from .run import run as real_run
from .systemd import properties

RESULT_DIR = Path("/run/pveguard")


class DetachedError(PveguardError):
    """The unit failed, or gave no result within its deadline. ``journal`` holds the unit's last lines."""

    def __init__(self, message: str, journal: str = "") -> None:
        super().__init__(message if not journal else f"{message}\nLast lines of its journal:\n{journal}")
        self.journal = journal


def _show(unit: str, run: Run) -> dict[str, str]:
    return properties(unit, ["ActiveState", "Result", "ExecMainStatus", "LoadState", "InvocationID"], run)


def run_detached(
    unit: str,
    argv: Sequence[str],
    deadline_s: float,
    run: Run = real_run,
    result_dir: Path = RESULT_DIR,
    poll_s: float = 0.3,
    ask_s: float = 3.0,
) -> dict[str, Any]:
    """Run ``argv`` as the transient unit ``unit`` (no suffix), wait for it, return the JSON object it wrote.

    The program must write ``{result_dir}/{unit}.json`` before it ends, by a rename; a key ``error`` in it, or exit code != 0,
    or no end within ``deadline_s`` seconds (the unit itself is stopped by systemd 30 s later) raises
    :class:`DetachedError`. When the unit is already running (a former connection was lost), its end is awaited
    instead of starting a second one.

    The file is looked for every ``poll_s`` seconds; one that is not a whole JSON object does not count. systemd is asked
    only when it is there, or after ``ask_s`` seconds, for a unit that died without a result: each question is a process,
    which on a slow node holds up what is waited for.
    """
    service = f"{unit}.service"
    result_file = result_dir / f"{unit}.json"
    state = _show(service, run)
    attached = state.get("ActiveState") in ("active", "activating", "deactivating")
    if not attached:
        result_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        result_file.unlink(missing_ok=True)
        run(["systemctl", "reset-failed", service])
        started = run(
            [
                "systemd-run",
                f"--unit={unit}",
                "--quiet",
                "--property=Type=exec",
                "--property=KillMode=process",
                f"--property=RuntimeMaxSec={int(deadline_s) + 30}",
                "--",
                *argv,
            ]
        )
        if not started.ok:
            raise DetachedError(f"systemd-run could not start {service}: {started.stderr.strip()}")
    begin = time.monotonic()
    end, ask = begin + deadline_s, begin + min(ask_s, deadline_s)
    while True:
        if time.monotonic() < ask and _read(result_file) is None:
            time.sleep(poll_s)
            continue
        ask = min(time.monotonic() + ask_s, end)
        state = _show(service, run)
        if state.get("ActiveState") not in ("active", "activating", "deactivating"):
            break
        if time.monotonic() > end:
            raise DetachedError(
                f"{service} did not end within {deadline_s:g} s; it goes on by itself and undoes its work on failure: "
                f"look with 'journalctl -u {service}'",
                _journal(service, run),
            )
        time.sleep(poll_s)
    failed = state.get("ActiveState") == "failed"
    result = _read(result_file)
    if result is None:
        raise DetachedError(f"{service} left no result in {result_file}", _journal(service, run))
    if failed or "error" in result:
        raise DetachedError(str(result.get("error", f"{service} failed")), _journal(service, run))
    return result


def _read(result_file: Path) -> dict[str, Any] | None:
    try:
        result = json.loads(result_file.read_text())
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) else None


def _journal(service: str, run: Run, lines: int = 12) -> str:
    return run(["journalctl", "-u", service, "-n", str(lines), "--no-pager", "-o", "cat"]).stdout.strip()
