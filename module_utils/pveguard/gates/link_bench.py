"""How good the network links of a node are: round-trip times, jitter, loss, reordering and path MTU.

ICMP echo from the node's own address of a link to the peer's: the peer's kernel answers, so nothing is started,
stored or changed there. Times are those of the kernel's receive stamps, so that a busy interpreter does not look
like a slow network.

The parts: ``measure`` sends and collects through a :class:`Wire` and knows no sockets; ``judge`` compares figures
with thresholds; ``bench`` puts them together for real addresses.
"""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ..base import node_name, stats
from ..base.run import Run
from ..base.run import run as real_run
from ..base.units import UNKNOWN, number_text
from . import icmp_wire
from .icmp_wire import Address, Event, IcmpWire, Wire

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
    interfaces = icmp_wire.local_addresses(run)
    entries = [_entry(pair) for pair in pairs]
    resolved = icmp_wire.resolve([name for pair in pairs for name in (pair.source, pair.target)], min(3.0, duration / 4))
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
            entry["interface_mtu"] = known[1] if known else probe.getsockopt(*icmp_wire.mtu_option(family))
    except OSError as error:
        return "no_route", error.strerror or str(error)
    wire.add(source, target)
    return None


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
        elif icmp_wire.neighbour_reachable(wire.target(index), run):
            reason, detail = "icmp_filtered", "its hardware address is known"
        else:
            reason, detail = "no_answer", f"{entry['sent']} ICMP echo requests"
        entry["obstacle"] = (reason, obstacle_text(reason, source, target, detail))


