"""A lab: named, with its own keys, ports, disks and snapshots; what the command line offers, as methods."""

from __future__ import annotations

import base64
import json
import os
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import accel, cluster, guestssh, identity, image, layout, net
from .errors import LabError
from .machine import Machine
from .progress import say, step
from .system import file_lock, in_parallel, require_space, require_tools, run, write_whole

BASE = "base"  # the snapshot of a profile's first settled state
SUSPEND = "suspend"  # where `down` leaves a running lab
MAX_NODES = identity.HOSTS_KNOWN
# Deadlines, several times what an idle machine with 2 cores and no KVM takes.
COLD_SECONDS = 600
WARM_SECONDS = 180
OFF_SECONDS = 300
BYTES_PER_NODE_MIB = 1536  # overlay disks and a few snapshots


@dataclass
class State:
    """``state.json`` of a lab."""

    profile: str = ""
    release: str = ""
    memory: int = 768
    accel: str = ""
    disks: str = ""  # name of the current set of disks
    image_key: str = ""
    repository_key: str = ""
    ring_port: int = 0
    generation: int = 0  # rises whenever guests stop being what an open ssh connection believes
    fresh_next: bool = False
    up: bool = False  # between `up` and `down`, whatever happens to single nodes
    suspended: list[str] = field(default_factory=list)
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)


