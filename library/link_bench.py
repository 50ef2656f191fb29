#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""How good the network links of a node are."""

from __future__ import annotations

DOCUMENTATION = r"""
module: link_bench
short_description: Measure latency, jitter, loss, reordering and path MTU of a node's links
description:
  - Sends ICMP echo requests from this node's address of each link to the peer's, over all links at once, and judges what
    comes back. The peers' kernels answer, nothing is started or left there.
  - Round-trip times are those of the kernel's receive stamps. The path MTU is the largest packet that is seen to pass
    without being fragmented.
  - A peer that does not answer is told from one whose answers are filtered by a refused TCP connection to port 9, or by
    its hardware address being known.
  - Needs root. Uses C(ip) of iproute2 for the names and MTUs of interfaces, and goes without where it is missing.
attributes:
  check_mode:
    support: full
    description: It measures in check mode too, and changes nothing. It never reports a change.
  diff_mode:
    support: none
    description: There is nothing to compare.
options:
  pairs:
    description: What to measure, one entry for each link and peer.
    type: list
    elements: dict
    required: true
    suboptions:
      peer:
        description: Name of the peer, for the message.
        type: str
        required: true
      link:
        description: Number of the link.
        type: int
        required: true
      source:
        description: This node's address on the link, or a name for it.
        type: str
        required: true
      target:
        description: The peer's address on the link, or a name for it.
        type: str
        required: true
  duration:
    description: How long to measure all of them, in seconds, 1 to 300.
    type: float
    default: 10
  load:
    description:
      - In the last third of the time put a load on the links too. For nodes that are not in a cluster yet; live members are
        measured at rest.
    type: bool
    default: false
  load_packets_per_second:
    description: Packets of the load a second, over all links together. 1 to 2000.
    type: float
    default: 200
  load_packet_bytes:
    description: Bytes of a packet of the load, IP header included. The MTU of the interface bounds it.
    type: int
    default: 1400
  rtt_warn_ms:
    description: A 99th percentile of the round-trip time above it is a verdict of V(warn).
    type: float
    default: 5
  rtt_fail_ms:
    description: Above it the verdict is V(fail).
    type: float
    default: 10
  jitter_warn_ms:
    description: Jitter above it is a verdict of V(warn).
    type: float
    default: 2.5
  jitter_fail_ms:
    description: Above it the verdict is V(fail).
    type: float
    default: 5
  loss_warn_percent:
    description: More lost packets are a verdict of V(warn).
    type: float
    default: 0.1
  loss_fail_percent:
    description: More lost packets are a verdict of V(fail), but fewer than three never.
    type: float
    default: 1
  reorder_warn_percent:
    description: More packets out of order are a verdict of V(warn).
    type: float
    default: 1
  mtu_min:
    description: A smaller path MTU is a verdict of V(fail). One below the interface's is V(warn).
    type: int
    default: 1280
  icmp_filtered:
    description: The verdict on a link that cannot be measured because ICMP echo is filtered.
    type: str
    choices: [fail, warn]
    default: fail
  host:
    description: Name of this node in messages. Its host name when empty.
    type: str
    default: ''
  threshold_prefix:
    description: Put before the names of thresholds in messages, so that they name the variables of a role.
    type: str
    default: ''
  enforce:
    description: Fail the task on a verdict of V(fail). Otherwise warn.
    type: bool
    default: true
author:
  - The pveguard authors
"""

EXAMPLES = r"""
- name: Measure one link to one peer
  link_bench:
    pairs:
      - {peer: pve2, link: 0, source: 198.51.100.11, target: 198.51.100.12}
  register: links

- name: Measure, under load as well, what the inventory says of this node
  link_bench:
    pairs: "{{ hostvars | pveguard_link_pairs(inventory_hostname) }}"
    load: true
    rtt_fail_ms: 2
    enforce: false
"""

