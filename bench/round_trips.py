#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Count the ssh round trips that site.yml costs on each node.

Runs ``ansible-playbook -vvv site.yml`` and counts its ``SSH: EXEC`` lines: one is one command (or transfer)
over ssh. Run it on nodes that are already done: a second run is the common case, and 25 a node is its budget.
With ``--payloads`` it shows the bytes of the modules that such a run sends instead, beside those of a former revision, and
needs no node: see payloads.py. Exit code: 0; 1 when a node is above ``--max`` (or the bytes above their aim); 2 when the
playbook failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import payloads

ROOT = Path(__file__).resolve().parent.parent
_TASK = re.compile(r"^(?:TASK|RUNNING HANDLER) \[(.*)\] \**$")
_EXEC = re.compile(r"^<([^>]*)> SSH: EXEC (.*)")
_PORT = re.compile(r"\bPort=(\d+)|(?<=\s)-p (\d+)")
_RECAP = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)")


def addresses(inventory: str | None, ansible_bin: Path) -> dict[tuple[str, str], str]:
    """{(address, port): host}: -vvv names the address, which several nodes of a lab share."""
    command = [str(ansible_bin / "ansible-inventory"), "--list"]
    if inventory:
        command += ["-i", inventory]
    result = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True)
    hostvars: dict[str, dict[str, Any]] = json.loads(result.stdout)["_meta"]["hostvars"]
    return {
        (str(variables.get("ansible_host", host)), str(variables.get("ansible_port", 22))): host
        for host, variables in hostvars.items()
    }


def environment() -> dict[str, str]:
    """Of ansible; with skipped hosts shown a task's name is printed before its first round trip, not after."""
    settings = {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_DISPLAY_SKIPPED_HOSTS": "1"}
    return {**os.environ, **settings, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}


class Counts:
    """What one run of ansible-playbook -vvv printed, line by line."""

    def __init__(self, hosts: dict[tuple[str, str], str]) -> None:
        self.hosts = hosts
        self.task = "(before the first task)"
        self.by_host: Counter[str] = Counter()
        self.by_task: Counter[str] = Counter()
        self.recap: dict[str, dict[str, int]] = {}

    def feed(self, line: str) -> None:
        if match := _TASK.match(line):
            self.task = match[1]
        elif match := _EXEC.match(line):
            port = _PORT.search(match[2])
            address = (match[1], (port[1] or port[2]) if port else "22")
            host = self.hosts.get(address, ":".join(address))
            self.by_host[host] += 1
            self.by_task[self.task] += 1
        elif match := _RECAP.match(line):
            names = ("ok", "changed", "unreachable", "failed")
            self.recap[match[1]] = dict(zip(names, map(int, match.groups()[1:]), strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description="Count the ssh round trips of site.yml on each node.")
    parser.add_argument("--inventory", "-i", help="inventory (default: that of ansible.cfg, the lab)")
    parser.add_argument("--max", type=int, default=25, metavar="N", help="most a node (default: 25)")
    parser.add_argument("--playbook", default="site.yml")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--log", type=Path, help="keep ansible's whole output in this file")
    parser.add_argument(
        "--payloads", nargs="?", const=payloads.REVISION, metavar="REV", help="bytes of payloads beside those at REV; no node"
    )
    parser.add_argument("arguments", nargs="*", help="more arguments for ansible-playbook, after --")
    options = parser.parse_args()
    if options.payloads:
        return payloads.main(["--revision", options.payloads, *(["--json"] if options.json else [])])

    ansible_bin = Path(sys.executable).parent
    counts = Counts(addresses(options.inventory, ansible_bin))
    command = [str(ansible_bin / "ansible-playbook"), "-vvv", options.playbook, *options.arguments]
    if options.inventory:
        command += ["-i", options.inventory]
    started = time.monotonic()
    tail: list[str] = []
    log = options.log.open("w") if options.log else None
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if log:
                log.write(line)
            counts.feed(line.rstrip("\n"))
            tail = [*tail[-39:], line]
    if log:
        log.close()
    seconds = time.monotonic() - started

    over = sorted(host for host, count in counts.by_host.items() if count > options.max)
    if options.json:
        report = {
            "seconds": round(seconds, 1),
            "max_round_trips": options.max,
            "round_trips": dict(sorted(counts.by_host.items())),
            "round_trips_by_task": dict(counts.by_task.most_common()),
            "recap": counts.recap,
        }
        print(json.dumps(report, indent=2))
    else:
        print(f"{options.playbook}: {seconds:.0f} s; at most {options.max} ssh round trips a node\n")
        print(f"{'node':20} {'round trips':>11} {'changed':>8}")
        for host in sorted({*counts.by_host, *counts.recap} - {"localhost"}):
            changed = counts.recap.get(host, {}).get("changed", "?")
            print(f"{host:20} {counts.by_host[host]:11} {changed:>8}{'   too many' if host in over else ''}")
        print(f"\n{'all nodes':>9}  task")
        for task, count in counts.by_task.most_common():
            print(f"{count:9}  {task}")
    if process.returncode != 0:
        sys.stderr.writelines(tail)
        print(f"round_trips: {options.playbook} failed with exit code {process.returncode}", file=sys.stderr)
        return 2
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
