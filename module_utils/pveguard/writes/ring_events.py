"""What the ring and the synchronisation of the cluster file system did in a time, from the journal of one node.

Each node's Corosync tells of the memberships it was in, of tokens that did not come, of messages sent again and of links;
each node's daemon tells who led a synchronisation and how much it brought. The texts are those of corosync 3.1 (run by the
tests) and of pmxcfs as its users publish them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.errors import PveguardError
from ..base.run import Run
from ..base.run import run as real_run
from . import pmxcfs_journal
from .pmxcfs_journal import Line

#: Events that are returned one by one; the counts are of all of them.
MOST_EVENTS = 500
#: kind -> what it is, in the order in which figures are shown.
KINDS = {
    "membership": "memberships formed",
    "token_late": "tokens late",
    "token_lost": "tokens lost",
    "retransmit": "lists of messages sent again",
    "link_down": "links down",
    "link_up": "links up",
    "quorum_lost": "losses of quorum",
    "quorum": "quorum found",
    "reload": "reloads of corosync.conf",
    "not_scheduled": "pauses of corosync",
    "sync": "synchronisations",
    "leader": "leaders named",
    "updates": "sets of updates received",
    "up_to_date": "synchronisations done",
    "held_up": "messages held up",
}
_COROSYNC = (
    ("membership", re.compile(r"\[TOTEM\s*\] A new membership \(")),
    # Said when three quarters of the token timeout have passed (token_warning).
    ("token_late", re.compile(r"\[TOTEM\s*\] Token has not been received in")),
    ("token_lost", re.compile(r"\[TOTEM\s*\] A processor failed, forming new configuration")),
    ("retransmit", re.compile(r"\[TOTEM\s*\] Retransmit List:")),
    ("link_down", re.compile(r"\[KNET\s*\] link: host: [0-9]+ link: [0-9]+ is down")),
    ("link_up", re.compile(r"\[KNET\s*\] (?:rx|link): host: [0-9]+ link: [0-9]+ is up")),
    ("quorum_lost", re.compile(r"\[QUORUM\s*\] This node is within the non-primary component")),
    ("quorum", re.compile(r"\[QUORUM\s*\] This node is within the primary component")),
    ("reload", re.compile(r"\[CFG\s*\] Config reload requested by node")),
    ("not_scheduled", re.compile(r"Corosync main process was not scheduled")),
)
_PMXCFS = (
    ("sync", re.compile(r"\[dcdb\] notice: starting data syncroni[sz]ation")),
    ("leader", re.compile(r"\[dcdb\] notice: leader is ([0-9]+)/")),
    ("updates", re.compile(r"\[dcdb\] notice: update complete.*\(got ([0-9]+) inode updates\)")),
    ("up_to_date", re.compile(r"\[dcdb\] notice: all data is up to date")),
    ("held_up", re.compile(r"\[dcdb\] (?:notice|crit): cpg_send_message (?:retry|retried|failed)")),
)
_TEXTS = {"corosync": _COROSYNC, "pmxcfs": _PMXCFS}
_JOINED, _LEFT = (re.compile(rf"\b{word}: ([0-9]+(?: [0-9]+)*)") for word in ("joined", "left"))


@dataclass(frozen=True)
class Event:
    """``kind`` of KINDS, ``seconds`` since the window began, ``source`` corosync or pmxcfs, and the line."""

    seconds: float
    source: str
    kind: str
    text: str


def mark(root: Path = Path("/")) -> dict[str, Any]:
    """Where the journal is now: pass it to :func:`collect` later. ``{boot_id, monotonic_us, time}``."""
    return {
        "boot_id": (root / "proc/sys/kernel/random/boot_id").read_text().strip(),
        "monotonic_us": pmxcfs_journal.monotonic_us(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def collect(since: Mapping[str, Any], run: Run = real_run, root: Path = Path("/")) -> dict[str, Any]:
    """What happened since a :func:`mark`; see :func:`summary`. Raises PveguardError where the journal does not tell."""
    now = mark(root)
    if since["boot_id"] != now["boot_id"]:
        raise PveguardError("the node was rebooted in the window: what its ring did before is not known")
    start = int(since["monotonic_us"])
    seconds = (now["monotonic_us"] - start) / 1e6
    lines = pmxcfs_journal.read(start, seconds, run, ("corosync", "pmxcfs", "systemd-journald"))
    found = summary(events(lines, start), seconds)
    notes = [f"journald dropped {count} lines"] if (count := pmxcfs_journal.suppressed(lines)) else []
    return {**found, "from": since["time"], "to": now["time"], "notes": notes + found["notes"]}


def events(lines: Iterable[Line], start_us: int = 0) -> list[Event]:
    """The events among lines of the journal, in order."""
    found = []
    for line in lines:
        for kind, pattern in _TEXTS.get(line.identifier, ()):
            if pattern.search(line.message):
                at = round((line.monotonic_us - start_us) / 1e6, 3)
                found.append(Event(at, line.identifier, kind, line.message.strip()))
                break
    return sorted(found, key=lambda event: event.seconds)


def summary(found: Sequence[Event], seconds: float) -> dict[str, Any]:
    """Counts by kind, who joined and left (node ids, in order), leaders (node ids, as they were named), how often another
    one was named, inode updates received, and the events themselves (at most MOST_EVENTS)."""
    joined: list[int] = []
    left: list[int] = []
    leaders: list[int] = []
    updates = 0
    for event in found:
        if event.kind == "membership":
            for pattern, ids in ((_JOINED, joined), (_LEFT, left)):
                ids += [int(number) for match in pattern.finditer(event.text) for number in match.group(1).split()]
        for kind, pattern in _PMXCFS:
            if kind == event.kind == "leader" and (match := pattern.search(event.text)):
                leaders.append(int(match.group(1)))
            elif kind == event.kind == "updates" and (match := pattern.search(event.text)):
                updates += int(match.group(1))
    counts = {kind: sum(event.kind == kind for event in found) for kind in KINDS}
    notes = [] if len(found) <= MOST_EVENTS else [f"{len(found) - MOST_EVENTS} more events are only in the counts"]
    return {
        "seconds": round(seconds, 1),
        "counts": counts,
        "joined": joined,
        "left": left,
        "leaders": leaders,
        "leader_changes": sum(one != other for one, other in zip(leaders, leaders[1:], strict=False)),
        "updates_received": updates,
        "events": [vars(event) for event in found[:MOST_EVENTS]],
        "notes": notes,
    }


def quiet(ring: Mapping[str, Any]) -> bool:
    """Whether nothing at all happened."""
    return not any(ring["counts"].values())


def figures(ring: Mapping[str, Any]) -> list[tuple[str, str]]:
    """``(what, how many)`` of what happened, for people; kinds that did not happen are left out."""
    rows = [(KINDS[kind], str(count)) for kind, count in ring["counts"].items() if count and kind in KINDS]
    if ring["joined"] or ring["left"]:
        rows.append(("node ids that joined / left", f"{_ids(ring['joined'])} / {_ids(ring['left'])}"))
    if ring["leaders"]:
        rows.append(("leaders (node ids), changes of them", f"{_ids(dict.fromkeys(ring['leaders']))}, {ring['leader_changes']}"))
    if ring["counts"].get("updates"):
        rows.append(("updates received", str(ring["updates_received"])))
    return rows


def lines(host: str, ring: Mapping[str, Any] | None, why: str = "") -> list[str]:
    """The same for a terminal."""
    if not ring:
        return [f"what the ring did is not known: {why or 'not asked'}"]
    head = f"the ring as {host} saw it, {ring['from']} to {ring['to']}:"
    shown = [f"  {count:>6}  {what}" for what, count in figures(ring)] or ["  quiet: no membership, no token lost, no link down"]
    return [head, *shown, *(f"  note: {note}" for note in ring["notes"])]


def _ids(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"
