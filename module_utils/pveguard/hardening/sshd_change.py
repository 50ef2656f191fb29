# SPDX-License-Identifier: Apache-2.0
"""The drop-in of sshd: written, made to count, and kept only when a login that is younger than it says so.

In this order: everything that can be known beforehand is judged on a copy of the configuration, with nothing changed; a timer
is armed that takes the change back, also at boot; the file is written; sshd reads it. Then others prove that they still get in
(core ``sshd_proof``), and :func:`confirm` keeps it. What fails on the way is taken back at once.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..base import managed_file, rollback_timer, ssh_login
from ..base.atomic import read_or_none, write_atomic
from ..base.errors import PveguardError
from ..base.run import Run
from ..base.run import run as real_run
from ..base.systemd import properties
from ..formats import sshd_config
from . import sshd, sshd_proof
from .peers import host_of
from .sshd import DROP_IN, KEPT_FOR, TIMER, Who

UNIT, SOCKET = "ssh.service", "ssh.socket"
#: The drop-in before the change that waits for its confirmation, absent where there was none; and when that change was made.
PREVIOUS, NOTE = "/var/lib/pveguard/node_hardening/sshd.previous", "/run/pveguard/hardening-sshd"
#: The files are as they were before pveguard, and sshd has not read them yet.
REVERTED = "/var/lib/pveguard/node_hardening/sshd.reverted"
RELOAD_S = 20.0
#: Until the proofs must have come.
SECONDS = 180
_UNDO = (
    'if [ -e "$1" ]; then cp -p "$1" "$2/.pveguard-undo" && mv -T "$2/.pveguard-undo" "$3"; else rm -f "$3"; fi && '
    f"sync && systemctl --no-block try-reload-or-restart {UNIT}"
)


@dataclass
class Result:
    """``unproved``: a change counts on the node that nobody has confirmed yet."""

    changed: bool = False
    unproved: bool = False
    todo: list[str] = field(default_factory=list)
    files: list[managed_file.Change] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    hosts: dict[str, str] = field(default_factory=dict)


def undo_command() -> list[str]:
    """What takes an unconfirmed change back; safe to run twice, and without /etc/pve, Python and the network."""
    return ["/bin/sh", "-c", _UNDO, "undo", PREVIOUS, os.path.dirname(DROP_IN), DROP_IN]


def present(
    keys_only: bool,
    algorithms: bool,
    login: Mapping[str, Any],
    *,
    seconds: float = SECONDS,
    peers: Sequence[Who] | None = None,
    controller: str | None = None,
    known: Mapping[str, str] | None = None,
    check: bool = False,
    root: Path = Path("/"),
    run: Run = real_run,
) -> Result:
    """Bring the drop-in to what is wanted. ``login``: what the check of the login in use says (``independent``, ``file``, ...).
    ``known``: hosts that can prove something by the names and addresses of members; without it nobody is missed.

    Raises PveguardError, with nothing changed, where somebody would be locked out; and with the change taken back where sshd
    does not take it.
    """
    facts = _facts(root, run, peers, controller)
    text = sshd.drop_in(keys_only, algorithms)
    files = managed_file.plan([managed_file.FileSpec(DROP_IN, text)], KEPT_FOR, root)
    state = rollback_timer.status(TIMER, root=root)["state"]
    waits = state == rollback_timer.ARMED
    if state == rollback_timer.ROLLING_BACK:
        raise PveguardError(f"a change of sshd is being taken back; look with 'journalctl -u {rollback_timer.PREFIX}{TIMER}'")
    todo = [f"harden sshd ({DROP_IN})"] if files else ["prove the change of sshd that nobody has confirmed"] if waits else []
    hosts = _hosts(facts, known)
    if not todo:
        return Result(facts=facts, hosts=hosts)
    ssh_login.refuse_local()
    if missing := [each["name"] for each in facts["peers"] if known is not None and each["name"] not in hosts]:
        raise PveguardError(
            f"{', '.join(missing)} of the cluster cannot prove that a login from there still works, as the inventory has no host "
            "of that name or address; add it (--limit may leave it out), and nothing was changed"
        )
    if facts["offline"]:
        raise PveguardError(
            f"{', '.join(facts['offline'])} of the cluster is offline, so nobody can prove that a login from there still works: "
            "start it, or take it out of the cluster (pvecm delnode), and run again; nothing was changed"
        )
    judge(text, keys_only, algorithms, login, facts, root, run)
    if why := sshd_proof.too_short(seconds, len(facts["peers"])):
        raise PveguardError(f"{why}; nothing was changed")
    if check:
        return Result(True, False, todo, files, facts, hosts)
    _change(text, waits, seconds, root, run)
    return Result(True, True, todo, files, _facts(root, run, peers, controller), hosts)


def judge(
    text: str,
    keys_only: bool,
    algorithms: bool,
    login: Mapping[str, Any],
    facts: Mapping[str, Any],
    root: Path,
    run: Run,
) -> None:
    """Raises PveguardError with the fix where the drop-in would not count, or somebody would be locked out."""
    out = "; ".join(dict.fromkeys(text for found in facts["problems"].values() for text in found.values()))
    if out and not facts["proxmox"]:
        # The drop-in would let root in again, whom somebody may keep out on purpose.
        raise PveguardError(
            f"sshd keeps root out here: {out}. The drop-in is for hosts on which root logs in by key, as on each node of Proxmox "
            "VE. Where another user logs in and becomes root, leave sshd to another role, with node_hardening_sshd: false. "
            "Nothing was changed"
        )
    if not facts["include"]["leading"]:
        before = facts["include"]["before"]
        why = f"{before} stands before its Include" if before else f"it does not read {os.path.dirname(DROP_IN)}"
        raise PveguardError(
            f"{sshd_config.MAIN}: {why}, so a drop-in does not come first. Make this its first line, look at what the "
            f"files of that folder set, and run again: {sshd.INCLUDE_LINE}"
        )
    if facts["match"]:
        blocks = "; ".join(f"{each['place']} (Match {each['match']}): {each['sets']}" for each in facts["match"])
        raise PveguardError(
            f"a Match block sets for root what sshd then uses in the place of the drop-in: {blocks}. Take these lines out, or "
            "have the block leave root out (Match User *,!root)"
        )
    if keys_only and not (login.get("independent") and login.get("file")):
        raise PveguardError(
            "passwords stay on, and nothing was changed, as no login by a key that does not lie on /etc/pve is proved: "
            f"{login.get('how') or 'the login in use is not known'}. While the daemon of the cluster file system is down, such "
            "keys are gone. Put the controller's key into /root/.ssh/authorized_keys2 (ram_state_login_fallback: true does it), "
            "log in with it, and run again; or leave passwords on: node_hardening_sshd_keys_only: false"
        )
    everybody = _everybody(facts)
    with _candidate(text, root) as config:
        done = run(["sshd", "-t", "-f", config])
        if not done.ok:
            raise PveguardError(f"sshd does not take its configuration with the drop-in: {' '.join(done.stderr.split())[-400:]}")
        _judge_effective(everybody, keys_only, algorithms, facts, root, run, config)


def _judge_effective(
    everybody: Sequence[Who],
    keys_only: bool,
    algorithms: bool,
    facts: Mapping[str, Any],
    root: Path,
    run: Run,
    config: str = "",
) -> None:
    lines = sshd_config.read(root)
    wanted = {**sshd.PLAIN, **(sshd.KEYS_ONLY if keys_only else {})}
    needs = " as Proxmox VE needs it" if facts["proxmox"] else ""
    for who in everybody:
        found = sshd.settings(who, run, config=config)
        keys = sshd.authorized_keys(root, found)
        wrong = sshd.problems(found, who, keys, facts["host_keys"], facts["proxmox"])
        if keys_only and not wrong and not any(each["keys"] and not each["on_pve"] for each in keys):
            wrong["authorizedkeysfile"] = "root's keys are only on /etc/pve"
        if wrong:
            said = "; ".join(_with_place(lines, key, text) for key, text in wrong.items())
            raise PveguardError(
                f"with the next reload of sshd root could not work from {who.shown}{needs}, and nothing was changed: {said}. "
                f"Mend that first, look with 'sshd -T -C user=root,addr={who.address},host={who.name}', and run again"
            )
        other = {key.lower(): f"{key} is {sshd.value(found, key)}, not {said}" for key, said in wanted.items()
                 if sshd.value(found, key).lower() != said}
        if algorithms:
            other.update({key.lower(): f"{key} still has {', '.join(names)}" for key, names in sshd.weak(found).items()})
        if other:
            said = "; ".join(_with_place(lines, key, text) for key, text in other.items())
            raise PveguardError(
                f"the drop-in does not count from {who.shown}: {said}. Another file is read first; take it out there"
            )


def confirm(
    *,
    root: Path = Path("/"),
    run: Run = real_run,
    pid: int | None = None,
) -> bool:
    """Keep the change: True, or False when that was done before. Raises PveguardError where the undo came first, and where this
    does not come by a login that is younger than the change: one from before proves nothing.

    ``pid``: of the process whose login counts, this one without.
    """
    if rollback_timer.status(TIMER, root=root)["state"] == rollback_timer.ARMED:
        note = read_or_none(root / NOTE.lstrip("/"))
        if note is None:
            raise PveguardError("when sshd read the change is not known, so no login can prove it; run again")
        began = ssh_login.began(os.getpid() if pid is None else pid)
        if began is not None and began <= float(note):
            raise PveguardError(
                "this login is older than the change of sshd, so it proves nothing: confirm over a new connection (ssh -o "
                "ControlPath=none)"
            )
    kept = rollback_timer.confirm(TIMER, run=run, root=root)
    (root / PREVIOUS.lstrip("/")).unlink(missing_ok=True)
    return kept


def undo(*, root: Path = Path("/"), run: Run = real_run) -> bool:
    """Take an unconfirmed change back now, as the proof has failed; False when there is none."""
    if rollback_timer.status(TIMER, root=root)["state"] not in (rollback_timer.ARMED, rollback_timer.ROLLING_BACK):
        return False
    rollback_timer.roll_back(TIMER, run=run, root=root)
    return True


def revert(drift: str = managed_file.REFUSE, check: bool = False, *, root: Path = Path("/"), run: Run = real_run) -> Result:
    """Put back what was there before the first change. A configuration that sshd does not take, or that would lock somebody out
    by itself, is put back and not made to count: sshd goes on as it is, and PveguardError says why.
    """
    kept = KEPT_FOR in managed_file.names(root, sshd.ROLE)
    files = managed_file.plan_revert(KEPT_FOR, root, None, drift) if kept else []
    waits = _at(REVERTED, root).exists()
    todo = ["put sshd back as it was"] if files else ["have sshd read its files, which are as they were"] if waits else []
    result = Result(bool(todo), False, todo, files)
    if check or not (kept or waits):
        return result
    rollback_timer.withdraw(TIMER, run=run, root=root)
    if files:
        _at(REVERTED, root).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_atomic(_at(REVERTED, root), b"")
    managed_file.revert(KEPT_FOR, root, None, drift)
    _at(PREVIOUS, root).unlink(missing_ok=True)
    if todo:
        _read_reverted(root, run)
    managed_file.remove_empty(_at(REVERTED, root).parent)
    return result


def _read_reverted(root: Path, run: Run) -> None:
    facts = sshd.look(root, run)
    if facts.get("installed", True):
        done = run(["sshd", "-t"])
        wrong = [f"{who}: {text}" for who, found in _problems(facts, run).items() for text in found.values()] if done.ok else []
        if not done.ok or wrong:
            raise PveguardError(
                "the files are as they were, and sshd has not read them, as it would fail or lock somebody out: "
                f"{'; '.join(wrong) if done.ok else ' '.join(done.stderr.split())[-400:]}. Mend that, and run again"
            )
        try:
            _reload(root, run)
        except PveguardError as error:
            raise PveguardError(
                f"the files are as they were, and sshd has not read them: {error}. Mend that, and run again"
            ) from error
    _at(REVERTED, root).unlink(missing_ok=True)


def _problems(facts: Mapping[str, Any], run: Run) -> Mapping[str, Mapping[str, str]]:
    """Who would be locked out by the files. Where /etc/pve does not answer, what sshd itself says of the controller."""
    if facts["known"]:
        return dict(facts["problems"])
    if not (address := sshd.controller_address()):
        return {}
    who = Who("controller", address)
    found = sshd.problems(sshd.settings(who, run), who, [{"keys": 1}], [{"type": "ssh-rsa"}])
    return {who.shown: found}


# -- the change


def _change(text: str, waits: bool, seconds: float, root: Path, run: Run) -> None:
    place, previous = root / DROP_IN.lstrip("/"), root / PREVIOUS.lstrip("/")
    if not waits:
        # While one waits, what was there before it is what counts.
        previous.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        was = read_or_none(place)
        if was is None:
            previous.unlink(missing_ok=True)
        else:
            write_atomic(previous, was, 0o644)
    _at(NOTE, root).unlink(missing_ok=True)
    rollback_timer.arm(TIMER, undo_command(), seconds, before=(UNIT, SOCKET), run=run, root=root)
    try:
        managed_file.apply([managed_file.FileSpec(DROP_IN, text)], KEPT_FOR, root)
        done = run(["sshd", "-t"])
        if not done.ok:
            raise PveguardError(f"sshd does not take it: {' '.join(done.stderr.split())[-400:]}")
        _reload(root, run)
    except (PveguardError, OSError) as error:
        undo(root=root, run=run)
        raise PveguardError(f"the change of sshd was taken back: {error}") from error
    _at(REVERTED, root).unlink(missing_ok=True)
    _at(NOTE, root).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(_at(NOTE, root), f"{now():.2f}\n".encode())


def _at(path: str, root: Path) -> Path:
    return root / path.lstrip("/")


def _reload(root: Path, run: Run) -> None:
    """Have sshd read its files. It begins anew in its own process then, with new listening sockets, which is waited for."""
    unit = properties(UNIT, ["ActiveState", "MainPID"], run)
    if unit.get("ActiveState") != "active":
        if properties(SOCKET, ["ActiveState"], run).get("ActiveState") == "active":
            return  # Each connection starts an sshd that reads them.
        raise PveguardError(f"{UNIT} is {unit.get('ActiveState') or 'not known'}, so sshd cannot be told to read its files")
    pid = int(unit.get("MainPID") or 0)
    before = listening(pid)
    done = run(["systemctl", "reload", UNIT])
    if not done.ok:
        raise PveguardError(f"systemctl reload {UNIT}: {' '.join(done.stderr.split())[-400:] or f'code {done.rc}'}")
    if not _until(lambda: bool(again := listening(pid)) and not again & before):
        raise PveguardError(f"sshd did not begin anew within {RELOAD_S:g} s of its reload")


def listening(pid: int) -> set[str]:
    """The inodes of the TCP sockets on which a process listens."""
    listens = set()
    for table in ("tcp", "tcp6"):
        for line in (read_or_none(f"/proc/{pid}/net/{table}") or b"").decode().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A":
                listens.add(f"socket:[{words[9]}]")
    own = set()
    try:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            own.add(os.readlink(entry.path))
    except OSError:
        return set()
    return own & listens


def _until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + RELOAD_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def now() -> float:
    """Seconds since boot, as the kernel tells the start of a process."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


