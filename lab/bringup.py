"""How a lab comes up: resumed, restored, booted or built, whichever is needed and quickest."""

from __future__ import annotations

from collections.abc import Sequence

from . import accel, cluster, disks, guests, image, snapshots, store
from .errors import LabError
from .progress import say, step
from .store import BASE, SUSPEND, Store
from .system import require_space, require_tools

BYTES_PER_NODE_MIB = 1536  # overlay disks and a few snapshots


def up_running(lab: Store,
    names: list[str],
    profile: str | None,
    release: str | None,
    nvme: Sequence[str],
    memory: int | None,
    plain: Sequence[str],
    source: str | None,
) -> None:
    """The lab runs: start what is missing of it, and refuse what would need another lab."""
    state = lab.state
    wanted = {"profile": profile, "release": release, "memory": memory}
    other = [
        f"{key} {getattr(state, key)}"
        for key, value in wanted.items()
        if value not in (None, getattr(state, key))
    ]
    other += [f"{node} without NVMe" for node in nvme if not state.nodes.get(node, {}).get("nvme")]
    other += [f"{node} of profile {state.profile}" for node in plain if node in state.nodes and not lab.is_plain(node)]
    if other:
        raise LabError(
            f"lab {lab.name} is up with {', '.join(other)}; add --fresh or take it down first"
        )
    fresh_nodes = [name for name in names if name not in state.nodes]
    stopped = [name for name in names if name in state.nodes and not lab.machine(name).running]
    if not fresh_nodes and not stopped:
        say(f"lab {lab.name} is already up ({len(lab.running())} nodes, profile {state.profile})")
        return
    for name in fresh_nodes:
        state.nodes[name] = {"plain": image.ensure("debian", state.release, source).key if name in plain else None}
    lab.save()
    disks.create(lab, fresh_nodes)
    guests.boot(lab, fresh_nodes + stopped)
    if fresh_nodes:
        snapshots.save_base(lab, fresh_nodes)


def up_stopped(lab: Store,
    names: list[str],
    profile: str,
    release: str,
    fresh: bool,
    nvme: Sequence[str],
    memory: int,
    port_base: int | None,
    source: str | None,
    plain: Sequence[str],
) -> None:
    require_tools(["qemu-system-x86_64", "qemu-img", "ssh", "ssh-keygen"])
    state = lab.state
    picture = image.ensure(profile, release, source)
    plain_key = image.ensure("debian", release, source).key if plain else None
    accelerator = accel.choose(picture)
    key = image.digest(
        picture.key,
        picture.repository.name,
        *accel.arguments(accelerator),
        accel.qemu_version(),
        str(memory),
        *sorted(nvme),
    )
    set_name = f"{profile}-{release}-{key}"
    if fresh and lab.running():
        say("stopping the running nodes")
        guests.kill(lab, lab.running())
    same = state.disks == set_name and not fresh and not state.fresh_next
    if (
        state.disks
        and state.disks.startswith(f"{profile}-{release}-")
        and state.disks != set_name
        and not fresh
    ):
        say("image, packages or options have changed since: the nodes begin anew")
    previous = state.nodes
    state.profile, state.release, state.memory, state.accel = profile, release, memory, accelerator
    state.disks, state.image_key = set_name, picture.key
    state.repository_key = picture.repository.stem
    state.fresh_next = False
    state.nodes = {
        name: {
            "nvme": name in nvme, "port": previous.get(name, {}).get("port"),
            "plain": plain_key if name in plain else None,
        }
        for name in names
    }  # fmt: skip
    if port_base is not None:
        guests.take_ports(lab, port_base)
    if same:
        for name in names:
            for fault in ("cut", "throttle"):
                if previous.get(name, {}).get(fault):
                    state.nodes[name][fault] = previous[name][fault]
    disks.drop_superseded(lab)
    lab.set_dir.mkdir(parents=True, exist_ok=True)
    manifest = lab.manifest()
    if "image" not in manifest:
        manifest.update(
            image=picture.key, repository=picture.repository.stem, profile=profile, release=release
        )
        lab.write_manifest(manifest)
    image.prune(store.used_images())
    suspended = [name for name in state.suspended if name in names] if same else []
    state.suspended = []
    # The disks may be of more nodes than are wanted now.
    kinds: dict[str, str] = manifest.get("plain", {})
    built = [
        name
        for name in store.built(manifest)
        if name in names and lab.machine(name).var_disk.exists() and kinds.get(name) == state.nodes[name]["plain"]
    ]
    saved = manifest["snapshots"].get(BASE, {}).get("nodes", [])
    based = [] if same else [name for name in names if name in saved and name in built]
    if profile == "cluster" and not disks.whole_cluster(names, based, saved):
        based = []
    new = [name for name in names if name not in built or (not same and name not in based)]
    require_space(lab.directory, BYTES_PER_NODE_MIB * max(1, len(new)))
    disks.ensure_keys(lab, names)
    adopted = disks.adopt_template(lab, new, profile) if new == names else []
    # A cluster is made of the nodes of profile pve, which another lab may have booted already.
    founding = profile == "cluster" and new == names and not adopted
    if founding:
        adopted = disks.adopt_template(lab, new, "pve")
    new = [name for name in new if name not in adopted]
    disks.create(lab, new)
    lab.save()
    if suspended:
        with step(f"resuming {', '.join(suspended)}"):
            guests.resume(lab, suspended, SUSPEND)
    if based:
        with step(f"restoring {', '.join(based)} of profile {profile}"):
            guests.resume(lab, based, BASE)
    if adopted:
        with step(f"starting {', '.join(adopted)} from the snapshot of another lab"):
            guests.resume(lab, adopted, BASE, new_identity=True)
        if not founding:
            with step("snapshot for the next start"):
                snapshots.save(lab, BASE, [lab.machine(name) for name in adopted], add=True)
            disks.note_built(lab, adopted)
    cold = [name for name in names if name not in {*suspended, *based, *adopted}]
    if cold:
        guests.boot(lab, cold)
    if founding:
        cluster.build([lab.machine(name) for name in names if not lab.is_plain(name)][:3])
        snapshots.save_base(lab, names)
    elif new:
        snapshots.save_base(lab, new)
    say(f"lab {lab.name} is up: profile {profile}, {release}, {', '.join(names)}")
