"""A change that undoes itself unless a confirmation arrives in time: also when the controller dies or the node is rebooted.

:func:`arm` before the change, :func:`confirm` once a proof of it has arrived. In between a timer on the node runs the undo
command after so many seconds; a reboot runs it at boot, before the units named. The undo must be safe to run twice and on a
node where the change was never made. Within a boot nothing depends on the wall clock.

The state is a file ``STATE.json`` in ``/var/lib/pveguard/rollback/NAME``, and one rename decides between the confirmation and
the undo: whoever comes second finds nothing to rename.

    armed -> confirmed                      confirm() came first
    armed -> rolling_back -> rolled_back    the timer, a reboot or roll_back() came first; what fails is tried again

With ``across_reboots=False`` all of it lies below ``/run``, for a change that a reboot undoes anyway.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .atomic import fsync_dir, read_or_none, write_atomic
from .errors import PveguardError
from .run import Run
from .run import run as real_run
from .systemd import properties

KEPT, VOLATILE = "var/lib/pveguard/rollback", "run/pveguard/rollback"
UNITS, VOLATILE_UNITS = "etc/systemd/system", "run/systemd/system"
PREFIX = "pveguard-rollback-"

NONE, ARMED, CONFIRMED, ROLLING_BACK, ROLLED_BACK = "none", "armed", "confirmed", "rolling_back", "rolled_back"
STATES = (ARMED, ROLLING_BACK, ROLLED_BACK, CONFIRMED)
#: Seconds between two tries of an undo that failed.
RETRY_S = 5

_NAME = re.compile(r"[a-z][a-z0-9-]{0,40}")
_ROOT = Path("/")


def arm(
    name: str,
    argv: Sequence[str],
    seconds: float,
    *,
    across_reboots: bool = True,
    before: Sequence[str] = (),
    run: Run = real_run,
    root: Path = _ROOT,
    ticks: Callable[[], float] = time.monotonic,
) -> None:
    """Have ``argv`` run in ``seconds`` unless :func:`confirm` comes first; call it before the change.

    ``argv`` has the absolute path of its program and needs neither a shell nor /etc/pve. ``before``: units that must not
    start at boot before the undo has run (``ssh.service``); an undo that reloads one of these does so with
    ``systemctl --no-block``, as it would otherwise wait for itself. Armed for the same command already, it counts anew.
    Raises PveguardError, with nothing armed, where it is armed for another command, while an undo runs, and where systemd
    does not take the timer.
    """
    folder = _folder(name, root, across_reboots)
    if not argv or not argv[0].startswith("/"):
        raise PveguardError(f"the undo of {name} must start with an absolute path, it is {list(argv)!r}")
    now = status(name, root=root, ticks=ticks)
    if now["state"] == ROLLING_BACK:
        raise PveguardError(f"the undo of {name} is under way; look with 'journalctl -u {PREFIX}{name}' and run again")
    if now["state"] == ARMED and now["argv"] != list(argv):
        raise PveguardError(
            f"{name} is armed for another change, which was neither confirmed nor undone: {_by_hand(name)}"
        )
    again = now["state"] == ARMED
    if not again:
        _clear(name, root)
    elif _place(name, root) != folder:
        raise PveguardError(f"{name} is armed with another answer to whether it survives a reboot; undo or confirm it first")
    units = root / (UNITS if across_reboots else VOLATILE_UNITS)
    service = service_text(name, argv, f"/{folder.relative_to(root)}", before)
    # Units without a state do nothing; a state without units would promise what nobody does.
    _make(units)
    write_atomic(units / f"{PREFIX}{name}.service", service.encode())
    if across_reboots:
        wants = units / "multi-user.target.wants"
        _make(wants)
        link = wants / f"{PREFIX}{name}.service"
        link.unlink(missing_ok=True)
        link.symlink_to(f"/{UNITS}/{link.name}")
        fsync_dir(wants)
    # In this boot alone: after a reboot the unit itself runs, not later.
    timers = root / VOLATILE_UNITS
    _make(timers)
    write_atomic(timers / f"{PREFIX}{name}.timer", timer_text(name, seconds).encode())
    _make(folder)
    written = {"argv": list(argv), "seconds": seconds, "boot_id": _boot_id(root), "until": ticks() + seconds, "time": _utc()}
    write_atomic(folder / f"{ARMED}.json", (json.dumps(written) + "\n").encode(), 0o600)
    problem = _start_timer(name, run)
    if problem and again:
        # The change of before is still there, so its undo must stay: at the next boot, or by hand.
        raise PveguardError(f"the rollback timer of {name} could not be started anew ({problem}); {_by_hand(name)}")
    if problem:
        if _decide(folder, CONFIRMED):
            _remove_units(name, root, run)
            _clear(name, root)
        raise PveguardError(f"the rollback timer of {name} could not be armed, and nothing was changed: {problem}")
    if again and any((folder / f"{state}.json").exists() for state in (ROLLING_BACK, ROLLED_BACK)):
        raise PveguardError(f"the undo of {name} began meanwhile; look with 'journalctl -u {PREFIX}{name}' and run again")


def confirm(name: str, *, run: Run = real_run, root: Path = _ROOT) -> bool:
    """Keep the change: True, or False when it was confirmed before. Raises PveguardError when the undo came first, or
    nothing was armed.
    """
    now = status(name, root=root)
    if now["state"] == CONFIRMED:
        # A run that ended between the two steps.
        _remove_units(name, root, run)
        return False
    if now["state"] == NONE or not _decide(_place(name, root), CONFIRMED):
        now = status(name, root=root)
        raise PveguardError(_too_late(name, now["state"]))
    _remove_units(name, root, run)
    return True


def roll_back(name: str, *, run: Run = real_run, root: Path = _ROOT, timeout_s: float = 300.0) -> None:
    """Undo now, because the proof has failed, and wait for the end. Raises PveguardError when the change was confirmed, when
    nothing was armed, and when the undo fails; it is tried again by itself then.
    """
    state = status(name, root=root)["state"]
    if state in (NONE, CONFIRMED):
        raise PveguardError(f"{name}: there is nothing to undo, its state is {state!r}")
    if state != ROLLED_BACK:
        done = run(["systemctl", "start", f"{PREFIX}{name}.service"], timeout=timeout_s)
        if status(name, root=root)["state"] != ROLLED_BACK:
            why = done.stderr.strip() or f"'systemctl start' ended with code {done.rc}"
            raise PveguardError(
                f"the undo of {name} did not succeed ({why}); it is tried again every {RETRY_S} s: look with "
                f"'journalctl -u {PREFIX}{name}'"
            )
    _remove_units(name, root, run)


def status(name: str, *, root: Path = _ROOT, ticks: Callable[[], float] = time.monotonic) -> dict[str, Any]:
    """``{state, argv, seconds, left_seconds, time}``: what became of a change.

    ``left_seconds``: until the undo, of one that is armed in this boot, else None; ``time``: when it was armed. The state
    ``none`` has no other key.
    """
    folder = _place(name, root)
    for state in STATES:
        text = read_or_none(folder / f"{state}.json")
        if text is None:
            continue
        try:
            note = json.loads(text)
            found = {key: note[key] for key in ("argv", "seconds", "time")}
            same_boot = note["boot_id"] == _boot_id(root)
            left = max(0.0, note["until"] - ticks()) if state == ARMED and same_boot else None
        except (ValueError, KeyError, TypeError) as error:
            raise PveguardError(f"{folder}/{state}.json: is damaged ({error}); {_by_hand(name)}") from error
        return {"state": state, **found, "left_seconds": left}
    return {"state": NONE}


def names(root: Path = _ROOT) -> list[str]:
    """Every change that was ever armed here and not forgotten."""
    folders = [root / KEPT, root / VOLATILE]
    return sorted({entry.name for folder in folders if folder.is_dir() for entry in folder.iterdir() if entry.is_dir()})


def forget(name: str, *, run: Run = real_run, root: Path = _ROOT) -> bool:
    """Remove what is left of a change that was confirmed or undone; True when there was something.

    Raises PveguardError while it is armed or its undo runs.
    """
    state = status(name, root=root)["state"]
    if state in (ARMED, ROLLING_BACK):
        raise PveguardError(f"{name} is {state.replace('_', ' ')}: confirm it or undo it first")
    if state != NONE:
        _remove_units(name, root, run)
    return _clear(name, root)


def service_text(name: str, argv: Sequence[str], folder: str, before: Sequence[str] = ()) -> str:
    """The unit that undoes the change; ``folder``: where its state is."""
    armed, rolling, done = (f"{folder}/{state}.json" for state in (ARMED, ROLLING_BACK, ROLLED_BACK))
    order = f"Before={' '.join(before)}\n" if before else ""
    return f"""# Managed by pveguard. Undoes a change that nobody has confirmed; at boot too, where it is enabled.
