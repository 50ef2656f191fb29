"""What a report says as a whole: which nodes are safe and quiet, what is to be done next, who writes what.

Pure, and the same for every output. What is unknown is said to be unknown and is never counted as good.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..base.findings import (
    UNKNOWN,
    VERDICTS,
    Finding,
    check,
    judges,
    read,
    with_others,
    worst,
    worst_first,
    worth_telling,
)
from ..base.units import age_seconds, duration_text, number_text
from ..corosync import corosync_findings
from ..disk import drive_findings
from ..gates import gate_findings
from ..ha import ha_findings
from ..pmxcfs import pmxcfs_findings
from ..state import status_findings

PASS, WARN, FAIL = "pass", "warn", "fail"
_ORDER = {FAIL: 0, WARN: 1, UNKNOWN: 2, PASS: 3}

LEFT_RUN = check(
    "report-left-run",
    UNKNOWN,
    "The node left the run before the report: refused, failed or not reachable",
    "Bring it back, then make the report again.",
    "make report",
)
NO_COUNTERS = check(
    "report-no-counters",
    UNKNOWN,
    "What the node writes was not measured in this run",
    "Read why in the notes, then make the report again.",
    "make report",
)
NO_FACTS = check(
    "report-no-facts",
    UNKNOWN,
    "Nothing is known of the node's cluster in this run",
    "Make the report again.",
    "make report",
)


@dataclass(frozen=True)
class Step:
    """The same thing to do on some nodes. ``reasons``: why, as (node, text); ``ids``: of the findings that say so."""

    kind: str
    nodes: tuple[str, ...]
    reasons: tuple[tuple[str, str], ...]
    todo: str
    code: str
    ids: tuple[str, ...] = ()


def findings(node: Mapping[str, Any], now: str) -> list[Finding]:
    """What is to be said of one entry of the report, the worst first; empty when all is well."""
    if not node["in_run"]:
        age = age_seconds((node["counters"] or {}).get("time"), now)
        seen = f"last measured {duration_text(age)} ago" if age is not None else "never measured"
        reasons = [
            note.partition(": ")[2] for note in node["notes"] if note.startswith(("gate: ", "cluster: "))
        ]
        why = "; ".join(reasons) or "refused, failed or not reachable; the output of the run says which"
        return [LEFT_RUN(f"left the run before the report, {seen}: {why}")]
    found = [
        *_cluster(node),
        *_ha(node),
        *gate_findings.findings(node.get("gate"), node.get("links")),
        *drive_findings.findings(node.get("disks") or []),
    ]
    if node["cluster"]["installed"] is not False:
        found = with_others(found, _ram_state(node))
    if node["counters"] is None:
        why = next((note for note in node["notes"] if note.startswith("no counters")), "no counters")
        found.append(NO_COUNTERS(f"its writes are not known: {why}"))
    found = with_others(found, map(read, node.get("findings") or []))
    return worst_first(worth_telling(found))


def of_facts(node: Mapping[str, Any]) -> list[Finding]:
    """What cores that the report does not know by name say of the facts of ``node_info``: the key ``findings`` of an entry."""
    found: list[Finding] = []
    for judge in judges("of_report"):
        found = with_others(found, judge(node))
    return worth_telling(found)


def verdict(found: Sequence[Finding]) -> str:
    """``pass``, or that of the worst of the findings."""
    return VERDICTS[worst(found)]


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
        # The list below has all of it.
        reasons = list(dict.fromkeys(judged[name][1][0].headline for name in names))
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


def league(node: Mapping[str, Any], when: str) -> Mapping[str, Any] | None:
    """The table of who writes to the system's drives of an entry, ``before`` protection or ``now``: that of the longest time,
    since a short one does not hold what comes hourly or daily. None where there is none.
    """
    writes = node["writes"]
    order = ("day_before", "before") if when == "before" else ("day", "after", "since_boot")
    for each in order:
        table: Mapping[str, Any] | None = (writes.get(each) or {}).get("league")
        if table and table["total_bytes"] is not None:
            return table
    return None


def steps(report: Mapping[str, Any]) -> list[Step]:
    """What to do next, the most urgent first, nodes with the same thing to do together."""
    grouped: dict[tuple[str, str, str], list[tuple[str, str]]] = {}
    ids: dict[tuple[str, str, str], set[str]] = {}
    for name, (_, found) in verdicts(report).items():
        for each in found:
            if each.fix:
                key = (VERDICTS[each.severity], each.fix, each.code)
                grouped.setdefault(key, []).append((name, each.text))
                ids.setdefault(key, set()).add(each.id)
    made = [
        Step(key[0], tuple(dict.fromkeys(name for name, _ in reasons)), tuple(reasons), key[1], key[2], tuple(sorted(ids[key])))
        for key, reasons in grouped.items()
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
    if cluster["mode"] == UNKNOWN:
        return [NO_FACTS("nothing is known of its cluster: no facts of it in this run")]
    found = [
        pmxcfs_findings.mounted(cluster["mode"] != "down" or cluster["installed"] is False),
        pmxcfs_findings.understood(cluster.get("error")),
    ]
    if cluster["name"] is not None:
        live, members = cluster["live"], cluster["members"]
        quorum = corosync_findings.quorum(cluster["quorate"], cluster.get("met_corosync"), live, members)
        found.append(quorum or corosync_findings.members(cluster["name"], live, members))
    if corosync["copies"] == "differ":
        found.append(corosync_findings.copies(corosync.get("cluster_config_version"), corosync.get("host_config_version")))
    return [each for each in found if each]


def _ram_state(node: Mapping[str, Any]) -> list[Finding]:
    state = node["ram_state"]
    if state["state"] in status_findings.STOCK:
        cluster = node["cluster"]
        found = status_findings.on_disk(cluster["mode"] != "down", bool(cluster.get("probe")), node["ha"]["resources"])
        return [found] if found else []
    return status_findings.of_status(state)


def _ha(node: Mapping[str, Any]) -> list[Finding]:
    ha = node["ha"]
    if ha["state"] == UNKNOWN:
        return []
    return ha_findings.findings(
        installed=ha["state"] != "not installed",
        resources=ha["resources"],
        unattended=ha.get("unattended") or [],
        returned=ha.get("returned") or [],
        on=ha["state"] in ("on", "partly off"),
        watchdog_until_reboot=bool(ha["watchdog_until_reboot"]),
        state_in_ram=node["ram_state"]["state"] in status_findings.PROTECTED,
    )
