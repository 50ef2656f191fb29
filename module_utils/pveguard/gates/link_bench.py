"""How good the network links of a node are: round-trip times, jitter, loss, reordering and path MTU.

ICMP echo from the node's own address of a link to the peer's: the peer's kernel answers, so nothing is started,
stored or changed there. Times are those of the kernel's receive stamps, so that a busy interpreter does not look
like a slow network.

The parts: ``measure`` sends and collects through a :class:`Wire` and knows no sockets; ``judge`` compares figures
with thresholds; ``bench`` puts them together for real addresses.
"""

from __future__ import annotations

import array
import errno
import ipaddress
import itertools
import json
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from ..base import node_name, stats
from ..base.errors import PveguardError
from ..base.run import CommandMissing, Run
from ..base.run import run as real_run
from ..base.units import UNKNOWN, number_text

DEFAULT_DURATION_S = 10.0
MIN_DURATION_S = 1.0
MAX_DURATION_S = 300.0

#: Seconds between two probes of one link, and probes a second over all links. The second bound is what an emulated
#: or busy node can send and stamp without delaying itself; beyond it each link gets fewer samples.
PROBE_INTERVAL_S = 0.02
MAX_PROBES_PER_SECOND = 250
#: Seconds between two packets to a peer that has not answered yet.
CONTACT_INTERVAL_S = 0.2
#: Bytes of a probe on the wire, IP header included: about a totem token.
PROBE_BYTES = 160

#: Load: bytes of a packet with its IP header (knet's largest packet on Ethernet is a little less than its MTU) and
#: packets a second over all links, 2.2 Mbit/s each way. Corosync itself needs little bandwidth.
DEFAULT_LOAD_BYTES = 1400
DEFAULT_LOAD_PACKETS_PER_SECOND = 200

#: The search for the path MTU: sizes tried in one round over all links, and copies of each.
SIZES_PER_ROUND = 200
SIZE_COPIES = 3
#: Seconds to wait for the answers of a round, beside what the link has shown to need: a busy node is no small MTU.
SIZE_WAIT_S = 0.2
#: Seconds of round-trip time (p99) beyond which silence says nothing about a size: the path MTU stays unknown.
SIZE_LONGEST_RTT_S = 0.25

#: Fewer lost packets than this never refuse a link: one is an accident.
MIN_LOST = 3
#: IPv6's minimum (RFC 8200). Smaller ones exist on IPv4 only, and no Ethernet has them.
SMALLEST_MTU = 1280

REST, LOAD, LOADED, SIZE = range(4)

_ICMP: dict[int, tuple[int, int, int]] = {
    # request, reply, header bytes before the payload (IP and ICMP)
    socket.AF_INET: (8, 0, 28),
    socket.AF_INET6: (128, 129, 48),
}


# --- thresholds and verdicts ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Thresholds:
    """What a link must keep to. Milliseconds and percent; above ``warn`` is a warning, above ``fail`` a refusal.

    Round-trip time: Proxmox's documentation asks for latencies below 5 ms and calls more than three nodes above
    10 ms unlikely to work; compared with the 99th percentile. Loss: it asks for less than 1 % in a multicast test.
    Jitter: half of the bounds of the round-trip time, pveguard's own choice. Reordering: only ever a warning, totem
    puts packets in order.
    """

    rtt_warn_ms: float = 5
    rtt_fail_ms: float = 10
    jitter_warn_ms: float = 2.5
    jitter_fail_ms: float = 5
    loss_warn_percent: float = 0.1
    loss_fail_percent: float = 1
    reorder_warn_percent: float = 1
    mtu_min: int = SMALLEST_MTU
    #: Verdict for a peer that is there and does not answer ICMP echo: ``fail`` or ``warn``.
    icmp_filtered: str = "fail"


@dataclass(frozen=True)
class Pair:
    """One link to one peer: addresses or names, as in ``corosync_links``."""

    peer: str
    link: int
    source: str
    target: str


_RANK = {"pass": 0, "warn": 1, "fail": 2}


def worst(verdicts: Sequence[str]) -> str:
    """The worst of ``pass``, ``warn``, ``fail``; ``pass`` of none."""
    return max(verdicts, key=_RANK.__getitem__, default="pass")