[Unit]
Description=pveguard: undo of {name}, which was not confirmed
RequiresMountsFor={folder}
StartLimitIntervalSec=0
{order}
[Service]
Type=oneshot
# Who renames the file first wins: the confirmation, or this.
ExecCondition=/bin/sh -c 'mv -T {armed} {rolling} 2>/dev/null || [ -e {rolling} ]'
ExecStart={command_line(argv)}
ExecStartPost=/bin/mv -T {rolling} {done}
ExecStartPost=/bin/sync {folder}
Restart=on-failure
RestartSec={RETRY_S}

[Install]
WantedBy=multi-user.target
"""


def timer_text(name: str, seconds: float) -> str:
    """The timer of this boot."""
    return f"""# Managed by pveguard.
[Unit]
Description=pveguard: time left to confirm {name}

[Timer]
OnActiveSec={seconds:g}s
AccuracySec=1s
RemainAfterElapse=no
"""


def command_line(argv: Sequence[str]) -> str:
    """``argv`` as one line of a unit: quoted, and without anything that systemd would replace."""
    words = []
    for word in argv:
        if "\n" in word or "\0" in word:
            raise PveguardError(f"a unit cannot carry the argument {word!r}")
        text = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
        words.append(f'"{text}"' if not re.fullmatch(r"[\w@%+=:,./-]+", text) else text)
    return " ".join(words)


def _start_timer(name: str, run: Run) -> str:
    """Why the timer does not count; empty when it does."""
    unit = f"{PREFIX}{name}.timer"
    run(["systemctl", "reset-failed", unit, f"{PREFIX}{name}.service"])
    for argv in (["systemctl", "daemon-reload"], ["systemctl", "restart", unit]):
        done = run(argv)
        if not done.ok:
            return f"{' '.join(argv)}: {done.stderr.strip() or f'code {done.rc}'}"
    seen = properties(unit, ["ActiveState", "SubState"], run)
    waiting = seen.get("ActiveState") == "active" and seen.get("SubState") in ("waiting", "running")
    return "" if waiting else f"{unit} is {seen.get('ActiveState', 'unknown')} ({seen.get('SubState', '')})"


def _by_hand(name: str) -> str:
    return f"'systemctl start {PREFIX}{name}' undoes it now"


def _too_late(name: str, state: str) -> str:
    if state in (ROLLING_BACK, ROLLED_BACK):
        words = "is being undone" if state == ROLLING_BACK else "was undone"
        return f"too late: {name} {words}, because no confirmation had come in time; 'journalctl -u {PREFIX}{name}' says when"
    return f"{name} is not armed, there is nothing to confirm"


def _folder(name: str, root: Path, across_reboots: bool) -> Path:
    if not _NAME.fullmatch(name):
        raise PveguardError(f"{name!r} is no name of a change: small letters, digits and hyphens, at most 41")
    return root / (KEPT if across_reboots else VOLATILE) / name


def _place(name: str, root: Path) -> Path:
    """Where the state of a change is: below /run for one that does not survive a reboot."""
    volatile = _folder(name, root, False)
    return volatile if any((volatile / f"{state}.json").exists() for state in STATES) else _folder(name, root, True)


def _decide(folder: Path, state: str) -> bool:
    """End what is armed; False when it was ended before."""
    try:
        (folder / f"{ARMED}.json").rename(folder / f"{state}.json")
    except FileNotFoundError:
        return False
    fsync_dir(folder)
    return True


def _remove_units(name: str, root: Path, run: Run) -> None:
    run(["systemctl", "stop", f"{PREFIX}{name}.timer"])
    gone = False
    for folder in (f"{UNITS}/multi-user.target.wants", UNITS, VOLATILE_UNITS):
        for ending in ("service", "timer"):
            unit = root / folder / f"{PREFIX}{name}.{ending}"
            if unit.is_symlink() or unit.exists():
                unit.unlink()
                fsync_dir(unit.parent)
                gone = True
    if gone:
        run(["systemctl", "daemon-reload"])


def _clear(name: str, root: Path) -> bool:
    gone = False
    for folder in (_folder(name, root, False), _folder(name, root, True)):
        if not folder.is_dir():
            continue
        for state in STATES:
            file = folder / f"{state}.json"
            gone = gone or file.exists()
            file.unlink(missing_ok=True)
        # A temporary file that a power cut left stays: the next arming replaces what counts.
        if not any(folder.iterdir()):
            folder.rmdir()
            fsync_dir(folder.parent)
    return gone


def _make(folder: Path) -> None:
    for each in [*reversed(folder.parents), folder]:
        if not each.is_dir():
            each.mkdir(mode=0o755, exist_ok=True)
            fsync_dir(each.parent)


def _boot_id(root: Path) -> str:
    return (read_or_none(root / "proc/sys/kernel/random/boot_id") or b"").decode("ascii", "replace").strip()


def _utc() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