class Lab:
    """The lab called ``name``. Every changing method takes the lab's lock; errors are :class:`LabError`."""

    def __init__(self, name: str = "default") -> None:
        self.name = layout.check_name(name)
        self.directory = layout.labs_dir() / self.name
        self.state = self._load()

    # --- state ---------------------------------------------------------------------------------------------

    @property
    def _state_file(self) -> Path:
        return self.directory / "state.json"

    def _load(self) -> State:
        try:
            data = json.loads(self._state_file.read_text())
        except FileNotFoundError:
            return State()
        except ValueError as error:
            raise LabError(f"{self._state_file}: {error}; remove {self.directory} to begin anew") from error
        known = State.__dataclass_fields__
        return State(**{key: value for key, value in data.items() if key in known})

    def _save(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        partial = self._state_file.with_suffix(".partial")
        partial.write_text(json.dumps(vars(self.state), indent=2) + "\n")
        partial.rename(self._state_file)

    @contextmanager
    def _changing(self, what: str) -> Iterator[None]:
        self.directory.mkdir(parents=True, exist_ok=True)
        with file_lock(self.directory / "lock", f"lab {self.name} ({what})"):
            self.state = self._load()
            yield

    def machine(self, node: str) -> Machine:
        entry = self.state.nodes[node]
        return Machine(
            number=layout.node_number(node), lab=self.name, directory=self.directory, disks=self._set_dir,
            nvme=bool(entry.get("nvme")), port=entry.get("port"), pid=entry.get("pid"), start=entry.get("start"),
        )  # fmt: skip

    def _remember(self, machine: Machine) -> None:
        self.state.nodes[machine.name].update(port=machine.port, pid=machine.pid, start=machine.start)

    def machines(self) -> list[Machine]:
        return [self.machine(node) for node in sorted(self.state.nodes, key=layout.node_number)]

    def running(self) -> list[Machine]:
        return [machine for machine in self.machines() if machine.running]

    def select(self, nodes: Sequence[str], *, running: bool | None = None) -> list[Machine]:
        """Machines by name; ``all`` is every one. ``running`` demands a state. Unknown names are one error."""
        if not self.state.nodes:
            raise LabError(f"lab {self.name} does not exist; python3 -m lab --name {self.name} up")
        if list(nodes) == ["all"]:
            chosen = self.machines()
        else:
            unknown = [node for node in nodes if node not in self.state.nodes]
            if unknown:
                raise LabError(
                    f"unknown node {', '.join(unknown)}; lab {self.name} has {', '.join(self.state.nodes)}"
                )
            chosen = [self.machine(node) for node in dict.fromkeys(nodes)]
        for machine in chosen:
            if running is True and not machine.running:
                raise LabError(
                    f"{machine.name} is not running; python3 -m lab --name {self.name} start {machine.name}"
                )
            if running is False and machine.running:
                raise LabError(f"{machine.name} is already running")
        return chosen

    @property
    def _set_dir(self) -> Path:
        return self.directory / self.state.disks

    def _manifest(self) -> dict[str, Any]:
        try:
            data: dict[str, Any] = json.loads((self._set_dir / "set.json").read_text())
            return data
        except FileNotFoundError:
            return {"snapshots": {}}

    def _write_manifest(self, manifest: dict[str, Any]) -> None:
        partial = self._set_dir / "set.json.partial"
        partial.write_text(json.dumps(manifest, indent=2) + "\n")
        partial.rename(self._set_dir / "set.json")

    def image(self, node: str = "") -> image.Image:
        """The image of the profile, or of a node that has another one (``plain``)."""
        images = layout.images_dir()
        state = self.state
        key = state.nodes.get(node, {}).get("plain") or state.image_key
        return image.Image(key, images / key, images / f"{state.repository_key}.img")

    def _plain(self, node: str) -> bool:
        return bool(self.state.nodes.get(node, {}).get("plain"))

    # --- up ------------------------------------------------------------------------------------------------

    def up(
        self,
        *,
        profile: str | None = None,
        nodes: int | None = None,
        release: str | None = None,
        fresh: bool = False,
        nvme: Sequence[str] = (),
        memory: int | None = None,
        port_base: int | None = None,
        source: str | None = None,
        plain: Sequence[str] = (),
    ) -> None:
        """Bring the lab up: resume, restore, boot or build, whichever is needed and quickest.

        None means: as this lab is, else profile pve, 3 nodes, trixie, 768 MiB. ``source`` is PVE_PACKAGES. Nodes of
        ``plain`` have the image of profile debian, whatever the profile of the others is.
        """
        with self._changing("up"):
            state = self.state
            if nodes is not None and not 1 <= nodes <= MAX_NODES:
                raise LabError(f"--nodes {nodes}: 1 to {MAX_NODES} are possible")
            count = nodes or len(state.nodes) or 3
            names = [layout.node_name(number) for number in range(1, count + 1)]
            unknown = [node for node in nvme if node not in names]
            if unknown:
                raise LabError(f"--nvme {', '.join(unknown)}: the nodes are {', '.join(names)}")
            if unknown := [node for node in plain if node not in names]:
                raise LabError(f"--plain {', '.join(unknown)}: the nodes are {', '.join(names)}")
            if self.running() and not fresh:
                if set(state.nodes) <= set(_built(self._manifest())):
                    self._up_running(names, profile, release, nvme, memory, plain, source)
                    return
                say("the last start did not come to its end: the nodes begin anew")
                self._kill(self.running())
            if not nvme and not fresh:
                nvme = [node for node in names if state.nodes.get(node, {}).get("nvme")]
            if not plain and not fresh:
                plain = [node for node in names if self._plain(node)]
            self._up_stopped(
                names,
                profile or state.profile or "pve",
                release or state.release or "trixie",
                fresh,
                nvme,
                memory or state.memory,
                port_base,
                source,
                plain,
            )

    def _up_running(
        self,
        names: list[str],
        profile: str | None,
        release: str | None,
        nvme: Sequence[str],
        memory: int | None,
        plain: Sequence[str],
        source: str | None,
    ) -> None:
        """The lab runs: start what is missing of it, and refuse what would need another lab."""
        state = self.state
        wanted = {"profile": profile, "release": release, "memory": memory}
        other = [
            f"{key} {getattr(state, key)}"
            for key, value in wanted.items()
            if value not in (None, getattr(state, key))
        ]
        other += [f"{node} without NVMe" for node in nvme if not state.nodes.get(node, {}).get("nvme")]
        other += [f"{node} of profile {state.profile}" for node in plain if node in state.nodes and not self._plain(node)]
        if other:
            raise LabError(
                f"lab {self.name} is up with {', '.join(other)}; add --fresh or take it down first"
            )
        fresh_nodes = [name for name in names if name not in state.nodes]
        stopped = [name for name in names if name in state.nodes and not self.machine(name).running]
        if not fresh_nodes and not stopped:
            say(f"lab {self.name} is already up ({len(self.running())} nodes, profile {state.profile})")
            return
        for name in fresh_nodes:
            state.nodes[name] = {"plain": image.ensure("debian", state.release, source).key if name in plain else None}
        self._save()
        self._create_disks(fresh_nodes)
        self._boot(fresh_nodes + stopped)
        if fresh_nodes:
            self._save_base(fresh_nodes)

    def _up_stopped(
        self,
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
        state = self.state
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
        disks = f"{profile}-{release}-{key}"
        if fresh and self.running():
            say("stopping the running nodes")
            self._kill(self.running())
        same = state.disks == disks and not fresh and not state.fresh_next
        if (
            state.disks
            and state.disks.startswith(f"{profile}-{release}-")
            and state.disks != disks
            and not fresh
        ):
            say("image, packages or options have changed since: the nodes begin anew")
        previous = state.nodes
        state.profile, state.release, state.memory, state.accel = profile, release, memory, accelerator
        state.disks, state.image_key = disks, picture.key
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
            self._take_ports(port_base)
        if same:
            for name in names:
                for fault in ("cut", "throttle"):
                    if previous.get(name, {}).get(fault):
                        state.nodes[name][fault] = previous[name][fault]
        self._drop_superseded()
        self._set_dir.mkdir(parents=True, exist_ok=True)
        manifest = self._manifest()
        if "image" not in manifest:
            manifest.update(
                image=picture.key, repository=picture.repository.stem, profile=profile, release=release
            )
            self._write_manifest(manifest)
        image.prune(used_images())
        suspended = [name for name in state.suspended if name in names] if same else []
        state.suspended = []
        # The disks may be of more nodes than are wanted now.
        kinds: dict[str, str] = manifest.get("plain", {})
        built = [
            name
            for name in _built(manifest)
            if name in names and self.machine(name).var_disk.exists() and kinds.get(name) == state.nodes[name]["plain"]
        ]
        saved = manifest["snapshots"].get(BASE, {}).get("nodes", [])
        based = [] if same else [name for name in names if name in saved and name in built]
        if profile == "cluster" and not _whole_cluster(names, based, saved):
            based = []
        new = [name for name in names if name not in built or (not same and name not in based)]
        require_space(self.directory, BYTES_PER_NODE_MIB * max(1, len(new)))
        self._keys(names)
        adopted = self._adopt_template(new, profile) if new == names else []
        # A cluster is made of the nodes of profile pve, which another lab may have booted already.
        founding = profile == "cluster" and new == names and not adopted
        if founding:
            adopted = self._adopt_template(new, "pve")
        new = [name for name in new if name not in adopted]
        self._create_disks(new)
        self._save()
        if suspended:
            with step(f"resuming {', '.join(suspended)}"):
                self._resume(suspended, SUSPEND)
        if based:
            with step(f"restoring {', '.join(based)} of profile {profile}"):
                self._resume(based, BASE)
        if adopted:
            with step(f"starting {', '.join(adopted)} from the snapshot of another lab"):
                self._resume(adopted, BASE, new_identity=True)
            if not founding:
                with step("snapshot for the next start"):
                    self._save_snapshot(BASE, [self.machine(name) for name in adopted], add=True)
                self._note_built(adopted)
        cold = [name for name in names if name not in {*suspended, *based, *adopted}]
        if cold:
            self._boot(cold)
        if founding:
            cluster.build(self, [name for name in names if not self._plain(name)][:3])
            self._save_base(names)
        elif new:
            self._save_base(new)
        say(f"lab {self.name} is up: profile {profile}, {release}, {', '.join(names)}")

    def _take_ports(self, base: int) -> None:
        for name, entry in self.state.nodes.items():
            port = base + layout.node_number(name)
            if not 1024 < port < 65536:
                raise LabError(f"--port-base {base}: port {port} is not between 1025 and 65535")
            if not net.port_is_free(port):
                raise LabError(f"--port-base {base}: 127.0.0.1:{port} is taken")
            entry["port"] = port

    def _drop_superseded(self) -> None:
        """Delete disks of the same profile and release that an older image left behind."""
        for path in self.directory.glob(f"{self.state.profile}-{self.state.release}-*"):
            if path.is_dir() and path.name != self.state.disks:
                shutil.rmtree(path)

    def _keys(self, names: Sequence[str]) -> None:
        guestssh.ensure_key(self.directory / "id_ed25519", f"pveguard lab {self.name}")
        (self.directory / "hostkeys").mkdir(exist_ok=True)
        for name in names:
            guestssh.ensure_key(self.directory / "hostkeys" / name, name)

    def _write_known_hosts(self) -> None:
        entries = {
            node: (entry["port"], (self.directory / "hostkeys" / f"{node}.pub").read_text())
            for node, entry in self.state.nodes.items() if entry.get("port")
        }  # fmt: skip
        write_whole(self.directory / "known_hosts", guestssh.known_hosts(entries))

    def _create_disks(self, names: Sequence[str]) -> None:
        self._keys(names)
        manifest = self._manifest()
        for name in names:
            machine, picture = self.machine(name), self.image(name)
            if self._plain(name):
                manifest.setdefault("plain", {})[name] = picture.key
            else:
                manifest.get("plain", {}).pop(name, None)
            for disk, backing in ((machine.root_disk, picture.root), (machine.var_disk, picture.var)):
                disk.unlink(missing_ok=True)
                run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", os.path.relpath(backing, disk.parent),
                     disk], what=f"qemu-img create {disk.name}")  # fmt: skip
            for path in (machine.console_log, machine.qemu_log):
                path.unlink(missing_ok=True)
            manifest["built"] = [node for node in _built(manifest) if node != name]
            for snapshot in manifest["snapshots"].values():
                snapshot["nodes"] = [node for node in snapshot["nodes"] if node != name]
        if names and manifest.get("image"):
            manifest["snapshots"] = {
                key: value for key, value in manifest["snapshots"].items() if value["nodes"]
            }
            self._write_manifest(manifest)

    def _arguments(self, machine: Machine, load: str | None) -> list[str]:
        return machine.arguments(
            self.image(machine.name),
            self.state.accel,
            self.state.memory,
            self.state.ring_port,
            self._identity(machine),
            load,
        )

    def _identity(self, machine: Machine) -> bytes:
        host_key = self.directory / "hostkeys" / machine.name
        return identity.encode_files(
            identity.files(
                machine.number,
                (self.directory / "id_ed25519.pub").read_text(),
                host_key.read_text(),
                host_key.with_suffix(".pub").read_text(),
            )
        )

    def _hand_over_identity(self, machine: Machine) -> None:
        """Give a guest that was another lab's this lab's keys; its next boot finds the same ones."""
        data = base64.b64encode(self._identity(machine)).decode()
        key = shlex.quote((self.directory / "id_ed25519.pub").read_text().strip())
        status, output = machine.console.run(
            f"set -e; umask 077; echo {data} | base64 -d > /run/lab/lab.identity\n"
            "CREDENTIALS_DIRECTORY=/run/lab /usr/local/lib/lab/identity; rm /run/lab/lab.identity\n"
            # A link into /etc/pve, which the identity leaves alone, can be written once the cluster is quorate again.
            f"for i in $(seq 120); do {{ echo {key} > /root/.ssh/authorized_keys; }} 2>/dev/null && break; sleep 0.5; done\n"
            f"grep -qxF {key} /root/.ssh/authorized_keys\n"
            "systemctl reload ssh",
            150,
        )
        if status != 0:
            raise LabError(f"{machine.name}: no new identity: {output.strip()}")

    # --- templates: the first snapshot of a profile, for other labs --------------------------------------------

    def _template(self, profile: str) -> Path:
        """Where the disks of a profile lie that has the same image, QEMU and options as this lab."""
        return self.image().directory / f"snapshot-{profile}{self.state.disks.removeprefix(self.state.profile)}"

    def _offer_template(self, machines: Sequence[Machine]) -> None:
        """Copy the disks of paused machines of the profile to where another lab can begin with them."""
        machines = [machine for machine in machines if not self._plain(machine.name)]
        target = self._template(self.state.profile)
        try:
            known = json.loads((target / "template.json").read_text())["nodes"]
        except (OSError, ValueError, KeyError):
            known = []
        names = [machine.name for machine in machines]
        if set(names) <= set(known):
            return
        for old in target.parent.glob(f"snapshot-{self.state.profile}-{self.state.release}-*"):
            shutil.rmtree(old)
        partial = target.with_name(f"partial-{os.getpid()}")
        partial.mkdir()
        for machine in machines:
            _copy_sparse((machine.root_disk, machine.var_disk), partial)
        (partial / "template.json").write_text(json.dumps({"nodes": names}) + "\n")
        partial.rename(target)

    def _adopt_template(self, names: Sequence[str], profile: str) -> list[str]:
        """Take disks with the base snapshot from another lab's first start; returns the nodes that have them now."""
        source = self._template(profile)
        with file_lock(layout.images_dir() / "lock", "the image store"):
            try:
                known = json.loads((source / "template.json").read_text())["nodes"]
            except (OSError, ValueError, KeyError):
                return []
            taken = [name for name in names if name in known and not self._plain(name)]
            if profile == "cluster" and not _whole_cluster(names, taken, known):
                return []
            for name in taken:
                machine = self.machine(name)
                _copy_sparse((source / machine.root_disk.name, source / machine.var_disk.name), self._set_dir)
        return taken

    def _note_built(self, names: Sequence[str]) -> None:
        manifest = self._manifest()
        manifest["built"] = sorted({*_built(manifest), *names}, key=layout.node_number)
        self._write_manifest(manifest)

    def _launch(self, names: Sequence[str], load: str | None = None) -> list[Machine]:
        """Start QEMU for each node; ports are chosen here, under the machine-wide lock."""
        state = self.state
        with net.ports_lock():
            others = other_labs(self.name)
            taken: set[int] = {
                entry["port"] for other in others for entry in other.nodes.values() if entry.get("port")
            }
            if not self.running():
                state.ring_port = net.choose_ring_port({other.ring_port for other in others})
            for name in names:
                taken |= {
                    entry["port"] for node, entry in state.nodes.items() if node != name and entry.get("port")
                }
                state.nodes[name]["port"] = net.choose_ssh_port(taken, state.nodes[name].get("port"))
            self._write_known_hosts()
            machines = [self.machine(name) for name in names]

            def launch(machine: Machine) -> None:
                try:
                    machine.launch(self._arguments(machine, load))
                finally:
                    self._remember(machine)

            try:
                in_parallel(launch, machines)
            finally:
                state.up = True
                state.generation += 1
                self._save()
        for machine in machines:
            entry = state.nodes[machine.name]
            with machine.qmp() as qmp:
                if entry.get("cut"):
                    qmp.execute("set_link", name="ring", up=False)
                if entry.get("throttle"):
                    _throttle(qmp, entry["throttle"])
        return machines

    def _boot(self, names: Sequence[str]) -> None:
        with step(f"booting {', '.join(names)} ({self.state.accel})"):
            self.wait_ready(self._launch(names), COLD_SECONDS)

    def _resume(self, names: Sequence[str], snapshot: str, new_identity: bool = False) -> None:
        machines = self._launch(names, load=snapshot)
        self._continue(machines)
        if new_identity:
            in_parallel(self._hand_over_identity, machines)
        self.wait_ready(machines, WARM_SECONDS)

    def _continue(self, machines: Sequence[Machine]) -> None:
        """Let restored guests run, all at once, links up, clocks right."""

        def go(machine: Machine) -> None:
            with machine.qmp() as qmp:
                qmp.execute("set_link", name="ring", up=not self.state.nodes[machine.name].get("cut"))
                qmp.execute("cont")

        in_parallel(go, machines)
        in_parallel(self._set_clock, machines)

    @staticmethod
    def _set_clock(machine: Machine) -> None:
        # The clock chip is set as well, in the background: it takes the kernel a second, and a reboot reads it.
        command = (
            f"date -s @{time.time() + 0.05:.2f} >/dev/null && {{ hwclock --systohc --utc --noadjfile & }}"
        )
        status, output = machine.console.run(command, 30)
        if status != 0:
            raise LabError(f"{machine.name}: the clock could not be set: {output.strip()}")

    def wait_ready(self, machines: Sequence[Machine], seconds: float) -> None:
        """Wait until a command runs over ssh on every machine."""
        begin = time.monotonic()

        def wait(machine: Machine) -> None:
            assert machine.port is not None
            why = "no ssh server answers"
            while time.monotonic() - begin < seconds:
                if not machine.running:
                    raise LabError(
                        f"{machine.name}: QEMU ended while waiting for ssh; see {machine.qemu_log}"
                    )
                if _ssh_listens(machine):
                    why = guestssh.login(self.directory, machine.port)
                    if not why:
                        say(f"{machine.name}: ssh after {time.monotonic() - begin:.1f} s")
                        return
                else:
                    machine.reset_if_stuck()
                time.sleep(0.3)
            raise LabError(
                f"{machine.name}: not reachable by ssh within {seconds:.0f} s ({why}); "
                f"try: python3 -m lab --name {self.name} exec --console {machine.name} 'systemctl --failed'"
            )

        in_parallel(wait, machines)

    def _save_base(self, names: Sequence[str]) -> None:
        """Snapshot newly made nodes once they have settled, so that the next fresh start takes seconds."""
        if not self._snapshots_possible():
            say("no snapshot of the new nodes: an emulated NVMe cannot be saved")
            self._note_built(names)
            return

        def settled(machine: Machine) -> None:
            _, output = machine.console.run("systemctl is-system-running --wait", 180)
            if output.strip() != "running":
                _, failed = machine.console.run(
                    "systemctl --failed --no-legend --plain | cut -d ' ' -f 1", 30
                )
                say(f"{machine.name}: {output.strip()}: {' '.join(failed.split())}")

        machines = [self.machine(name) for name in names]
        with step("settling"):
            in_parallel(settled, machines)
        with step("snapshot for the next start"):
            self._save_snapshot(BASE, machines, add=True, offer=len(machines) == len(self.state.nodes))
        self._note_built(names)

    def _snapshots_possible(self) -> bool:
        return not any(entry.get("nvme") for entry in self.state.nodes.values())

    # --- down ----------------------------------------------------------------------------------------------

    def down(self, *, off: bool = False, discard: bool = False, remove: bool = False) -> None:
        """Leave no process. Default: save the running state, so that the next ``up`` goes on with it.

        ``off``: power the guests off in good order instead. ``discard``: save nothing, the next ``up`` begins at the
        profile's snapshot. ``remove``: delete the lab's folder.
        """
        if not self.directory.is_dir():
            say(f"lab {self.name} does not exist")
            return
        with self._changing("down"):
            machines = self.running()
            if not machines:
                say(f"lab {self.name} is not running")
            elif discard or remove:
                self._kill(machines)
            elif off or not self._snapshots_possible():
                self._power_off(machines)
            else:
                with step("saving the running state"):
                    self._pause(machines)
                    in_parallel(lambda m: _savevm(m, SUSPEND), machines)
                self._kill(machines)
                self.state.suspended = [machine.name for machine in machines]
            self.state.up = False
            if discard:
                self.state.fresh_next = True
                self.state.suspended = []
            self._save()
            if remove:
                shutil.rmtree(self.directory)
            if machines:
                say(f"lab {self.name} is down")

    def _kill(self, machines: Sequence[Machine]) -> None:
        def end(machine: Machine) -> None:
            machine.kill()
            self._remember(machine)

        in_parallel(end, machines)
        for machine in machines:
            for suffix in ("qmp", "agent"):
                (self.directory / f"{machine.name}.{suffix}").unlink(missing_ok=True)
        self.state.generation += 1
        self._save()

    def _power_off(self, machines: Sequence[Machine], seconds: float = OFF_SECONDS) -> None:
        def off(machine: Machine) -> None:
            try:
                machine.console.run("systemctl poweroff --no-block", 30)
            except LabError:
                with machine.qmp() as qmp:
                    qmp.execute("system_powerdown")
            deadline = time.monotonic() + seconds
            while machine.running:
                if time.monotonic() > deadline:
                    say(f"{machine.name}: not off after {seconds:.0f} s, cutting its power")
                    return
                time.sleep(0.2)

        with step("powering off"):
            in_parallel(off, machines)
        self._kill(machines)

    # --- snapshots -----------------------------------------------------------------------------------------

    @staticmethod
    def _pause(machines: Sequence[Machine]) -> None:
        def pause(machine: Machine) -> None:
            with machine.qmp() as qmp:
                qmp.execute("stop")

        in_parallel(pause, machines)

    def _save_snapshot(
        self, name: str, machines: Sequence[Machine], add: bool = False, offer: bool = False
    ) -> None:
        self._pause(machines)
        try:
            in_parallel(lambda m: _savevm(m, name), machines)
            if offer:
                with file_lock(layout.images_dir() / "lock", "the image store"):
                    self._offer_template(machines)
        finally:
            in_parallel(_cont, machines)
        in_parallel(self._set_clock, machines)
        manifest = self._manifest()
        before = manifest["snapshots"].get(name, {}).get("nodes", []) if add else []
        nodes = sorted({*before, *(machine.name for machine in machines)}, key=layout.node_number)
        manifest["snapshots"][name] = {"nodes": nodes, "created": int(time.time())}
        self._write_manifest(manifest)

    def snapshot(self, name: str) -> None:
        """Save memory and disks of all nodes at one moment under ``name``."""
        layout.check_name(name, "snapshot")
        if name in (BASE, SUSPEND):
            raise LabError(f"snapshot {name!r}: the name is the lab's own")
        with self._changing("snapshot"):
            machines = self.select(["all"], running=True)
            if not self._snapshots_possible():
                raise LabError(f"lab {self.name} has an emulated NVMe, which cannot be saved in a snapshot")
            require_space(self.directory, 512 * len(machines))
            with step(f"snapshot {name}"):
                self._save_snapshot(name, machines)

    def restore(self, name: str) -> None:
        """Set all nodes back to snapshot ``name``; cuts, throttles and delays end; nodes made later are stopped."""
        with self._changing("restore"):
            snapshots = self._manifest()["snapshots"] if self.state.disks else {}
            if name not in snapshots:
                known = ", ".join(sorted(snapshots)) or "none"
                raise LabError(f"lab {self.name} has no snapshot {name!r}; it has: {known}")
            nodes = [node for node in snapshots[name]["nodes"] if node in self.state.nodes or name != BASE]
            with step(f"restoring {name}"):
                extra = [machine for machine in self.running() if machine.name not in nodes]
                if extra:
                    say(f"not in the snapshot, stopped: {', '.join(machine.name for machine in extra)}")
                    self._kill(extra)
                for node in nodes:
                    entry = self.state.nodes.setdefault(node, {})
                    for fault in ("cut", "throttle", "delay"):
                        entry.pop(fault, None)
                live = [machine for machine in map(self.machine, nodes) if machine.running]
                self._pause(live)
                try:
                    in_parallel(lambda m: _loadvm(m, name), live)
                except LabError:
                    self._kill(live)
                    raise
                started = self._launch([n for n in nodes if n not in {m.name for m in live}], load=name)
                self.state.generation += 1
                self.state.suspended = []
                self._save()
                self._continue([*live, *started])
                self.wait_ready([*live, *started], WARM_SECONDS)

    # --- faults --------------------------------------------------------------------------------------------

    def power_cut(self, nodes: Sequence[str]) -> None:
        """Take the power from nodes: QEMU is killed, what was not flushed is gone."""
        with self._changing("power-cut"):
            machines = self.select(nodes, running=True)
            self._kill(machines)
            say(f"power cut: {', '.join(machine.name for machine in machines)}")

    def power_off(self, nodes: Sequence[str]) -> None:
        """Power nodes off in good order, as an operator does; ``start`` boots them again."""
        with self._changing("power-off"):
            machines = self.select(nodes, running=True)
            self._power_off(machines)
            say(f"powered off: {', '.join(machine.name for machine in machines)}")

    def start(self, nodes: Sequence[str], wait: bool = True) -> None:
        """Boot stopped nodes (default: all that are stopped)."""
        with self._changing("start"):
            if nodes:
                machines = self.select(nodes, running=False)
            else:
                machines = [machine for machine in self.select(["all"]) if not machine.running]
            if not machines:
                say("all nodes are running")
                return
            names = [machine.name for machine in machines]
            self.state.suspended = [node for node in self.state.suspended if node not in names]
            if wait:
                self._boot(names)
            else:
                self._launch(names)

    def reboot(self, nodes: Sequence[str], wait: bool = True) -> None:
        """Reboot in good order, all named nodes at once, and wait until they can be logged in to again."""
        with self._changing("reboot"):
            machines = self.select(list(nodes) or ["all"], running=True)
            names = ", ".join(machine.name for machine in machines)
            with step(f"rebooting {names}"):
                before = dict(zip([m.name for m in machines], in_parallel(_boot_id, machines), strict=True))
                in_parallel(lambda m: m.console.run("systemctl reboot --no-block", 60), machines)
                self.state.generation += 1
                self._save()
                if not wait:
                    return
                deadline = time.monotonic() + COLD_SECONDS

                def wait_for(machine: Machine) -> None:
                    while True:
                        try:
                            if _boot_id(machine, 5) != before[machine.name]:
                                return
                        except LabError:
                            pass
                        if not machine.running:
                            raise LabError(
                                f"{machine.name}: QEMU ended during the reboot; see {machine.qemu_log}"
                            )
                        machine.reset_if_stuck()
                        if time.monotonic() > deadline:
                            raise LabError(f"{machine.name}: has not rebooted within {COLD_SECONDS} s")
                        time.sleep(0.5)

                in_parallel(wait_for, machines)
                self.wait_ready(machines, COLD_SECONDS)

    def set_ring(self, nodes: Sequence[str], up: bool) -> None:
        """Plug (``up``) or unplug the ring network of nodes."""
        with self._changing("heal" if up else "cut"):
            for machine in self.select(nodes, running=True):
                with machine.qmp() as qmp:
                    qmp.execute("set_link", name="ring", up=up)
                self.state.nodes[machine.name]["cut"] = not up
                say(f"{machine.name}: ring {'healed' if up else 'cut'}")
            self._save()

    def throttle(self, node: str, iops: int | None) -> None:
        """Limit the write operations per second of a node's /var/lib disk; None lifts the limit."""
        with self._changing("throttle"):
            if iops is not None and iops < 1:
                raise LabError(f"throttle {iops}: at least 1 operation a second, or 'off'")
            for machine in self.select([node], running=True):
                with machine.qmp() as qmp:
                    _throttle(qmp, iops or 0)
                self.state.nodes[machine.name]["throttle"] = iops
                say(f"{machine.name}: {'no limit' if iops is None else f'{iops} writes a second at most'}")
            self._save()

    def delay(self, node: str, milliseconds: float | None, loss: float = 0) -> None:
        """Delay what a node sends on the ring, and lose ``loss`` percent of it (netem in the guest, until its next boot);
        None ends both.
        """
        with self._changing("delay"):
            if milliseconds is not None and milliseconds < 0:
                raise LabError(f"delay {milliseconds:g}: milliseconds, or 'off'")
            if not 0 <= loss <= 100:
                raise LabError(f"loss {loss:g}: percent, from 0 to 100")
            lost = f" loss {loss:g}%" if loss else ""
            for machine in self.select([node], running=True):
                if milliseconds is None:
                    command = "tc qdisc del dev eth1 root 2>/dev/null || true"
                else:
                    netem = f"netem delay {milliseconds:g}ms{lost} limit 100000"
                    command = f"modprobe sch_netem; tc qdisc replace dev eth1 root {netem}"
                status, output = machine.console.run(command, 30)
                if status != 0:
                    raise LabError(f"{machine.name}: tc: {output.strip()}")
                self.state.nodes[machine.name]["delay"] = milliseconds
                say(f"{machine.name}: {'no delay' if milliseconds is None else f'{milliseconds:g} ms{lost}'}")
            self._save()

    # --- access --------------------------------------------------------------------------------------------

    def ssh_argv(self, node: str, command: Sequence[str] = ()) -> list[str]:
        """Argument vector of an ssh to ``node``: a shell, or ``command`` (one argument: a shell command)."""
        machine = self.select([node], running=True)[0]
        assert machine.port is not None
        text = [command[0]] if len(command) == 1 else [shlex.join(command)] if command else []
        return guestssh.argv(self.directory, machine.port, text, batch=bool(text))

    def ssh(self, node: str, command: str, timeout: float = 120) -> str:
        """Run a shell command over ssh and return its stdout; another status than 0 is an error."""
        machine = self.select([node], running=True)[0]
        assert machine.port is not None
        done = guestssh.execute(self.directory, machine.port, command, timeout)
        if done.returncode != 0:
            tail = " | ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
            raise LabError(f"{node}: {command.splitlines()[0]!r} ended with {done.returncode}: {tail}")
        return done.stdout

    def describe(self) -> dict[str, Any]:
        """The lab as data: what ``status --json`` and the inventory show."""
        state = self.state
        nodes = []
        for machine in self.machines():
            entry = state.nodes[machine.name]
            nodes.append({
                "name": machine.name, "number": machine.number, "running": machine.running, "pid": machine.pid,
                "address": "127.0.0.1", "port": machine.port, "user": "root",
                "ring_address": layout.ring_address(machine.number), "nvme": machine.nvme,
                "ring": "cut" if entry.get("cut") else "up", "throttle_write_iops": entry.get("throttle"),
                "delay_ms": entry.get("delay"), "suspended": machine.name in state.suspended,
                "plain": self._plain(machine.name),
            })  # fmt: skip
        return {
            "name": self.name, "up": state.up, "running": bool(nodes) and all(node["running"] for node in nodes),
            "profile": state.profile or None, "release": state.release or None, "accel": state.accel or None,
            "memory_mib": state.memory, "directory": str(self.directory), "generation": state.generation,
            "identity_file": str(self.directory / "id_ed25519"), "known_hosts": str(self.directory / "known_hosts"),
            "snapshots": self._manifest()["snapshots"] if state.disks else {}, "nodes": nodes,
            "repository": self._repository(),
        }  # fmt: skip

    def _repository(self) -> dict[str, Any] | None:
        """What the roles need to know of the package repository."""
        if not self.state.repository_key:
            return None
        try:
            about = self.image().about_repository
        except (OSError, ValueError):
            return None
        return {
            "uri": about.get("url") or "file:///srv/pve-repo", "suites": about["suites"],
            "components": about["components"], "key": "/srv/pve-repo/key.asc", "fingerprint": about["fingerprint"],
            "packages": about["packages"],
        }  # fmt: skip