def judge(
    figures: Mapping[str, Any], thresholds: Thresholds, host: str = "this node", prefix: str = ""
) -> dict[str, Any]:
    """The verdict on one link: ``{verdict, reason, reasons, message}``.

    ``figures``: an entry of ``links`` of :func:`bench`. ``prefix`` is put before the names of thresholds, so that the
    message names the variables of a role. ``reason`` is that of the worst problem: ``ok``, ``loss``, ``rtt``,
    ``jitter``, ``mtu``, ``reordering``, or one that kept it from being measured: ``address_missing``,
    ``name_unknown``, ``families_differ``, ``no_route``, ``no_answer``, ``icmp_filtered``, ``not_sent``.
    """
    route = f"{figures['source']} -> {figures['target']}"
    if figures.get("interface"):
        route += f", {figures['interface']}"
    where = f"{host}: link {figures['link']} to {figures['peer']} ({route})"
    problems: list[tuple[str, str, str]] = []
    if figures.get("obstacle"):
        reason, text = figures["obstacle"]
        verdict = "fail"
        if reason == "icmp_filtered":
            verdict = thresholds.icmp_filtered
            text += f"; {prefix}icmp_filtered is '{verdict}'"
        problems.append((verdict, reason, text))
    else:
        problems += _figure_problems(figures, thresholds, prefix, "")
        if figures.get("load"):
            problems += _figure_problems(figures["load"], thresholds, prefix, " under load")
        problems += _mtu_problems(figures, thresholds, prefix)
    # Stable: the worst first, then in the order above.
    problems.sort(key=lambda problem: -_RANK[problem[0]])
    if not problems:
        shown = figures if figures["sent"] else figures["load"]
        seen = (
            f"p50 {_ms(shown['rtt_p50_ms'])}, p99 {_ms(shown['rtt_p99_ms'])}, "
            f"jitter {_ms(shown['jitter_ms'])}, loss {number_text(shown['loss_percent'])} %, "
            f"MTU {figures['path_mtu'] or UNKNOWN}"
        )
        return {"verdict": "pass", "reason": "ok", "reasons": [], "message": f"{where}: {seen}"}
    return {
        "verdict": problems[0][0],
        "reason": problems[0][1],
        "reasons": list(dict.fromkeys(reason for _, reason, _ in problems)),
        "message": f"{where}: " + "; ".join(text for _, _, text in problems),
    }


def _ms(value: float | None) -> str:
    return f"{number_text(value)} ms"


def _figure_problems(
    figures: Mapping[str, Any], thresholds: Thresholds, prefix: str, when: str
) -> list[tuple[str, str, str]]:
    problems: list[tuple[str, str, str]] = []
    if not figures["sent"]:
        return problems

    def compare(reason: str, seen: float, what: str, unit: str, name: str, may_fail: bool = True) -> None:
        fail = getattr(thresholds, f"{name}_fail_{unit}", None)
        warn = getattr(thresholds, f"{name}_warn_{unit}")
        sign = "%" if unit == "percent" else "ms"
        for verdict, bound in (("fail", fail), ("warn", warn)):
            if bound is None or seen <= bound or (verdict == "fail" and not may_fail):
                continue
            text = (
                f"{what} {number_text(seen)} {sign}{when}, wanted at most {number_text(bound)} {sign} "
                f"({prefix}{name}_{verdict}_{unit})"
            )
            problems.append((verdict, reason, text))
            return

    lost = f"lost {figures['lost']} of {figures['sent']} packets,"
    compare("loss", figures["loss_percent"], lost, "percent", "loss", figures["lost"] >= MIN_LOST)
    if figures["samples"]:
        compare("rtt", figures["rtt_p99_ms"], "round-trip time p99", "ms", "rtt")
        compare("jitter", figures["jitter_ms"], "jitter", "ms", "jitter")
        compare("reordering", figures["reordered_percent"], "reordered packets", "percent", "reorder")
    return problems


def _mtu_problems(figures: Mapping[str, Any], thresholds: Thresholds, prefix: str) -> list[tuple[str, str, str]]:
    seen, interface = figures["path_mtu"], figures["interface_mtu"]
    if seen is None:
        return []
    below = figures.get("path_mtu_below") or seen + 1
    exact = below == seen + 1
    shown = f"path MTU {seen}" if exact else f"path MTU from {seen} to {below - 1}"
    if below <= thresholds.mtu_min:
        return [("fail", "mtu", f"{shown}, wanted at least {thresholds.mtu_min} ({prefix}mtu_min)")]
    if interface and below <= interface:
        # knet goes on with such a path and says that performance may suffer, so it is no reason to refuse.
        text = (
            f"{shown}, but the interface says {interface}: set both ends and the switches between to the same MTU"
        )
        return [("warn", "mtu", text)]
    return []


def obstacle_text(reason: str, source: str, target: str, detail: str = "") -> str:
    """What keeps a link from being measured, and what helps."""
    texts = {
        "address_missing": f"{source} is not an address of this node; configure it, or correct corosync_links",
        "name_unknown": f"{detail or target} cannot be resolved to an address; correct corosync_links, DNS or /etc/hosts",
        "families_differ": "one address is IPv4 and the other IPv6; give both ends of a link the same kind in corosync_links",
        "no_route": f"no route to {target} from {source} ({detail}); is the interface up, are the addresses in one network?",
        "no_answer": (
            f"no answer to {detail}; is the peer up, and the cable, the switch and the VLAN right? "
            "If a firewall drops ICMP echo, allow it between these addresses"
        ),
        "icmp_filtered": (
            f"the peer is there ({detail}) but ICMP echo is filtered, so the link cannot be measured: allow ICMP echo "
            f"requests and replies between {source} and {target} on both nodes (Proxmox's firewall: macro Ping)"
        ),
        "not_sent": f"no packet could be sent: {detail}",
    }
    return texts[reason]


