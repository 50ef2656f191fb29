#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Does --check tell the truth? Runs site.yml with --check, then for real, then once more, on one inventory.

Proves three things and exits 1 when one of them is false:

- the dry run left file trees, units and packages of every node equal;
- the dry run reported exactly the tasks as changed that the real run changed, per host;
- the second real run changed nothing.

It changes the nodes (the second run is real): meant for the lab.

    python bench/check_mode.py -i inventory/lab [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ad_hoc

ROOT = Path(__file__).resolve().parents[1]

# What moves by itself on an idle node: heartbeats and locks on /etc/pve, the daemon's own files, systemd's bookkeeping.
# Files of a heartbeat come and go while find looks, which is no failure. A list that did not come must not look like
# one that is empty: a busy machine is given time, and a failure is one.
_FINGERPRINT = r"""#!/bin/bash
set -euo pipefail
export LC_ALL=C SYSTEMD_BUS_TIMEOUT=300
{ find /etc /usr/local /root /var/lib /etc/pve -xdev \
    \( -path /var/lib/pve-cluster -o -path /var/lib/systemd -o -path /root/.ansible -o -path /var/lib/corosync \
       -o -path '*/lrm_status*' -o -path /etc/pve/priv/lock -o -path '/etc/pve/.*' \) -prune -o \
    \( -type f -printf '%m %u %g %s %p ' -exec sha256sum -z {} + -printf '\n' \) -o -printf '%y %m %u %g %l %p\n' \
    || true ; } 2> /dev/null \
  | tr '\0' '\n' | sort
systemctl list-unit-files --no-legend --no-pager | sort
systemctl list-units --all --no-legend --no-pager --plain --type=service,mount,path,socket \
  | awk '{print $1, $2, $3}' | grep -v -e user@ -e session -e ansible -e 'run-user' -e 'ssh' | sort
dpkg-query -W
"""


def playbook(inventory: str, *more: str) -> tuple[int, str, float]:
    """``(exit code, output, seconds)`` of site.yml."""
    env = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    start = time.monotonic()
    done = subprocess.run(
        ["ansible-playbook", "-i", inventory, "site.yml", *more],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr, time.monotonic() - start


def changed_tasks(output: str) -> set[tuple[str, str]]:
    """``{(host, task)}`` of the lines that Ansible's default callback prints as changed."""
    found = set()
    task = ""
    for line in output.splitlines():
        header = re.match(r"(?:TASK|RUNNING HANDLER) \[(.*)\] \**$", line)
        if header:
            task = header.group(1)
        result = re.match(r"changed: \[([^\]\s]+)", line)
        if result:
            found.add((result.group(1), task))
    return found


def fingerprints(inventory: str) -> dict[str, list[str]]:
    """``{host: sorted lines}`` of files, units and packages."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as script:
        script.write(_FINGERPRINT)
        script.flush()
        try:
            results = ad_hoc.run("all", inventory, "ansible.builtin.script", script.name)
        except ad_hoc.ModuleFailed as error:
            raise SystemExit(f"the nodes could not be fingerprinted: {error}") from None
    return {host: result["stdout"].splitlines() for host, result in results.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-i", "--inventory", default="inventory/lab")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result: dict[str, Any] = {"problems": []}
    problems: list[str] = result["problems"]

    before = fingerprints(options.inventory)
    code, output, result["check_seconds"] = playbook(options.inventory, "--check", "--diff")
    if code:
        problems.append(f"--check exited {code}:\n{output[-3000:]}")
    foreseen = changed_tasks(output)
    after = fingerprints(options.inventory)
    for host, lines in before.items():
        gone, new = sorted(set(lines) - set(after[host])), sorted(set(after[host]) - set(lines))
        if gone or new:
            problems.append(f"--check changed {host}: " + "; ".join([*(f"-{x}" for x in gone), *(f"+{x}" for x in new)][:20]))

    code, output, result["first_seconds"] = playbook(options.inventory)
    if code:
        problems.append(f"the first run exited {code}:\n{output[-3000:]}")
    done = changed_tasks(output)
    for host, task in sorted(foreseen - done):
        problems.append(f"--check said changed, the run did not: {host}: {task}")
    for host, task in sorted(done - foreseen):
        problems.append(f"the run changed what --check did not say: {host}: {task}")
    result["changed_tasks"] = len(done)

    code, output, result["second_seconds"] = playbook(options.inventory)
    again = changed_tasks(output)
    if code or again:
        problems.append(f"the second run exited {code} and changed {sorted(again)}")

    if options.json:
        print(json.dumps(result, indent=2))
    else:
        seconds = [f"{name} {result[name + '_seconds']:.0f} s" for name in ("check", "first", "second")]
        print(", ".join(seconds))
        print(f"{len(done)} tasks changed something in the first run, {len(foreseen)} were foreseen")
        print("\n".join(problems) or "the dry run told the truth and changed nothing; the second run changed nothing")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
