# SPDX-License-Identifier: Apache-2.0
"""Measuring over a wire with a clock of its own, and the verdicts on what was measured."""

from __future__ import annotations

import heapq
import random
import socket
import struct
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
from ansible.module_utils.pveguard.base import stats
from ansible.module_utils.pveguard.base.run import Result
from ansible.module_utils.pveguard.gates import icmp_wire, link_bench
from ansible.module_utils.pveguard.gates.link_bench import LOAD, LOADED, REST, Event, Load, Thresholds

#: What a target does with a packet: (kind, number of the packet, size) -> round-trip time in seconds, None when lost.
Behaviour = Callable[[int, int, int], float | None]


class FakeWire:
    """Time passes only while waiting, and a little with each packet sent."""

    def __init__(self, *targets: Behaviour, send_cost: float = 0.00005) -> None:
        self.targets = targets
        self.send_cost = send_cost
        self.time = 1000.0
        self.sent: list[tuple[float, int, int, int]] = []
        self._coming: list[tuple[float, int, Event]] = []

    def now(self) -> float:
        return self.time

    def send(self, index: int, kind: int, sequence: int, size: int) -> str:
        self.time += self.send_cost
        number = sum(1 for _, to, of, _ in self.sent if to == index and of == kind)
        self.sent.append((self.time, index, kind, size))
        rtt = self.targets[index](kind, number, size)
        if rtt is not None:
            event = Event(index, kind, sequence, rtt)
            heapq.heappush(self._coming, (self.time + rtt, len(self.sent), event))
        return ""

    def receive(self, until: float) -> list[Event]:
        if self._coming and self._coming[0][0] <= max(until, self.time):
            at, _, event = heapq.heappop(self._coming)
            self.time = max(self.time, at)
            return [event]
        self.time = max(self.time, until)
        return []


def steady(rtt: float = 0.0003, mtu: int = 1500) -> Behaviour:
    return lambda kind, number, size: rtt if size <= mtu else None


def judged(seen: link_bench.Seen, interface_mtu: int = 1500, **thresholds: Any) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "peer": "pve2",
        "link": 0,
        "source": "10.0.0.1",
        "target": "10.0.0.2",
        "interface": "eth1",
        "interface_mtu": interface_mtu,
        "path_mtu": seen.path_mtu,
        "path_mtu_below": seen.path_mtu_below,
        "load": seen.loaded.figures() if seen.loaded.sent else None,
        **seen.rest.figures(),
    }
    return figures | link_bench.judge(figures, Thresholds(**thresholds), "pve1", "link_gate_")


def test_percentiles_are_nearest_rank() -> None:
    ranked = [float(n) for n in range(1, 101)]
    assert [stats.percentile(ranked, share) for share in (0, 0.5, 0.9, 0.99, 0.999, 1)] == [1, 50, 90, 99, 100, 100]
    assert stats.percentile([7.0], 0.5) == 7.0


def test_jitter_is_the_mean_difference_of_neighbours() -> None:
    assert stats.mean_difference([1, 3, 2, 2]) == pytest.approx(1.0)
    assert stats.mean_difference([5]) == 0.0


def test_a_clean_link() -> None:
    wire = FakeWire(steady())
    (seen,) = link_bench.measure(wire, [1500], wire.now() + 10)
    result = judged(seen)
    assert (result["verdict"], result["reason"]) == ("pass", "ok")
    assert result["samples"] == result["sent"] > 300 and result["lost"] == 0
    assert result["rtt_p50_ms"] == result["rtt_p99_ms"] == pytest.approx(0.3, abs=0.01)
    assert result["jitter_ms"] == 0 and result["reordered_percent"] == 0
    assert seen.path_mtu == 1500
    assert "pve1: link 0 to pve2 (10.0.0.1 -> 10.0.0.2, eth1)" in result["message"]


def test_it_ends_in_time_whatever_comes_back() -> None:
    """And never sends more than it may, with 7 peers on 8 links."""
    for behaviour in (steady(), lambda *_: None, steady(0.4), steady(mtu=577)):
        wire = FakeWire(*[behaviour] * 56)
        link_bench.measure(wire, [1500] * 56, wire.now() + 10, Load())
        assert wire.now() <= 1010.1
        probes = [at for at, _, kind, _ in wire.sent if kind in (REST, LOADED)]
        assert len(probes) <= link_bench.MAX_PROBES_PER_SECOND * 10
    slow_node = FakeWire(*[steady()] * 8, send_cost=0.05)
    link_bench.measure(slow_node, [1500] * 8, slow_node.now() + 10, Load())
    assert slow_node.now() <= 1015


