# SPDX-License-Identifier: Apache-2.0
"""The firewall of a cluster: its one file changed by one member, and kept only when all of them have proved that they still reach
each other.

In this order, each step on all members before the next one: :func:`arm` judges, with nothing changed, and arms a timer that opens
the node and takes the change back (core ``firewall_undo``), also at boot; :func:`write` on one member changes cluster.fw, if it
is still the file that was judged; :func:`present` waits until the node's firewall has loaded it; all prove that they get through
(core ``firewall_proof``); :func:`confirm` keeps it. What fails is taken back at once by :func:`undo`, on every member.

Rules in a firewall that is off do nothing: they are written without a timer.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..base import managed_file, rollback_timer, ssh_login, supervised
from ..base.atomic import fsync_dir, read_or_none, write_atomic
from ..base.errors import PveguardError
from ..base.run import CommandMissing, Run
from ..base.run import run as real_run
from ..formats import firewall_config
from ..pmxcfs import pve_file
from ..pmxcfs.places import CLUSTER_FW
from . import firewall, firewall_rules, firewall_table, firewall_undo, firewall_verdict, sshd_change
from .firewall_rules import ENFORCE, MARK, Options

#: Of the rollback timer.
TIMER = firewall.TIMER
#: When this node's firewall had loaded the change: no login from before proves anything.
NOTE = "/run/pveguard/hardening-firewall"
#: Until the proofs must have come; the firewall's own loop takes 10 s of it.
SECONDS = 300
#: For the node's firewall to load what was written.
LOAD_S = 90.0
#: Two rounds of its loop, and what they take.
SETTLE_S = 25.0
ANSWER_S = 20.0
#: What Proxmox's firewall sets for the node: neither other people's rules nor what comes and goes with guests.
_OF_THE_NODE = r"(:|-A |create |add )PVEFW-(?!FWBR|sdn-|[1-9][0-9]*-)|-A (INPUT|OUTPUT|FORWARD) -j PVEFW-"
_KEPT = f"{firewall_undo.FOLDER}/kept.json"
_PENDING = f"{firewall_undo.FOLDER}/pending"
#: The former note, as long as the change is pending.
_KEPT_BEFORE = f"{_PENDING}/kept.json"


@dataclass
class Result:
    """``unproved``: a change is armed on this node that nobody has confirmed. ``before`` and ``after`` of cluster.fw are equal
    where nothing is to be done; ``digest`` is of both, so that members can be compared."""

    changed: bool = False
    unproved: bool = False
    todo: list[str] = field(default_factory=list)
    before: str = ""
    after: str = ""
    digest: str = ""
    path: str = CLUSTER_FW
    node: str = ""
    cluster: str = ""
    members: list[dict[str, str]] = field(default_factory=list)


def arm(
    options: Options,
    facts: Mapping[str, Any],
    *,
    seconds: float = SECONDS,
    ring: Sequence[str] = (),
    check: bool = False,
    root: Path = Path("/"),
    run: Run = real_run,
) -> Result:
    """Judge what is wanted, and have this node take it back by itself; nothing else is changed yet. ``facts``: of the core
    ``firewall``; ``ring``: what is wrong with it already, which nobody could prove afterwards. Raises PveguardError, with nothing
    changed or armed, where it is refused.
    """
    if not facts.get("known", True):
        raise PveguardError(f"the firewall cannot be judged, and nothing is changed: {facts.get('error')}")
    if facts.get("implementation") == firewall.NONE:
        return _arm_table(options, facts, seconds, check, root, run)
    before = _read(root)
    after = wanted(before, facts, options)
    result = Result(
        before=before or "",
        after=after,
        digest=_digest(before, after),
        node=str(facts.get("node") or ""),
        cluster=str(facts.get("cluster_name") or ""),
        members=[
            {"name": str(each["name"]), "address": str(each.get("address") or "")}
            for each in facts.get("members") or []
            if not each.get("own")
        ],
    )
    _refuse_waiting(root)
    if after == (before or "") and not _at(firewall_undo.HELD, root).exists():
        return result
    was_on = bool(firewall_config.parse(before or "").on("enable", False))
    live = was_on or options.mode == ENFORCE
    running = _running(facts)
    held = _at(firewall_undo.HELD, root).exists()
    if held:
        running = sorted({*running, firewall_undo.LEGACY_UNIT})
    why = [*firewall_rules.refusals(facts, options.mode, options), *_refusals(facts, live, running, root)]
    if was_on and options.mode != ENFORCE:
        why += _controllers_alone(facts, options)
    if live:
        ssh_login.refuse_local()
    if live and ring:
        why.append(f"the ring is not whole, so it could not be proved afterwards: {', '.join(ring)}. Mend it first")
    if why:
        raise PveguardError(f"nothing was changed: {'; '.join(why)}")
    result.todo = _todo(before or "", after, options, held)
    if check:
        result.changed = True
        return result
    if not live:
        # What became of an earlier change would be taken for this one's end.
        rollback_timer.forget(TIMER, run=run, root=root)
    _pend(before, after, live, options.mode == ENFORCE and not was_on, running, facts, root, run)
    try:
        _keep(before, after, root)
        if live:
            _prepare_units(root, run)
            rollback_timer.arm(TIMER, firewall_undo.command(), seconds, before=firewall_undo.UNITS, run=run, root=root)
    except (PveguardError, OSError) as error:
        _keep_as_it_was(root)
        _tidy(root, run, keep_held=True)
        raise PveguardError(f"nothing was changed: {error}") from error
    result.unproved = live
    return result


def _arm_table(
    options: Options, facts: Mapping[str, Any], seconds: float, check: bool, root: Path, run: Run
) -> Result:
    _refuse_waiting(root)
    text, changes = firewall_table.plan(facts, options, root, run)
    own = [each for each in changes if each.path == firewall_rules.NFTABLES_FILE]
    before = own[0].before if own else text
    result = Result(
        before=before, after=text, digest=firewall_table.digest(text), path=firewall_rules.NFTABLES_FILE,
        node=str(facts.get("node") or ""),
    )  # fmt: skip
    if not changes:
        return result
    ssh_login.refuse_local()
    if why := firewall_rules.refusals(facts, options.mode, options):
        raise PveguardError(f"nothing was changed: {'; '.join(why)}")
    result.todo = [f"set the table {firewall_rules.TABLE} ({firewall_rules.NFTABLES_FILE})"]
    if check:
        result.changed = True
        return result
    folder = _at(_PENDING, root)
    _new_pending(folder, root)
    firewall_table.pend(folder, root)
    write_atomic(folder / "ours", text.encode(), 0o600)
    note = {"digest": result.digest, "live": True, "table": True}
    write_atomic(folder / "note.json", f"{json.dumps(note)}\n".encode(), 0o600)
    try:
        before_units = (firewall_table.UNIT, "network-pre.target")
        rollback_timer.arm(TIMER, firewall_undo.command(), seconds, before=before_units, run=run, root=root)
    except (PveguardError, OSError) as error:
        _tidy(root, run)
        raise PveguardError(f"nothing was changed: {error}") from error
    result.unproved = True
    return result


def wanted(before: str | None, facts: Mapping[str, Any], options: Options) -> str:
    """cluster.fw as it is to be. Raises PveguardError with the lines that nobody understands."""
    strange = firewall_config.parse(before or "").strange
    if strange:
        shown = "; ".join(f"line {each.number}: {each.why}" for each in strange[:5])
        raise PveguardError(
            f"{CLUSTER_FW} has lines that Proxmox passes over, and nothing was changed: {shown}. Mend or remove them first"
        )
    text = firewall_rules.merged(before or "", firewall_rules.wanted(facts, options))
    return firewall_rules.enforced(text) if options.mode == ENFORCE else text


class Untouched(PveguardError):
    """Nothing was written, so there is nothing but timers to take away."""


def write(digest: str, *, root: Path = Path("/"), run: Run = real_run) -> Result:
    """On one member for all: the file as it is to be. ``digest``: of :func:`arm`, the same on all members. Raises Untouched where
    somebody has edited the file since, and where the change is not armed.
    """
    pending = _armed(digest, root)
    before, after = pending["before"], pending["after"]
    if pending.get("table"):
        firewall_table.apply(after, root, run)
        path = firewall_rules.NFTABLES_FILE
        return Result(True, True, ["load the table"], before or "", after, digest, path)
    _write(before, after, root)
    return Result(before != after, pending["live"], ["write cluster.fw"], before or "", after, digest)


def present(
    digest: str,
    *,
    load_s: float = LOAD_S,
    settle_s: float = SETTLE_S,
    root: Path = Path("/"),
    run: Run = real_run,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Result:
    """Wait until this node's firewall has loaded what one member has written, and for ``settle_s`` seconds after the file was
    seen: it may have been in the middle of a round. Raises PveguardError where it has not in time.
    """
    pending = _armed(digest, root)
    before, after, live = pending["before"], pending["after"], pending["live"]
    result = Result(pending.get("held", False), live, before=before or "", after=after, digest=digest)
    if not live:
        _tidy(root, run)
        for unit in pending["running"] if pending["held"] else ():
            run(["systemctl", "start", unit])
        return result
    deadline = clock() + load_s
    if pending.get("table"):
        _until(lambda: firewall_table.is_loaded(run), deadline, "nft has not loaded it", sleep, clock)
        _note_time(root)
        return result
    _until(lambda: _read(root) == after, deadline, f"{CLUSTER_FW} is not what was written", sleep, clock)
    settled = clock() + settle_s
    _release(pending["running"], root, run)
    if pending["filters"] and (_effect(before or "") != _effect(after) or pending["held"]):
        _until(lambda: _is_loaded(pending, run), deadline, "the node's firewall has not loaded it", sleep, clock)
        while clock() < settled:
            sleep(1.0)
    _note_time(root)
    return result


def _note_time(root: Path) -> None:
    note = _at(NOTE, root)
    note.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(note, f"{sshd_change.now():.2f}\n".encode())


def _armed(digest: str, root: Path) -> dict[str, Any]:
    pending = _pending(root)
    if pending is None or pending["digest"] != digest:
        raise Untouched("no change of the firewall is armed here, or another one; nothing was changed: run again")
    if pending["live"] and rollback_timer.status(TIMER, root=root)["state"] != rollback_timer.ARMED:
        raise Untouched("the change of the firewall was taken back before it was made; nothing was changed: run again")
    return pending


def require_new_login(root: Path = Path("/"), pid: int | None = None) -> None:
    """Raises PveguardError unless this comes by a login that is younger than the change, or by none at all."""
    note = read_or_none(_at(NOTE, root))
    if note is None:
        raise PveguardError("when the firewall loaded the change is not known, so no login can prove it; run again")
    began = sshd_change.login_began(os.getpid() if pid is None else pid)
    if began is not None and began <= float(note):
        raise PveguardError(
            "this login is older than the change of the firewall, so it proves nothing: come over a new connection (ssh -o "
            "ControlPath=none)"
        )


def confirm(*, root: Path = Path("/"), run: Run = real_run, pid: int | None = None) -> bool:
    """Keep the change: True, or False when that was done before. Raises PveguardError where the undo came first, and where this
    does not come by a new login.
    """
    if rollback_timer.status(TIMER, root=root)["state"] == rollback_timer.ARMED:
        require_new_login(root, pid)
    kept = rollback_timer.confirm(TIMER, run=run, root=root)
    _tidy(root, run)
    return kept


def undo(*, made: bool = True, root: Path = Path("/"), run: Run = real_run) -> bool:
    """Take an unconfirmed change back now; False when there is none. ``made``: False where no member has written anything, so
    that there is nothing but the timer to take away.
    """
    state = rollback_timer.status(TIMER, root=root)["state"]
    if not made:
        pending = _pending(root)
        if state not in (rollback_timer.ARMED, rollback_timer.NONE) or pending is None:
            return False
        rollback_timer.withdraw(TIMER, run=run, root=root)
        if not pending.get("table"):
            _keep_as_it_was(root)
        _tidy(root, run, keep_held=True)
        return True
    if state not in (rollback_timer.ARMED, rollback_timer.ROLLING_BACK):
        return False
    rollback_timer.roll_back(TIMER, run=run, root=root)
    if not _at(firewall_undo.HELD, root).exists():
        _tidy(root, run)
    firewall_table.forget(root)
    return True


def revert(
    check: bool = False,
    *,
    drift: str = managed_file.REFUSE,
    look: Callable[[], Mapping[str, Any]] | None = None,
    hosts: Sequence[str] | None = None,
    root: Path = Path("/"),
    run: Run = real_run,
) -> Result:
    """Put cluster.fw back as it was before the first change, byte for byte; where somebody has edited it since, take out what is
    pveguard's and leave the rest. The first member does it for all. ``look``: the facts of the core ``firewall``; ``hosts``:
    names and addresses of the others in this run. Raises PveguardError, with nothing changed, where a member is not among them,
    and where a firewall that stays on would let less pass of what the node needs.
    """
    if not check and rollback_timer.status(TIMER, root=root)["state"] in (rollback_timer.ARMED, rollback_timer.ROLLING_BACK):
        undo(root=root, run=run)
    note = _kept(root)
    if table := firewall_table.plan_revert(drift, root):
        todo, first = [f"remove the table {firewall_rules.TABLE}"], table[0]
        found = Result(True, False, todo, first.before, first.after, "", first.path)
        if check:
            return found
        firewall_table.revert(drift, root, run)
        _leave_nothing(root, run)
        return found
    if not check:
        firewall_table.forget(root)
    if note is None and not _at(firewall_undo.FOLDER, root).exists():
        return Result()
    held = held_open(root)
    before = _read(root) if note or held else None
    after = _reverted(before, note) if note else before
    if look is not None and (before != after or held):
        _refuse_revert(before, after, held, look(), hosts)
    result = Result(bool(before != after), before=before or "", after=after or "")
    if before != after:
        result.todo = ["put cluster.fw back as it was"]
    if check:
        return result
    if before != after:
        _write(before, after, root)
    _leave_nothing(root, run)
    if held:
        run(["systemctl", "--no-block", "start", firewall_undo.LEGACY_UNIT])
    return result


def _leave_nothing(root: Path, run: Run) -> None:
    _tidy(root, run)
    for path in (_KEPT, firewall_undo.COPY):
        _at(path, root).unlink(missing_ok=True)
    rollback_timer.forget(TIMER, run=run, root=root)
    for folder in (firewall_undo.FOLDER, os.path.dirname(firewall_undo.FOLDER)):
        managed_file.remove_empty(_at(folder, root))


# -- what is judged


def _refuse_waiting(root: Path) -> None:
    now = rollback_timer.status(TIMER, root=root)
    unit = f"{rollback_timer.PREFIX}{TIMER}"
    if now["state"] == rollback_timer.ROLLING_BACK:
        raise PveguardError(f"a change of the firewall is being taken back; look with 'journalctl -u {unit}' and run again")
    if now["state"] == rollback_timer.ARMED:
        left = "" if now["left_seconds"] is None else f" in {now['left_seconds']:.0f} s"
        raise PveguardError(
            f"an earlier change of the firewall waits for its proof, and is taken back{left}; 'systemctl start {unit}' does it "
            "now. Run again after that"
        )


def _running(facts: Mapping[str, Any]) -> list[str]:
    services = facts.get("services") or {}
    return [unit for unit in firewall_undo.UNITS if (services.get(unit.removesuffix(".service")) or {}).get("active")]


def _refusals(facts: Mapping[str, Any], live: bool, running: Sequence[str], root: Path) -> list[str]:
    """What the rules cannot know: whether this node could change it, and take it back."""
    found = []
    unit = firewall_undo.NFTABLES_UNIT if facts.get("implementation") == firewall.NFTABLES else firewall_undo.LEGACY_UNIT
    if live and unit not in running:
        found.append(f"{unit} does not run, so nothing would be enforced: look with 'systemctl status {unit}'")
    if read_or_none(_at(firewall_undo.FORCE_DISABLE, root)) not in (None, f"{firewall_undo.OURS}\n".encode()):
        found.append(f"{firewall_undo.FORCE_DISABLE} is there: somebody has opened this node by it; remove it first")
    if problem := supervised_reason(lambda: pve_file.require_writable(root)):
        found.append(problem)
    return found


def _refuse_revert(
    before: str | None, after: str | None, held: bool, facts: Mapping[str, Any], hosts: Sequence[str] | None
) -> None:
    others = [each for each in facts.get("members") or [] if not each.get("own")]
    away = [str(each["name"]) for each in others if hosts is not None and not {each["name"], each.get("address")} & {*hosts}]
    if away and before != after:
        raise PveguardError(
            f"nothing was changed: {CLUSTER_FW} is one file for all members, and this run leaves out {', '.join(away)}: run it "
            "without --limit"
        )
    if not firewall_config.parse(after or "").on("enable", False):
        return
    if not facts.get("known", True):
        raise PveguardError(f"the firewall cannot be judged, and nothing was changed: {facts.get('error')}")
    # A node that is held open lets all pass by now.
    now = [] if held else [packet for packet, _ in firewall_rules.unmet(firewall.with_cluster_fw(facts, before))]
    lost = [each for each in firewall_rules.unmet(firewall.with_cluster_fw(facts, after)) if each[0] not in now]
    if lost:
        shown = [f"{each.what} ({each.proto} {each.port}, {each.source} to {each.dest}: {by})" for each, by in lost]
        told = "; ".join(dict.fromkeys(shown))
        raise PveguardError(
            f"nothing was changed: without pveguard's rules the firewall, which stays on, would not let pass: {told}. Add rules "
            f"of your own to {CLUSTER_FW} or switch it off there first"
        )


def _controllers_alone(facts: Mapping[str, Any], options: Options) -> list[str]:
    """What enforcing refuses too. In a firewall that is on, a rule for the controller alone would go with the next run from
    elsewhere."""
    declared = firewall_rules.declared(facts, options)
    addresses = sorted({*(facts.get("controllers") or []), facts.get("controller") or ""} - {""})
    return [
        f"the controller ({each}) is not in the management set, so a run from elsewhere would cut it off: add it to "
        f"{firewall_rules.VARIABLE}, or to [IPSET management] of {CLUSTER_FW}"
        for each in addresses
        if not firewall_verdict.within(each, declared)
    ]


def supervised_reason(action: Callable[[], None]) -> str:
    """Why an action on /etc/pve fails; it may never come back."""

    def work() -> dict[str, Any]:
        try:
            action()
        except PveguardError as error:
            return {"error": str(error)}
        return {"error": ""}

    try:
        return str(supervised.ask(work, ANSWER_S).get("error", "the look at /etc/pve was ended"))
    except supervised.Stalled:
        return f"/etc/pve does not answer within {ANSWER_S:g} s: see 'journalctl -u pve-cluster'"


def _todo(before: str, after: str, options: Options, held: bool) -> list[str]:
    found = []
    was, will = firewall_config.parse(before), firewall_config.parse(after)
    if was.rules != will.rules or was.sets != will.sets:
        found.append(f"set the firewall's rules ({CLUSTER_FW})")
    if options.mode == ENFORCE and (was.options != will.options):
        found.append("switch the firewall on, with policy DROP, for all nodes of the cluster")
    if held:
        found.append("let the firewall of this node run again, which an earlier undo holds open")
    return found or [f"change {CLUSTER_FW}"]


# -- the files


def _at(path: str, root: Path) -> Path:
    return root / path.lstrip("/")


def _read(root: Path) -> str | None:
    """cluster.fw; None where there is none. Raises PveguardError where that is not known."""

    def work() -> dict[str, Any]:
        if not pve_file.is_mounted(root):
            return {"error": "/etc/pve is not mounted: start it with 'systemctl start pve-cluster'"}
        data = read_or_none(_at(CLUSTER_FW, root))
        return {"text": None if data is None else data.decode("utf-8", "surrogateescape")}

    try:
        said = supervised.ask(work, ANSWER_S)
    except supervised.Stalled:
        said = {"error": f"/etc/pve does not answer within {ANSWER_S:g} s: see 'journalctl -u pve-cluster'"}
    except OSError as error:
        said = {"error": error.strerror}
    if "text" not in said:
        raise PveguardError(f"{CLUSTER_FW} cannot be read, and nothing was changed: {said.get('error') or 'the look was ended'}")
    text: str | None = said["text"]
    return text


def _write(before: str | None, after: str | None, root: Path) -> None:
    """Only over what was judged."""
    now = _read(root)
    if now == after:
        return
    if now != before:
        raise Untouched(f"somebody has edited {CLUSTER_FW} since it was looked at: it stays as it is; run again")
    pve_file.apply(CLUSTER_FW, None if after is None else _data(after), root)


def _data(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _digest(before: str | None, after: str) -> str:
    found = hashlib.sha256()
    for text in ("absent" if before is None else f"there {before}", after):
        found.update(hashlib.sha256(_data(text)).digest())
    return found.hexdigest()


def _pend(
    before: str | None,
    after: str,
    live: bool,
    woke: bool,
    running: Sequence[str],
    facts: Mapping[str, Any],
    root: Path,
    run: Run,
) -> None:
    """Note on the node's own disk all that the undo needs."""
    folder = _at(_PENDING, root)
    _new_pending(folder, root)
    note = {
        "digest": _digest(before, after),
        "live": live,
        "enforced": bool(firewall_config.parse(after).on("enable", False)),
        "running": list(running),
        "held": held_open(root),
        "implementation": facts.get("implementation"),
        # Switched off for this node alone, it loads nothing.
        "filters": (facts.get("host") or {}).get("enable") is not False,
        "loaded": hashlib.sha256(loaded(str(facts.get("implementation")), run).encode()).hexdigest() if live else "",
    }
    if before is not None:
        write_atomic(folder / "before", _data(before), 0o600)
    write_atomic(folder / "ours", _data(after), 0o600)
    write_atomic(folder / "running", "".join(f"{unit}\n" for unit in running).encode(), 0o600)
    for mark, there in (("woke", woke), ("held", note["held"])):
        if there:
            write_atomic(folder / mark, b"", 0o600)
    write_atomic(folder / "note.json", f"{json.dumps(note)}\n".encode(), 0o600)


