"""The disks of a lab's nodes, its keys, and first snapshots that other labs begin with."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from . import guestssh, layout, store
from .machine import Machine
from .store import Store
from .system import file_lock, run, write_whole


def drop_superseded(lab: Store) -> None:
    """Delete disks of the same profile and release that an older image left behind."""
    for path in lab.directory.glob(f"{lab.state.profile}-{lab.state.release}-*"):
        if path.is_dir() and path.name != lab.state.disks:
            shutil.rmtree(path)


def ensure_keys(lab: Store, names: Sequence[str]) -> None:
    guestssh.ensure_key(lab.directory / "id_ed25519", f"pveguard lab {lab.name}")
    (lab.directory / "hostkeys").mkdir(exist_ok=True)
    for name in names:
        guestssh.ensure_key(lab.directory / "hostkeys" / name, name)


def write_known_hosts(lab: Store) -> None:
    entries = {
        node: (entry["port"], (lab.directory / "hostkeys" / f"{node}.pub").read_text())
        for node, entry in lab.state.nodes.items() if entry.get("port")
    }  # fmt: skip
    write_whole(lab.directory / "known_hosts", guestssh.known_hosts(entries))


def create(lab: Store, names: Sequence[str]) -> None:
    ensure_keys(lab, names)
    manifest = lab.manifest()
    for name in names:
        machine, picture = lab.machine(name), lab.image(name)
        if lab.is_plain(name):
            manifest.setdefault("plain", {})[name] = picture.key
        else:
            manifest.get("plain", {}).pop(name, None)
        for disk, backing in ((machine.root_disk, picture.root), (machine.var_disk, picture.var)):
            disk.unlink(missing_ok=True)
            run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", os.path.relpath(backing, disk.parent),
                 disk], what=f"qemu-img create {disk.name}")  # fmt: skip
        for path in (machine.console_log, machine.qemu_log):
            path.unlink(missing_ok=True)
        manifest["built"] = [node for node in store.built(manifest) if node != name]
        for snapshot in manifest["snapshots"].values():
            snapshot["nodes"] = [node for node in snapshot["nodes"] if node != name]
    if names and manifest.get("image"):
        manifest["snapshots"] = {
            key: value for key, value in manifest["snapshots"].items() if value["nodes"]
        }
        lab.write_manifest(manifest)


def note_built(lab: Store, names: Sequence[str]) -> None:
    manifest = lab.manifest()
    manifest["built"] = sorted({*store.built(manifest), *names}, key=layout.node_number)
    lab.write_manifest(manifest)


def template(lab: Store, profile: str) -> Path:
    """Where the disks of a profile lie that has the same image, QEMU and options as this lab."""
    return lab.image().directory / f"snapshot-{profile}{lab.state.disks.removeprefix(lab.state.profile)}"


def offer_template(lab: Store, machines: Sequence[Machine]) -> None:
    """Copy the disks of paused machines of the profile to where another lab can begin with them."""
    machines = [machine for machine in machines if not lab.is_plain(machine.name)]
    target = template(lab, lab.state.profile)
    try:
        known = json.loads((target / "template.json").read_text())["nodes"]
    except (OSError, ValueError, KeyError):
        known = []
    names = [machine.name for machine in machines]
    if set(names) <= set(known):
        return
    for old in target.parent.glob(f"snapshot-{lab.state.profile}-{lab.state.release}-*"):
        shutil.rmtree(old)
    partial = target.with_name(f"partial-{os.getpid()}")
    partial.mkdir()
    for machine in machines:
        _copy_sparse((machine.root_disk, machine.var_disk), partial)
    (partial / "template.json").write_text(json.dumps({"nodes": names}) + "\n")
    partial.rename(target)


def adopt_template(lab: Store, names: Sequence[str], profile: str) -> list[str]:
    """Take disks with the base snapshot from another lab's first start; returns the nodes that have them now."""
    source = template(lab, profile)
    with file_lock(layout.images_dir() / "lock", "the image store"):
        try:
            known = json.loads((source / "template.json").read_text())["nodes"]
        except (OSError, ValueError, KeyError):
            return []
        taken = [name for name in names if name in known and not lab.is_plain(name)]
        if profile == "cluster" and not whole_cluster(names, taken, known):
            return []
        for name in taken:
            machine = lab.machine(name)
            _copy_sparse((source / machine.root_disk.name, source / machine.var_disk.name), lab.set_dir)
    return taken


def whole_cluster(wanted: Sequence[str], there: Sequence[str], saved: Sequence[str]) -> bool:
    """Whether the wanted nodes can begin with a snapshot: its members come from one moment, and without a member that
    it knows of, one of three for instance, there would be no quorum.
    """
    members = sorted(saved, key=layout.node_number)[:3]
    return len(there) >= min(3, len(wanted)) and set(members) <= set(wanted)


def _copy_sparse(files: Sequence[Path], directory: Path) -> None:
    run(["cp", "--sparse=always", "--reflink=auto", *files, directory], what="cp")