@pytest.mark.parametrize("rtt_ms", [6, 40])
def test_a_slow_link(rtt_ms: float) -> None:
    wire = FakeWire(steady(rtt_ms / 1000))
    (seen,) = link_bench.measure(wire, [1500], wire.now() + 10)
    result = judged(seen)
    level = "fail" if rtt_ms == 40 else "warn"
    assert (result["verdict"], result["reason"]) == (level, "rtt")
    for part in (f"{rtt_ms} ms", f"link_gate_rtt_{level}_ms", "pve2", "link 0", "wanted at most"):
        assert part in result["message"]


def test_the_slow_packets_count_not_the_average() -> None:
    """Three of a hundred take 40 ms: the median does not see them, the token does."""
    wire = FakeWire(lambda kind, number, size: 0.04 if number % 33 == 32 else 0.0003)
    (seen,) = link_bench.measure(wire, [1500], wire.now() + 10)
    result = judged(seen)
    assert result["rtt_p50_ms"] < 1 and result["rtt_p99_ms"] == pytest.approx(40, abs=1) == result["rtt_max_ms"]
    assert (result["verdict"], result["reason"]) == ("fail", "rtt")


def test_loss() -> None:
    chance = random.Random(4)
    wire = FakeWire(lambda kind, number, size: None if chance.random() < 0.02 else 0.0003)
    (seen,) = link_bench.measure(wire, [1500], wire.now() + 20)
    result = judged(seen)
    assert (result["verdict"], result["reason"]) == ("fail", "loss")
    assert 1 < result["loss_percent"] < 4 and "link_gate_loss_fail_percent" in result["message"]
    assert seen.path_mtu == 1500, "a lost packet is not one that is too large"


def test_two_lost_packets_are_an_accident() -> None:
    wire = FakeWire(lambda kind, number, size: None if kind == REST and number in (20, 40) else 0.0003)
    (seen,) = link_bench.measure(wire, [1500], wire.now() + 3)
    result = judged(seen)
    assert result["lost"] == 2 and result["loss_percent"] > 1
    assert (result["verdict"], result["reason"]) == ("warn", "loss")


def test_the_first_contact_is_no_loss() -> None:
    """The first packets wait for the peer's hardware address, and may be dropped meanwhile."""
    wire = FakeWire(lambda kind, number, size: None if wire.time < 1001.5 else 0.0003)
    (seen,) = link_bench.measure(wire, [1500], wire.now() + 10)
    result = judged(seen)
    assert (result["verdict"], result["lost"]) == ("pass", 0) and result["samples"] > 100


def test_jitter_and_reordering() -> None:
    """Every fourth answer takes 45 ms: more than two intervals, so that two others overtake it."""
    wire = FakeWire(lambda kind, number, size: 0.045 if number % 4 == 3 else 0.0003)
    (seen,) = link_bench.measure(wire, [1500], wire.now() + 10)
    result = judged(seen, rtt_fail_ms=1000, rtt_warn_ms=1000)
    assert result["reasons"] == ["jitter", "reordering"] and result["verdict"] == "fail"
    assert result["reordered_percent"] == pytest.approx(25, abs=1)
    assert result["jitter_ms"] == pytest.approx(44.7 / 2, abs=1)


def test_a_duplicate_counts_once() -> None:
    series = link_bench._Series(sent=3)
    for sequence in (0, 2, 2, 1, 1, 7):
        series.add(sequence, 0.001)
    assert series.figures()["samples"] == 3
    assert series.reordered == 1


@pytest.mark.parametrize("mtu", [160, 576, 1280, 1399, 1400, 1472, 1492, 1499, 1500])
@pytest.mark.parametrize("limit", [1500, 9000])
def test_path_mtu_is_found_exactly(mtu: int, limit: int) -> None:
    wire = FakeWire(steady(mtu=mtu))
    (seen,) = link_bench.measure(wire, [limit], wire.now() + 10)
    assert seen.path_mtu == mtu


