"""A lab: named, with its own keys, ports, disks and snapshots; what the command line offers, as methods."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import time
from collections.abc import Sequence
from typing import Any, Literal

from . import bringup, guests, guestssh, identity, layout, services, snapshots, statistics, store
from .errors import LabError
from .machine import Machine
from .progress import say, step
from .store import BASE, SUSPEND, Store
from .system import in_parallel, require_space

MAX_NODES = identity.HOSTS_KNOWN


class Lab(Store):
    """The lab called ``name``. Every changing method takes the lab's lock; errors are :class:`LabError`."""

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
        statistics_of: int | Literal["off"] | None = None,
    ) -> None:
        """Bring the lab up: resume, restore, boot or build, whichever is needed and quickest.

        None means: as this lab is, else profile pve, 3 nodes, trixie, 768 MiB. ``source`` is PVE_PACKAGES. Nodes of
        ``plain`` have the image of profile debian, whatever the profile of the others is. ``statistics_of``: made-up
        statistics of so many guests, and the other writers of a node in use; a new lab has none ("off").
        """
        with self.changing("up"):
            state = self.state
            if nodes is not None and not 1 <= nodes <= MAX_NODES:
                raise LabError(f"--nodes {nodes}: 1 to {MAX_NODES} are possible")
            if isinstance(statistics_of, int) and not 0 <= statistics_of <= statistics.MAX_GUESTS:
                raise LabError(f"--guests {statistics_of}: 0 to {statistics.MAX_GUESTS} are possible, or 'off'")
            count = nodes or len(state.nodes) or 3
            names = [layout.node_name(number) for number in range(1, count + 1)]
            unknown = [node for node in nvme if node not in names]
            if unknown:
                raise LabError(f"--nvme {', '.join(unknown)}: the nodes are {', '.join(names)}")
            if unknown := [node for node in plain if node not in names]:
                raise LabError(f"--plain {', '.join(unknown)}: the nodes are {', '.join(names)}")
            again = not fresh and bool(self.running())
            if again and not set(state.nodes) <= set(store.built(self.manifest())):
                say("the last start did not come to its end: the nodes begin anew")
                guests.kill(self, self.running())
                again = False
            if not again and not fresh:
                nvme = nvme or [node for node in names if state.nodes.get(node, {}).get("nvme")]
                plain = plain or [node for node in names if self.is_plain(node)]
            wanted = bringup.Wanted(names, profile, release, memory, nvme, plain, fresh, port_base, source)
            (bringup.up_running if again else bringup.up_stopped)(self, wanted)
            if statistics_of is not None:
                self.state.guests = None if statistics_of == "off" else statistics_of
                self.save()
            if statistics_of is not None or self.state.guests is not None:
                statistics.apply(self, self.running())

    def down(self, *, off: bool = False, discard: bool = False, remove: bool = False) -> None:
        """Leave no process. Default: save the running state, so that the next ``up`` goes on with it.

        ``off``: power the guests off in good order instead. ``discard``: save nothing, the next ``up`` begins at the
        profile's snapshot. ``remove``: delete the lab's folder.
        """
        if not self.directory.is_dir():
            say(f"lab {self.name} does not exist")
            return
        with self.changing("down"):
            machines = self.running()
            if not machines:
                say(f"lab {self.name} is not running")
            elif discard or remove:
                guests.kill(self, machines)
            elif off or not snapshots.possible(self):
                guests.power_off(self, machines)
            else:
                with step("saving the running state"):
                    guests.pause(machines)
                    in_parallel(lambda m: snapshots.savevm(m, SUSPEND), machines)
                guests.kill(self, machines)
                self.state.suspended = [machine.name for machine in machines]
            self.state.up = False
            if discard:
                self.state.fresh_next = True
                self.state.suspended = []
            self.save()
            if remove:
                shutil.rmtree(self.directory)
            if machines:
                say(f"lab {self.name} is down")

    def snapshot(self, name: str) -> None:
        """Save memory and disks of all nodes at one moment under ``name``."""
        layout.check_name(name, "snapshot")
        if name in (BASE, SUSPEND):
            raise LabError(f"snapshot {name!r}: the name is the lab's own")
        with self.changing("snapshot"):
            machines = self.select(["all"], running=True)
            if not snapshots.possible(self):
                raise LabError(f"lab {self.name} has an emulated NVMe, which cannot be saved in a snapshot")
            require_space(self.directory, 512 * len(machines))
            with step(f"snapshot {name}"):
                snapshots.save(self, name, machines)

    def restore(self, name: str) -> None:
        """Set all nodes back to snapshot ``name``; cuts, throttles and delays end; nodes made later are stopped."""
        with self.changing("restore"):
            saved = self.manifest()["snapshots"] if self.state.disks else {}
            if name not in saved:
                known = ", ".join(sorted(saved)) or "none"
                raise LabError(f"lab {self.name} has no snapshot {name!r}; it has: {known}")
            nodes = [node for node in saved[name]["nodes"] if node in self.state.nodes or name != BASE]
            with step(f"restoring {name}"):
                extra = [machine for machine in self.running() if machine.name not in nodes]
                if extra:
                    say(f"not in the snapshot, stopped: {', '.join(machine.name for machine in extra)}")
                    guests.kill(self, extra)
                for node in nodes:
                    entry = self.state.nodes.setdefault(node, {})
                    for fault in ("cut", "throttle", "delay"):
                        entry.pop(fault, None)
                live = [machine for machine in map(self.machine, nodes) if machine.running]
                guests.pause(live)
                try:
                    in_parallel(lambda m: snapshots.loadvm(m, name), live)
                except LabError:
                    guests.kill(self, live)
                    raise
                started = guests.launch(self, [n for n in nodes if n not in {m.name for m in live}], load=name)
                self.state.generation += 1
                self.state.suspended = []
                self.save()
                guests.go_on(self, [*live, *started])
                guests.wait_ready(self, [*live, *started], guests.WARM_SECONDS)
            if self.state.guests is not None:
                statistics.apply(self, self.running())

    def power_cut(self, nodes: Sequence[str]) -> None:
        """Take the power from nodes: QEMU is killed, what was not flushed is gone."""
        with self.changing("power-cut"):
            machines = self.select(nodes, running=True)
            guests.kill(self, machines)
            say(f"power cut: {', '.join(machine.name for machine in machines)}")

    def power_off(self, nodes: Sequence[str]) -> None:
        """Power nodes off in good order, as an operator does; ``start`` boots them again."""
        with self.changing("power-off"):
            machines = self.select(nodes, running=True)
            guests.power_off(self, machines)
            say(f"powered off: {', '.join(machine.name for machine in machines)}")

    def start(self, nodes: Sequence[str], wait: bool = True) -> None:
        """Boot stopped nodes (default: all that are stopped)."""
        with self.changing("start"):
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
                guests.boot(self, names)
            else:
                guests.launch(self, names)

    def reboot(self, nodes: Sequence[str], wait: bool = True) -> None:
        """Reboot in good order, all named nodes at once, and wait until they can be logged in to again."""
        with self.changing("reboot"):
            machines = self.select(list(nodes) or ["all"], running=True)
            names = ", ".join(machine.name for machine in machines)
            with step(f"rebooting {names}"):
                before = dict(zip([m.name for m in machines], in_parallel(guests.boot_id, machines), strict=True))

                def tell(machine: Machine) -> None:
                    # One that goes down at once does not answer any more; whether it has booted is seen below.
                    with contextlib.suppress(LabError):
                        machine.console.run("systemctl reboot --no-block", 60)

                in_parallel(tell, machines)
                self.state.generation += 1
                self.save()
                if not wait:
                    return
                deadline = time.monotonic() + guests.COLD_SECONDS

                def wait_for(machine: Machine) -> None:
                    while True:
                        try:
                            if guests.boot_id(machine, 5) != before[machine.name]:
                                return
                        except LabError:
                            pass
                        if not machine.running:
                            raise LabError(
                                f"{machine.name}: QEMU ended during the reboot; see {machine.qemu_log}"
                            )
                        machine.reset_if_stuck()
                        if time.monotonic() > deadline:
                            raise LabError(f"{machine.name}: has not rebooted within {guests.COLD_SECONDS} s")
                        time.sleep(0.5)

                in_parallel(wait_for, machines)
                guests.wait_ready(self, machines, guests.COLD_SECONDS)

    def wait_ready(self, machines: Sequence[Machine], seconds: float) -> None:
        """Wait until a command runs over ssh on every machine."""
        guests.wait_ready(self, machines, seconds)

    def set_ring(self, nodes: Sequence[str], up: bool) -> None:
        """Plug (``up``) or unplug the ring network of nodes."""
        with self.changing("heal" if up else "cut"):
            for machine in self.select(nodes, running=True):
                with machine.qmp() as qmp:
                    qmp.execute("set_link", name="ring", up=up)
                self.state.nodes[machine.name]["cut"] = not up
                say(f"{machine.name}: ring {'healed' if up else 'cut'}")
            self.save()

    def throttle(self, node: str, iops: int | None) -> None:
        """Limit the write operations per second of a node's /var/lib disk; None lifts the limit."""
        with self.changing("throttle"):
            if iops is not None and iops < 1:
                raise LabError(f"throttle {iops}: at least 1 operation a second, or 'off'")
            for machine in self.select([node], running=True):
                with machine.qmp() as qmp:
                    guests.throttle(qmp, iops or 0)
                self.state.nodes[machine.name]["throttle"] = iops
                say(f"{machine.name}: {'no limit' if iops is None else f'{iops} writes a second at most'}")
            self.save()

    def services(self, names: Sequence[str], on: bool, nodes: Sequence[str] = ()) -> None:
        """Switch services that an idle lab is spared on or off on nodes (default: all that run)."""
        with self.changing("services"):
            unknown = sorted(set(names) - set(services.SERVICES))
            if unknown:
                raise LabError(f"no service {', '.join(unknown)}: there are {', '.join(services.SERVICES)}")

            def tell(machine: Machine) -> None:
                status, output = machine.console.run(services.script(names, on), 600)
                if status != 0:
                    raise LabError(f"{machine.name}: {', '.join(names)}: {output.strip()}")

            machines = self.select(nodes, running=True) if nodes else self.running()
            in_parallel(tell, machines)
            for machine in machines:
                say(f"{machine.name}: {', '.join(names)} {'on' if on else 'off'}")

    def delay(self, node: str, milliseconds: float | None, loss: float = 0) -> None:
        """Delay what a node sends on the ring, and lose ``loss`` percent of it (netem in the guest, until its next boot);
        None ends both.
        """
        with self.changing("delay"):
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
            self.save()

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
                "plain": self.is_plain(machine.name),
            })  # fmt: skip
        return {
            "name": self.name, "up": state.up, "running": bool(nodes) and all(node["running"] for node in nodes),
            "profile": state.profile or None, "release": state.release or None, "accel": state.accel or None,
            "memory_mib": state.memory, "guests": state.guests,
            "directory": str(self.directory), "generation": state.generation,
            "identity_file": str(self.directory / "id_ed25519"), "known_hosts": str(self.directory / "known_hosts"),
            "snapshots": self.manifest()["snapshots"] if state.disks else {}, "nodes": nodes,
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


def all_labs() -> list[Lab]:
    return [Lab(name) for name in store.all_names()]