def _new_pending(folder: Path, root: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    folder.parent.chmod(0o700)
    write_atomic(_at(firewall_undo.PROGRAM, root), firewall_undo.program(str(root)).encode(), 0o700)
    _at(NOTE, root).unlink(missing_ok=True)


def _pending(root: Path) -> dict[str, Any] | None:
    folder = _at(_PENDING, root)
    note = read_or_none(folder / "note.json")
    after = read_or_none(folder / "ours")
    if note is None or after is None:
        return None
    before = read_or_none(folder / "before")
    texts = [None if data is None else data.decode("utf-8", "surrogateescape") for data in (before, after)]
    return {**json.loads(note), "before": texts[0], "after": texts[1]}


def _prepare_units(root: Path, run: Run) -> None:
    """By now, so that the undo needs nothing but to make a file."""
    for unit in firewall_undo.UNITS:
        place = _at(firewall_undo.drop_in(unit), root)
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(place, firewall_undo.CONDITION.encode())
        fsync_dir(place.parent.parent)
    done = run(["systemctl", "daemon-reload"])
    if not done.ok:
        raise PveguardError(f"systemctl daemon-reload: {done.stderr.strip() or f'code {done.rc}'}")


def _release(running: Sequence[str], root: Path, run: Run) -> None:
    """A node that an earlier undo holds open: its firewall runs again, for the proof of this change."""
    held, force = _at(firewall_undo.HELD, root), _at(firewall_undo.FORCE_DISABLE, root)
    if not held.exists():
        return
    held.unlink()
    if read_or_none(force) == f"{firewall_undo.OURS}\n".encode():
        force.unlink()
    for unit in running:
        run(["systemctl", "start", unit])


def _tidy(root: Path, run: Run, keep_held: bool = False) -> None:
    """Leave nothing of the waiting behind: neither held open nor kept from starting. ``keep_held``: but by an earlier undo."""
    gone = False
    held, force = _at(firewall_undo.HELD, root), _at(firewall_undo.FORCE_DISABLE, root)
    keep_held = keep_held and held.exists()
    for unit in () if keep_held else firewall_undo.UNITS:
        place = _at(firewall_undo.drop_in(unit), root)
        if place.exists():
            place.unlink()
            gone = True
        managed_file.remove_empty(place.parent)
    if not keep_held:
        held.unlink(missing_ok=True)
        if read_or_none(force) == f"{firewall_undo.OURS}\n".encode():
            force.unlink()
    shutil.rmtree(_at(_PENDING, root), ignore_errors=True)
    for path in (firewall_undo.PROGRAM, NOTE):
        _at(path, root).unlink(missing_ok=True)
    if gone:
        run(["systemctl", "daemon-reload"])


# -- what was there before the first change


def _kept(root: Path) -> dict[str, Any] | None:
    """``{original, written}``; original is null where there was no file, and missing where it was pveguard's own already."""
    data = read_or_none(_at(_KEPT, root))
    if data is None:
        return None
    try:
        note = dict(json.loads(data))
        if isinstance(note["written"], list):
            return note
    except (ValueError, TypeError, KeyError):
        pass
    raise PveguardError(f"{_KEPT} is damaged: put {CLUSTER_FW} back by hand, and remove it")


def _keep(before: str | None, after: str, root: Path) -> None:
    data = read_or_none(_at(_KEPT, root))
    if data is not None:
        write_atomic(_at(_KEPT_BEFORE, root), data, 0o600)
    note = _kept(root)
    if note is None or not (before in note["written"] or ("original" in note and before == note["original"])):
        # A member that comes later finds the rules of the others. And somebody has edited the file since, or it is another
        # cluster's: what was there before the first change would take that away.
        note = {"written": []} if _has_own(before or "") else {"original": before, "written": []}
    note["written"] = [*[text for text in note["written"] if text != after], after][-20:]
    _save(note, root)


def _has_own(text: str) -> bool:
    return firewall_config.remove_rules(text, MARK) != text


def _keep_as_it_was(root: Path) -> None:
    """For what was not written after all."""
    before = read_or_none(_at(_KEPT_BEFORE, root))
    if before is None:
        _at(_KEPT, root).unlink(missing_ok=True)
    else:
        write_atomic(_at(_KEPT, root), before, 0o600)


def _save(note: Mapping[str, Any], root: Path) -> None:
    place = _at(_KEPT, root)
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(place, f"{json.dumps(note)}\n".encode(), 0o600)


def _reverted(now: str | None, note: Mapping[str, Any]) -> str | None:
    if now is None or ("original" in note and now == note["original"]):
        return now
    if "original" in note and now in note["written"]:
        original: str | None = note["original"]
        return original
    return firewall_rules.reverted(now)


# -- the node's firewall


def loaded(implementation: str, run: Run) -> str:
    """The rules of Proxmox's firewall for the node in the kernel, without what counts by itself."""
    if implementation == firewall.NFTABLES:
        commands = [["nft", "list", "table", "inet", "proxmox-firewall"]]
    else:
        commands = [["iptables-legacy-save", "-t", "filter"], ["ip6tables-legacy-save", "-t", "filter"], ["ipset", "save"]]
    text = ""
    for argv in commands:
        try:
            text += run(argv, timeout=20.0).stdout
        except CommandMissing:
            continue
    lines = text.splitlines()
    if implementation != firewall.NFTABLES:
        lines = [line for line in lines if re.match(_OF_THE_NODE, line)]
    return "\n".join(re.sub(r"\[\d+:\d+\]|counter packets \d+ bytes \d+", "", line).rstrip() for line in lines)


def _effect(text: str) -> tuple[list[tuple[object, ...]], dict[str, str]]:
    """What a change of ours can make of the firewall; comments are nothing to it."""
    parsed = firewall_config.parse(text)
    return [each.means() for each in parsed.rules if each.enabled], parsed.options


def _is_loaded(pending: Mapping[str, Any], run: Run) -> bool:
    now = loaded(str(pending["implementation"]), run)
    if hashlib.sha256(now.encode()).hexdigest() == pending["loaded"]:
        return False
    sign = "chain " if pending["implementation"] == firewall.NFTABLES else "-j PVEFW-INPUT"
    return sign in now or not pending["enforced"]


def _until(
    condition: Callable[[], bool],
    deadline: float,
    problem: str,
    sleep: Callable[[float], None],
    clock: Callable[[], float],
) -> None:
    while not condition():
        if clock() >= deadline:
            raise PveguardError(f"{problem} in time")
        sleep(0.5)


def held_open(root: Path = Path("/")) -> bool:
    """Whether an undo holds this node open, as cluster.fw was edited after a change that nobody proved."""
    return _at(firewall_undo.HELD, root).exists()
