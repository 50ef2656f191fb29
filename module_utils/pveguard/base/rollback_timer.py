# SPDX-License-Identifier: Apache-2.0
"""A change that undoes itself unless a confirmation arrives in time: also when the controller dies or the node is rebooted.

:func:`arm` before the change, :func:`confirm` once a proof of it has arrived. In between a timer on the node runs the undo
command after so many seconds; a reboot runs it at boot, before the units named. The undo must be safe to run twice and on a
node where the change was never made. Within a boot nothing depends on the wall clock.

The state is a file ``STATE.json`` in ``/var/lib/pveguard/rollback/NAME``, and one rename decides between the confirmation and
the undo: whoever comes second finds nothing to rename.

    armed -> confirmed                      confirm() came first
    armed -> rolling_back -> rolled_back    the timer, a reboot or roll_back() came first; what fails is tried again

With ``across_reboots=False`` all of it lies below ``/run``, for a change that a reboot undoes anyway. A program that has a
lock and a note of its own, which its undo looks at, may end it with :func:`withdraw` whatever the state is.

``pve-state`` starts with this, at boot and at every stop: no pathlib at run time.
"""

from __future__ import annotations

import json
import os
import re
import time

from .atomic import fsync_dir, link_atomic, read_or_none, write_atomic
from .errors import PveguardError
from .run import Run
from .run import run as real_run
from .systemd import properties

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    Root = str | os.PathLike[str]

KEPT, VOLATILE = "var/lib/pveguard/rollback", "run/pveguard/rollback"
UNITS, VOLATILE_UNITS = "etc/systemd/system", "run/systemd/system"
PREFIX = "pveguard-rollback-"

NONE, ARMED, CONFIRMED, ROLLING_BACK, ROLLED_BACK = "none", "armed", "confirmed", "rolling_back", "rolled_back"
STATES = (ARMED, ROLLING_BACK, ROLLED_BACK, CONFIRMED)
#: Seconds between two tries of an undo that failed, unless it is armed with others.
RETRY_S = 5

_NAME = r"[a-z][a-z0-9-]{0,40}"


