"""How a lab comes up: resumed, restored, booted or built, whichever is needed and quickest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import accel, cluster, disks, guests, image, snapshots, store
from .errors import LabError
from .progress import say, step
from .store import BASE, SUSPEND, Store
from .system import require_space, require_tools

DISKS_OF_A_NODE_MIB = 1536  # overlay disks and a few snapshots


@dataclass(frozen=True)
class Wanted:
    """What ``lab up`` was asked for; None: as the lab is. ``source`` is PVE_PACKAGES."""

    names: list[str]
    profile: str | None
    release: str | None
    memory: int | None
    nvme: Sequence[str]
    plain: Sequence[str]
    fresh: bool
    port_base: int | None
    source: str | None


@dataclass(frozen=True)
class Beginnings:
    """Which nodes begin how; each is in one list, those of none are booted."""

    suspended: list[str]  # where `down` left them
    based: list[str]  # at this lab's snapshot of their first settled state
    adopted: list[str]  # at another lab's
    new: list[str]  # from nothing
    founding: bool  # they are to become a cluster


def up_running(lab: Store, wanted: Wanted) -> None:
    """The lab runs: start what is missing of it, and refuse what would need another lab."""
    state, names = lab.state, wanted.names
    options = {"profile": wanted.profile, "release": wanted.release, "memory": wanted.memory}
    other = [
        f"{key} {getattr(state, key)}"
        for key, value in options.items()
        if value not in (None, getattr(state, key))
    ]
    other += [f"{node} without NVMe" for node in wanted.nvme if not state.nodes.get(node, {}).get("nvme")]
    other += [f"{node} of profile {state.profile}" for node in wanted.plain if node in state.nodes and not lab.is_plain(node)]
    if other:
        raise LabError(f"lab {lab.name} is up with {', '.join(other)}; add --fresh or take it down first")
    fresh_nodes = [name for name in names if name not in state.nodes]
    stopped = [name for name in names if name in state.nodes and not lab.machine(name).running]
    if not fresh_nodes and not stopped:
        say(f"lab {lab.name} is already up ({len(lab.running())} nodes, profile {state.profile})")
        return
    for name in fresh_nodes:
        plain = name in wanted.plain
        state.nodes[name] = {"plain": image.ensure("debian", state.release, wanted.source).key if plain else None}
    lab.save()
    disks.create(lab, fresh_nodes)
    guests.boot(lab, fresh_nodes + stopped)
    if fresh_nodes:
        snapshots.save_base(lab, fresh_nodes)


def up_stopped(lab: Store, wanted: Wanted) -> None:
    """No node runs, or none that is to stay: choose image and disks, start every node where it can begin soonest."""
    require_tools(["qemu-system-x86_64", "qemu-img", "ssh", "ssh-keygen"])
    profile, release = wanted.profile or lab.state.profile or "pve", wanted.release or lab.state.release or "trixie"
    before = list(lab.state.suspended)
    same = _choose_disks(lab, wanted, profile, release)
    begin = _beginnings(lab, wanted.names, before if same else [], same)
    disks.create(lab, begin.new)
    lab.save()
    _start(lab, wanted.names, begin)
    say(f"lab {lab.name} is up: profile {profile}, {release}, {', '.join(wanted.names)}")


def _choose_disks(lab: Store, wanted: Wanted, profile: str, release: str) -> bool:
    """Set the state to the wanted image, options and nodes; True if the disks of the last time are to be used on."""
    state = lab.state
    memory = wanted.memory or state.memory
    picture = image.ensure(profile, release, wanted.source)
    plain_key = image.ensure("debian", release, wanted.source).key if wanted.plain else None
    accelerator = accel.choose(picture)
    key = image.digest(
        picture.key,
        picture.repository.name,
        *accel.arguments(accelerator),
        accel.qemu_version(),
        str(memory),
        *sorted(wanted.nvme),
    )
    set_name = f"{profile}-{release}-{key}"
    if wanted.fresh and lab.running():
        say("stopping the running nodes")
        guests.kill(lab, lab.running())
    same = state.disks == set_name and not wanted.fresh and not state.fresh_next
    if state.disks.startswith(f"{profile}-{release}-") and state.disks != set_name and not wanted.fresh:
        say("image, packages or options have changed since: the nodes begin anew")
    previous = state.nodes
    state.profile, state.release, state.memory, state.accel = profile, release, memory, accelerator
    state.disks, state.image_key = set_name, picture.key
    state.repository_key = picture.repository.stem
    state.fresh_next = False
    state.suspended = []
    state.nodes = {
        name: {
            "nvme": name in wanted.nvme, "port": previous.get(name, {}).get("port"),
            "plain": plain_key if name in wanted.plain else None,
        }
        for name in wanted.names
    }  # fmt: skip
    if wanted.port_base is not None:
        guests.take_ports(lab, wanted.port_base)
    if same:
        for name in wanted.names:
            for fault in ("cut", "throttle"):
                if previous.get(name, {}).get(fault):
                    state.nodes[name][fault] = previous[name][fault]
    disks.drop_superseded(lab)
    lab.set_dir.mkdir(parents=True, exist_ok=True)
    manifest = lab.manifest()
    if "image" not in manifest:
        manifest.update(image=picture.key, repository=state.repository_key, profile=profile, release=release)
        lab.write_manifest(manifest)
    image.prune(store.used_images())
    return same


def _beginnings(lab: Store, names: list[str], suspended: list[str], same: bool) -> Beginnings:
    """How each node begins; takes the disks of another lab's snapshot where there are any."""
    profile, manifest = lab.state.profile, lab.manifest()
    # The disks may be of more nodes than are wanted now.
    kinds: dict[str, Any] = manifest.get("plain", {})
    built = [
        name
        for name in store.built(manifest)
        if name in names and lab.machine(name).var_disk.exists() and kinds.get(name) == lab.state.nodes[name]["plain"]
    ]
    saved = manifest["snapshots"].get(BASE, {}).get("nodes", [])
    based = [] if same else [name for name in names if name in saved and name in built]
    if profile == "cluster" and not disks.whole_cluster(names, based, saved):
        based = []
    new = [name for name in names if name not in built or (not same and name not in based)]
    require_space(lab.directory, DISKS_OF_A_NODE_MIB * max(1, len(new)))
    disks.ensure_keys(lab, names)
    adopted = disks.adopt_template(lab, new, profile) if new == names else []
    # A cluster is made of the nodes of profile pve, which another lab may have booted already.
    founding = profile == "cluster" and new == names and not adopted
    if founding:
        adopted = disks.adopt_template(lab, new, "pve")
    return Beginnings(
        suspended=[name for name in suspended if name in names],
        based=based,
        adopted=adopted,
        new=[name for name in new if name not in adopted],
        founding=founding,
    )


def _start(lab: Store, names: list[str], begin: Beginnings) -> None:
    """Start every node where it begins, and save the first settled state of those that are new."""
    if begin.suspended:
        with step(f"resuming {', '.join(begin.suspended)}"):
            guests.resume(lab, begin.suspended, SUSPEND)
    if begin.based:
        with step(f"restoring {', '.join(begin.based)} of profile {lab.state.profile}"):
            guests.resume(lab, begin.based, BASE)
    if begin.adopted:
        with step(f"starting {', '.join(begin.adopted)} from the snapshot of another lab"):
            guests.resume(lab, begin.adopted, BASE, new_identity=True)
        if not begin.founding:
            with step("snapshot for the next start"):
                snapshots.save(lab, BASE, [lab.machine(name) for name in begin.adopted], add=True)
            disks.note_built(lab, begin.adopted)
    cold = [name for name in names if name not in {*begin.suspended, *begin.based, *begin.adopted}]
    if cold:
        guests.boot(lab, cold)
    if begin.founding:
        cluster.build([lab.machine(name) for name in names if not lab.is_plain(name)][:3])
        snapshots.save_base(lab, names)
    elif begin.new:
        snapshots.save_base(lab, begin.new)
