"""Snapshots of a lab: memory and disks of its nodes at one moment."""

from __future__ import annotations

import time
from collections.abc import Sequence

from . import disks, guests, layout
from .machine import Machine
from .progress import say, step
from .store import BASE, Store
from .system import file_lock, in_parallel


def possible(lab: Store) -> bool:
    return not any(entry.get("nvme") for entry in lab.state.nodes.values())


def savevm(machine: Machine, name: str) -> None:
    with machine.qmp(300) as qmp:
        qmp.human(f"savevm {name}")


def loadvm(machine: Machine, name: str) -> None:
    with machine.qmp(300) as qmp:
        qmp.human(f"loadvm {name}")


def save(lab: Store, name: str, machines: Sequence[Machine], add: bool = False, offer: bool = False
) -> None:
    guests.pause(machines)
    try:
        in_parallel(lambda m: savevm(m, name), machines)
        if offer:
            with file_lock(layout.images_dir() / "lock", "the image store"):
                disks.offer_template(lab, machines)
    finally:
        in_parallel(guests.cont, machines)
    in_parallel(guests.set_clock, machines)
    manifest = lab.manifest()
    before = manifest["snapshots"].get(name, {}).get("nodes", []) if add else []
    nodes = sorted({*before, *(machine.name for machine in machines)}, key=layout.node_number)
    manifest["snapshots"][name] = {"nodes": nodes, "created": int(time.time())}
    lab.write_manifest(manifest)


def save_base(lab: Store, names: Sequence[str]) -> None:
    """Snapshot newly made nodes once they have settled, so that the next fresh start takes seconds."""
    if not possible(lab):
        say("no snapshot of the new nodes: an emulated NVMe cannot be saved")
        disks.note_built(lab, names)
        return

    def settled(machine: Machine) -> None:
        _, output = machine.console.run("systemctl is-system-running --wait", 180)
        if output.strip() != "running":
            _, failed = machine.console.run(
                "systemctl --failed --no-legend --plain | cut -d ' ' -f 1", 30
            )
            say(f"{machine.name}: {output.strip()}: {' '.join(failed.split())}")

    machines = [lab.machine(name) for name in names]
    with step("settling"):
        in_parallel(settled, machines)
    with step("snapshot for the next start"):
        save(lab, BASE, machines, add=True, offer=len(machines) == len(lab.state.nodes))
    disks.note_built(lab, names)
