# SPDX-License-Identifier: Apache-2.0
"""What is judged about the state of a node in RAM, from the dict that ``pve-state status --json`` prints.

Pure, and the same on the node, where ``pve-state`` puts the result into that dict, and on the controller, for a node whose
``pve-state`` is older and says no ``findings``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ..base.findings import (
    GOOD,
    PROBLEM,
    UNKNOWN,
    WARNING,
    Check,
    Finding,
    check,
    read,
    some,
    worst_first,
    worth_telling,
)
from ..base.units import duration_text
from ..ha import ha_findings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: A change that waits longer for its save than this is worth a look: twenty times the promised RPO of two seconds.
LAG_WARN_SECONDS = 40.0
#: Fill of the RAM file system, in percent, from which a node that has no memory to enlarge it is in danger.
FILL_WARN_PERCENT = 80
PVE_CLUSTER, STATE_UNIT, WATCH_UNIT = "pve-cluster.service", "pveguard-state.service", "pveguard-state-watch.service"
STATUS = "pve-state status"

#: States of pve-state in which the database is on disk as Proxmox has it.
STOCK = ("absent", "disabled", "off")
#: States in which it is in RAM and all works.
PROTECTED = ("enabled", "protected")

IN_RAM = check("state-in-ram", GOOD, "The daemon's state is in RAM, with a verified replica on disk")
ON_DISK = check(
    "state-on-disk",
    WARNING,
    "The daemon's database is on disk: every transaction is written there",
    "Move it to RAM, with its replica on disk.",
    "ram_state_enabled: true, then make site",
)
STATE_UNKNOWN = check(
    "state-unknown", UNKNOWN, "Whether the node keeps its state in RAM is not known", "Ask the node.", STATUS
)
STARTING = check(
    "state-starting",
    WARNING,
    "Units of the RAM state are being started: changes are not saved yet, and nothing is wrong",
    "Look again in a few seconds.",
    STATUS,
)
FAILED = check(
    "state-failed",
    PROBLEM,
    "The RAM state does not work; said of a node whose pve-state is older and names no condition",
    "Read what is wrong and what mends it.",
    STATUS,
)
NOT_SET_UP = check(
    "state-not-set-up",
    PROBLEM,
    "The RAM file system is mounted, but pve-cluster is not set up for it",
    "Go back to the database on disk.",
    "pve-state disable",
)
PLACEHOLDER = check(
    "state-placeholder",
    PROBLEM,
    "The placeholder of a protected node lies in the place of the database, and nothing is set up to mount RAM",
    "Go back to the database on disk.",
    "pve-state disable",
)
RESCUE_UNDECIDED = check(
    "state-rescue-undecided",
    PROBLEM,
    "The daemon is stopped, and a rescue copy is newer than the replica: nothing is started before that is decided",
    "Decide which of the two states to take.",
    "pve-state restore --replica",
)
RESCUE_KEPT = check(
    "state-rescue-kept",
    PROBLEM,
    "What the daemon serves is kept beside the replica only, as a restore would refuse it",
    "mend what is named there on /etc/pve; it is saved as usual then. A start from here on asks which of the two states to take",
)
RESTORE_FAILED = check(
    "state-restore-failed",
    PROBLEM,
    "The restore of this boot failed closed: the daemon is not started",
    "Restore what is good.",
    "pve-state restore --generation latest",
)
NOT_MOUNTED = check(
    "state-not-mounted",
    PROBLEM,
    "The RAM file system is not mounted on /var/lib/pve-cluster",
    "Start the daemon, which mounts it.",
    f"systemctl start {PVE_CLUSTER}",
)
UNIT_DOWN = check(
    "state-unit-down",
    PROBLEM,
    f"{STATE_UNIT}, which restores and saves the state, is not active",
    "Start the daemon, which starts it.",
    f"systemctl start {PVE_CLUSTER}",
)
DAEMON_DOWN = check(
    "state-daemon-down",
    PROBLEM,
    "The daemon does not run on a node with its state in RAM",
    "Start it.",
    f"systemctl start {PVE_CLUSTER}",
)
WATCHER_DOWN = check(
    "state-watcher-down",
    PROBLEM,
    "The process that saves changes does not run",
    "Start it.",
    f"systemctl start {WATCH_UNIT}",
)
SAVE_FAILS = check(
    "state-save-fails",
    PROBLEM,
    "Changes are not saved, or the store says an error",
    "Read why.",
    f"journalctl -u {WATCH_UNIT}",
)
SWITCH_LEFT = check(
    "state-switch-left",
    PROBLEM,
    "A switch-over or a restore is under way, or was left in the middle",
    "Go back to where it began.",
    "pve-state rollback",
)
NOT_READY = check(
    "state-not-ready",
    WARNING,
    "After an unclean stop the version of the database is not beyond what was lost",
    "Wait for the next change, or read what it waits for (docs/ram-state.md, The false leader).",
    STATUS,
)
LAG = check(
    "state-save-late",
    WARNING,
    f"A change is older than {LAG_WARN_SECONDS:g} s and not saved",
    "Find out why saves take long: a full or slow disk, most of the time.",
    f"{STATUS}; journalctl -u pveguard-state-watch",
)
GENERATIONS_DAMAGED = check(
    "state-generations-damaged",
    WARNING,
    "Saved generations are damaged: the disk below may be failing",
    "Look which, and at the health of the drive.",
    "pve-state verify",
)
NEARLY_FULL = check(
    "state-ram-nearly-full",
    WARNING,
    f"The RAM file system is {FILL_WARN_PERCENT} % full or more, and there is no memory to enlarge it",
    "Free memory, or remove what fills it.",
    "du -a /var/lib/pve-cluster",
)
STRANGE = check(
    "state-strange-content",
    WARNING,
    "The state is saved, and a restore will refuse it without --unsound",
    "Mend on /etc/pve what is named.",
    STATUS,
)
MENDED = check(
    "state-disk-changed",
    WARNING,
    "The disk had changed files of the replica: they were taken from a generation at the start",
    "Look at the disk.",
    "smartctl -x /dev/DISK; pve-state verify",
)
UNREADABLE = check(
    "state-live-unreadable",
    WARNING,
    "The live database cannot be read",
    "Read why.",
    f"{STATUS}; journalctl -u {PVE_CLUSTER}",
)


class Health:
    """``state``, ``reason`` and ``fix`` as ``pve-state status`` says them, and the finding that they come from: None where the
    state is on disk.
    """

    __slots__ = ("state", "reason", "fix", "finding")

    def __init__(self, state: str, reason: str = "", fix: str = "", finding: Finding | None = None) -> None:
        self.state, self.reason, self.fix, self.finding = state, reason, fix, finding


def health(
    status: Mapping[str, Any],
    *,
    set_up: bool,
    active: Mapping[str, str],
    starting: Collection[str] = (),
    placeholder: bool = False,
    switch: Mapping[str, Any] | None = None,
    restore_fix: str = "",
    rescue_text: str = "",
    live: str = "/var/lib/pve-cluster",
) -> Health:
    """Whether the state in RAM works as set up; the first reason why it does not.

    ``status``: with ``mounted``, ``daemon_running``, ``restore``, ``rescue`` and ``watch_error``. ``set_up``: pve-cluster is set
    up for RAM. ``active``: ActiveState of our units by name; ``starting``: those that are being started, and not again after a
    failure. ``placeholder``: the placeholder lies where the database would be. ``switch``: the note of a switch-over.
    ``restore_fix``: what helps where the restore of this boot failed. ``rescue_text``: what is said of a rescue copy that must
    be decided on. ``live``: the directory of the live database.
    """
    mounted, running, rescue = status["mounted"], status["daemon_running"], status["rescue"]
    if not set_up:
        if mounted:
            return _failed(NOT_SET_UP, "the RAM file system is mounted but pve-cluster is not set up for it")
        if placeholder:
            return _failed(PLACEHOLDER, f"{live}/config.db is the placeholder, and nothing is set up to mount RAM")
        return Health("disabled")
    unknown_schema = bool(rescue) and rescue["kind"] == "schema"
    error = (status["restore"] or {}).get("error")
    if rescue and not unknown_schema and not running:
        # Whatever else is wrong: nothing is started before that is decided.
        return _failed(RESCUE_UNDECIDED, rescue_text, " or ".join(list(rescue["choices"].values())[:2]))
    if error:
        return _failed(RESTORE_FAILED, str(error), restore_fix)
    if not mounted:
        return _failed(NOT_MOUNTED, f"{live} is not the RAM file system")
    if STATE_UNIT in starting:
        return _starting(f"{STATE_UNIT} restores the state")
    if active.get(STATE_UNIT) != "active":
        return _failed(UNIT_DOWN, f"{STATE_UNIT} is {active.get(STATE_UNIT) or 'missing'}")
    if not running and PVE_CLUSTER in starting:
        return _starting(f"{PVE_CLUSTER} is being started")
    if not running:
        return _failed(DAEMON_DOWN, "the daemon does not run")
    if WATCH_UNIT in starting:
        return _starting(f"{WATCH_UNIT} is being started: changes are not saved yet")
    if active.get(WATCH_UNIT) != "active":
        return _failed(WATCHER_DOWN, f"{WATCH_UNIT} is {active.get(WATCH_UNIT) or 'missing'}: changes are not saved")
    if rescue:
        return _rescue_kept(rescue, unknown_schema)
    if status["watch_error"]:
        return _failed(SAVE_FAILS, str(status["watch_error"]))
    if switch and not switch.get("done"):
        return _failed(SWITCH_LEFT, f"a switch-over ({switch.get('kind')}) is under way or was left")
    return Health("enabled", finding=_in_ram())


def _failed(broken: Check, reason: str, fix: str = "") -> Health:
    """``fix``: the command that helps, where the check does not name it exactly."""
    fix = fix or broken.code
    return Health("failed", reason, fix, broken(_headed("failed", reason), code=fix))


def _starting(reason: str) -> Health:
    return Health("starting", reason, "", _being_started(reason))


def _being_started(reason: str) -> Finding:
    return STARTING(_headed("starting", reason))


def _in_ram() -> Finding:
    return IN_RAM("the daemon's state is in RAM with a verified replica on disk")


def _rescue_kept(rescue: Mapping[str, Any], unknown_schema: bool) -> Health:
    reason = f"the live state is kept beside the replica only: {'; '.join(rescue['why'])}"
    fix = RESCUE_KEPT.fix
    if unknown_schema:
        fix = (
            "update pveguard to a version that knows it, or go back to the former daemon. Until then the whole database is "
            "copied, half a minute apart at most, and the next start takes the copy as it is"
        )
    return Health("failed", reason, fix, RESCUE_KEPT(_headed("failed", reason), fix=fix))


def _headed(state: str, reason: str) -> str:
    return f"its RAM state is {state}: {reason}"


def noted(status: Mapping[str, Any]) -> list[Finding]:
    """What is to be said of the state of a node beside its health and its figures: the key ``warnings``."""
    told = []
    mended = (status.get("restore") or {}).get("mended")
    if mended:
        told.append(MENDED(f"the disk had changed {some(mended)}: taken from a generation at the start"))
    if status.get("mounted"):
        told += worth_telling(ha_findings.of_status(status.get("ha_resources") or [], status.get("ha_masked") or []))
    return told


def findings(status: Mapping[str, Any], found: Health, others: Sequence[Finding] = ()) -> list[Finding]:
    """What is to be said of the state of a node, for the key ``findings``, the worst first.

    ``others``: what whoever looked has judged already: :func:`noted`, what the watcher says, what is not understood.
    """
    health = [] if found.finding is None else [found.finding, *_figures(status, found.state)]
    return worst_first([*health, *others])


def _figures(status: Mapping[str, Any], state: str) -> list[Finding]:
    """What the figures say, of any version of pve-state."""
    found = []
    if state in PROTECTED and status.get("ready") is False:
        found.append(
            NOT_READY(
                "its RAM state is not ready: after an unclean stop the version of its database is not beyond what was lost"
            )
        )
    lag = status.get("lag_seconds")
    if isinstance(lag, (int, float)) and lag > LAG_WARN_SECONDS:
        found.append(LAG(f"a change is {duration_text(lag)} old and not saved"))
    damaged = status.get("generations_damaged")
    if damaged:
        found.append(
            GENERATIONS_DAMAGED(
                f"{damaged} saved generation{' is' if damaged == 1 else 's are'} damaged: the disk below may be failing"
            )
        )
    return found


def of_status(status: Mapping[str, Any]) -> list[Finding]:
    """What is to be said of a node that is set up for RAM, by what its ``pve-state`` says, of whatever version that is.

    ``status``: of a node whose ``state`` is none of :data:`STOCK`.
    """
    told = status.get("findings")
    if isinstance(told, list):
        return worst_first(read(each) for each in told if isinstance(each, Mapping))
    state = str(status.get("state"))
    reason = str(status.get("error") or status.get("reason") or "no reason was given")
    if state == UNKNOWN:
        found = [STATE_UNKNOWN("the state of its RAM disk is not known")]
    elif state in PROTECTED:
        found = [_in_ram()]
    elif state == "starting":
        found = [_being_started(reason)]
    else:
        found = [FAILED(_headed(state, reason), fix=str(status.get("fix") or FAILED.fix), code=FAILED.code)]
    return worst_first([*found, *_figures(status, state)])


def on_disk(mounted: bool, probe: bool, resources: Sequence[object]) -> Finding | None:
    """The state of a node is on disk. ``resources``: of HA; the state stays on disk where there are any, for their heartbeats
    are wanted. ``probe``: what a probe stores is nobody's.
    """
    if probe or resources or not mounted:
        return None
    return ON_DISK("the daemon's database is on disk: every transaction is written there")


def nearly_full(live: str, percent: float) -> Finding | None:
    """``percent``: how full the RAM file system is, where there is no memory to enlarge it."""
    if percent < FILL_WARN_PERCENT:
        return None
    return NEARLY_FULL(
        f"{live} is {percent:.0f} % full, with no memory to enlarge it: at 100 % the daemon stops working for good",
        code=f"du -a {live}",
    )


def strange(why: str) -> Finding:
    """What a restore would refuse in the state that was just saved."""
    return STRANGE(f"saved, but a restore will refuse it without --unsound: {why}")


def unreadable(error: object) -> Finding:
    """The live database cannot be read."""
    return UNREADABLE(f"the live database cannot be read: {error}")