def arm(
    name: str,
    argv: Sequence[str],
    seconds: float,
    *,
    across_reboots: bool = True,
    before: Sequence[str] = (),
    retry_s: float = RETRY_S,
    run: Run = real_run,
    root: Root = "/",
    ticks: Callable[[], float] = time.monotonic,
) -> None:
    """Have ``argv`` run in ``seconds`` unless :func:`confirm` comes first; call it before the change.

    ``argv`` has the absolute path of its program and needs neither a shell nor /etc/pve. ``before``: units that must not
    start at boot before the undo has run (``ssh.service``), so it runs as soon as the local file systems are there; an undo
    that reloads one of these does so with ``systemctl --no-block``, as it would otherwise wait for itself. An undo that fails
    is tried again after ``retry_s`` seconds. Armed for the same command already, it counts anew. Raises PveguardError, with
    nothing armed, where it is armed for another command, while an undo runs, and where systemd does not take the timer.
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
    if now["state"] == ROLLED_BACK:
        _end_undo(name, run)
    again = now["state"] == ARMED
    if again and _place(name, root) != folder:
        raise PveguardError(f"{name} is armed with another answer to whether it survives a reboot; undo or confirm it first")
    service = service_text(name, argv, f"/{os.path.relpath(folder, root)}", before, across_reboots, retry_s)
    until = ticks() + seconds
    written = {"argv": list(argv), "seconds": seconds, "retry_s": retry_s, "until": until, "boot_id": _boot_id(root)}
    try:
        if not again:
            _clear(name, root)
        _write_units(name, service, timer_text(name, seconds, until), across_reboots, root)
        _make(folder)
        write_atomic(_file(folder, ARMED), (json.dumps({**written, "time": _utc()}) + "\n").encode(), 0o600)
        problem = _start_timer(name, run)
    except OSError as error:
        problem = str(error)
    if problem and again:
        # The change of before is still there, so its undo must stay: at the next boot, or by hand.
        raise PveguardError(f"the rollback timer of {name} could not be started anew ({problem}); {_by_hand(name)}")
    if problem:
        if _decide(folder, CONFIRMED) or status(name, root=root)["state"] == NONE:
            _remove_units(name, root, run)
            _clear(name, root)
        raise PveguardError(f"the rollback timer of {name} could not be armed, and nothing was changed: {problem}")
    if again and any(os.path.exists(_file(folder, state)) for state in (ROLLING_BACK, ROLLED_BACK)):
        raise PveguardError(f"the undo of {name} began meanwhile; look with 'journalctl -u {PREFIX}{name}' and run again")


def confirm(name: str, *, run: Run = real_run, root: Root = "/") -> bool:
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


def roll_back(name: str, *, run: Run = real_run, root: Root = "/", timeout_s: float = 300.0) -> None:
    """Undo now, because the proof has failed, and wait for the end. Raises PveguardError when the change was confirmed, when
    nothing was armed, and when the undo fails; it is tried again by itself then.
    """
    now = status(name, root=root)
    if now["state"] in (NONE, CONFIRMED):
        raise PveguardError(f"{name}: there is nothing to undo, its state is {now['state']!r}")
    if now["state"] != ROLLED_BACK:
        done = run(["systemctl", "start", f"{PREFIX}{name}.service"], timeout=timeout_s)
        now = status(name, root=root)
        if now["state"] != ROLLED_BACK:
            why = done.stderr.strip() or f"'systemctl start' ended with code {done.rc}"
            raise PveguardError(
                f"the undo of {name} did not succeed ({why}); it is tried again every {now['retry_s']:.15g} s: look with "
                f"'journalctl -u {PREFIX}{name}'"
            )
    _remove_units(name, root, run)


def status(name: str, *, root: Root = "/", ticks: Callable[[], float] = time.monotonic) -> dict[str, Any]:
    """``{state, argv, seconds, retry_s, left_seconds, time}``: what became of a change.

    ``left_seconds``: until the undo, of one that is armed in this boot, else None; ``time``: when it was armed. The state
    ``none`` has no other key.
    """
    folder = _place(name, root)
    for state in STATES:
        text = read_or_none(_file(folder, state))
        if text is None:
            continue
        try:
            note = json.loads(text)
            found = {key: note[key] for key in ("argv", "seconds", "retry_s", "time")}
            same_boot = note["boot_id"] == _boot_id(root)
            left = max(0.0, note["until"] - ticks()) if state == ARMED and same_boot else None
        except (ValueError, KeyError, TypeError) as error:
            raise PveguardError(f"{folder}/{state}.json: is damaged ({error}); {_by_hand(name)}") from error
        return {"state": state, **found, "left_seconds": left}
    return {"state": NONE}


def names(root: Root = "/") -> list[str]:
    """Every change that was ever armed here and not forgotten."""
    folders = [folder for place in (KEPT, VOLATILE) if os.path.isdir(folder := os.path.join(root, place))]
    return sorted({entry.name for folder in folders for entry in os.scandir(folder) if entry.is_dir()})


def forget(name: str, *, run: Run = real_run, root: Root = "/") -> bool:
    """Remove what is left of a change that was confirmed or undone; True when there was something.

    Raises PveguardError while it is armed or its undo runs.
    """
    state = status(name, root=root)["state"]
    if state in (ARMED, ROLLING_BACK):
        raise PveguardError(f"{name} is {state.replace('_', ' ')}: confirm it or undo it first")
    if state == ROLLED_BACK:
        _end_undo(name, run)
    if state != NONE:
        _remove_units(name, root, run)
    return _clear(name, root)


def withdraw(name: str, *, run: Run = real_run, root: Root = "/") -> bool:
    """End it whatever its state is, also an undo that runs, and leave nothing behind; True when there was something.

    For a program that can say, by a lock that it holds and a note that the undo reads, that the undo has nothing to do or is
    no longer wanted. Never from the undo itself, which it would stop. The change is neither confirmed nor undone by it.
    """
    folder = _place(name, root)
    if not any(os.path.exists(_file(folder, state)) for state in STATES):
        # Units that an arming left which came to its end before it had begun.
        there = any(os.path.lexists(os.path.join(root, path)) for kept in (True, False) for path in _unit_files(name, kept))
        return there and _remove_units(name, root, run)
    _decide(folder, CONFIRMED)
    # Also one that waits for its next try.
    _end_undo(name, run)
    _remove_units(name, root, run)
    return _clear(name, root)


def service_text(
    name: str,
    argv: Sequence[str],
    folder: str,
    before: Sequence[str] = (),
    across_reboots: bool = True,
    retry_s: float = RETRY_S,
) -> str:
    """The unit that undoes the change; ``folder``: where its state is."""
    armed, rolling, done = (f"{folder}/{state}.json" for state in (ARMED, ROLLING_BACK, ROLLED_BACK))
    units = " ".join(f"/{path}" for path in _unit_files(name, across_reboots))
    # Without systemd's own dependencies: those are on basic.target, which may wait for one of ``before`` itself (ssh.socket).
    early = "DefaultDependencies=no\nAfter=local-fs.target\nConflicts=shutdown.target\nBefore=shutdown.target\n"
    order = f"Before={' '.join(before)}\n{early}" if before else ""
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
# It is over: systemd forgets them when this ends.
ExecStartPost=/bin/rm -f {units}
Restart=on-failure
RestartSec={retry_s:.15g}

[Install]
WantedBy=multi-user.target
"""


