#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Make release.tar.xz anew: what the pve-state of a former release leaves on the disk of a node, and what it served last.

    python -m tests.ram_state.former.make

Runs that program as it is in git's history, on the node made of directories that the tests use, and cuts the power while the
watcher has a change in the replica's log. Beside the files of the node there is ``expected.json``: the rows of the live
database at that moment, noise left out.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import conftest  # noqa: F401  # the import path of the cores
from tests.loading import ROOT
from tests.ram_state.conftest import Clock, Node, fill

#: The last one before programs on a node became packages.
REVISION = "eb651e7"
TARGET = Path(__file__).with_name("release.tar.xz")
ROLE = "roles/ram_state/files"
UNITS = {
    "MOUNT_UNIT": "ram.mount",
    "BACKUP_UNIT": "backup.mount",
    "STATE_UNIT": "pveguard-state.service",
    "WATCH_UNIT": "pveguard-state-watch.service",
}
SETTINGS = {"deadline_seconds": 5, "rpo_seconds": 3.0, "generations_keep": 9}
#: The file that the daemon took under a name that is no UTF-8.
STRANGE = b"notes-\xff.txt"
KEPT = ("var/lib/pveguard", "var/lib/pve-cluster.beneath", "etc/pveguard", "etc/systemd/system")


def shown(path: str) -> bytes:
    return subprocess.run(["git", "show", f"{REVISION}:{path}"], cwd=ROOT, check=True, capture_output=True).stdout


def former_program(folder: Path) -> ModuleType:
    path = folder / "former_pve_state"
    path.write_bytes(shown(f"{ROLE}/pve-state"))
    loader = importlib.machinery.SourceFileLoader("former_pve_state", str(path))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module
    loader.exec_module(module)
    return module


def installed_files(node: Node) -> None:
    """What the role of that release installs beside the program."""
    units = node.root / "etc/systemd/system"
    units.mkdir(parents=True)
    for name, file in UNITS.items():
        (units / getattr(node.ps, name)).write_bytes(shown(f"{ROLE}/units/{file}"))
    Path(node.paths.drop_in_source).write_bytes(shown(f"{ROLE}/units/pve-cluster.conf"))
    Path(node.paths.config).write_text(json.dumps(SETTINGS))


def live(node: Node, ps: Any) -> None:
    """The node's history: to RAM, changes, generations, a change that is only in the replica's log."""
    node.start_daemon()
    fill(node.w)
    installed_files(node)
    if node.command("adopt", "--json", "--connection", ""):
        raise SystemExit("the former program did not move the state to RAM")
    for number in range(3):
        node.w.write("nodes/pve1/qemu-server/100.conf", b"name: a\n" * (50 + number))
        node.w.write(f"firewall/{number}.fw", b"[OPTIONS]\nenable: 1\n")
        node.command("save", "--json", "--generation", "--reason", f"change {number}")
    node.w.write("notes-x.txt", b"a name of the time before UTF-8\n")
    strange = node.w.find("notes-x.txt")
    node.w.db.execute("UPDATE tree SET name=CAST(? AS TEXT) WHERE inode=?", (STRANGE, strange))
    clock = Clock(ps.Watcher(node.paths, ps.Config.load(node.paths)))
    clock.run(10)
    node.w.write("storage.cfg", b"dir: local\n\npath /var/lib/vz\n")
    node.w.write("nodes/pve1/lrm_status", b'{"mode":"active"}')
    clock.run(10)


def expected(node: Node, ps: Any) -> list[list[Any]]:
    """Rows without noise, as JSON can hold them."""
    connection = node.w.db
    rows = ps.without_noise(ps.read_rows(connection), node.config.noise)
    found = []
    for inode in sorted(rows):
        (data,) = connection.execute("SELECT CAST(data AS BLOB) FROM tree WHERE inode=?", (inode,)).fetchone()
        found.append([*rows[inode][:6], rows[inode][6].hex(), data.hex() if data is not None else None])
    return found


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        ps: Any = former_program(Path(folder))
        node = Node(ps, Path(folder) / "node")
        ps.run, ps.mounts = node.run, node.mounts
        ps.resolves = lambda name: "192.0.2.1"
        ps.resize_tmpfs = lambda paths, size: True
        # The name of this machine is nobody's business.
        os.uname = lambda: SimpleNamespace(nodename="pve1", release="6.8.0")  # type: ignore[assignment, return-value]
        live(node, ps)
        rows = json.dumps(expected(node, ps), indent=1).encode()
        with tarfile.open(TARGET, "w:xz") as archive:
            for name in KEPT:
                archive.add(node.root / name, name, filter=_plain)
            info = tarfile.TarInfo("expected.json")
            info.size = len(rows)
            archive.addfile(info, io.BytesIO(rows))
    print(f"{TARGET.relative_to(ROOT)}: {TARGET.stat().st_size} bytes")
    return 0


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = "root"
    return info


if __name__ == "__main__":
    sys.exit(main())