RETURN = r"""
verdict:
  description: The worst of the links, V(pass), V(warn) or V(fail).
  returned: always
  type: str
reason:
  description: Reason of the worst link, see RV(links).
  returned: always
  type: str
message:
  description: One line for each link that is not well; one sentence when all are.
  returned: always
  type: str
rtt_p99_ms:
  description: The highest 99th percentile of the round-trip time at rest, in milliseconds; null when nothing answered.
  returned: always
  type: float
samples:
  description: Answers at rest, of all links.
  returned: always
  type: int
duration_seconds:
  description: How long it took.
  returned: always
  type: float
time:
  description: When it was measured (UTC, ISO 8601).
  returned: always
  type: str
kernel:
  description: Release of the kernel.
  returned: always
  type: str
under_load:
  description: Whether there was a load too.
  returned: always
  type: bool
links:
  description: One entry for each pair. Figures that could not be had are null.
  returned: always
  type: list
  elements: dict
  contains:
    peer:
      description: Name of the peer.
      type: str
    link:
      description: Number of the link.
      type: int
    source:
      description: This node's address.
      type: str
    target:
      description: The peer's address.
      type: str
    interface:
      description: Interface that has the address.
      type: str
    interface_mtu:
      description: MTU of that interface.
      type: int
    sent:
      description: Probes sent at rest.
      type: int
    samples:
      description: Probes answered.
      type: int
    lost:
      description: Probes not answered.
      type: int
    loss_percent:
      description: Share of the lost ones.
      type: float
    rtt_p50_ms:
      description: Median round-trip time in milliseconds.
      type: float
    rtt_p99_ms:
      description: 99th percentile, nearest rank.
      type: float
    rtt_max_ms:
      description: Longest round-trip time.
      type: float
    jitter_ms:
      description: Mean absolute difference between the round-trip times of probes sent one after the other.
      type: float
    reordered_percent:
      description: Share of answers that came after one to a later probe (RFC 4737).
      type: float
    path_mtu:
      description: Largest packet that was seen to pass without being fragmented.
      type: int
    load:
      description: The figures from sent to reordered_percent under load; null without a load.
      type: dict
    verdict:
      description: V(pass), V(warn) or V(fail).
      type: str
    reason:
      description: >-
        V(ok), V(loss), V(rtt), V(jitter), V(reordering), V(mtu); V(no_answer), V(icmp_filtered), V(no_route),
        V(address_missing), V(name_unknown), V(families_differ) or V(not_sent).
      type: str
    reasons:
      description: All of them, the worst first.
      type: list
    message:
      description: Peer, link, what was seen, what was wanted and the variable.
      type: str
"""

from dataclasses import fields

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.gates import link_bench

_BOUNDS = {
    "duration": (link_bench.MIN_DURATION_S, link_bench.MAX_DURATION_S, "seconds"),
    "load_packets_per_second": (1, 2000, "packets"),
    "load_packet_bytes": (link_bench.PROBE_BYTES, 65535, "bytes"),
}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "pairs": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "peer": {"type": "str", "required": True},
                    "link": {"type": "int", "required": True},
                    "source": {"type": "str", "required": True},
                    "target": {"type": "str", "required": True},
                },
            },
            "duration": {"type": "float", "default": 10},
            "load": {"type": "bool", "default": False},
            "load_packets_per_second": {"type": "float", "default": 200},
            "load_packet_bytes": {"type": "int", "default": 1400},
            "rtt_warn_ms": {"type": "float", "default": 5},
            "rtt_fail_ms": {"type": "float", "default": 10},
            "jitter_warn_ms": {"type": "float", "default": 2.5},
            "jitter_fail_ms": {"type": "float", "default": 5},
            "loss_warn_percent": {"type": "float", "default": 0.1},
            "loss_fail_percent": {"type": "float", "default": 1},
            "reorder_warn_percent": {"type": "float", "default": 1},
            "mtu_min": {"type": "int", "default": 1280},
            "icmp_filtered": {"type": "str", "choices": ["fail", "warn"], "default": "fail"},
            "host": {"type": "str", "default": ""},
            "threshold_prefix": {"type": "str", "default": ""},
            "enforce": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    params = module.params
    for name, (low, high, unit) in _BOUNDS.items():
        if not low <= params[name] <= high:
            module.fail_json(msg=f"{name} is {params[name]:g}, expected {low:g} to {high:g} {unit}")
    load = link_bench.Load(params["load_packet_bytes"], params["load_packets_per_second"])
    try:
        result = link_bench.bench(
            [link_bench.Pair(**pair) for pair in params["pairs"]],
            params["duration"],
            load=load if params["load"] else None,
            thresholds=link_bench.Thresholds(
                **{field.name: params[field.name] for field in fields(link_bench.Thresholds)}
            ),
            host=params["host"],
            prefix=params["threshold_prefix"],
        )
    except PveguardError as error:
        module.fail_json(msg=str(error))
    if result["verdict"] == "fail" and params["enforce"]:
        module.fail_json(msg=result["message"], **result)
    if result["verdict"] != "pass":
        module.warn(result["message"])
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