def test_path_mtu_of_a_link_whose_answers_take_long_is_not_guessed() -> None:
    """A starved node: what has not come back after half a second was not too large."""
    wire = FakeWire(lambda kind, number, size: 0.7)
    (seen,) = link_bench.measure(wire, [1500], wire.now() + 10)
    assert seen.times() and seen.path_mtu is None
    assert judged(seen)["reason"] == "rtt"


def test_path_mtu_that_routers_report() -> None:
    class Router(FakeWire):
        def send(self, index: int, kind: int, sequence: int, size: int) -> str:
            if size > 1420:
                super().send(index, kind, sequence, size)
                error = Event(index, kind, sequence, error="too_big", mtu=1420)
                heapq.heappush(self._coming, (self.time + 0.001, -len(self.sent), error))
                return ""
            return super().send(index, kind, sequence, size)

    wire = Router(steady(mtu=1420))
    (seen,) = link_bench.measure(wire, [1500], wire.now() + 10)
    assert seen.path_mtu == 1420


def test_a_search_that_was_not_finished_accuses_nobody() -> None:
    """All links have a smaller MTU, and there is hardly time: what is said of each is true."""
    lan, far = 0.0003, 0.15
    cases = [(1, lan, 56), (2, lan, 56), (10, lan, 56), (10, lan, 14), (1, far, 1), (2, far, 2), (3, far, 5)]
    for total, rtt, links in cases:
        wire = FakeWire(*[steady(rtt, mtu=1400)] * links)
        every = link_bench.measure(wire, [1500] * links, wire.now() + total)
        assert wire.now() <= 1000.01 + total
        for seen in every:
            assert seen.path_mtu is not None and seen.path_mtu_below is not None
            assert seen.path_mtu <= 1400 < seen.path_mtu_below
            result = judged(seen, rtt_fail_ms=999, rtt_warn_ms=999, loss_fail_percent=99, loss_warn_percent=99)
            assert result["verdict"] == "warn" or seen.path_mtu_below == 1501
            if total == 10 and links == 14:
                assert seen.path_mtu == 1400


def test_an_answer_that_could_not_arrive_in_time_is_no_refusal() -> None:
    wire = FakeWire(steady(0.25))
    (seen,) = link_bench.measure(wire, [1500], wire.now() + 1)
    assert seen.path_mtu_below == 1501
    assert "mtu" not in judged(seen)["reasons"]


def test_mtu_verdicts() -> None:
    seen = link_bench.Seen(path_mtu=1400)
    seen.rest.sent = 1
    seen.rest.add(0, 0.001)
    result = judged(seen)
    assert (result["verdict"], result["reason"]) == ("warn", "mtu")
    assert "1400" in result["message"] and "1500" in result["message"]
    result = judged(seen, mtu_min=1500)
    assert (result["verdict"], result["reason"]) == ("fail", "mtu") and "link_gate_mtu_min" in result["message"]


def test_load_is_bounded_and_judged_apart() -> None:
    """A link that is only slow while it is loaded."""
    wire = FakeWire(lambda kind, number, size: 0.03 if kind == LOADED else 0.0003, steady())
    slow, sound = link_bench.measure(wire, [1500, 1300], wire.now() + 12, Load(1400, 200))
    load = [(at, index, size) for at, index, kind, size in wire.sent if kind == LOAD]
    assert 0.9 * 600 < len(load) <= 601
    assert load[0][0] >= 1000 + 0.5 * 12, "first the links are measured at rest"
    assert {(index, size) for _, index, size in load} == {(0, 1400), (1, 1300)}
    assert judged(sound, 1300)["verdict"] == "pass" and sound.loaded.sent > 50
    result = judged(slow)
    assert result["verdict"] == "fail" and "under load" in result["message"]
    assert result["rtt_p99_ms"] < 1 and result["load"]["rtt_p99_ms"] == pytest.approx(30, abs=1)


def test_at_rest_there_is_no_load() -> None:
    wire = FakeWire(steady())
    link_bench.measure(wire, [1500], wire.now() + 5)
    assert {kind for _, _, kind, _ in wire.sent} == {REST, link_bench.SIZE}


