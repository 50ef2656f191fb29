# SPDX-License-Identifier: Apache-2.0
"""Whether there is anything to do is told from the facts alone, and is what the module would find."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.pveguard.base import node_program
from ansible.module_utils.pveguard.base.file_state import look
from ansible.module_utils.pveguard.filters import ram_state as filters
from ansible.module_utils.pveguard.state import installed, ram_state
from ansible.module_utils.pveguard.state.program import PVE_STATE

from tests.loading import ROOT
from tests.ram_state.test_module import Fake, fake

__all__ = ["fake"]
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the files of a node are root's")

OPTIONS = ram_state.Options(
    units={name: f"[Unit]\nDescription={number}@NOSWAP@\n" for number, name in enumerate(installed.UNITS)},
    drop_in="drop-in",
    config={"rpo_seconds": 2.0, "metrics_dir": ""},
    connection="c",
)


def facts(fake: Fake) -> dict[str, Any]:
    """What node_info says of the node."""
    found = installed.facts(fake.root)
    # The node of the test is a folder; its files have other names there.
    root = str(fake.root)
    found["files"] = {
        path if path.startswith(root) else f"{root}{path}": look(Path(path)) if path.startswith(root) else there
        for path, there in found["files"].items()
    }
    units = {ram_state.WATCH_UNIT: {"active": fake.status["units"][ram_state.WATCH_UNIT]}}
    return {"kernel": "6.8.12-1-pve", "units": units, "ram_state": {**fake.status, "installed": found}}


@pytest.fixture
def node(fake: Fake) -> Fake:
    """A node that is protected as OPTIONS say."""
    ram_state.enable(OPTIONS, run=fake.run, ask=fake.ask)
    Path(ram_state.DROP_IN).chmod(0o644)
    return fake


def has_to_do(node: Fake, options: ram_state.Options = OPTIONS) -> bool:
    """What the module finds."""
    return bool(ram_state.enable(options, check=True, run=node.run, ask=node.ask)["changed"])


def test_what_is_there_is_current(node: Fake) -> None:
    assert not has_to_do(node)
    assert ram_state.is_current(facts(node), OPTIONS)


def _file(name: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / name.lstrip("/")
        path.write_bytes(path.read_bytes() + b"#")

    return change


def _of_program(change: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda root: change((root / f"{PVE_STATE.home}/{PVE_STATE.name}".lstrip("/")).resolve())


DRIFTS: dict[str, Callable[[Path], None]] = {
    **{f"content of {path}": _file(path) for path in (installed.CONFIG, installed.DROP_IN_SOURCE, installed.DROP_IN)},
    **{f"content of {name}": _file(f"{installed.UNIT_DIR}/{name}") for name in installed.UNITS},
    "mode": lambda root: (root / installed.CONFIG.lstrip("/")).chmod(0o600),
    "owner": lambda root: os.chown(root / installed.CONFIG.lstrip("/"), 1, 0),
    "a file is gone": lambda root: (root / f"{installed.UNIT_DIR}/{installed.WATCH_UNIT}".lstrip("/")).unlink(),
    "the command is gone": lambda root: (root / installed.COMMAND.lstrip("/")).unlink(),
    "the command leads elsewhere": lambda root: _elsewhere(root / installed.COMMAND.lstrip("/")),
    "the launcher does not run": _of_program(lambda folder: (folder / PVE_STATE.name).chmod(0o644)),
    "a damaged core": _of_program(lambda folder: (folder / "pveguard/state/watch.py").write_text("x = 1\n")),
    "a core is gone": _of_program(lambda folder: (folder / "pveguard/state/watch.py").unlink()),
    "damaged bytecode": _of_program(lambda folder: next(folder.glob("pveguard/state/__pycache__/watch.*")).write_bytes(b"?")),
    "another version": lambda root: _another_version(root),
}


def _elsewhere(command: Path) -> None:
    command.unlink()
    command.symlink_to("/bin/true")


def _another_version(root: Path) -> None:
    link = root / f"{PVE_STATE.home}/{PVE_STATE.name}".lstrip("/")
    link.resolve().rename(link.parent / "0123456789abcdef")
    link.unlink()
    link.symlink_to("0123456789abcdef")


@pytest.mark.parametrize("drift", DRIFTS)
def test_whatever_the_module_would_change_is_not_current(node: Fake, drift: str) -> None:
    DRIFTS[drift](node.root)
    assert has_to_do(node)
    assert not ram_state.is_current(facts(node), OPTIONS)


@pytest.mark.parametrize(
    "wanted",
    [
        {"config": {"rpo_seconds": 3.0, "metrics_dir": ""}},
        {"config": {"rpo_seconds": 2.0, "metrics_dir": "/var/lib/node_exporter"}},
        {"drop_in": "another"},
        {"units": {**OPTIONS.units, "more.service": "[Unit]\n"}},
    ],
)
def test_another_wish_is_not_current(node: Fake, wanted: dict[str, Any]) -> None:
    options = ram_state.Options(**{**vars(OPTIONS), **wanted})
    assert has_to_do(node, options)
    assert not ram_state.is_current(facts(node), options)


@pytest.mark.parametrize("folder", ["one", "two"])
def test_the_link_to_the_metrics_is_part_of_it(node: Fake, folder: str) -> None:
    def options(name: str) -> ram_state.Options:
        return ram_state.Options(**{**vars(OPTIONS), "config": {"rpo_seconds": 2.0, "metrics_dir": f"{node.root}/{name}"}})

    ram_state.enable(options("one"), run=node.run, ask=node.ask)
    assert ram_state.is_current(facts(node), options(folder)) == (not has_to_do(node, options(folder))) == (folder == "one")
    (node.root / "one/pveguard-state.prom").unlink()
    assert not ram_state.is_current(facts(node), options(folder))


@pytest.mark.parametrize(
    "status", [{"state": "failed"}, {"state": "starting"}, {"state": "absent"}, {"warnings": ["something"]}, {"state": None}]
)
def test_what_the_module_would_say_something_about_is_not_current(node: Fake, status: dict[str, Any]) -> None:
    node.status.update(status)
    assert not ram_state.is_current(facts(node), OPTIONS)


def test_a_watcher_that_does_not_run_is_not_current(node: Fake) -> None:
    node.status["units"] = {ram_state.WATCH_UNIT: "inactive"}
    assert not ram_state.is_current(facts(node), OPTIONS)


def test_another_kernel_may_want_other_units(node: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ram_state, "noswap_supported", lambda release=None: release != "5.15.0")
    assert ram_state.is_current(facts(node), OPTIONS)
    assert not ram_state.is_current({**facts(node), "kernel": "5.15.0"}, OPTIONS)


@pytest.mark.parametrize("node", [None, {}, {"ram_state": {}}, {"ram_state": {"state": "absent"}}])
def test_without_facts_nothing_is_current(node: Any) -> None:
    assert not filters.is_current(node, dict(OPTIONS.units), OPTIONS.drop_in, dict(OPTIONS.config))


def test_the_units_that_are_looked_at_are_those_of_the_role() -> None:
    role = yaml.safe_load((ROOT / "roles/ram_state/vars/main.yml").read_text())
    assert sorted(role["__ram_state_units"]) == sorted(installed.UNITS)


def test_a_version_that_was_installed_proves_itself(tmp_path: Path) -> None:
    node_program.install(PVE_STATE, tmp_path)
    assert installed.facts(tmp_path)["program"] == ram_state.program_version()
