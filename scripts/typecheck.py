#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""mypy, strict, on every Python file of the product, whatever its extension or lack of one: scripts/typecheck.py [GROUP...]

Files are checked in groups, because programs of different folders are modules of the same name, and each finds its imports
as it does when it runs. A file of no group is an error. Types of Ansible are in typings/: only what is used of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import NamedTuple

from product_files import ROOT, python_files

DOUBLE = "lab/packages/pve-cluster/root/usr/lib/pve-cluster-lab"
FIREWALL = "lab/packages/pve-firewall/root/usr/lib/pve-firewall-lab"
CORES = "module_utils"


class Group(NamedTuple):
    """Files by the beginning of their paths, and where their imports are looked for."""

    starts: tuple[str, ...]
    path: tuple[str, ...]


#: The first group that a file fits is its own.
GROUPS = {
    "cores": Group(("module_utils/", "typings/"), (CORES,)),
    "modules": Group(("library/",), ()),
    "filters": Group(("filter_plugins/",), ("filter_plugins",)),
    "doubles": Group(
        ("lab/packages/pve-", "lab/packages/proxmox-", "lab/packages/libpve-", "lab/guest/"), (DOUBLE, FIREWALL)
    ),
    "lab": Group(("lab/", "inventory/"), (".", DOUBLE, FIREWALL)),
    "bench": Group(("bench/",), ("bench", ".", CORES, DOUBLE)),
    "scripts": Group(("scripts/",), ("scripts", CORES)),
    "molecule": Group(("molecule/",), ("molecule/shared", ".", "bench", CORES, f"{CORES}/pveguard")),
}


def grouped(names: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """``(group -> files, files of no group)``."""
    found: dict[str, list[str]] = {name: [] for name in GROUPS}
    homeless: list[str] = []
    for file in names:
        name = next((name for name, group in GROUPS.items() if file.startswith(group.starts)), None)
        (homeless if name is None else found[name]).append(file)
    return found, homeless


def check(name: str, files: list[str]) -> bool:
    path = os.pathsep.join(("typings", *GROUPS[name].path))
    # Modules of one name in two groups would throw each other out of a common cache.
    options = ("--no-error-summary", "--scripts-are-modules", f"--cache-dir=.mypy_cache/{name}")
    command = [sys.executable, "-m", "mypy", *options, *files]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "MYPYPATH": path}).returncode == 0


def main() -> int:
    groups, homeless = grouped(python_files())
    for file in homeless:
        print(f"typecheck: {file}: in no group of scripts/typecheck.py", file=sys.stderr)
    wanted = sys.argv[1:] or list(groups)
    failed = [name for name in wanted if not check(name, groups[name])]
    if failed:
        print(f"typecheck: failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed or homeless else 0


if __name__ == "__main__":
    sys.exit(main())
