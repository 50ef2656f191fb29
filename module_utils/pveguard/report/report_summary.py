"""What a report says as a whole: which nodes are safe and quiet, what is to be done next, who writes what.

Pure, and the same for every output. What is unknown is said to be unknown and is never counted as good.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..base.units import UNKNOWN, age_seconds, duration_text, number_text, years_text
from ..pmxcfs.daemon_mode import NOT_MET

PASS, WARN, FAIL = "pass", "warn", "fail"
_ORDER = {FAIL: 0, WARN: 1, UNKNOWN: 2, PASS: 3}

#: Saves of RAM state that are later than this are worth a look: twenty times the promised RPO of two seconds.
LAG_WARN_SECONDS = 40.0
#: Share of its rated life from which a drive is worth a look, in percent (100 is what it is rated for).
USED_WARN_PERCENT = 80.0
#: NVMe drives give a critical warning below their spare threshold, which is 10 % on most.
SPARE_FAIL_PERCENT = 10.0
#: With less than this left a replacement should be at hand.
YEARS_WARN = 1.0
#: Transactions a minute that one HA stack costs while it is idle: three every five seconds.
HA_TRANSACTIONS = 36


@dataclass(frozen=True)
class Finding:
    """One thing about one node. ``kind``: pass, warn, fail or unknown. ``todo``: what helps. ``code``: the variable or
    the command for it.
    """

    kind: str
    text: str
    todo: str = ""
    code: str = ""


@dataclass(frozen=True)
class Step:
    """The same thing to do on some nodes. ``reasons``: why, as (node, text)."""

    kind: str
    nodes: tuple[str, ...]
    reasons: tuple[tuple[str, str], ...]
    todo: str
    code: str


def findings(node: Mapping[str, Any], now: str) -> list[Finding]:
    """What is to be said of one entry of the report, the worst first; empty when all is well."""
    if not node["in_run"]:
        age = age_seconds((node["counters"] or {}).get("time"), now)
        seen = f"last measured {duration_text(age)} ago" if age is not None else "never measured"
        reasons = [
            note.partition(": ")[2] for note in node["notes"] if note.startswith(("gate: ", "cluster: "))
        ]
        why = "; ".join(reasons) or "refused, failed or not reachable; the output of the run says which"
        return [
            Finding(
                UNKNOWN,
                f"left the run before the report, {seen}: {why}",
                "Bring it back, then make the report again.",
                "make report",
            )
        ]
    found = [
        *_cluster(node),
        *_ram_state(node),
        *_ha(node),
        *_gates(node),
        *drive_findings(node.get("disks") or []),
    ]
    if node["counters"] is None:
        why = next((note for note in node["notes"] if note.startswith("no counters")), "no counters")
        found.append(Finding(UNKNOWN, f"its writes are not known: {why}"))
    return sorted(found, key=lambda each: _ORDER[each.kind])


def verdict(found: Sequence[Finding]) -> str:
    """``pass``, or the worst of the findings."""
    return min((each.kind for each in found), key=lambda kind: _ORDER[kind], default=PASS)


def verdicts(report: Mapping[str, Any]) -> dict[str, tuple[str, list[Finding]]]:
    """Verdict and findings of every node."""
    found = {name: findings(node, report["time"]) for name, node in report["nodes"].items()}
    return {name: (verdict(each), each) for name, each in found.items()}


def overall(report: Mapping[str, Any]) -> tuple[str, str]:
    """The verdict of all nodes and the one sentence that an operator reads first."""
    judged = verdicts(report)
    if not judged:
        return UNKNOWN, "The report has no nodes."
    worst = min((kind for kind, _ in judged.values()), key=lambda kind: _ORDER[kind])
    count = len(judged)
    well = sum(kind == PASS for kind, _ in judged.values())
    rate_known = totals(report)["transactions"]
    said = []
    if worst == PASS:
        said.append(
            f"All {count} nodes are safe and quiet"
            if count > 1
            else f"{next(iter(judged))} is safe and quiet"
        )
    elif well:
        said.append(f"{well} of {count} nodes {'is' if well == 1 else 'are'} safe and quiet")
    for kind, word in ((FAIL, "not safe"), (WARN, "worth a look"), (UNKNOWN, "not known")):
        names = [name for name, (each, _) in judged.items() if each == kind]
        # What stands before the colon is enough here; the list below has all of it.
        texts = (judged[name][1][0].text for name in names)
        reasons = list(
            dict.fromkeys(text if text.startswith("gate, ") else text.partition(": ")[0] for text in texts)
        )
        if names:
            why = f" ({reasons[0]})" if len(reasons) == 1 else ""
            said.append(f"{names_text(names)} {'is' if len(names) == 1 else 'are'} {word}{why}")
    if rate_known["nodes"]:
        before, after = number_text(rate_known["before"]), number_text(rate_known["after"])
        said.append(
            f"Transactions went from {before} to {after} a minute on {'a' if count > 1 else 'this'} node"
        )
    return worst, " ".join(f"{each}." for each in said)


def names_text(names: Sequence[str], limit: int = 4) -> str:
    """``a, b and c``, at most ``limit`` names and how many more."""
    if len(names) > limit:
        return f"{', '.join(names[: limit - 1])} and {len(names) - limit + 1} more"
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def totals(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Means per node before and after, of those nodes that have both, and how many these are.

    ``{transactions|device_bytes: {before, after, nodes}}``, per minute. Members of a cluster all store the same
    transactions, so that a mean says more than a sum.
    """
    found = {}
    for key in ("transactions", "device_bytes"):
        pairs = [
            (old, new)
            for node in report["nodes"].values()
            for old, new in [[rate(node["writes"][when], key) for when in ("before", "after")]]
            if old is not None and new is not None
        ]
        count = len(pairs)
        found[key] = {
            "before": sum(old for old, _ in pairs) / count if count else None,
            "after": sum(new for _, new in pairs) / count if count else None,
            "nodes": count,
        }
    return found


