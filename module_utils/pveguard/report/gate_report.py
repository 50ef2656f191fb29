"""What the gates saw: disk and links of every node and the token timeout, as data and as a table.

Nothing is ever guessed. A figure that was not measured is None in the data and ``unknown`` in the table. What an earlier
run measured is kept, marked as ``kept`` and with its age.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..base import text_table
from ..base.units import UNKNOWN, age_seconds, number_text
from ..gates import fsync_gate

SCHEMA = "pveguard-gate"
#: Raised when a key changes its meaning or goes away; new keys alone do not raise it.
SCHEMA_VERSION = 1

#: Characters of a line of the table.
WIDTH = 100
#: An entry of a node that no run has measured for so many days is dropped.
KEEP_DAYS = 90.0
#: The p99 of a link is said to have drifted when it changed by so many percent, and by so many milliseconds: below
#: that it is the scheduler of one of the two ends.
DRIFT_PERCENT = 50.0
DRIFT_MS = 0.5

#: ``unknown`` is worse than ``pass``, because nobody knows, and better than what is known to be bad.
_RANK = {"pass": 0, UNKNOWN: 1, "warn": 2, "fail": 3}
#: A node without links has none to be measured.
NO_LINKS = ("no_links", "no_peers")

_DISK_KEYS = (
    *("verdict", "reason", "message", "method", "measures"),
    *("fsyncs_per_second", "fsyncs_per_second_interval"),
    *("p50_ms", "p90_ms", "p99_ms", "p99_9_ms", "max_ms", "samples", "duration_seconds", "methods"),
    *("suspect", "class", "class_rule", "rotational", "transport", "write_cache", "power_loss_protection"),
    *(
        "drive_identity",
        "path",
        "measured_path",
        "device",
        "disk",
        "filesystem",
        "mount_options",
        "in_memory",
    ),
    *("free_bytes", "kernel", "time", "cached", "drift"),
)
_LINKS_KEYS = (
    *("verdict", "reason", "message", "rtt_p99_ms", "samples", "duration_seconds"),
    *("under_load", "kernel", "time", "links"),
)
#: Figures of a link of which more is worse; of the path MTU less is.
_WORST = (
    *("rtt_p50_ms", "rtt_p99_ms", "rtt_max_ms", "jitter_ms", "loss_percent", "reordered_percent"),
    *("sent", "samples", "lost"),
)

_DISK_ADVICE = {
    "lying": "replace the drive; an SSD with power-loss protection can acknowledge early and still keep its word",
    "missing": "create the directory, or correct fsync_gate_path",
    "not_a_directory": "correct fsync_gate_path: it names a directory",
    "read_only": "find out why the file system is read-only (journalctl -k), mend it and mount it writable",
    "full": "free some space on the file system and run again",
    "denied": "run as root (ansible_user, or ansible_become for a sudo user)",
    "stalled": "look at the kernel's log (journalctl -k) and at the drive's health (smartctl -x): the disk hangs",
    "io_error": "look at the kernel's log (journalctl -k) and at the drive's health (smartctl -x): the disk fails",
    "latency": "look for what else writes to the disk (iostat -x 1); an SSD with power-loss protection ends it",
    "suspect": "prove it before the node joins: -e fsync_gate_power_cut=prepare, cut the power, then =verify",
    "health": "read what it says (smartctl -x), have a backup that was tried, and replace the drive",
}
_SLOW_ADVICE = {
    "usb-or-sd": "move the system to an SSD: this medium is not made for synchronous writes",
    "hdd": "use an SSD, or a controller whose write cache survives a power cut",
    "ssd": "look for what else writes to it (iostat -x 1); consumer SSDs without power-loss protection stay slow",
}
_LINK_ADVICE = {
    "loss": "look at the counters of both interfaces (ip -s link, ethtool -S), the cable, the switch port and the duplex "
    "mode; keep storage and backup traffic off this link",
    "rtt": "keep corosync on a network of its own, in one place; storage, backup and WAN traffic do not belong on it",
    "jitter": "look for traffic that comes in bursts on this link (backups, migration, storage), and for Wi-Fi or a VPN",
    "reordering": "look for a bond in balance-rr mode, or for paths of different length",
}


def age_days(then: Any, now: str) -> float | None:
    """Days from ``then`` to ``now`` (UTC, ISO 8601), not below 0; None where one of them is no time."""
    seconds = age_seconds(then, now)
    return None if seconds is None else round(seconds / 86400, 2)


def worst(verdicts: Iterable[str]) -> str:
    """The worst of ``pass``, ``unknown``, ``warn`` and ``fail``; ``unknown`` of none."""
    return max(verdicts, key=lambda verdict: _RANK.get(verdict, 1), default=UNKNOWN)


def entry(
    *,
    now: str,
    in_run: bool,
    disk: Mapping[str, Any] | None = None,
    links: Mapping[str, Any] | None = None,
    plan: Mapping[str, Any] | None = None,
    power_cut: Mapping[str, Any] | None = None,
    disk_thresholds: Mapping[str, float | None] | None = None,
    link_thresholds: Mapping[str, float | None] | None = None,
    last: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What is known of one node; docs/gates.md has the keys of the result.

    ``in_run``: the host is still in the play. ``disk``: result of fsync_bench. ``links``: ``link_gate_result``.
    ``power_cut``: verdict of the ledger. ``last``: the node's entry of the last report. Anything may be missing.
    """
    last = last or {}
    disk_part = _disk(disk, last.get("disk"), disk_thresholds, power_cut, now)
    links_part = _links(links, last.get("links"), link_thresholds, now)
    refused = [
        *(["disk"] if disk_part["verdict"] == "fail" and not disk_part["kept"] else []),
        *(["links"] if links_part["verdict"] == "fail" and not links_part["kept"] else []),
        *(["plan"] if (plan or {}).get("action") == "refuse" else []),
    ]
    parts = [disk_part["verdict"]]
    if links_part["reason"] not in NO_LINKS:
        parts.append(links_part["verdict"])
    notes = []
    if not in_run and not refused:
        notes.append(
            "left the run before the report (failed or not reachable); see the messages above the table"
        )
    return {
        "time": now,
        "in_run": in_run,
        "verdict": "fail" if "plan" in refused else worst(parts),
        "refused_for": refused if not in_run else [],
        "plan": {"action": (plan or {}).get("action"), "reason": (plan or {}).get("reason") or None},
        "disk": disk_part,
        "links": links_part,
        "notes": notes,
    }