def test_a_peer_that_is_away_gets_few_packets() -> None:
    wire = FakeWire(lambda *_: None, steady())
    away, here = link_bench.measure(wire, [1500, 1500], wire.now() + 10)
    assert not away.times() and away.path_mtu is None and here.rest.sent > 300
    assert away.contacts < 60


@pytest.mark.parametrize(
    "reason", ["address_missing", "name_unknown", "families_differ", "no_route", "no_answer", "icmp_filtered", "not_sent"]
)
def test_obstacles(reason: str) -> None:
    figures: dict[str, Any] = {"peer": "pve2", "link": 1, "source": "10.0.0.1", "target": "10.0.0.2"}
    figures["obstacle"] = (reason, link_bench.obstacle_text(reason, "10.0.0.1", "10.0.0.2", "some detail"))
    result = link_bench.judge(figures, Thresholds(), "pve1", "link_gate_")
    assert (result["verdict"], result["reason"]) == ("fail", reason)
    assert result["message"].startswith("pve1: link 1 to pve2 (10.0.0.1 -> 10.0.0.2): ")
    result = link_bench.judge(figures, Thresholds(icmp_filtered="warn"), "pve1", "link_gate_")
    assert result["verdict"] == ("warn" if reason == "icmp_filtered" else "fail")
    if reason == "icmp_filtered":
        assert "link_gate_icmp_filtered" in result["message"]


def test_the_worst_problem_comes_first() -> None:
    wire = FakeWire(lambda kind, number, size: None if number % 20 == 19 else 0.007)
    (seen,) = link_bench.measure(wire, [1500], wire.now() + 10)
    result = judged(seen)
    assert (result["verdict"], result["reasons"]) == ("fail", ["loss", "rtt"])


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x08\x00\x00\x00\x12\x34\x00\x01abcdefg", bytes(range(256)) * 5])
def test_checksum_is_that_of_rfc_1071(data: bytes) -> None:
    padded = data + b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert icmp_wire.checksum(data) == ~total & 0xFFFF


def test_strangers_packets_are_ignored() -> None:
    wire = icmp_wire.IcmpWire()
    wire._index["10.0.0.1", "10.0.0.2"] = 0
    wire._sent[0, REST, 5] = 0.0
    ipv4 = b"\x45" + bytes(19)

    def reply(identifier: int, nonce: bytes, kind: int = 0) -> bytes:
        return ipv4 + struct.pack("!BBHHH", kind, 0, 0, identifier, 5) + nonce

    def parse(data: bytes, sender: str = "10.0.0.2") -> Event | None:
        return wire._parse("10.0.0.1", sender, data, 0.0, socket.AF_INET)

    ours = parse(reply(wire._identifier | REST, wire._nonce))
    assert ours is not None and (ours.index, ours.kind, ours.sequence) == (0, REST, 5)
    assert parse(reply(wire._identifier ^ 0x8000, wire._nonce)) is None
    assert parse(reply(wire._identifier | REST, b"x" * 8)) is None
    assert parse(reply(wire._identifier | REST, wire._nonce), sender="10.0.0.3") is None
    assert parse(reply(wire._identifier | LOADED, wire._nonce)) is None, "never sent"
    for cut in range(len(ipv4) + 16):
        assert parse(reply(wire._identifier | REST, wire._nonce)[: max(1, cut)]) is None


def test_icmp_errors_are_told_apart() -> None:
    wire = icmp_wire.IcmpWire()
    wire._index["10.0.0.1", "10.0.0.2"] = 0
    inner = bytearray(b"\x45" + bytes(19) + struct.pack("!BBHHH", 8, 0, 0, wire._identifier | REST, 9))
    inner[9] = 1
    inner[16:20] = socket.inet_aton("10.0.0.2")
    for code, error, mtu in ((4, "too_big", 1400), (13, "prohibited", 0), (1, "unreachable", 0)):
        data = b"\x45" + bytes(19) + struct.pack("!BBHHH", 3, code, 0, 0, mtu) + bytes(inner)
        event = wire._parse("10.0.0.1", "10.0.0.254", data, 0.0, socket.AF_INET)
        assert event == Event(0, REST, 9, error=error, mtu=mtu)