def rate(figures: Mapping[str, Any] | None, key: str) -> float | None:
    """``transactions`` or ``device_bytes`` a minute, None when unknown."""
    value = (figures or {}).get(f"{key}_per_minute")
    return None if value is None else float(value)


def rate_or_count(figures: Mapping[str, Any] | None, key: str, text: Callable[[float | None], str]) -> str:
    """A figure as :func:`rate` gives it; where there is no rate, what was counted and in what time: ``12 in 20 s``."""
    known = rate(figures, key)
    count, seconds = (figures or {}).get(key), (figures or {}).get("seconds")
    if known is None and count is not None and seconds:
        return f"{text(count)} in {duration_text(round(seconds))}"
    return text(known)


def steps(report: Mapping[str, Any]) -> list[Step]:
    """What to do next, the most urgent first, nodes with the same thing to do together."""
    grouped: dict[tuple[str, str, str], list[tuple[str, str]]] = {}
    for name, (_, found) in verdicts(report).items():
        for each in found:
            if each.todo:
                grouped.setdefault((each.kind, each.todo, each.code), []).append((name, each.text))
    made = [
        Step(kind, tuple(dict.fromkeys(name for name, _ in reasons)), tuple(reasons), todo, code)
        for (kind, todo, code), reasons in grouped.items()
    ]
    return sorted(made, key=lambda step: _ORDER[step.kind])


def groups(report: Mapping[str, Any]) -> dict[str, list[str]]:
    """Nodes that store the same transactions: ``{name of the cluster, or of a stand-alone host: hosts}``."""
    found: dict[str, list[str]] = {}
    for name, node in report["nodes"].items():
        cluster = node["cluster"]["name"] or node["cluster"].get("last_name")
        found.setdefault(str(cluster or name), []).append(name)
    return found


def witness(
    report: Mapping[str, Any], hosts: Iterable[str], when: str
) -> tuple[str, Mapping[str, Any]] | None:
    """The host whose window tells most of who wrote what in its cluster, and that window.

    ``when``: ``before`` or ``observed``. Exact counts first, then the longest window, then the newest.
    """
    candidates = [
        (name, report["nodes"][name]["writes"].get(when))
        for name in hosts
        if (report["nodes"][name]["writes"].get(when) or {}).get("classes")
        or (report["nodes"][name]["writes"].get(when) or {}).get("files")
    ]
    if not candidates:
        return None

    def worth(candidate: tuple[str, Mapping[str, Any]]) -> tuple[bool, bool, float, str]:
        window = candidate[1]
        return (
            bool(window.get("classes")),
            window.get("attribution") == "journal",
            float(window.get("seconds") or 0),
            str(window.get("to") or ""),
        )

    return max(candidates, key=worth)


