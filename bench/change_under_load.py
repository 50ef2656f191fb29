#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Changes of corosync.conf while every node writes on /etc/pve: how long does a write have to wait?

On a cluster of the lab. Each phase runs alone: a writer on every node replaces files in /etc/pve one after the other
(create, write, rename over) and keeps when each write ended, and what failed. The phases: nothing but the writers, a
new token, one more link (a second address on the interface of the first); at last what a change costs that is brought
into force by a restart of Corosync on all nodes at once. Link and token are taken back then.

    python -m lab --name load up --profile cluster
    PVEGUARD_LAB=load python bench/change_under_load.py [--token 4000] [--json]

A change passes when no write failed for longer, and no two writes of a node were further apart, than the token
timeout that was in force (corosync.conf(5): within it the loss of a token is no loss of a member).
Exits 1 when one does not pass, 2 when the test could not be done.
"""

from __future__ import annotations

import argparse
import base64
import ipaddress
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ad_hoc

ROOT = Path(__file__).resolve().parents[1]
UNIT = "pveguard-bench-writer"
RESULT = f"/run/{UNIT}.jsonl"
#: Of corosync 3.1 where corosync.conf has none (corosync.conf(5)).
DEFAULT_TOKEN_MS = 3000
#: Seconds before and after each change that still belong to it: a membership that breaks shows within the token and
#: consensus timeouts.
MARGIN_SECONDS = 8

#: Between two writes of a node, so that an emulated one has time left for the change.
PAUSE_SECONDS = 0.1

#: Lines ``[seconds of CLOCK_MONOTONIC before, after, errno or null]``, one for each try.
WRITER = f"""
import json, os, socket, time
folder = "/etc/pve/{UNIT}"
name = os.path.join(folder, socket.gethostname())
number = 0
with open("{RESULT}", "w", buffering=1) as result:
    while True:
        number += 1
        before, error = time.monotonic(), None
        try:
            os.makedirs(folder, exist_ok=True)
            with open(name + ".tmp", "w") as file:
                file.write("%d\\n" % number * 20)
            os.rename(name + ".tmp", "%s-%d" % (name, number % 5))
        except OSError as failed:
            error = failed.errno
        result.write(json.dumps([before, time.monotonic(), error]) + "\\n")
        time.sleep({PAUSE_SECONDS})
