# SPDX-License-Identifier: Apache-2.0
"""The programs that run on a node, as one object: names of all their modules, and replaced in all of them."""

from __future__ import annotations

import importlib
import itertools
import sys
from types import ModuleType
from typing import Any

from ansible.module_utils.pveguard.base.node_program import Program
from ansible.module_utils.pveguard.cluster.cluster_member import PROGRAM as CLUSTER_MEMBER
from ansible.module_utils.pveguard.pmxcfs import live_database
from ansible.module_utils.pveguard.state.program import PVE_STATE

from tests.loading import ROOT

#: They run from the checkout as they do on a node.
PVE_STATE_PATH = ROOT / "scripts/pve-state"
CLUSTER_MEMBER_PATH = ROOT / "scripts/cluster-member"
_COPIES = itertools.count()
# SQLite calls the functions of the copy that registers first: that shall be the core, in which tests replace them.
live_database._vfs()


class NodeProgram:
    """A copy of a program's modules of its own, so that what a test replaces is replaced here only.

    A name is looked up where it is defined, and set in every module that has it.
    """

    # Without a __dict__, where monkeypatch would look for what it has to put back.
    __slots__ = ("modules",)
    modules: list[ModuleType]

    def __init__(self, program: Program) -> None:
        top = f"pveguard_copy_{next(_COPIES)}"
        package = ModuleType(top)
        package.__path__ = [str(ROOT / "module_utils/pveguard")]
        sys.modules[top] = package
        modules = [importlib.import_module(f"{top}.{name}") for name in program.modules]
        object.__setattr__(self, "modules", modules)

    def names(self) -> dict[str, Any]:
        """All names of all modules, as vars() of a module gives them."""
        return {name: value for module in self.modules for name, value in vars(module).items()}

    def _holders(self, name: str) -> list[ModuleType]:
        return [module for module in self.modules if name in vars(module)]

    def __getattr__(self, name: str) -> Any:
        holders = self._holders(name)
        if not holders:
            raise AttributeError(name)
        value = getattr(holders[0], name)
        for module in holders:
            if getattr(value, "__module__", None) == module.__name__:
                return getattr(module, name)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        holders = self._holders(name)
        if not holders:
            raise AttributeError(f"{name}: no module has it")
        for module in holders:
            setattr(module, name, value)


def pve_state() -> Any:
    return NodeProgram(PVE_STATE)


def cluster_member() -> Any:
    return NodeProgram(CLUSTER_MEMBER)
