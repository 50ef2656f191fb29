"""Statistics of guests that do not exist, and the writers of a node in use, which an idle lab is spared otherwise."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from . import layout
from .errors import LabError
from .machine import Machine
from .progress import step
from .store import Store
from .system import in_parallel

MAX_GUESTS = 1000
SETTINGS = "/etc/pvestatd-lab.conf"
#: Masked in the image, and started here. Timers are left alone: they fire whenever they like, into a window that counts.
#: smartd runs on nodes with an NVMe only: other disks of a virtual machine have nothing to tell.
WRITERS = ("smartmontools.service", "smartd.service")
STARTED = ("smartmontools.service", "rrdcached.service", "pvestatd.service")


def guests_of(number: int, nodes: Sequence[int], guests: int) -> list[int]:
    """Ids of the guests of node ``number``: ``guests`` in all, as evenly spread over ``nodes`` as can be, from 1000 times
    the node's number on, where no configuration of the profile ``cluster`` is.
    """
    place = sorted(nodes).index(number)
    count = guests // len(nodes) + (place < guests % len(nodes))
    return [1000 * number + each for each in range(count)]


def on(ids: Sequence[int]) -> str:
    """Shell script that lets a node have statistics of these guests; again, it changes nothing and restarts nothing."""
    text = f"guests={' '.join(map(str, ids))}\n"
    return (
        f"set -e\nprintf %s {shlex.quote(text)} > /run/pvestatd-lab.conf\n"
        f"if ! cmp -s /run/pvestatd-lab.conf {SETTINGS}; then\n"
        f"    cat /run/pvestatd-lab.conf > {SETTINGS}\n"
        "    systemctl try-restart pvestatd.service 2>/dev/null || true\n"
        "fi\n"
        f"systemctl --quiet unmask {' '.join(WRITERS)}\n"
        # A plain Debian has not all of them.
        f"for unit in {' '.join(STARTED)}; do ! systemctl cat $unit >/dev/null 2>&1 || systemctl start $unit; done\n"
    )


def off() -> str:
    """Shell script that takes back what :func:`on` did. Files of statistics stay."""
    return (
        f"set -e\nrm -f {SETTINGS}\nsystemctl stop pvestatd.service 2>/dev/null || true\n"
        f"systemctl --quiet --now mask {' '.join(WRITERS)}\n"
    )


def apply(lab: Store, machines: Sequence[Machine]) -> None:
    """Make running machines have the statistics that the lab's state says; nodes of another image have none."""
    machines = [machine for machine in machines if not lab.is_plain(machine.name)]
    numbers = [layout.node_number(node) for node in lab.state.nodes if not lab.is_plain(node)]
    guests = lab.state.guests

    def tell(machine: Machine) -> None:
        script = off() if guests is None else on(guests_of(machine.number, numbers, guests))
        status, output = machine.console.run(script, 120)
        if status != 0:
            raise LabError(f"{machine.name}: statistics: {output.strip()}")

    with step("no statistics" if guests is None else f"statistics of {guests} guests"):
        in_parallel(tell, machines)