def timer_text(name: str, seconds: float, until: float) -> str:
    """The timer of this boot; ``until``: seconds on the monotonic clock, which begins at boot."""
    return f"""# Managed by pveguard.
[Unit]
Description=pveguard: time left to confirm {name}

[Timer]
OnBootSec={until:.15g}s
# For a container, whose boot is not that of the clock. Each daemon-reload lets it begin anew.
OnActiveSec={seconds:.15g}s
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


def _folder(name: str, root: Root, across_reboots: bool) -> str:
    if not re.fullmatch(_NAME, name):
        raise PveguardError(f"{name!r} is no name of a change: small letters, digits and hyphens, at most 41")
    return os.path.join(root, KEPT if across_reboots else VOLATILE, name)


def _file(folder: str, state: str) -> str:
    return f"{folder}/{state}.json"


def _place(name: str, root: Root) -> str:
    """Where the state of a change is: below /run for one that does not survive a reboot."""
    volatile = _folder(name, root, False)
    there = any(os.path.exists(_file(volatile, state)) for state in STATES)
    return volatile if there else _folder(name, root, True)


def _decide(folder: str, state: str) -> bool:
    """End what is armed; False when it was ended before."""
    try:
        os.rename(_file(folder, ARMED), _file(folder, state))
    except FileNotFoundError:
        return False
    fsync_dir(folder)
    return True


def _unit_files(name: str, across_reboots: bool) -> list[str]:
    """The files of the units below the root, in the order in which they are removed."""
    unit = f"{PREFIX}{name}"
    kept = [f"{UNITS}/multi-user.target.wants/{unit}.service", f"{UNITS}/{unit}.service"]
    # The timer is of this boot alone: after a reboot the unit itself runs, not later.
    return [*(kept if across_reboots else [f"{VOLATILE_UNITS}/{unit}.service"]), f"{VOLATILE_UNITS}/{unit}.timer"]


def _write_units(name: str, service: str, timer: str, across_reboots: bool, root: Root) -> None:
    """Units without a state do nothing; a state without units would promise what nobody does."""
    *wants, service_file, timer_file = (os.path.join(root, path) for path in _unit_files(name, across_reboots))
    _make(os.path.dirname(service_file))
    write_atomic(service_file, service.encode())
    for link in wants:
        _make(os.path.dirname(link))
        link_atomic(link, f"/{UNITS}/{os.path.basename(link)}")
    _make(os.path.dirname(timer_file))
    write_atomic(timer_file, timer.encode())


def _end_undo(name: str, run: Run) -> None:
    """Wait for the end of one that is done, which still removes its units: they could be those of the next change."""
    run(["systemctl", "stop", f"{PREFIX}{name}.service"])


def _remove_units(name: str, root: Root, run: Run) -> bool:
    run(["systemctl", "stop", f"{PREFIX}{name}.timer"])
    gone = False
    for path in dict.fromkeys([*_unit_files(name, True), *_unit_files(name, False)]):
        unit = os.path.join(root, path)
        if os.path.lexists(unit):
            os.unlink(unit)
            fsync_dir(os.path.dirname(unit))
            gone = True
    if gone:
        run(["systemctl", "daemon-reload"])
    return gone


def _clear(name: str, root: Root) -> bool:
    gone = False
    for folder in (_folder(name, root, False), _folder(name, root, True)):
        if not os.path.isdir(folder):
            continue
        for state in STATES:
            file = _file(folder, state)
            if os.path.exists(file):
                os.unlink(file)
                gone = True
        # A temporary file that a power cut left stays: the next arming replaces what counts.
        if not os.listdir(folder):
            os.rmdir(folder)
            fsync_dir(os.path.dirname(folder))
    return gone


def _make(folder: str) -> None:
    if os.path.isdir(folder):
        return
    above = os.path.dirname(folder)
    _make(above)
    try:
        os.mkdir(folder, 0o755)
    except FileExistsError:
        return
    fsync_dir(above)


def _boot_id(root: Root) -> str:
    return (read_or_none(os.path.join(root, "proc/sys/kernel/random/boot_id")) or b"").decode("ascii", "replace").strip()


def _utc() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