# --- measuring through a wire -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """Something that came back for a packet: an answer (``error`` empty) or an ICMP error.

    ``rtt`` in seconds. ``error``: ``too_big`` (with ``mtu`` or 0), ``prohibited`` or ``unreachable``.
    """

    index: int
    kind: int
    sequence: int
    rtt: float = 0.0
    error: str = ""
    mtu: int = 0


class Wire(Protocol):
    """Sends packets to numbered targets and gives what comes back. Time is monotonic, in seconds."""

    def now(self) -> float: ...

    def send(self, index: int, kind: int, sequence: int, size: int) -> str:
        """Send a packet of ``size`` bytes, IP header included. Empty, or why it could not be sent."""
        ...

    def receive(self, until: float) -> list[Event]:
        """What has come back; waits for the first of it, but no longer than ``until``."""
        ...


@dataclass
class _Series:
    """Probes of one kind on one link."""

    sent: int = 0
    highest: int = -1
    reordered: int = 0
    #: sequence -> round-trip time in seconds, in the order of arrival
    answers: dict[int, float] = field(default_factory=dict)

    def add(self, sequence: int, rtt: float) -> None:
        if sequence in self.answers or sequence >= self.sent:
            return  # a duplicate, or not ours
        self.answers[sequence] = rtt
        # RFC 4737: a packet is reordered when one that was sent after it has arrived before it.
        if sequence < self.highest:
            self.reordered += 1
        self.highest = max(self.highest, sequence)

    def figures(self) -> dict[str, Any]:
        times = [self.answers[sequence] * 1000 for sequence in sorted(self.answers)]
        ranked = sorted(times)
        lost = self.sent - len(times)
        return {
            "sent": self.sent,
            "samples": len(times),
            "lost": lost,
            "loss_percent": round(100 * lost / self.sent, 3) if self.sent else None,
            "rtt_p50_ms": round(stats.percentile(ranked, 0.5), 3) if ranked else None,
            "rtt_p99_ms": round(stats.percentile(ranked, 0.99), 3) if ranked else None,
            "rtt_max_ms": round(ranked[-1], 3) if ranked else None,
            "jitter_ms": round(stats.mean_difference(times), 3) if ranked else None,
            "reordered_percent": round(100 * self.reordered / len(times), 3) if times else None,
        }


@dataclass
class Seen:
    """What was seen of one link."""

    rest: _Series = field(default_factory=_Series)
    loaded: _Series = field(default_factory=_Series)
    #: Packets sent before the first answer: addresses are being resolved, so they are no loss.
    contacts: int = 0
    answered: bool = False
    path_mtu: int | None = None
    #: A packet of this size does not pass; path_mtu + 1 when the search was finished.
    path_mtu_below: int | None = None
    send_error: str = ""
    errors: dict[str, int] = field(default_factory=dict)
    # Of the search for the path MTU: the largest size that passed, the smallest that did not.
    passed: int = 0
    refused: int = 0

    def times(self) -> list[float]:
        """All round-trip times in seconds."""
        return [*self.rest.answers.values(), *self.loaded.answers.values()]

    def p99(self) -> float:
        """Their 99th percentile; only where there are some."""
        return stats.percentile(sorted(self.times()), 0.99)


@dataclass(frozen=True)
class Load:
    """A load on all links together: bytes with IP header, packets a second."""

    packet_bytes: int = DEFAULT_LOAD_BYTES
    packets_per_second: float = DEFAULT_LOAD_PACKETS_PER_SECOND


class _Session:
    """One measurement over a wire."""

    def __init__(self, wire: Wire, limits: Sequence[int]) -> None:
        self.wire = wire
        self.limits = limits
        self.seen = [Seen() for _ in limits]
        self._sizes: dict[tuple[int, int], int] = {}
        self._counter = itertools.count()

    def collect(self, until: float) -> None:
        """Take what comes until ``until``."""
        while True:
            for event in self.wire.receive(until):
                self._take(event)
            if self.wire.now() >= until:
                return

    def _take(self, event: Event) -> None:
        seen = self.seen[event.index]
        if event.error:
            seen.errors[event.error] = seen.errors.get(event.error, 0) + 1
            if event.error == "too_big" and event.kind == SIZE:
                size = self._sizes.get((event.index, event.sequence), 0)
                bound = event.mtu + 1 if event.mtu else size
                if bound > seen.passed:
                    seen.refused = min(seen.refused, bound)
            return
        seen.answered = True
        if event.kind == REST:
            seen.rest.add(event.sequence, event.rtt)
        elif event.kind == LOADED:
            seen.loaded.add(event.sequence, event.rtt)
        elif event.kind == SIZE:
            seen.passed = max(seen.passed, self._sizes.get((event.index, event.sequence), 0))

    def _send(self, index: int, kind: int, sequence: int, size: int) -> bool:
        error = self.wire.send(index, kind, sequence, min(size, self.limits[index]))
        if error:
            self.seen[index].send_error = error
        return not error

    def _contact(self, index: int) -> None:
        if self._send(index, SIZE, 0xFFFF, PROBE_BYTES):
            self.seen[index].contacts += 1

    def contact(self, until: float) -> None:
        """Let the addresses be resolved and sleeping interfaces wake, so that this counts as no loss."""
        while self.wire.now() < until and not all(seen.answered for seen in self.seen):
            for index, seen in enumerate(self.seen):
                if not seen.answered:
                    self._contact(index)
            step = min(until, self.wire.now() + CONTACT_INTERVAL_S)
            while self.wire.now() < step and not all(seen.answered for seen in self.seen):
                for event in self.wire.receive(step):
                    self._take(event)

    def probe(self, until: float, load: Load | None) -> None:
        """Send probes evenly to all links, beside a load when there is one."""
        count = len(self.seen)
        kind = LOADED if load else REST
        interval = max(PROBE_INTERVAL_S, count / MAX_PROBES_PER_SECOND)
        began = self.wire.now()
        due = [began + interval * index / count for index in range(count)]
        loadable = [index for index, seen in enumerate(self.seen) if seen.answered] if load else []
        load_interval = 1 / load.packets_per_second if load else 0.0
        load_due = began if loadable else float("inf")
        turn = 0
        while True:
            wake = min(*due, load_due, until)
            self.collect(wake)
            now = self.wire.now()
            if now >= until:
                return
            for index in range(count):
                if due[index] <= now:
                    seen = self.seen[index]
                    series = seen.loaded if load else seen.rest
                    if not seen.answered:
                        self._contact(index)
                    elif self._send(index, kind, series.sent & 0xFFFF, PROBE_BYTES):
                        series.sent += 1
                    # A node that cannot keep the pace sends fewer, and never a burst.
                    due[index] = max(due[index] + (interval if seen.answered else CONTACT_INTERVAL_S), now)
            if load and load_due <= now:
                self._send(loadable[turn % len(loadable)], LOAD, turn & 0xFFFF, load.packet_bytes)
                turn += 1
                load_due = max(load_due + load_interval, now)

    def find_mtu(self, until: float) -> None:
        """The largest packet that is seen to pass without being fragmented, on every link that answers."""
        indexes = [
            index
            for index, seen in enumerate(self.seen)
            if seen.times() and seen.p99() <= SIZE_LONGEST_RTT_S
        ]
        tried: dict[int, list[int]] = {}
        for index in indexes:
            self.seen[index].passed = PROBE_BYTES
            self.seen[index].refused = self.limits[index] + 1
            tried[index] = [self.limits[index]]
        while tried and self._try_sizes(tried, until) and self._await_sizes(tried, until):
            for index, sizes in tried.items():
                seen = self.seen[index]
                seen.refused = min([seen.refused, *(size for size in sizes if size > seen.passed)])
            open_links = [index for index in tried if self.seen[index].refused - self.seen[index].passed > 1]
            steps = min(16, max(2, SIZES_PER_ROUND // max(1, len(open_links))))
            tried = {index: _ladder(self.seen[index].passed, self.seen[index].refused, steps) for index in open_links}
        for index in indexes:
            seen = self.seen[index]
            seen.path_mtu, seen.path_mtu_below = seen.passed, max(seen.refused, seen.passed + 1)

    def _try_sizes(self, tried: Mapping[int, Sequence[int]], until: float) -> bool:
        """Send one round; False when the time ended before, so that its silence says nothing."""
        # Copies, because a lost packet is not one that is too large.
        for _ in range(SIZE_COPIES):
            for index, sizes in tried.items():
                for size in sizes:
                    if self.wire.now() >= until:
                        return False
                    sequence = next(self._counter) % 0xFFFF
                    self._sizes[index, sequence] = size
                    self._send(index, SIZE, sequence, size)
                    self.collect(self.wire.now() + 0.0005)
        return True

    def _await_sizes(self, tried: Mapping[int, Sequence[int]], until: float) -> bool:
        """Wait for the answers of one round: as long as the links have shown to need, at most half a second.

        False when the time ended before.
        """
        longest = max(self.seen[index].p99() for index in tried)
        end = self.wire.now() + min(0.5, SIZE_WAIT_S + 3 * longest)
        while self.wire.now() < min(end, until):
            if all(self.seen[index].passed >= max(sizes) for index, sizes in tried.items()):
                return True
            for event in self.wire.receive(min(end, until)):
                self._take(event)
        return end <= until


def _ladder(passed: int, refused: int, steps: int) -> list[int]:
    """Sizes evenly between one that passed and one that did not, and the last before that one.

    A router that reports its MTU has said which that is. None when there is nothing between.
    """
    width = refused - passed
    between = {passed + -(-width * step // (steps + 1)) for step in range(1, steps + 1)}
    return sorted(size for size in between | {refused - 1} if passed < size < refused)


def measure(wire: Wire, limits: Sequence[int], until: float, load: Load | None = None) -> list[Seen]:
    """Measure all targets of ``wire`` at once; ``limits`` are the MTUs of their interfaces. Ends by ``until``.

    A tenth of the time at most goes to the first contact, then the larger part to probes (with a load the last third
    of them), a fifth to the path MTU, in which late answers still arrive.
    """
    session = _Session(wire, limits)
    began = wire.now()
    total = until - began
    session.contact(began + min(1.0, 0.1 * total))
    probes_end = began + 0.8 * total
    if load:
        session.probe(probes_end - 0.25 * total, None)
        session.probe(probes_end, load)
    else:
        session.probe(probes_end, None)
    session.find_mtu(until)
    # Answers to the last probes of a link that is slow. One that is not there is not waited for twice.
    while wire.now() < until and any(
        series.answers and len(series.answers) < series.sent
        for seen in session.seen
        for series in (seen.rest, seen.loaded)
    ):
        for event in wire.receive(until):
            session._take(event)
    return session.seen


# --- real addresses ---------------------------------------------------------------------------------------------


def bench(
    pairs: Sequence[Pair],
    duration: float = DEFAULT_DURATION_S,
    *,
    load: Load | None = None,
    thresholds: Thresholds | None = None,
    host: str = "",
    prefix: str = "",
    run: Run = real_run,
) -> dict[str, Any]:
    """Measure ``pairs`` from this node, all at once, in at most ``duration`` seconds, and judge each.

    ``load``: in the last third of the time there is also a load on the links; None measures at rest. ``host`` is this
    node's name in messages, ``prefix`` goes before the names of thresholds in them.

    Returns ``verdict`` (the worst), ``reason`` and ``message`` (of the worst link; of all links that are not well),
    ``rtt_p99_ms`` (the highest), ``samples``, ``duration_seconds``, ``time``, ``kernel``, ``under_load`` and
    ``links``: for each pair ``peer link source target interface interface_mtu``, the figures at rest (``sent samples
    lost loss_percent rtt_p50_ms rtt_p99_ms rtt_max_ms jitter_ms reordered_percent path_mtu``), ``load`` (the same
    figures under load, or None) and its ``verdict reason reasons message``. Figures that could not be had are None.

    Never raises for what the network does; raises :class:`PveguardError` without the right to send ICMP.
    """
    began = time.monotonic()
    thresholds = thresholds or Thresholds()
    host = host or node_name.own()
    interfaces = local_addresses(run)
    entries = [_entry(pair) for pair in pairs]
    resolved = resolve([name for pair in pairs for name in (pair.source, pair.target)], min(3.0, duration / 4))
    # The last part is kept for asking whether silent peers are there at all.
    end = began + duration - min(1.0, 0.1 * duration)
    with IcmpWire() as wire:
        wired = []
        for pair, entry in zip(pairs, entries, strict=True):
            obstacle = _prepare(wire, pair, entry, resolved, interfaces)
            if obstacle:
                entry["obstacle"] = (obstacle[0], obstacle_text(obstacle[0], pair.source, pair.target, obstacle[1]))
            else:
                wired.append(entry)
        if wired:
            seen = measure(wire, [entry["interface_mtu"] for entry in wired], end, load)
            silent = []
            for index, (entry, one) in enumerate(zip(wired, seen, strict=True)):
                entry.update(one.rest.figures(), path_mtu=one.path_mtu, path_mtu_below=one.path_mtu_below)
                if load and one.loaded.sent:
                    entry["load"] = one.loaded.figures()
                if not one.times():
                    silent.append((index, entry, one))
            if silent:
                _name_silence(wire, silent, began + duration, run)
    for entry in entries:
        entry.update(judge(entry, thresholds, host, prefix))
        del entry["obstacle"], entry["path_mtu_below"]
    bad = [entry for entry in entries if entry["verdict"] != "pass"]
    verdict = worst([entry["verdict"] for entry in entries])
    first = next((entry for entry in bad if entry["verdict"] == verdict), None)
    p99 = max((entry["rtt_p99_ms"] for entry in entries if entry["rtt_p99_ms"] is not None), default=None)
    if bad:
        message = "\n".join(entry["message"] for entry in bad)
    else:
        message = f"{host}: links measured: {len(entries)}, highest p99 {_ms(p99)}"
    return {
        "verdict": verdict,
        "reason": first["reason"] if first else "ok",
        "message": message,
        "rtt_p99_ms": p99,
        "samples": sum(entry["samples"] for entry in entries),
        "duration_seconds": round(time.monotonic() - began, 3),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "kernel": os.uname().release,
        "under_load": load is not None,
        "links": entries,
    }


def _entry(pair: Pair) -> dict[str, Any]:
    return {
        **{item.name: getattr(pair, item.name) for item in fields(pair)},
        "interface": None,
        "interface_mtu": None,
        "path_mtu": None,
        "path_mtu_below": None,
        **_Series().figures(),
        "load": None,
        "obstacle": None,
    }


def _prepare(
    wire: IcmpWire,
    pair: Pair,
    entry: dict[str, Any],
    resolved: Mapping[str, list[Address]],
    interfaces: Mapping[str, tuple[str, int]],
) -> tuple[str, str] | None:
    """Give the wire one more target, or say what keeps it from being one: reason and detail."""
    for name in (pair.source, pair.target):
        if not resolved[name]:
            return "name_unknown", name
    both = [
        (source, target) for source in resolved[pair.source] for target in resolved[pair.target] if source[0] == target[0]
    ]
    if not both:
        return "families_differ", ""
    # Of a name with several addresses the one that is on this node.
    both.sort(key=lambda ends: ends[0][1][0] not in interfaces)
    source, target = both[0]
    known = interfaces.get(source[1][0])
    if known:
        entry["interface"] = known[0]
    family = source[0]
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(source[1])
            except OSError:
                return "address_missing", ""
            # Connecting a datagram socket sends nothing; it asks the kernel for a route. Port 9 is 'discard'.
            probe.connect((target[1][0], 9, *target[1][2:]))
            entry["interface_mtu"] = known[1] if known else probe.getsockopt(*_mtu_option(family))
    except OSError as error:
        return "no_route", error.strerror or str(error)
    wire.add(source, target)
    return None


def _mtu_option(family: int) -> tuple[int, int]:
    # linux/in.h IP_MTU, linux/in6.h IPV6_MTU
    return (socket.IPPROTO_IP, 14) if family == socket.AF_INET else (socket.IPPROTO_IPV6, 24)


def _name_silence(
    wire: IcmpWire, silent: Sequence[tuple[int, dict[str, Any], Seen]], until: float, run: Run
) -> None:
    """Tell a peer that is away from one whose answers are filtered."""
    knocks = {index: wire.knock(index) for index, _, _ in silent}
    heard = wire.await_knocks(knocks, until)
    for index, entry, seen in silent:
        source, target = entry["source"], entry["target"]
        if seen.contacts:
            asked = seen.contacts + seen.rest.sent
            entry.update(sent=asked, lost=asked, loss_percent=100.0)
        if seen.send_error and not seen.contacts:
            reason, detail = "not_sent", seen.send_error
        elif seen.errors.get("prohibited"):
            reason, detail = "icmp_filtered", "a firewall answered that it is prohibited"
        elif index in heard:
            reason, detail = "icmp_filtered", "it answers TCP"
        elif neighbour_reachable(wire.target(index), run):
            reason, detail = "icmp_filtered", "its hardware address is known"
        else:
            reason, detail = "no_answer", f"{entry['sent']} ICMP echo requests"
        entry["obstacle"] = (reason, obstacle_text(reason, source, target, detail))


#: Family and socket address.
Address = tuple[int, tuple[Any, ...]]


def resolve(names: Sequence[str], timeout: float) -> dict[str, list[Address]]:
    """The addresses of each name; none for one that is unknown or was not answered for in ``timeout`` seconds."""
    found: dict[str, list[Address]] = {name: [] for name in names}

    def look_up(name: str) -> None:
        try:
            answers = socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
        except (OSError, UnicodeError):
            return
        found[name] = [(int(answer[0]), answer[4]) for answer in answers if answer[0] in _ICMP]

    threads = []
    for name in found:
        try:
            ipaddress.ip_address(name.split("%")[0])
            look_up(name)
        except ValueError:
            # A name server that does not answer must not hold the measurement.
            thread = threading.Thread(target=look_up, args=(name,), daemon=True)
            thread.start()
            threads.append(thread)
    end = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return {name: list(addresses) for name, addresses in found.items()}


def local_addresses(run: Run = real_run) -> dict[str, tuple[str, int]]:
    """``{address: (interface, MTU)}`` of this node, from iproute2; empty when that is missing or fails."""
    found = {}
    for interface in _ip_json(run, "address", "show"):
        for address in interface.get("addr_info", []):
            if "local" in address:
                found[address["local"]] = (interface["ifname"], int(interface["mtu"]))
    return found


def neighbour_reachable(address: str, run: Run = real_run) -> bool:
    """Whether the kernel has just heard from the hardware of an address on a directly attached network.

    An entry from before is asked again 5 s after the first packet (``delay_first_probe_time`` of arp(7)), so a shorter
    measurement may not know it.
    """
    return any(
        "REACHABLE" in entry.get("state", [])
        for entry in _ip_json(run, "neighbour", "show", address.split("%")[0])
        if entry.get("lladdr")
    )


def _ip_json(run: Run, *arguments: str) -> list[dict[str, Any]]:
    try:
        result = run(["ip", "-json", *arguments], timeout=10)
        answer = json.loads(result.stdout) if result.ok and result.stdout.strip() else []
    except (CommandMissing, ValueError):
        return []
    return [entry for entry in answer if isinstance(entry, dict)]


_SO_TIMESTAMPNS = 35  # asm-generic/socket.h; not in the socket module
_TIMESPEC = struct.Struct("@ll")


class IcmpWire:
    """ICMP echo over raw sockets, one for each source address; IPv4 and IPv6."""

    def __init__(self) -> None:
        self._targets: list[tuple[Address, Address]] = []
        self._index: dict[tuple[str, str], int] = {}
        self._sockets: dict[tuple[int, str], socket.socket] = {}
        self._sent: dict[tuple[int, int, int], float] = {}
        # The two low bits of the identifier are the kind; the nonce tells our answers from those of another ping.
        self._identifier = int.from_bytes(os.urandom(2), "big") & 0xFFFC
        self._nonce = os.urandom(8)
        self._knocks: list[socket.socket] = []

    def __enter__(self) -> IcmpWire:
        return self

    def __exit__(self, *_: object) -> None:
        for opened in [*self._sockets.values(), *self._knocks]:
            opened.close()

    def add(self, source: Address, target: Address) -> int:
        """One more target; returns its index."""
        key = (source[0], source[1][0])
        if key not in self._sockets:
            self._sockets[key] = _raw_socket(source)
        self._targets.append((source, target))
        index = len(self._targets) - 1
        self._index[source[1][0], target[1][0]] = index
        return index

    def target(self, index: int) -> str:
        return str(self._targets[index][1][1][0])

    def now(self) -> float:
        return time.monotonic()

    def send(self, index: int, kind: int, sequence: int, size: int) -> str:
        source, target = self._targets[index]
        family = source[0]
        request, _, overhead = _ICMP[family]
        payload = self._nonce + bytes(max(0, size - overhead - len(self._nonce)))
        packet = struct.pack("!BBHHH", request, 0, 0, self._identifier | kind, sequence) + payload
        if family == socket.AF_INET:  # the kernel fills in the checksum of ICMPv6
            packet = packet[:2] + struct.pack("!H", checksum(packet)) + packet[4:]
        try:
            began = time.monotonic()
            self._sockets[family, source[1][0]].sendto(packet, (target[1][0], 0, *target[1][2:]))
        except OSError as error:
            return error.strerror or str(error)
        self._sent[index, kind, sequence] = began
        return ""

    def receive(self, until: float) -> list[Event]:
        events: list[Event] = []
        opened = list(self._sockets.values())
        while not events:
            left = until - time.monotonic()
            ready = select.select(opened, [], [], max(0.0, left))[0]
            for one in ready:
                events += self._drain(one)
            if left <= 0:
                break
        return events

    def _drain(self, opened: socket.socket) -> list[Event]:
        events = []
        source = opened.getsockname()[0]
        # Bounded, so that a flood of other packets cannot hold the sender.
        for _ in range(64):
            try:
                data, control, _, address = opened.recvmsg(65535, 128)
            except OSError:
                break
            event = self._parse(source, str(address[0]), data, _age(control), opened.family)
            if event:
                events.append(event)
        return events

    def _parse(self, source: str, sender: str, data: bytes, age: float, family: int) -> Event | None:
        came = time.monotonic() - age
        if family == socket.AF_INET:
            data = data[(data[0] & 15) * 4 :]
        if len(data) < 8:
            return None
        kind_of_icmp, code = data[0], data[1]
        if kind_of_icmp == _ICMP[family][1]:
            identifier, sequence = struct.unpack("!HH", data[4:8])
            index = self._index.get((source, sender))
            if index is None or identifier & 0xFFFC != self._identifier or data[8:16] != self._nonce:
                return None
            began = self._sent.get((index, identifier & 3, sequence))
            if began is None:
                return None
            return Event(index, identifier & 3, sequence, max(0.0, came - began))
        return self._parse_error(source, family, kind_of_icmp, code, data)

    def _parse_error(self, source: str, family: int, kind: int, code: int, data: bytes) -> Event | None:
        """An ICMP error; what it is about stands behind its header."""
        inner = data[8:]
        if family == socket.AF_INET:
            if len(inner) < 28 or inner[9] != socket.IPPROTO_ICMP:
                return None
            target, header = socket.inet_ntop(family, inner[16:20]), (inner[0] & 15) * 4
            # RFC 792, RFC 1812: type 3, code 4 fragmentation needed; 9, 10, 13 prohibited.
            error = "too_big" if (kind, code) == (3, 4) else "prohibited" if code in (9, 10, 13) else "unreachable"
            mtu = struct.unpack("!H", data[6:8])[0]
        else:
            if len(inner) < 48 or inner[6] != socket.IPPROTO_ICMPV6:
                return None
            target, header = socket.inet_ntop(family, inner[24:40]), 40
            # RFC 4443: type 2 packet too big; type 1, code 1 prohibited, 5 and 6 by policy.
            error = "too_big" if kind == 2 else "prohibited" if kind == 1 and code in (1, 5, 6) else "unreachable"
            mtu = struct.unpack("!I", data[4:8])[0]
        echo = inner[header : header + 8]
        index = self._index.get((source, target))
        if index is None or len(echo) < 8:
            return None
        identifier, sequence = struct.unpack("!HH", echo[4:8])
        if identifier & 0xFFFC != self._identifier:
            return None
        return Event(index, identifier & 3, sequence, error=error, mtu=mtu if error == "too_big" else 0)

    def knock(self, index: int) -> socket.socket | None:
        """Begin a TCP connection to the discard port, which nobody serves: a refusal proves that the peer is there.

        A port in use would prove it too, and leave a line in the peer's log.
        """
        source, target = self._targets[index]
        opened = socket.socket(source[0], socket.SOCK_STREAM)
        self._knocks.append(opened)
        opened.setblocking(False)
        try:
            opened.bind(source[1])
            opened.connect((target[1][0], 9, *target[1][2:]))
        except BlockingIOError:
            return opened
        except ConnectionRefusedError:
            return opened
        except OSError:
            return None
        return opened

    def await_knocks(self, knocks: Mapping[int, socket.socket | None], until: float) -> set[int]:
        """Those of ``knocks`` that were answered, with a connection or a refusal."""
        waiting = {opened: index for index, opened in knocks.items() if opened is not None}
        heard = set()
        while waiting and (left := until - time.monotonic()) > 0:
            for opened in select.select([], list(waiting), [], left)[1]:
                index = waiting.pop(opened)
                if opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in (0, errno.ECONNREFUSED):
                    heard.add(index)
        return heard


def _raw_socket(source: Address) -> socket.socket:
    family, address = source
    protocol = socket.IPPROTO_ICMP if family == socket.AF_INET else socket.IPPROTO_ICMPV6
    try:
        opened = socket.socket(family, socket.SOCK_RAW, protocol)
    except PermissionError as error:
        raise PveguardError(
            "ICMP cannot be sent without root (CAP_NET_RAW); log in as root, or set ansible_become: true"
        ) from error
    opened.setblocking(False)
    opened.bind(address)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    opened.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    # Only answers and errors; set bits of a filter are kept out. PMTUDISC_PROBE: never fragment, and ask the path
    # instead of what the kernel remembers of it (linux/in.h, linux/in6.h, linux/icmp.h).
    if family == socket.AF_INET:
        opened.setsockopt(255, 1, struct.pack("=I", 0xFFFFFFFF & ~(1 << 0 | 1 << 3)))  # SOL_RAW, ICMP_FILTER
        opened.setsockopt(socket.IPPROTO_IP, 10, 3)  # IP_MTU_DISCOVER
    else:
        words = [0xFFFFFFFF] * 8
        for number in (1, 2, 129):
            words[number >> 5] &= ~(1 << (number & 31))
        opened.setsockopt(socket.IPPROTO_ICMPV6, 1, struct.pack("=8I", *words))  # ICMP6_FILTER
        opened.setsockopt(socket.IPPROTO_IPV6, 23, 3)  # IPV6_MTU_DISCOVER
        opened.setsockopt(socket.IPPROTO_IPV6, 62, 1)  # IPV6_DONTFRAG
    return opened


def _age(control: Sequence[tuple[int, int, bytes]]) -> float:
    """Seconds since the kernel received a packet; 0 when it has no stamp or the clock was set meanwhile."""
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS and len(data) >= _TIMESPEC.size:
            seconds, nanoseconds = _TIMESPEC.unpack_from(data)
            age = time.time() - (seconds + nanoseconds / 1e9)
            return age if 0 <= age <= 1 else 0.0
    return 0.0


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    words = array.array("H", data)
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return socket.htons(~total & 0xFFFF)