def kept(last: Mapping[str, Any], now: str) -> dict[str, Any] | None:
    """The entry of a node that is not part of this run, None when it is older than :data:`KEEP_DAYS`."""
    made = age_days(last.get("time"), now)
    if made is None or made > KEEP_DAYS or not {"disk", "links", "verdict"} <= set(last):
        return None
    return {
        **last,
        "in_run": False,
        "refused_for": [],
        "notes": [],
        "disk": _aged(last["disk"], now),
        "links": _aged(last["links"], now),
    }


def build(
    nodes: Mapping[str, Mapping[str, Any]],
    now: str,
    tokens: Mapping[str, Mapping[str, Any]] | None = None,
    last: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The report of ``nodes`` (name -> :func:`entry`) at ``now`` (UTC, ISO 8601).

    ``tokens``: cluster -> result of token_advice. ``last``: the report of the run before; its nodes that are not among
    ``nodes`` are kept, and so are its clusters.
    """
    everything: dict[str, Any] = {name: dict(node) for name, node in nodes.items()}
    for name, former in ((last or {}).get("nodes") or {}).items():
        if name not in everything and (node := kept(former, now)):
            everything[name] = node
    clusters: dict[str, Any] = {
        name: {**advice, "time": now, "kept": False, "age_days": 0.0}
        for name, advice in (tokens or {}).items()
    }
    for name, former in ((last or {}).get("clusters") or {}).items():
        age = age_days(former.get("time"), now)
        if name not in clusters and age is not None and age <= KEEP_DAYS:
            clusters[name] = {**former, "kept": True, "age_days": age}
    pairs = _pairs(everything, now)
    former_pairs = {_pair_key(pair): pair for pair in (last or {}).get("pairs") or []}
    for pair in pairs:
        pair["drift"] = _pair_drift(former_pairs.get(_pair_key(pair)), pair)
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "time": now,
        "verdict": worst(node["verdict"] for node in everything.values()),
        "nodes": everything,
        "pairs": pairs,
        "clusters": clusters,
    }


def usable(value: Any) -> dict[str, Any]:
    """``value`` where it is a report of this schema, else {}."""
    good = (
        isinstance(value, dict)
        and (value.get("schema"), value.get("schema_version")) == (SCHEMA, SCHEMA_VERSION)
        and isinstance(value.get("nodes"), dict)
    )
    return value if good else {}


def advice(node: Mapping[str, Any]) -> list[str]:
    """What to do about the disk and the links of one node, one sentence each, none when both are well."""
    found = []
    disk = node["disk"]
    if disk["verdict"] in ("fail", "warn"):
        found.append(_disk_advice(disk))
        if disk["reason"] == "latency" and disk["suspect"]:
            found.append(_DISK_ADVICE["suspect"])
        if disk["reason"] != "health" and any(each.get("health") for each in disk["drives"]):
            found.append(_DISK_ADVICE["health"])
    if node["links"]["verdict"] in ("fail", "warn"):
        reasons = [node["links"]["reason"]]
        for link in node["links"]["links"]:
            # A link that is held against the peer is mended there.
            if link.get("verdict") in ("fail", "warn") and link.get("reason") != "peer_refused":
                reasons += link.get("reasons") or [link.get("reason")]
        found += [_LINK_ADVICE[reason] for reason in dict.fromkeys(reasons) if reason in _LINK_ADVICE]
    return [text for text in found if text]


def render(report: Mapping[str, Any], width: int = WIDTH) -> str:
    """The report as tables and notes for a terminal, at most ``width`` columns. No trailing newline or blanks."""
    nodes: Mapping[str, Mapping[str, Any]] = report["nodes"]
    lines = text_table.lines(
        ("node", "fsyncs/s", "p50 ms", "p99 ms", "p99.9 ms", "class", "drive", "disk"),
        [_disk_row(name, node["disk"]) for name, node in nodes.items()],
        width=width,
        elastic=(0, 6),
        right=(2, 3, 4),
    )
    rows = _pair_rows(report["pairs"])
    if rows:
        lines += [
            "",
            *text_table.lines(
                (
                    "links (RTT in ms)",
                    "no.",
                    "RTT p99",
                    "p99 load",
                    "RTT max",
                    "jitter",
                    "loss %",
                    "MTU",
                    "verdict",
                ),
                rows,
                width=width,
                elastic=(0,),
                right=(1, 2, 3, 4, 5, 6, 7),
            ),
        ]
    for heading, notes in _notes(report):
        lines += ["", heading]
        for indent, note in notes:
            pad = "  " * indent
            lines += textwrap.wrap(
                text_table.clean(note),
                width,
                initial_indent=pad,
                subsequent_indent=pad + "  ",
                break_on_hyphens=False,
            )
    return "\n".join(lines)


def drive(disk: Mapping[str, Any]) -> str | None:
    """Model of the drive behind the path, or its identity, or None."""
    models = dict.fromkeys(
        str(each["model"]).strip() for each in disk.get("drives") or [] if each.get("model")
    )
    return " + ".join(models) or disk.get("drive_identity") or None


def verdict_text(verdict: str, reason: str | None = None) -> str:
    """``pass``, ``warn latency``, ``FAIL slow``, ``unknown``."""
    shown = "FAIL" if verdict == "fail" else verdict
    return f"{shown} {str(reason).replace('_', ' ')}" if verdict in ("warn", "fail") and reason else shown


def age_text(part: Mapping[str, Any]) -> str:
    """``3 days old``, empty for what was measured just now."""
    age = part.get("age_days")
    if not part.get("kept") and not part.get("cached"):
        return ""
    if age is None:
        return "of an earlier run"
    if age < 1:
        return f"{round(age * 24) or '< 1'} h old"
    return f"{number_text(round(age, 1 if age < 10 else 0))} days old"


def pair_name(pair: Mapping[str, Any]) -> str:
    """``pve1 - pve2, link 0``."""
    return f"{' - '.join(pair['nodes'])}, link {pair['link']}"


def _disk(
    result: Mapping[str, Any] | None,
    last: Mapping[str, Any] | None,
    thresholds: Mapping[str, float | None] | None,
    power_cut: Mapping[str, Any] | None,
    now: str,
) -> dict[str, Any]:
    result = result or {}
    if not result.get("verdict"):
        failed = bool(result.get("failed")) and not result.get("skipped")
        if last and last.get("time") and not failed:
            return _aged(last, now)
        return {
            **dict.fromkeys(_DISK_KEYS),
            "verdict": UNKNOWN,
            "reason": "error" if failed else "not_measured",
            "message": str(result.get("msg") or "not measured") if failed else "not measured",
            "methods": {},
            "suspect": [],
            "drives": [],
            "power_cut": None,
            "thresholds": dict(thresholds or {}),
            "kept": False,
            "age_days": None,
        }
    part: dict[str, Any] = {key: result.get(key) for key in _DISK_KEYS}
    part["methods"] = dict(result.get("methods") or {})
    part["suspect"] = list(result.get("suspect") or [])
    part["drives"] = [
        {
            key: each.get(key)
            for key in (
                *("name", "vendor", "model", "serial", "size_bytes", "transport", "rpm"),
                *("power_loss_rule", "power_loss_failed", "health"),
            )
        }
        for each in (result.get("block_device") or {}).get("disks") or []
    ]
    proof = power_cut or {}
    known = bool(proof.get("verdict")) and proof.get("drive_identity") == result.get("drive_identity")
    part["power_cut"] = {"verdict": proof["verdict"], "time": proof.get("time")} if known else None
    part["thresholds"] = dict(thresholds or {})
    part["kept"] = False
    part["age_days"] = (
        result.get("age_days") or age_days(result.get("time"), now) if result.get("cached") else 0.0
    )
    part["drift"] = result.get("drift")
    if part["drift"] is None and not result.get("cached") and (last or {}).get("time") != part["time"]:
        part["drift"] = fsync_gate.drift(last, part)
    return part


def _links(
    result: Mapping[str, Any] | None,
    last: Mapping[str, Any] | None,
    thresholds: Mapping[str, float | None] | None,
    now: str,
) -> dict[str, Any]:
    result = result or {}
    measured = result.get("verdict") in ("pass", "warn", "fail")
    reason = result.get("reason") or "not_measured"
    if not measured and reason not in NO_LINKS and last and last.get("time") and last.get("links"):
        return _aged(last, now)
    part: dict[str, Any] = {key: result.get(key) for key in _LINKS_KEYS}
    part["links"] = [dict(link) for link in result.get("links") or []]
    if not measured:
        part.update(verdict=UNKNOWN, reason=reason, message=result.get("message") or "not measured")
    part["thresholds"] = dict(thresholds or {})
    part["kept"] = False
    part["age_days"] = 0.0 if measured else None
    return part


def _aged(part: Mapping[str, Any], now: str) -> dict[str, Any]:
    """A part of an earlier report; one without a measurement has no age."""
    age = age_days(part.get("time"), now)
    return {**part, "kept": part.get("time") is not None, "age_days": age}


def _pairs(nodes: Mapping[str, Mapping[str, Any]], now: str) -> list[dict[str, Any]]:
    """One entry for each link of each pair of nodes: the worst of what the two ends saw, the newest measurement only."""
    order = {name: number for number, name in enumerate(nodes)}
    found: dict[tuple[tuple[str, ...], int], list[tuple[str, Mapping[str, Any], Mapping[str, Any]]]] = {}
    for host, node in nodes.items():
        for link in node["links"]["links"]:
            ends = tuple(
                sorted((host, str(link["peer"])), key=lambda name: (order.get(name, len(order)), name))
            )
            found.setdefault((ends, int(link["link"])), []).append((host, link, node["links"]))
    pairs = []
    for (ends, number), seen in sorted(
        found.items(), key=lambda item: ([order.get(n, len(order)) for n in item[0][0]], item[0])
    ):
        fresh = [each for each in seen if not each[2]["kept"]]
        if not fresh:
            newest = max(str(part["time"]) for _, _, part in seen)
            fresh = [each for each in seen if str(each[2]["time"]) == newest]
        bad = max(
            fresh,
            key=lambda each: (_RANK.get(_link_verdict(each[1]), 1), each[1].get("reason") != "peer_refused"),
        )
        parts = [part for _, _, part in fresh]
        pair: dict[str, Any] = {
            "nodes": list(ends),
            "link": number,
            "verdict": _link_verdict(bad[1]),
            "reason": _link_reason(bad[1]),
            "message": bad[1].get("message"),
            "measured_by": [host for host, _, _ in fresh],
            **_worst_figures([link for _, link, _ in fresh]),
            "path_mtu": min((link["path_mtu"] for _, link, _ in fresh if link.get("path_mtu")), default=None),
            "load": _worst_figures([link["load"] for _, link, _ in fresh if link.get("load")])
            if any(link.get("load") for _, link, _ in fresh)
            else None,
            "thresholds": dict(parts[0]["thresholds"]),
            "time": max(str(part["time"]) for part in parts),
            "kept": parts[0]["kept"],
            "age_days": min((part["age_days"] or 0.0 for part in parts), default=None),
        }
        pairs.append(pair)
    return pairs


def _link_verdict(link: Mapping[str, Any]) -> str:
    # The end that is not refused for a bad link keeps a warning; the link itself is as bad from there.
    return "fail" if link.get("reason") == "peer_refused" else str(link.get("verdict") or UNKNOWN)


def _link_reason(link: Mapping[str, Any]) -> str:
    reasons = link.get("reasons") or []
    return str(reasons[0]) if link.get("reason") == "peer_refused" and reasons else str(link.get("reason"))


def _worst_figures(links: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        key: max((link[key] for link in links if link.get(key) is not None), default=None) for key in _WORST
    }


def _pair_key(pair: Mapping[str, Any]) -> tuple[tuple[str, ...], int]:
    return tuple(sorted(pair.get("nodes") or [])), int(pair.get("link") or 0)


def _pair_drift(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> dict[str, Any] | None:
    """How the p99 of a link differs from the last report; None without two measurements of it."""
    if not before or before.get("time") == now["time"] or now["kept"]:
        return None
    old, new = before.get("rtt_p99_ms"), now["rtt_p99_ms"]
    if old is None or new is None:
        return None
    percent = round(100 * (new - old) / old, 1) if old else None
    return {
        "since": before["time"],
        "rtt_p99_ms_before": old,
        "rtt_p99_ms_change_percent": percent,
        "notable": abs(new - old) >= DRIFT_MS and (percent is None or abs(percent) >= DRIFT_PERCENT),
        "message": f"since {before['time']}: RTT p99 {number_text(old)} to {number_text(new)} ms",
    }


def _disk_advice(disk: Mapping[str, Any]) -> str:
    if disk["reason"] != "slow":
        return _DISK_ADVICE.get(str(disk["reason"]), "")
    if any(each.get("transport") == "virtio" for each in disk["drives"]) or disk["transport"] == "virtio":
        return "this disk is virtual: look at the host's disk, at limits set on it, and at what else writes there"
    return _SLOW_ADVICE.get(
        str(disk["class"]),
        "look for what else writes to the disk (iostat -x 1) and at its health (smartctl -x)",
    )


def _disk_row(name: str, disk: Mapping[str, Any]) -> tuple[str, ...]:
    appended = disk["methods"].get("fdatasync") or disk
    rate = number_text(disk["fsyncs_per_second"])
    if disk["fsyncs_per_second"] is not None and disk["fsyncs_per_second_interval"]:
        low, high = disk["fsyncs_per_second_interval"]
        rate += f" ({number_text(low)}-{number_text(high)})"
    age = age_text(disk)
    return (
        text_table.clean(name),
        rate,
        *(number_text(appended.get(key)) for key in ("p50_ms", "p99_ms", "p99_9_ms")),
        text_table.clean(disk["class"] or UNKNOWN).replace("ssd-with-power-loss-protection", "ssd+plp"),
        text_table.clean(drive(disk) or UNKNOWN),
        verdict_text(disk["verdict"], disk["reason"]) + (f", {age}" if age else ""),
    )


def _pair_rows(pairs: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """One row for each link that is not well, and one with the worst values of all that are."""
    well = [pair for pair in pairs if pair["verdict"] == "pass"]
    if len(well) == 1:
        well = []
    rows = [
        _pair_row(" - ".join(pair["nodes"]), [pair], verdict_text(pair["verdict"], pair["reason"]))
        for pair in pairs
        if not well or pair["verdict"] != "pass"
    ]
    if well:
        rows.append(_pair_row(f"worst of {'the other' if rows else 'all'} {len(well)}", well, "pass"))
    return rows


def _pair_row(name: str, pairs: Sequence[Mapping[str, Any]], verdict: str) -> tuple[str, ...]:
    rest, load = _worst_figures(pairs), _worst_figures([pair["load"] for pair in pairs if pair["load"]])
    lost = [value for value in (rest["loss_percent"], load["loss_percent"]) if value is not None]
    figures = (
        rest["rtt_p99_ms"],
        load["rtt_p99_ms"],
        rest["rtt_max_ms"],
        rest["jitter_ms"],
        max(lost, default=None),
    )
    mtu = min((pair["path_mtu"] for pair in pairs if pair["path_mtu"]), default=None)
    ages = {age_text(pair) for pair in pairs} - {""}
    if ages:
        verdict += f", {next(iter(ages)) if len(ages) == 1 else 'some of earlier runs'}"
    return (
        text_table.clean(name),
        str(pairs[0]["link"]) if len(pairs) == 1 else "",
        *(number_text(value) for value in figures),
        UNKNOWN if mtu is None else str(mtu),
        verdict,
    )


def _notes(report: Mapping[str, Any]) -> list[tuple[str, list[tuple[int, str]]]]:
    """``[(heading, [(indent, sentence)])]``, what matters most first."""
    sections: list[tuple[str, list[tuple[int, str]]]] = []
    groups: dict[str, list[tuple[int, str]]] = {"Refused": [], "Failed": [], "Warnings": [], "Notes": []}
    for name, node in report["nodes"].items():
        if node["refused_for"]:
            group = "Refused"
        else:
            group = {"fail": "Failed", "warn": "Warnings"}.get(node["verdict"], "Notes")
        lines = [(1, text) for text in messages(name, node)]
        if lines and group != "Notes":
            lines += [(2, f"→ {text}") for text in advice(node)]
        groups[group] += lines
    for pair in report["pairs"]:
        if pair["drift"] and pair["drift"]["notable"]:
            groups["Notes"].append((1, f"{pair_name(pair)}: {pair['drift']['message']}"))
    sections += [(f"{heading}:", lines) for heading, lines in groups.items() if lines]
    tokens = [
        (1, f"{name}: {cluster['message']}{f' ({age_text(cluster)})' if cluster['kept'] else ''}")
        for name, cluster in report["clusters"].items()
    ]
    if tokens:
        sections.append(("Token timeout:", tokens))
    return sections


def messages(name: str, node: Mapping[str, Any]) -> list[str]:
    """What is to be said of a node: why it is not well, what is not known, what has drifted."""
    found: list[str] = []
    if node["plan"]["action"] == "refuse" and node["in_run"] is False and node["plan"]["reason"]:
        found.append(f"{name}: {node['plan']['reason']}")
    disk, links = node["disk"], node["links"]
    drift = disk["drift"] or {}
    if disk["verdict"] in ("fail", "warn") or disk["reason"] == "error":
        found.append(f"{name}: disk: {disk['message']}")
    elif drift.get("notable"):
        found.append(f"{name}: disk: {drift['message']}")
    if links["verdict"] in ("fail", "warn"):
        peers = [str(link["peer"]) for link in links["links"] if link.get("reason") == "peer_refused"]
        if peers:
            found.append(f"{name}: bad links to {', '.join(dict.fromkeys(peers))}, which is refused for them")
        own = [str(link["message"]) for link in links["links"] if link.get("reason") == "peer_refused"]
        # These name the node and the link themselves.
        found += [text for text in str(links["message"]).splitlines() if text not in own]
    elif links["verdict"] == UNKNOWN and links["reason"] not in (*NO_LINKS, "not_measured"):
        found.append(f"{name}: links not measured: {links['message']}")
    found += [f"{name}: {note}" for note in node["notes"]]
    return list(dict.fromkeys(found))