def _cluster(node: Mapping[str, Any]) -> list[Finding]:
    cluster, corosync = node["cluster"], node["corosync"]
    if cluster["mode"] == "unknown":
        return [Finding(UNKNOWN, "nothing is known of its cluster: no facts of it in this run")]
    found = []
    if cluster["mode"] == "down" and cluster["installed"] is not False:
        found.append(
            Finding(
                FAIL,
                "its cluster file system is down: /etc/pve is not mounted",
                "Find out why the daemon does not run, then start it.",
                "journalctl -u pve-cluster; systemctl start pve-cluster",
            )
        )
    if cluster.get("error"):
        found.append(
            Finding(
                UNKNOWN,
                f"what its cluster file system holds or says is not known: {cluster['error']}",
                "Read what is not understood; a newer pveguard may know it.",
                "journalctl -u pve-cluster; pve-state status",
            )
        )
    if cluster["name"] is not None:
        missing = cluster["members"] - cluster["live"]
        if cluster["quorate"] is False and cluster.get("met_corosync") is False:
            found.append(
                Finding(
                    FAIL,
                    f"no quorum: {NOT_MET}",
                    "Find out why Corosync does not run, then start it.",
                    "journalctl -u corosync; corosync -t; systemctl start corosync",
                )
            )
        elif cluster["quorate"] is False:
            found.append(
                Finding(
                    FAIL,
                    f"no quorum: {cluster['live']} of {cluster['members']} members are up and /etc/pve is read-only",
                    "Bring the missing members back, or read which votes are missing.",
                    "corosync-quorumtool -s",
                )
            )
        elif cluster["quorate"] is None:
            found.append(Finding(UNKNOWN, "whether it has quorum is not known"))
        elif missing > 0:
            found.append(
                Finding(
                    WARN,
                    f"{missing} of {cluster['members']} members of {cluster['name']} {'is' if missing == 1 else 'are'} not up",
                    "Bring the missing members back before anything else is changed.",
                    "pvecm status",
                )
            )
    if corosync["copies"] == "differ":
        found.append(
            Finding(
                FAIL,
                "its two copies of corosync.conf differ",
                "Compare them and make them one again while the cluster has quorum.",
                "diff /etc/pve/corosync.conf /etc/corosync/corosync.conf",
            )
        )
    return found


def _ram_state(node: Mapping[str, Any]) -> list[Finding]:
    state = node["ram_state"]
    kind = str(state["state"])
    if node["cluster"]["installed"] is False:
        return []
    if kind == UNKNOWN:
        return [
            Finding(UNKNOWN, "the state of its RAM disk is not known", "Ask the node.", "pve-state status")
        ]
    if kind == "off":
        if node["cluster"].get("probe"):
            return []  # what a probe stores is nobody's
        if node["ha"]["resources"]:
            return []  # the heartbeats are wanted there, and the state stays on disk
        return [
            Finding(
                WARN,
                "the daemon's database is on disk: every transaction is written there",
                "Move it to RAM, with its replica on disk.",
                "ram_state_enabled: true, then make site",
            )
        ]
    found = []
    if kind == "starting":
        found.append(
            Finding(WARN, "its RAM state is starting", "Look again in a few seconds.", "pve-state status")
        )
    elif kind not in ("enabled", "protected"):
        reason = state.get("reason") or "no reason was given"
        found.append(
            Finding(
                FAIL,
                f"its RAM state is {kind}: {reason}",
                state.get("fix") or "Read what is wrong and what mends it.",
                "pve-state status",
            )
        )
    elif state.get("ready") is False:
        found.append(
            Finding(
                WARN,
                "its RAM state is not ready: after an unclean stop the version of its database is not beyond what was lost",
                "Wait for the next change, or read what it waits for (docs/ram-state.md, The false leader).",
                "pve-state status",
            )
        )
    lag = state.get("lag_seconds")
    if lag is not None and lag > LAG_WARN_SECONDS:
        found.append(
            Finding(
                WARN,
                f"a change is {duration_text(lag)} old and not saved",
                "Find out why saves take long: a full or slow disk, most of the time.",
                "pve-state status; journalctl -u pveguard-state-watch",
            )
        )
    if state.get("generations_damaged"):
        count = state["generations_damaged"]
        found.append(
            Finding(
                WARN,
                f"{count} saved generation{' is' if count == 1 else 's are'} damaged: the disk below may be failing",
                "Look which, and at the health of the drive.",
                "pve-state verify",
            )
        )
    return found