"""


def judge(lines: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """What a writer saw: ``writes`` that succeeded, ``failed`` tries, ``longest_gap_ms`` between the ends of two
    successful writes (from the first try and to the last one, too), ``longest_write_ms``, ``errors`` ({errno: tries}).

    A gap at the end counts: a writer that never came back must not pass.
    """
    good = [(before, after) for before, after, error in lines if error is None]
    ends = [lines[0][0], *(after for _, after in good), lines[-1][1]] if lines else []
    errors: dict[str, int] = {}
    for _, _, error in lines:
        if error is not None:
            errors[os.strerror(error)] = errors.get(os.strerror(error), 0) + 1
    return {
        "writes": len(good),
        "failed": len(lines) - len(good),
        "errors": errors,
        "longest_gap_ms": round(1000 * max((b - a for a, b in zip(ends, ends[1:], strict=False)), default=0.0)),
        "longest_write_ms": round(1000 * max((after - before for before, after in good), default=0.0)),
    }


def whole_lines(text: str) -> list[list[Any]]:
    """The lines of a writer that was stopped in the middle of whatever it did."""
    lines = text.splitlines()
    try:
        return [json.loads(line) for line in lines]
    except ValueError:
        return [json.loads(line) for line in lines[:-1]]


class Bench:
    def __init__(self, inventory: str) -> None:
        self.inventory = inventory
        info = {name: found["corosync"] for name, found in self.module("corosync_info", {}).items()}
        self.names = sorted(info)
        self.links = {name: [link["address"] for link in found["links"]] for name, found in info.items()}
        tokens = {(found["token_ms"], found["configured_token_ms"]) for found in info.values()}
        if len(tokens) != 1 or not all(found["quorate"] for found in info.values()):
            raise ad_hoc.ModuleFailed("the nodes are not members of one cluster with quorum", info)
        # In ms; the effective one has the coefficient in it, the other one is what corosync.conf says.
        ((self.token_ms, self.configured_token_ms),) = tokens

    def module(self, name: str, arguments: str | Mapping[str, Any], hosts: str = "all") -> dict[str, dict[str, Any]]:
        return ad_hoc.run(hosts, self.inventory, name, arguments)

    def shell(self, script: str, hosts: str = "all") -> dict[str, dict[str, Any]]:
        return self.module("ansible.builtin.shell", script, hosts)

    def playbook(self, **variables: Any) -> None:
        done = subprocess.run(
            [ad_hoc.program("ansible-playbook"), "-i", self.inventory, "playbooks/corosync.yml", "-e", json.dumps(variables)],
            cwd=ROOT,
            env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise ad_hoc.ModuleFailed(f"playbooks/corosync.yml {variables}:\n{done.stdout[-4000:]}", {})

    def phase(self, what: str, change: Callable[[], object]) -> list[dict[str, Any]]:
        """Rows of one phase: one for each node."""
        program = base64.b64encode(WRITER.encode()).decode()
        code = f"import base64;exec(base64.b64decode('{program}'))"
        self.shell(f'rm -f {RESULT}; systemd-run --quiet --collect --unit {UNIT} /usr/bin/python3 -c "{code}"')
        try:
            time.sleep(MARGIN_SECONDS)
            change()
            time.sleep(MARGIN_SECONDS)
        finally:
            self.shell(f"systemctl stop {UNIT}; true")
        said = self.shell(f"cat {RESULT}")
        rows = [
            {"phase": what, "node": name, **judge(whole_lines(said[name]["stdout"]))} for name in self.names
        ]
        print(f"{what}: {', '.join(str(row['longest_gap_ms']) for row in rows)} ms", file=sys.stderr)
        return rows

    def take_back(self) -> None:
        """The token and the one link of before, once all are members again."""
        self.module("corosync_info", {"wait_for": {"quorate": True}, "deadline_seconds": 120})
        gone = [{"number": 1, "state": "absent"}]
        self.playbook(corosync_token=self.configured_token_ms or DEFAULT_TOKEN_MS, corosync_link_options=gone)
        self.shell(f"rm -rf /etc/pve/{UNIT}", self.names[0])

    def second_addresses(self, network: ipaddress.IPv4Network, verb: str) -> dict[str, str]:
        """Give every node an address of ``network`` beside that of link 0, or take it away."""
        addresses = {name: str(network[number]) for number, name in enumerate(self.names, 1)}
        for name, address in addresses.items():
            interface = f"$(ip -o addr show to {self.links[name][0]} | cut -d' ' -f2)"
            self.shell(f"ip addr {verb} {address}/{network.prefixlen} dev {interface}", name)
        return addresses


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-i", "--inventory", default="inventory/lab")
    parser.add_argument("--token", type=int, default=4000, help="the new token in ms")
    parser.add_argument("--network", type=ipaddress.IPv4Network, default="10.78.0.0/24", help="of the second link")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    try:
        bench = Bench(options.inventory)
        if any(len(addresses) != 1 for addresses in bench.links.values()):
            raise ad_hoc.ModuleFailed("the nodes must have one link", {})
        link = bench.second_addresses(options.network, "add")
        try:
            rows += bench.phase("nothing", lambda: time.sleep(20))
            rows += bench.phase("token", lambda: bench.playbook(corosync_token=options.token))
            added = [{"number": 1, "addresses": link}]
            rows += bench.phase("link added", lambda: bench.playbook(corosync_link_options=added))
            rows += bench.phase("restart of all", lambda: bench.shell("systemctl restart corosync"))
        finally:
            bench.take_back()
            bench.second_addresses(options.network, "del")
    except (ad_hoc.ModuleFailed, subprocess.SubprocessError) as error:
        print(error, file=sys.stderr)
        return 2
    wrong = []
    for row in rows:
        row["gap_to_token"] = round(row["longest_gap_ms"] / bench.token_ms, 3)
        row["passed"] = row["writes"] > 0 and row["longest_gap_ms"] <= bench.token_ms
        if not row["passed"] and row["phase"] != "restart of all":
            gap = f"{row['longest_gap_ms']} ms between two writes, the token is {bench.token_ms} ms"
            wrong.append(f"{row['phase']} on {row['node']}: {gap}")
    if options.json:
        print(json.dumps({"token_ms": bench.token_ms, "rows": rows, "problems": wrong}, indent=2))
    else:
        print(f"phase           node      writes  failed  longest gap  of the token ({bench.token_ms} ms)")
        for row in rows:
            print(
                f"{row['phase']:15} {row['node']:8} {row['writes']:7} {row['failed']:7} {row['longest_gap_ms']:9} ms"
                f"  {row['gap_to_token']}"
            )
        print("\n".join(wrong) or "every change passed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
