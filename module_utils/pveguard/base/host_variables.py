"""The variables of every host of the inventory, for filters on the controller.

Ansible's own ``hostvars`` renders the variables of a host without ``hostvars``, so one that names another host's is
undefined there, although it works in a play. Here it works in both. This is the only place that knows how Ansible keeps them.

Two private attributes of Ansible are read, because a filter is given neither in a public way: ``_loader``, which finds the
files of lookups beside the playbook and opens vaulted ones, and ``_inventory``, which alone knows what a group itself sets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from .variables import UNKNOWN


class HostVariables(Mapping[str, Mapping[str, Any]]):
    """Host -> its variables, each rendered when it is asked for. ``hostvars``: Ansible's, or plain mappings."""

    def __init__(self, hostvars: Any) -> None:
        self._hostvars = hostvars
        self._of: dict[str, Any] = {}

    def __getitem__(self, host: str) -> Any:
        if host not in self._of:
            self._of[host] = self._view(host)
        return self._of[host]

    def _view(self, host: str, more: Mapping[str, Any] | None = None) -> Any:
        raw = self.raw(host)
        if not hasattr(self._hostvars, "raw_get") or not isinstance(raw, Mapping):
            return raw
        from ansible.vars.hostvars import HostVarsVars

        return HostVarsVars({**raw, **(more or {}), "hostvars": self}, loader=getattr(self._hostvars, "_loader", None), host=host)

    def __contains__(self, host: object) -> bool:
        return host in self._hostvars

    def __iter__(self) -> Iterator[str]:
        """Every host, also those that --limit or serial leaves out."""
        groups = self._magic("groups")
        return iter(groups["all"] if groups else self._hostvars)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def _magic(self, name: str) -> Any:
        """A variable that Ansible sets alike for every host; None for plain mappings and for no host."""
        host = next(iter(self._hostvars), None) if hasattr(self._hostvars, "raw_get") else None
        return None if host is None else self.raw(host).get(name)

    @property
    def manager(self) -> Any:
        """Ansible's inventory, for the variables that a group sets itself; None for plain mappings."""
        return getattr(self._hostvars, "_inventory", None)

    @property
    def sources(self) -> list[str]:
        """What was given with ``-i``."""
        return [str(source) for source in self._magic("ansible_inventory_sources") or () if source]

    @property
    def loader(self) -> Any:
        return getattr(self._hostvars, "_loader", None)

    def raw(self, host: str) -> Any:
        """The variables of a host as they were written, templates included."""
        return self._hostvars.raw_get(host) if hasattr(self._hostvars, "raw_get") else self._hostvars[host]

    def value(self, host: str, template: Any) -> Any:
        """What a template comes to among the variables of a host; UNKNOWN where it cannot be rendered."""
        view = self._view(host, {"__pveguard_value": template})
        return self._whole("", lambda: view["__pveguard_value"], [])

    def render(self, host: str, name: str) -> tuple[Any, list[tuple[str, str]]]:
        """The value of a variable down to its last element, and ``(place, reason)`` of what cannot be rendered.

        What cannot is UNKNOWN in the value; ``place`` is the name, with the index or key where it is a part only.
        """
        broken: list[tuple[str, str]] = []
        return self._whole(name, lambda: self[host][name], broken), broken

    def _whole(self, place: str, get: Any, broken: list[tuple[str, str]]) -> Any:
        # Ansible renders what is inside a list or a mapping when it is looked at.
        try:
            value = get()
            if isinstance(value, Mapping):
                return {
                    str(key): self._whole(f"{place}.{key}", lambda key=key: value[key], broken) for key in value
                }
            if isinstance(value, (list, tuple)):
                return [
                    self._whole(f"{place}[{number}]", lambda number=number: value[number], broken)
                    for number in range(len(value))
                ]
            str(value)  # Ansible's marker of something undefined raises its error now.
            if "Omit" in type(value).__name__:
                broken.append((place, "omit means something in the arguments of a module only; leave the variable out"))
                return UNKNOWN
            return value
        except Exception as error:
            # Also of a lookup or a filter, which may raise anything: one variable never hides the mistakes of others.
            broken.append((place, reason(error)))
            return UNKNOWN


def reason(error: BaseException) -> str:
    """Why something cannot be rendered, in one line: the last cause, which names what is missing."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    texts = [" ".join(str(each).split()) for each in causes]
    text = next((text for text in texts if text and "marker was tripped" not in text), texts[0]) or type(error).__name__
    if text.startswith("hostvars["):
        text += " is undefined: the inventory has no such host"
    if re.search(r"'ansible_(?!play_|host'|port'|user')\w+' is undefined", text):
        text += " (the playbooks gather no facts: write the value itself)"
    return text[:300]


def rendered(hostvars: Any) -> HostVariables:
    """``hostvars`` as filters take it, whatever it is."""
    return hostvars if isinstance(hostvars, HostVariables) else HostVariables(hostvars)


def facts_of(variables: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a host said of itself in this run, to node_info or corosync_info; None where it was not asked or did not answer."""
    node = (variables.get("pveguard_node") or {}).get("node")
    return node if isinstance(node, dict) else None