def test_neighbours_and_addresses_are_those_of_iproute2() -> None:
    calls = []
    neighbour = '[{"dst":"10.0.0.2","dev":"eth1","lladdr":"52:54:00:12:34:56","state":["%s"]}]'

    def run(argv: Any, **_: Any) -> Result:
        calls.append(list(argv))
        if "address" in argv:
            text = (
                '[{"ifindex":2,"ifname":"eth1","mtu":1500,"addr_info":[{"family":"inet","local":"10.0.0.1","prefixlen":24},'
                '{"family":"inet6","local":"fd00::1"}]},{"ifname":"dummy","mtu":9000,"addr_info":[{}]},{}]'
            )
            return Result(0, text, "")
        return Result(0, neighbour % state, "")

    assert icmp_wire.local_addresses(run) == {"10.0.0.1": ("eth1", 1500), "fd00::1": ("eth1", 1500)}
    for state, reachable in (("REACHABLE", True), ("STALE", False), ("FAILED", False)):  # noqa: B007
        assert icmp_wire.neighbour_reachable("10.0.0.2", run) is reachable
    assert calls[:2] == [["ip", "-json", "address", "show"], ["ip", "-json", "neighbour", "show", "10.0.0.2"]]
    broken = Result(1, "", "Cannot open netlink socket")
    assert icmp_wire.local_addresses(lambda argv, **_: broken) == {}


def test_module_refuses_bounds_without_sense(run_module: Any) -> None:
    pairs = [{"peer": "b", "link": 0, "source": "127.0.0.1", "target": "127.0.0.1"}]
    assert "duration" in run_module("link_bench", pairs=pairs, duration=0.2)["msg"]
    assert "load_packets_per_second" in run_module("link_bench", pairs=pairs, load_packets_per_second=9999)["msg"]


def test_module_passes_its_thresholds_on(run_module: Any) -> None:
    """Every threshold of the core is an option of the module, with the same default."""
    import yaml

    from tests.loading import load_module

    module = load_module("link_bench")
    options = yaml.safe_load(module.DOCUMENTATION)["options"]
    assert {name: options[name]["default"] for name in asdict(Thresholds())} == asdict(Thresholds())
    assert options["duration"]["default"] == link_bench.DEFAULT_DURATION_S
    assert options["load_packets_per_second"]["default"] == link_bench.DEFAULT_LOAD_PACKETS_PER_SECOND
    assert options["load_packet_bytes"]["default"] == link_bench.DEFAULT_LOAD_BYTES


def test_module_without_the_right_to_send_says_what_helps(run_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket

    def refused(family: int = -1, kind: int = -1, *rest: Any) -> socket.socket:
        if kind == socket.SOCK_RAW:
            raise PermissionError(1, "Operation not permitted")
        return real(family, kind, *rest)

    monkeypatch.setattr(socket, "socket", refused)
    pairs = [{"peer": "b", "link": 0, "source": "127.0.0.1", "target": "127.0.0.1"}]
    result = run_module("link_bench", pairs=pairs, duration=1)
    assert result["failed"] and "ansible_become: true" in result["msg"]


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.parametrize("check", [False, True], ids=["run", "check"])
def test_module(run_module: Any, check: bool) -> None:
    """On the loopback interface, which every machine has."""
    pairs = [{"peer": "itself", "link": 0, "source": "127.0.0.1", "target": "127.0.0.2"}]
    arguments = {"pairs": pairs, "duration": 1, "_ansible_check_mode": check, "host": "pve1"}
    lenient = {"rtt_warn_ms": 9999, "rtt_fail_ms": 9999, "jitter_warn_ms": 9999, "jitter_fail_ms": 9999}
    result = run_module("link_bench", **arguments, **lenient)
    assert not result["changed"] and not result.get("failed") and result["verdict"] in ("pass", "warn")
    assert result["links"][0]["samples"] > 0
    strict = {**lenient, "rtt_fail_ms": 0, "rtt_warn_ms": 0, "threshold_prefix": "link_gate_"}
    refused = run_module("link_bench", **arguments, **strict)
    assert refused["failed"] and "link_gate_rtt_fail_ms" in refused["msg"] and refused["verdict"] == "fail"
    warned = run_module("link_bench", enforce=False, **arguments, **strict)
    assert not warned.get("failed") and warned["verdict"] == "fail" and "pve1" in str(warned["warnings"])