login_began = ssh_login.began


# -- what is judged


def _facts(root: Path, run: Run, peers: Sequence[Who] | None, controller: str | None) -> dict[str, Any]:
    facts = sshd.look(root, run, peers=peers, controller=controller)
    if not facts["known"]:
        raise PveguardError(f"sshd cannot be judged, and nothing is changed: {facts['error']}")
    if not facts["installed"]:
        raise PveguardError("there is no sshd on this node; switch node_hardening_sshd off for it")
    return facts


def _hosts(facts: Mapping[str, Any], known: Mapping[str, str] | None) -> dict[str, str]:
    found = {each["name"]: host_of(each, known or {}) for each in facts["peers"]}
    return {name: host for name, host in found.items() if host}


def _everybody(facts: Mapping[str, Any]) -> list[Who]:
    found = [Who(each["name"], each["address"]) for each in facts["peers"]]
    return [*found, *([Who("controller", facts["controller"])] if facts["controller"] else [])]


def _with_place(lines: Sequence[sshd_config.Line], keyword: str, text: str) -> str:
    place = sshd.who_sets([line for line in lines if line.file != DROP_IN], keyword)
    return f"{text} [{place}]" if place else text


@contextmanager
def _candidate(text: str, root: Path) -> Iterator[str]:
    """The main file of a copy of the configuration with the drop-in as it is to be; a first Include counts as the file itself
    does, as nothing stands before it.
    """
    parent = root / "run"
    parent.mkdir(exist_ok=True)
    folder = tempfile.mkdtemp(prefix="pveguard-sshd-", dir=parent)
    try:
        main = (root / sshd_config.MAIN.lstrip("/")).read_bytes()
        before = [line.file for line in sshd_config.read(root) if line.file.startswith(f"{os.path.dirname(DROP_IN)}/")]
        first = [name for name in dict.fromkeys(before) if name < DROP_IN]
        Path(folder, "drop-in").write_text(text)
        includes = "".join(f"Include {name}\n" for name in first) + f"Include {folder}/drop-in\n"
        Path(folder, "sshd_config").write_bytes(includes.encode() + main)
        yield f"{folder}/sshd_config"
    finally:
        shutil.rmtree(folder)