def _whole_cluster(wanted: Sequence[str], there: Sequence[str], saved: Sequence[str]) -> bool:
    """Whether the wanted nodes can begin with a snapshot: its members come from one moment, and without a member that
    it knows of, one of three for instance, there would be no quorum.
    """
    members = sorted(saved, key=layout.node_number)[:3]
    return len(there) >= min(3, len(wanted)) and set(members) <= set(wanted)


def _built(manifest: dict[str, Any]) -> list[str]:
    """Nodes whose first start came to its end."""
    nodes: list[str] = manifest.get("built", manifest["snapshots"].get(BASE, {}).get("nodes", []))
    return nodes


def _copy_sparse(files: Sequence[Path], directory: Path) -> None:
    run(["cp", "--sparse=always", "--reflink=auto", *files, directory], what="cp")


def _savevm(machine: Machine, name: str) -> None:
    with machine.qmp(300) as qmp:
        qmp.human(f"savevm {name}")


def _loadvm(machine: Machine, name: str) -> None:
    with machine.qmp(300) as qmp:
        qmp.human(f"loadvm {name}")


def _cont(machine: Machine) -> None:
    with machine.qmp() as qmp:
        qmp.execute("cont")


def _throttle(qmp: Any, iops: int) -> None:
    limits = {"bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": iops}
    qmp.execute("block_set_io_throttle", device="var", **limits)


