# SPDX-License-Identifier: Apache-2.0
"""Real packets between network namespaces. Nothing here asserts how fast this machine is: thresholds are far away."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.link_gate import network
from tests.link_gate.network import FAR, FAR6, NEAR, NEAR6, Faults, Network

pytestmark = pytest.mark.root
slow = pytest.mark.slow

#: So that a busy machine is no bad link.
LENIENT = {"rtt_warn_ms": 5000, "rtt_fail_ms": 5000, "jitter_warn_ms": 5000, "jitter_fail_ms": 5000}
BOTH = pytest.mark.parametrize(("near", "far"), [(NEAR, FAR), (NEAR6, FAR6)], ids=["IPv4", "IPv6"])


@pytest.fixture(scope="module")
def clean() -> Iterator[Network]:
    with network.veth("lgv") as made:
        yield made


@pytest.fixture(scope="module")
def _relay() -> Iterator[tuple[Network, Faults]]:
    faults = Faults()
    with network.relayed("lgr", faults) as made:
        yield made, faults


@pytest.fixture
def faulty(_relay: tuple[Network, Faults]) -> tuple[Network, Faults]:
    """The relay, with no faults yet."""
    made, faults = _relay
    faults.__dict__.update(Faults().__dict__)
    return made, faults


def only(result: dict[str, Any]) -> dict[str, Any]:
    (link,) = result["links"]
    assert (link["verdict"], link["reason"]) == (result["verdict"], result["reason"])
    assert isinstance(link, dict)
    return link


def bench_until(
    good: Callable[[dict[str, Any]], bool], durations: tuple[float, ...], made: Network, near: str, far: str, **options: Any
) -> dict[str, Any]:
    """The first result that had the time for what the test is about, or the last: on a busy machine few packets are sent
    in a second, and the relay is slow."""
    for duration in durations:
        result = made.bench((near, far), duration=duration, **options)
        if good(only(result)):
            break
    return result


@pytest.mark.slow
def test_a_clean_link_passes_with_and_without_load(clean: Network) -> None:
    for load in (False, True):
        result = clean.bench((NEAR, FAR), (NEAR6, FAR6), load=load, thresholds=LENIENT)
        assert result["verdict"] == "pass" and result["under_load"] is load
        for link in result["links"]:
            assert link["interface"] == "ring" and link["interface_mtu"] == link["path_mtu"] == 1500
            assert link["samples"] == link["sent"] > 0 and link["loss_percent"] == 0
            assert 0 < link["rtt_p50_ms"] <= link["rtt_p99_ms"] <= link["rtt_max_ms"] < 30_000, "milliseconds"
            assert (link["load"] is not None and link["load"]["samples"] > 0) is load


@pytest.mark.slow
def test_nothing_is_left(clean: Network) -> None:
    def sockets() -> str:
        command = ["ip", "netns", "exec", clean.far, "sh", "-c", "cat /proc/net/tcp /proc/net/raw /proc/net/udp"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    before = sockets()
    clean.bench((NEAR, FAR), duration=1)
    assert sockets() == before


@pytest.mark.slow
@BOTH
def test_a_delay_is_refused(faulty: tuple[Network, Faults], near: str, far: str) -> None:
    made, faults = faulty
    faults.delay_ms = 20
    result = made.bench((near, far), host="pve1", prefix="link_gate_")
    link = only(result)
    assert result["verdict"] == "fail" and "rtt" in link["reasons"]
    assert 40 <= link["rtt_p50_ms"] < 30_000, "milliseconds"
    for part in ("pve1", "far0", near, far, "wanted at most 10 ms", "link_gate_rtt_fail_ms"):
        assert part in result["message"]


@slow
@BOTH
def test_loss_is_refused(faulty: tuple[Network, Faults], near: str, far: str) -> None:
    made, faults = faulty
    faults.lose_every = 20
    result = bench_until(
        lambda link: link["lost"] >= 3 and link["path_mtu"] == 1500, (3, 10, 30), made, near, far, thresholds=LENIENT
    )
    link = only(result)
    assert (result["verdict"], result["reason"]) == ("fail", "loss")
    assert link["lost"] >= 3 and 2 < link["loss_percent"] < 12
    assert link["path_mtu"] == 1500


@slow
def test_delay_and_two_percent_of_loss_are_both_named(faulty: tuple[Network, Faults]) -> None:
    made, faults = faulty
    faults.delay_ms, faults.lose_every = 20, 50
    result = bench_until(lambda link: "loss" in link["reasons"], (12, 40), made, NEAR, FAR, prefix="link_gate_")
    assert result["verdict"] == "fail"
    assert {"rtt", "loss"} <= set(only(result)["reasons"])
    assert "link_gate_rtt_fail_ms" in result["message"] and "link_gate_loss_fail_percent" in result["message"]


@slow
@BOTH
def test_a_smaller_mtu_in_the_path(faulty: tuple[Network, Faults], near: str, far: str) -> None:
    """A switch that drops what is too large and says nothing."""
    made, faults = faulty
    faults.mtu = 1400

    def searched(link: dict[str, Any]) -> bool:
        assert link["path_mtu"] is None or link["path_mtu"] <= 1400
        return bool(link["path_mtu"] == 1400)

    result = bench_until(searched, (8, 20, 60), made, near, far, thresholds=LENIENT)
    # Exact where there is time; on a busy machine the last bytes of the search may be missing.
    assert 1300 < (only(result)["path_mtu"] or 0) <= 1400
    assert (result["verdict"], result["reason"]) == ("warn", "mtu")
    result = bench_until(searched, (8, 20, 60), made, near, far, thresholds={**LENIENT, "mtu_min": 1450})
    assert (result["verdict"], result["reason"]) == ("fail", "mtu")


@slow
@pytest.mark.parametrize(("near", "far"), [(NEAR, "10.99.9.2"), (NEAR6, "fd99:9::2")], ids=["IPv4", "IPv6"])
def test_a_router_with_a_smaller_mtu(near: str, far: str) -> None:
    """It reports it, and would cut what may be cut; what the kernel remembers of it does not count."""
    with network.routed("lgm", 1400) as made:
        for _ in range(2):
            result = bench_until(
                lambda link: link["path_mtu"] == 1400, (8, 20, 60), made, near, far, thresholds=LENIENT
            )
            assert 1300 < (only(result)["path_mtu"] or 0) <= 1400
            assert (result["verdict"], result["reason"]) == ("warn", "mtu")


@slow
def test_reordering(faulty: tuple[Network, Faults]) -> None:
    made, faults = faulty
    faults.hold_every = 10
    result = bench_until(
        lambda link: link["reason"] == "reordering", (3, 10, 30), made, NEAR, FAR, thresholds=LENIENT
    )
    assert (result["verdict"], result["reason"]) == ("warn", "reordering")
    assert only(result)["reordered_percent"] > 2


@slow
@BOTH
def test_filtered_on_the_way(faulty: tuple[Network, Faults], near: str, far: str) -> None:
    made, faults = faulty
    faults.drop_icmp = True
    result = made.bench((near, far), thresholds={"icmp_filtered": "warn"}, prefix="link_gate_")
    assert (result["verdict"], result["reason"]) == ("warn", "icmp_filtered")
    assert only(made.bench((near, far)))["verdict"] == "fail"
    for part in ("the peer is there (it answers TCP)", "allow ICMP echo", near, far, "link_gate_icmp_filtered"):
        assert part in result["message"]
    faults.drop_tcp = True
    # The kernel asks the hardware again after 5 s (delay_first_probe_time).
    result = bench_until(lambda link: link["reason"] == "icmp_filtered", (8, 20), made, near, far)
    assert result["reason"] == "icmp_filtered" and "its hardware address is known" in result["message"]


@slow
def test_filtered_by_the_peer(clean: Network) -> None:
    clean.sysctl(clean.far, "ipv4/icmp_echo_ignore_all", "1")
    try:
        assert only(clean.bench((NEAR, FAR)))["reason"] == "icmp_filtered"
    finally:
        clean.sysctl(clean.far, "ipv4/icmp_echo_ignore_all", "0")


@slow
@pytest.mark.parametrize(
    ("near", "far", "reason"),
    [
        (NEAR, "10.99.7.99", "no_answer"),
        (NEAR6, "fd99:7::99", "no_answer"),
        (NEAR, "10.98.0.1", "no_route"),
        (NEAR6, "fd98::1", "no_route"),
        ("10.99.7.77", FAR, "address_missing"),
        ("no-such-name.invalid", FAR, "name_unknown"),
        (NEAR, FAR6, "families_differ"),
    ],
)
def test_what_cannot_be_measured_has_a_verdict(clean: Network, near: str, far: str, reason: str) -> None:
    result = clean.bench((near, far))
    assert (result["verdict"], result["reason"]) == ("fail", reason)
    link = only(result)
    assert link["rtt_p99_ms"] is None and link["path_mtu"] is None
    assert near in result["message"] or far in result["message"]


@slow
def test_a_bad_link_does_not_hide_a_good_one(clean: Network) -> None:
    result = clean.bench((NEAR, FAR), (NEAR, "10.99.7.99"), ("10.99.7.77", FAR), thresholds=LENIENT)
    assert [link["reason"] for link in result["links"]] == ["ok", "no_answer", "address_missing"]
    assert result["links"][0]["samples"] > 0


@slow
def test_an_interface_that_is_down() -> None:
    with network.veth("lgd") as made:
        network.ip("-n", made.near, "link", "set", "ring", "down")
        for near, far in ((NEAR, FAR), (NEAR6, FAR6)):
            # IPv6 addresses go with the interface, IPv4 ones stay.
            assert only(made.bench((near, far)))["reason"] in ("no_route", "address_missing")