def _ha(node: Mapping[str, Any]) -> list[Finding]:
    ha = node["ha"]
    if ha.get("unattended"):
        return [
            Finding(
                FAIL,
                f"HA is off but has resources ({names_text(ha['unattended'])}): nothing would restart them",
                "Bring HA back, or remove the resources.",
                "ha_state: enabled, then make site; or ha-manager remove SID",
            )
        ]
    found = []
    if ha["watchdog_until_reboot"]:
        found.append(
            Finding(
                WARN,
                "its watchdog is fed until the next boot: the driver has nowayout or no magic close, so stopping it could "
                "reset the node",
                "Nothing has to be done: watchdog-mux is masked, and the next planned reboot ends it.",
                "systemctl status watchdog-mux",
            )
        )
    if ha.get("returned"):
        found.append(
            Finding(
                WARN,
                f"HA was switched off and came back ({names_text(ha['returned'])}): a package upgrade, or somebody by hand",
                "Switch it off again, or set ha_state: keep.",
                "make site",
            )
        )
    elif ha["state"] in ("on", "partly off") and not ha["resources"]:
        found.append(
            Finding(
                WARN,
                f"HA runs although nothing uses it: about {HA_TRANSACTIONS} transactions a minute on every member",
                "Switch it off; it comes back with one command.",
                "ha_state: auto, then make site",
            )
        )
    return found


def _gates(node: Mapping[str, Any]) -> list[Finding]:
    found = []
    for part, name in (("gate", "disk"), ("links", "links")):
        result = node.get(part) or {}
        if result.get("verdict") in (WARN, FAIL):
            message = " ".join(str(result.get("message") or result.get("reason") or "").split())
            found.append(
                Finding(
                    str(result["verdict"]),
                    f"gate, {name}: {message}",
                    "Read what helps with this reason in gate.html and docs/gates.md, then measure again.",
                    "make gate",
                )
            )
    return found


def drive_findings(disks: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """What is to be said of drives, as disk_wear returns them."""
    found = []
    for disk in disks:
        name = f"{disk.get('disk')} ({disk.get('model') or 'unknown model'})"
        used, spare, errors = (disk.get(key) for key in ("percentage_used", "spare_percent", "media_errors"))
        replace = (
            "Have a replacement at hand and a backup that was tried.",
            f"smartctl -x /dev/{str(disk.get('disk')).rpartition('/')[2]}",
        )
        severity = FAIL if disk.get("health_passed") is False else WARN
        found += [Finding(severity, f"{name}: {text}", *replace) for text in disk.get("health") or []]
        if spare is not None and spare < SPARE_FAIL_PERCENT:
            found.append(
                Finding(FAIL, f"{name} has {number_text(spare)} % of its spare blocks left", *replace)
            )
        if used is not None and used >= USED_WARN_PERCENT:
            kind = FAIL if used >= 100 else WARN
            found.append(
                Finding(kind, f"{name} has used {number_text(used)} % of the life it is rated for", *replace)
            )
        if errors:
            found.append(Finding(WARN, f"{name} reports {number_text(errors)} media errors", *replace))
        left = (disk.get("endurance") or {}).get("years_left")
        if left is not None and left < YEARS_WARN:
            found.append(
                Finding(WARN, f"{name} has {years_text(left)} left at the rate that was measured", *replace)
            )
    return found