def _boot_id(machine: Machine, seconds: float = 60) -> str:
    status, output = machine.console.run("cat /proc/sys/kernel/random/boot_id", seconds)
    if status != 0 or not output.strip():
        raise LabError(f"{machine.name}: no boot id")
    return output.strip()


def _ssh_listens(machine: Machine) -> bool:
    """Whether the guest's ssh server listens, asked in the guest: each connection from outside costs an emulated sshd
    seconds, and one that gives up and comes again, on a busy machine, all it has.
    """
    listens = "grep -q '^ *[0-9]*: [0-9A-F]*:0016 [0-9A-F]*:0000 0A ' /proc/net/tcp"
    try:
        status, _ = machine.console.run(f"until {listens}; do sleep 0.3; done", 10)
    except LabError:
        return False
    return status == 0


def all_labs() -> list[Lab]:
    directory = layout.labs_dir()
    if not directory.is_dir():
        return []
    return [Lab(path.name) for path in sorted(directory.iterdir()) if (path / "state.json").is_file()]


def other_labs(name: str) -> list[State]:
    return [lab.state for lab in all_labs() if lab.name != name]


def used_images() -> set[str]:
    """Keys of the images and repositories that the disks of any lab stand on."""
    used: set[str] = set()
    for path in layout.labs_dir().glob("*/*/set.json"):
        try:
            manifest = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        used |= {manifest.get("image", ""), manifest.get("repository", ""), *manifest.get("plain", {}).values()}
    return used
