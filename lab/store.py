"""What a lab is on disk: state, lock, sets of disks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import layout
from .errors import LabError
from .image import Image
from .machine import Machine
from .system import file_lock

BASE = "base"  # the snapshot of a profile's first settled state
SUSPEND = "suspend"  # where `down` leaves a running lab


@dataclass
class State:
    """``state.json`` of a lab."""

    profile: str = ""
    release: str = ""
    memory: int = 768
    guests: int | None = None  # whose statistics are made up; None: no statistics at all
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


class Store:
    """What is on disk of the lab called ``name``: its state, its set of disks, its machines."""

    def __init__(self, name: str = "default") -> None:
        self.name = layout.check_name(name)
        self.directory = layout.labs_dir() / self.name
        self.state = self._load()

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

    def save(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        partial = self._state_file.with_suffix(".partial")
        partial.write_text(json.dumps(vars(self.state), indent=2) + "\n")
        partial.rename(self._state_file)

    @contextmanager
    def changing(self, what: str) -> Iterator[None]:
        """Hold the lab's lock, with its state as it is now."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with file_lock(self.directory / "lock", f"lab {self.name} ({what})"):
            self.state = self._load()
            yield

    def machine(self, node: str) -> Machine:
        entry = self.state.nodes[node]
        return Machine(
            number=layout.node_number(node), lab=self.name, directory=self.directory, disks=self.set_dir,
            nvme=bool(entry.get("nvme")), port=entry.get("port"), pid=entry.get("pid"), start=entry.get("start"),
        )  # fmt: skip

    def remember(self, machine: Machine) -> None:
        """Take port and process of a machine into the state; :meth:`save` writes it."""
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
    def set_dir(self) -> Path:
        """The folder of the current set of disks."""
        return self.directory / self.state.disks

    def manifest(self) -> dict[str, Any]:
        """What is known of the current set of disks: ``snapshots``, ``built``, ``image``, ..."""
        try:
            data: dict[str, Any] = json.loads((self.set_dir / "set.json").read_text())
            return data
        except FileNotFoundError:
            return {"snapshots": {}}

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        partial = self.set_dir / "set.json.partial"
        partial.write_text(json.dumps(manifest, indent=2) + "\n")
        partial.rename(self.set_dir / "set.json")

    def image(self, node: str = "") -> Image:
        """The image of the profile, or of a node that has another one (``plain``)."""
        images = layout.images_dir()
        state = self.state
        key = state.nodes.get(node, {}).get("plain") or state.image_key
        return Image(key, images / key, images / f"{state.repository_key}.img")

    def is_plain(self, node: str) -> bool:
        """Whether a node has the image of profile debian beside nodes of another profile."""
        return bool(self.state.nodes.get(node, {}).get("plain"))


def built(manifest: dict[str, Any]) -> list[str]:
    """Nodes whose first start came to its end."""
    nodes: list[str] = manifest.get("built", manifest["snapshots"].get(BASE, {}).get("nodes", []))
    return nodes


def all_names() -> list[str]:
    """Names of the labs of this folder."""
    directory = layout.labs_dir()
    if not directory.is_dir():
        return []
    return [path.name for path in sorted(directory.iterdir()) if (path / "state.json").is_file()]


def other_states(name: str) -> list[State]:
    return [Store(other).state for other in all_names() if other != name]


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
