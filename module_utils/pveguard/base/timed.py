"""A program that runs on a node on a schedule: its unit and timer, and what it leaves of each run.

:func:`record` runs the work once and leaves three things, whatever the end: the result as JSON in
``/var/lib/pveguard/timed/NAME.json`` (replaced by a rename), one line in the journal, and ``NAME.prom`` beside it for the
textfile collector of node_exporter. A run that was killed, or lost with the power, is told by :func:`last` as aborted.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .atomic import read_or_none, write_atomic
from .errors import PveguardError
from .metrics_text import Metrics, Samples, render
from .rollback_timer import command_line
from .supervised import Interrupted, endings

FOLDER, LOCKS = "var/lib/pveguard/timed", "run/pveguard/timed"
RUNNING, OK, FAILED, ABORTED, NEVER = "running", "ok", "failed", "aborted", "never"

_NAME = re.compile(r"[a-z][a-z0-9-]{0,40}")
_LEVELS = {"error": 3, "warning": 4, "info": 6}
_ROOT = Path("/")


@dataclass(frozen=True)
class Program:
    """``schedule`` as in systemd.time(7), OnCalendar; ``spread_s``: it starts at random up to so many seconds later, always
    the same on one node; ``catch_up``: a run that was missed while the node was off is made at boot. ``timeout_s`` ends a run
    that hangs, ``service`` adds settings to the unit's section [Service], ``after`` orders it after units.
    """

    name: str
    description: str
    argv: Sequence[str]
    schedule: str
    spread_s: int = 0
    catch_up: bool = True
    timeout_s: int = 3600
    after: Sequence[str] = ()
    service: Mapping[str, str] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """The name of both units, without an ending."""
        return f"pveguard-{_checked(self.name)}"


def units(program: Program) -> dict[str, str]:
    """``{file name: text}`` of the service and its timer, for ``/etc/systemd/system``."""
    after = f"After={' '.join(program.after)}\n" if program.after else ""
    settings = {
        "Type": "oneshot",
        "ExecStart": command_line(program.argv),
        "TimeoutStartSec": f"{program.timeout_s}",
        "Nice": "10",
        "IOSchedulingClass": "idle",
        "UMask": "0077",
        "NoNewPrivileges": "yes",
        "ProtectHome": "yes",
        "PrivateTmp": "yes",
        **program.service,
    }
    body = "".join(f"{key}={value}\n" for key, value in settings.items())
    spread = f"RandomizedDelaySec={program.spread_s}\nFixedRandomDelay=yes\n" if program.spread_s else ""
    return {
        f"{program.unit}.service": (
            f"# Managed by pveguard.\n[Unit]\nDescription=pveguard: {program.description}\n"
            f"RequiresMountsFor=/var/lib/pveguard\n{after}\n[Service]\n{body}"
        ),
        f"{program.unit}.timer": (
            "# Managed by pveguard.\n"
            f"[Unit]\nDescription=pveguard: when {program.unit}.service runs\n\n"
            f"[Timer]\nOnCalendar={program.schedule}\n{spread}Persistent={'yes' if program.catch_up else 'no'}\n\n"
            "[Install]\nWantedBy=timers.target\n"
        ),
    }


def record(
    name: str,
    work: Callable[[], tuple[str, dict[str, Any]]],
    *,
    metrics: Metrics | None = None,
    samples: Callable[[dict[str, Any]], Samples] | None = None,
    root: Path = _ROOT,
    clock: Callable[[], float] = time.time,
) -> int:
    """Do ``work`` once and leave what came of it; the exit code of the program: 0, 1 when it failed, 75 when it runs already.

    ``work`` returns ``(one sentence, what was found)``, the second as JSON can hold it. PveguardError, OSError and a signal
    that ends the program make a failed run with its reason; another exception does too, and is raised again. ``metrics`` and
    ``samples`` (of what was found) are added to those that every program has. ``clock`` gives Unix time in seconds.
    """
    with _alone(name, root) as alone:
        if not alone:
            log(name, "warning", "it runs already; nothing was done")
            return 75
        former, began = last(name, root), clock()
        state: dict[str, Any] = {
            "name": name,
            "state": RUNNING,
            "started": _utc(began),
            "boot_id": _boot_id(root),
            "last_ok": former.get("last_ok"),
        }
        write_state(name, state, root)
        unexpected: BaseException | None = None
        try:
            with endings():
                message, found = work()
            state.update(state=OK, message=message, found=found, last_ok=state["started"])
        except (PveguardError, OSError) as error:
            state.update(state=FAILED, message=str(error), found={})
        except Interrupted as interrupted:
            state.update(state=FAILED, message=f"ended by signal {interrupted.number}", found={})
        except BaseException as error:
            state.update(state=FAILED, message=f"{type(error).__name__}: {error}", found={})
            unexpected = error
        ended = clock()
        state.update(ended=_utc(ended), seconds=round(ended - began, 3))
        write_state(name, state, root)
        text = metrics_of(state) + (render(metrics, samples(state["found"])) if metrics and samples else "")
        write_atomic(_file(name, root, ".prom"), text.encode(), 0o644)
        log(name, "info" if state["state"] == OK else "error", state["message"])
        if unexpected is not None:
            raise unexpected
        return 0 if state["state"] == OK else 1


def last(name: str, root: Path = _ROOT) -> dict[str, Any]:
    """The last run: ``{name, state, started, ended, seconds, message, found, last_ok}``.

    ``state``: ``ok``, ``failed``, ``running``, ``aborted`` (it had no end) or ``never``; only what is known is there. Raises
    PveguardError for a file that is damaged.
    """
    file = _file(name, root, ".json")
    text = read_or_none(file)
    if text is None:
        return {"name": name, "state": NEVER}
    try:
        state = json.loads(text)
        running = state["state"] == RUNNING
    except (ValueError, KeyError, TypeError) as error:
        raise PveguardError(f"{file}: is damaged ({error}); remove it, the next run writes it anew") from error
    if running and (state.get("boot_id") != _boot_id(root) or not _is_locked(name, root)):
        state.update(state=ABORTED, message="it was killed, or lost with the power")
    return dict(state)


def write_state(name: str, state: Mapping[str, Any], root: Path = _ROOT) -> None:
    """Replace the state of a program; a long one tells its progress so."""
    file = _file(name, root, ".json")
    file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    write_atomic(file, (json.dumps(state, indent=1, sort_keys=True) + "\n").encode(), 0o600)


def metrics_of(state: Mapping[str, Any]) -> str:
    """What every timed program tells of its last run."""
    labels = {"program": str(state["name"])}
    known = {
        "timed_last_run_timestamp_seconds": epoch(state.get("started")),
        "timed_last_success_timestamp_seconds": epoch(state.get("last_ok")),
        "timed_success": None if state["state"] == RUNNING else float(state["state"] == OK),
        "timed_duration_seconds": state.get("seconds"),
    }
    return render(METRICS, {key: [(labels, value)] for key, value in known.items() if value is not None})


METRICS: Metrics = {
    "timed_last_run_timestamp_seconds": ("When the program was last started by its timer or by hand", "gauge"),
    "timed_last_success_timestamp_seconds": ("When the last run that succeeded was started", "gauge"),
    "timed_success": ("Whether the last run succeeded", "gauge"),
    "timed_duration_seconds": ("How long the last run took", "gauge"),
}


def log(name: str, level: str, message: str) -> None:
    """One line to standard error, with its priority for the journal where systemd runs the program.

    ``level``: ``error``, ``warning`` or ``info``.
    """
    prefix = f"<{_LEVELS[level]}>" if "JOURNAL_STREAM" in os.environ else f"{name}: {level}: "
    print(prefix + message.replace("\n", "; "), file=sys.stderr, flush=True)


def epoch(text: str | None) -> float | None:
    """Seconds since 1970 of a time as it stands in the state, None for anything else."""
    match = re.fullmatch(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)Z", text or "")
    if not match:
        return None
    year, month, day, hour, minute, second = map(int, match.groups())
    # Years that begin in March: the leap day is the last one.
    year, month = (year, month - 3) if month > 2 else (year - 1, month + 9)
    days = 365 * year + year // 4 - year // 100 + year // 400 + (153 * month + 2) // 5 + day - 719469
    return float(((days * 24 + hour) * 60 + minute) * 60 + second)


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise PveguardError(f"{name!r} is no name of a program: small letters, digits and hyphens, at most 41")
    return name


def _file(name: str, root: Path, ending: str) -> Path:
    return root / FOLDER / f"{_checked(name)}{ending}"


@contextmanager
def _alone(name: str, root: Path) -> Iterator[bool]:
    """Whether no other process runs the program; nobody else starts it meanwhile."""
    path = root / LOCKS / f"{_checked(name)}.lock"
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with path.open("w") as lock:
        yield _try_lock(lock.fileno())


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_locked(name: str, root: Path) -> bool:
    path = root / LOCKS / f"{name}.lock"
    if not path.exists():
        return False
    with path.open() as lock:
        return not _try_lock(lock.fileno())


def _boot_id(root: Path) -> str:
    return (read_or_none(root / "proc/sys/kernel/random/boot_id") or b"").decode("ascii", "replace").strip()
