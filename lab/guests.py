"""The guests of a lab: started, resumed, waited for, stopped."""

from __future__ import annotations

import base64
import shlex
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from . import disks, guestssh, identity, layout, net, store
from .errors import LabError
from .machine import Machine
from .progress import say, step
from .store import Store
from .system import in_parallel

# Deadlines, several times what an idle machine with 2 cores and no KVM takes.
COLD_SECONDS = 600
WARM_SECONDS = 180
OFF_SECONDS = 300


def take_ports(lab: Store, base: int) -> None:
    for name, entry in lab.state.nodes.items():
        port = base + layout.node_number(name)
        if not 1024 < port < 65536:
            raise LabError(f"--port-base {base}: port {port} is not between 1025 and 65535")
        if not net.port_is_free(port):
            raise LabError(f"--port-base {base}: 127.0.0.1:{port} is taken")
        entry["port"] = port


def _arguments(lab: Store, machine: Machine, load: str | None) -> list[str]:
    return machine.arguments(
        lab.image(machine.name),
        lab.state.accel,
        lab.state.memory,
        lab.state.ring_port,
        _identity(lab, machine),
        load,
    )


def _identity(lab: Store, machine: Machine) -> bytes:
    host_key = lab.directory / "hostkeys" / machine.name
    return identity.encode_files(
        identity.files(
            machine.number,
            (lab.directory / "id_ed25519.pub").read_text(),
            host_key.read_text(),
            host_key.with_suffix(".pub").read_text(),
        )
    )


def _hand_over_identity(lab: Store, machine: Machine) -> None:
    """Give a guest that was another lab's this lab's keys; its next boot finds the same ones."""
    data = base64.b64encode(_identity(lab, machine)).decode()
    key = shlex.quote((lab.directory / "id_ed25519.pub").read_text().strip())
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


def launch(lab: Store, names: Sequence[str], load: str | None = None) -> list[Machine]:
    """Start QEMU for each node; ports are chosen here, under the machine-wide lock."""
    state = lab.state
    with net.ports_lock():
        others = store.other_states(lab.name)
        taken: set[int] = {
            entry["port"] for other in others for entry in other.nodes.values() if entry.get("port")
        }
        if not lab.running():
            state.ring_port = net.choose_ring_port({other.ring_port for other in others})
        for name in names:
            taken |= {
                entry["port"] for node, entry in state.nodes.items() if node != name and entry.get("port")
            }
            state.nodes[name]["port"] = net.choose_ssh_port(taken, state.nodes[name].get("port"))
        disks.write_known_hosts(lab)
        machines = [lab.machine(name) for name in names]

        def begin(machine: Machine) -> None:
            try:
                machine.launch(_arguments(lab, machine, load))
            finally:
                lab.remember(machine)

        try:
            in_parallel(begin, machines)
        finally:
            state.up = True
            state.generation += 1
            lab.save()
    for machine in machines:
        entry = state.nodes[machine.name]
        with machine.qmp() as qmp:
            if entry.get("cut"):
                qmp.execute("set_link", name="ring", up=False)
            if entry.get("throttle"):
                throttle(qmp, entry["throttle"])
    return machines


def boot(lab: Store, names: Sequence[str]) -> None:
    with step(f"booting {', '.join(names)} ({lab.state.accel})"):
        wait_ready(lab, launch(lab, names), COLD_SECONDS)


def resume(lab: Store, names: Sequence[str], snapshot: str, new_identity: bool = False) -> None:
    machines = launch(lab, names, load=snapshot)
    go_on(lab, machines)
    if new_identity:
        in_parallel(partial(_hand_over_identity, lab), machines)
    wait_ready(lab, machines, WARM_SECONDS)


def go_on(lab: Store, machines: Sequence[Machine]) -> None:
    """Let restored guests run, all at once, links up, clocks right."""

    def go(machine: Machine) -> None:
        with machine.qmp() as qmp:
            qmp.execute("set_link", name="ring", up=not lab.state.nodes[machine.name].get("cut"))
            qmp.execute("cont")

    in_parallel(go, machines)
    in_parallel(set_clock, machines)


def set_clock(machine: Machine) -> None:
    # The clock chip is set as well, in the background: it takes the kernel a second, and a reboot reads it.
    command = (
        f"date -s @{time.time() + 0.05:.2f} >/dev/null && {{ hwclock --systohc --utc --noadjfile & }}"
    )
    status, output = machine.console.run(command, 30)
    if status != 0:
        raise LabError(f"{machine.name}: the clock could not be set: {output.strip()}")


def wait_ready(lab: Store, machines: Sequence[Machine], seconds: float) -> None:
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
                why = guestssh.login(lab.directory, machine.port)
                if not why:
                    say(f"{machine.name}: ssh after {time.monotonic() - begin:.1f} s")
                    return
            else:
                machine.reset_if_stuck()
            time.sleep(0.3)
        raise LabError(
            f"{machine.name}: not reachable by ssh within {seconds:.0f} s ({why}); "
            f"try: python3 -m lab --name {lab.name} exec --console {machine.name} 'systemctl --failed'"
        )

    in_parallel(wait, machines)


def kill(lab: Store, machines: Sequence[Machine]) -> None:
    def end(machine: Machine) -> None:
        machine.kill()
        lab.remember(machine)

    in_parallel(end, machines)
    for machine in machines:
        for suffix in ("qmp", "agent"):
            (lab.directory / f"{machine.name}.{suffix}").unlink(missing_ok=True)
    lab.state.generation += 1
    lab.save()


def power_off(lab: Store, machines: Sequence[Machine], seconds: float = OFF_SECONDS) -> None:
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
    kill(lab, machines)


def pause(machines: Sequence[Machine]) -> None:
    def stop(machine: Machine) -> None:
        with machine.qmp() as qmp:
            qmp.execute("stop")

    in_parallel(stop, machines)


def cont(machine: Machine) -> None:
    with machine.qmp() as qmp:
        qmp.execute("cont")


def throttle(qmp: Any, iops: int) -> None:
    limits = {"bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": iops}
    qmp.execute("block_set_io_throttle", device="var", **limits)


def boot_id(machine: Machine, seconds: float = 60) -> str:
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
