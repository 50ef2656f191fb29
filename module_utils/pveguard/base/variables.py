"""Values of variables as operators give them: what a switch, a number, a list or a text may look like, and within which limits.

``-e NAME=VALUE`` and INI inventories give text ("false", "10"), YAML gives values. Ansible's own conversions do not agree
with each other (a module takes " yes " and "y" for true, its filter ``bool`` for false; ``int`` makes 0 of "10s"), so the
playbooks, the filters and the validation all use these.
"""

from __future__ import annotations

import decimal
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .errors import PveguardError

_TRUE = frozenset({"y", "yes", "on", "1", "true", "t"})
_FALSE = frozenset({"n", "no", "off", "0", "false", "f"})
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_WITH_UNIT = re.compile(r"[+-]?[0-9.]+\s*[A-Za-z%]+")

_UINT31 = 2**31 - 1
_YEARS_100_DAYS = 36500
_DAY_SECONDS = 86400

#: Lowest and highest value of each number; suboptions as ``name.sub``. Numbers with ``choices`` need none, and those of the
#: membership (corosync_node_id) are judged with it. A role that describes itself has them in its meta/pveguard.yml instead.
LIMITS: dict[str, tuple[float, float]] = {
    "corosync_link_options.number": (0, 7),
    "corosync_link_options.ping_interval": (0, _UINT31),
    "corosync_link_options.ping_precision": (0, _UINT31),
    "corosync_link_options.ping_timeout": (0, _UINT31),
    "corosync_link_options.pong_count": (0, _UINT31),
    "corosync_link_options.priority": (0, 255),
    "corosync_token": (0, _UINT31),
    "corosync_token_coefficient": (0, _UINT31),
    "fsync_gate_cache_days": (0, _YEARS_100_DAYS),
    "fsync_gate_duration": (0.1, 600),
    "fsync_gate_min_fsyncs": (0, 1e9),
    "fsync_gate_power_cut_minutes": (0.1, 10080),
    "fsync_gate_warn_p99_ms": (0, 60000),
    "link_gate_duration": (1, 300),
    "link_gate_jitter_fail_ms": (0, 60000),
    "link_gate_jitter_warn_ms": (0, 60000),
    "link_gate_load_packet_bytes": (160, 65535),
    "link_gate_load_packets_per_second": (1, 2000),
    "link_gate_loss_fail_percent": (0, 100),
    "link_gate_loss_warn_percent": (0, 100),
    "link_gate_max_peers": (1, 1000),
    "link_gate_mtu_min": (68, 65535),
    "link_gate_reorder_warn_percent": (0, 100),
    "link_gate_rtt_fail_ms": (0, 60000),
    "link_gate_rtt_warn_ms": (0, 60000),
    "probe_observe_minutes": (0.1, 10080),
    "recover_deadline_seconds": (1, _DAY_SECONDS),
}


class Unknown:
    """Stands for a value that is a mistake of its own and has been named, so that nothing else is said of it."""

    def __repr__(self) -> str:
        return "unknown"

    def __bool__(self) -> bool:
        return False


UNKNOWN = Unknown()


def as_bool(value: Any) -> bool:
    """A switch: true or false, or its text as modules take it (yes, no, on, off, 1, 0; case and spaces around it do not count).

    Raises PveguardError for anything else.
    """
    if isinstance(value, bool):
        return bool(value)
    if isinstance(value, (int, float)) and value in (0, 1):
        return bool(value)
    if isinstance(value, str):
        word = value.strip().lower()
        if word in _TRUE or word in _FALSE:
            return word in _TRUE
    raise PveguardError(f"{_shown(value)} is not true or false")


def as_int(value: Any) -> int:
    """A whole number, or its text ("10", " 10 ", "1e3"). Raises PveguardError for anything else."""
    number = _decimal(value)
    if number is None or number != number.to_integral_value():
        raise PveguardError(f"{_shown(value)} is not a whole number")
    return int(number)


def as_float(value: Any) -> float:
    """A finite number, or its text ("2.5", "10", "1e3"). Raises PveguardError for anything else."""
    number = _decimal(value)
    if number is None:
        raise PveguardError(f"{_shown(value)} is not a number")
    return float(number)


def _decimal(value: Any) -> decimal.Decimal | None:
    """The value of a number or of its text, None for anything else, also for what is not finite or beyond 1e300."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if not isinstance(value, str) and not abs(value) <= 1e300:
        return None
    text = value.strip() if isinstance(value, str) else repr(value + 0)
    if not _NUMBER.fullmatch(text) or len(text) > 300:
        return None
    number = decimal.Decimal(text)
    return number if abs(number.adjusted()) <= 300 else None


def problems(name: str, value: Any, spec: Mapping[str, Any]) -> list[str]:
    """What is wrong with the value of a variable, by its option in an argument_specs.yml: sentences that begin with its name.

    Empty where it can be used. ``spec``: ``type``, ``choices``, ``elements``, ``options``, ``default``, ``no_log``,
    ``limits``, and ``required`` for suboptions. A value that is null is one that is not set, unless the variable has a default.
    """
    return list(_problems(name, name, value, spec))


def _problems(place: str, name: str, value: Any, spec: Mapping[str, Any]) -> Iterable[str]:
    """``place``: where the value is, such as ``x[0].y``; ``name``: its name in LIMITS, such as ``x.y``."""
    kind = spec.get("type", "str")
    if value is UNKNOWN or kind == "raw":
        return
    seen = "(not shown)" if spec.get("no_log") else _shown(value)
    if value is None:
        if spec.get("default") is not None or spec.get("required"):
            yield f"{place} is null, wanted {_wanted(name, spec)}{_default(spec)}"
    elif kind in ("list", "dict"):
        yield from _container(place, name, value, spec, seen)
    elif kind in ("bool", "int", "float"):
        yield from _scalar(place, name, value, spec, seen)
    elif not isinstance(value, str):
        bare = ": YAML takes a bare yes, no, on and off for one" if isinstance(value, bool) else ""
        quote = "" if isinstance(value, (Mapping, list, tuple)) else ". Put it in quotes"
        yield f"{place} {seen} is {_kind(value)}{bare}, wanted text{quote}"
    elif spec.get("choices") and value not in spec["choices"]:
        yield f"{place} {seen} is not {_wanted(name, spec)}"
    elif kind == "path" and not value.strip() and spec.get("default"):
        yield f"{place} is empty, wanted a path{_default(spec)}"


def _scalar(place: str, name: str, value: Any, spec: Mapping[str, Any], seen: str) -> Iterable[str]:
    wanted = _wanted(name, spec)
    if isinstance(value, str) and not value.strip():
        yield f"{place} is empty, wanted {wanted}{_default(spec)}"
        return
    convert = {"bool": as_bool, "int": as_int, "float": as_float}[spec["type"]]
    try:
        number = convert(value)
    except PveguardError:
        with_unit = spec["type"] != "bool" and isinstance(value, str) and _WITH_UNIT.fullmatch(value.strip())
        yield f"{place} {seen} is not {wanted}" + ("; write the number alone, without a unit" if with_unit else "")
        return
    low, high = _bounds(name, spec) or (-math.inf, math.inf)
    if (spec.get("choices") and number not in spec["choices"]) or not (spec["type"] == "bool" or low <= number <= high):
        yield f"{place} {seen} is not {wanted}"


def _container(place: str, name: str, value: Any, spec: Mapping[str, Any], seen: str) -> Iterable[str]:
    mapping = spec["type"] == "dict"
    right = isinstance(value, Mapping) if mapping else isinstance(value, (list, tuple))
    if not right:
        shape = "{KEY: VALUE}" if mapping else "[VALUE, VALUE]"
        json = '{"KEY": "VALUE"}' if mapping else '["VALUE", "VALUE"]'
        word = "a mapping" if mapping else "a list"
        how = f": write {place}: {shape}, on the command line -e '{{\"{place}\": {json}}}'" if place == name else ""
        yield f"{place} {seen} is {_kind(value)}, not {word}{how}"
        return
    if not mapping:
        element = {"type": spec.get("elements", "raw"), "required": True}
        element |= {key: spec[key] for key in ("choices", "options", "no_log") if key in spec}
        for number, each in enumerate(value):
            yield from _problems(f"{place}[{number}]", name, each, element)
        return
    options = spec.get("options")
    for key, each in value.items():
        if options is None:
            if isinstance(each, (Mapping, list, tuple)):
                yield f"{place}.{key} is {_kind(each)}, wanted text, a number, true or false"
        elif key in options:
            yield from _problems(f"{place}.{key}", f"{name}.{key}", each, options[key])
        else:
            yield f"{place} has the unknown key {key!r}, known are {', '.join(sorted(options))}"
    for key, option in (options or {}).items():
        if option.get("required") and key not in value:
            yield f"{place} has no {key}, wanted {_wanted(f'{name}.{key}', option)}"


def _wanted(name: str, spec: Mapping[str, Any]) -> str:
    if spec.get("choices"):
        words = [str(choice) or '""' for choice in spec["choices"]]
        return f"one of {', '.join(words)}"
    kind = spec.get("type", "str")
    if kind in ("int", "float"):
        return ("a whole number" if kind == "int" else "a number") + limits_text(name, spec, " from ")
    return {"bool": "true or false", "list": "a list", "dict": "a mapping", "path": "a path"}.get(kind, "text")


def limits_text(name: str, spec: Mapping[str, Any], before: str = "") -> str:
    """``0.5 to 86400`` for the number with this name and option, after ``before``; empty where it has no limits."""
    bounds = _bounds(name, spec)
    if bounds is None:
        return ""
    low, high = (f"{int(bound)}" if bound == int(bound) else f"{bound:g}" for bound in bounds)
    return f"{before}{low} to {high}"


def _bounds(name: str, spec: Mapping[str, Any]) -> tuple[float, float] | None:
    limits = spec.get("limits")
    return (limits[0], limits[1]) if limits else LIMITS.get(name)


def _default(spec: Mapping[str, Any]) -> str:
    value = spec.get("default")
    if value is None or (isinstance(value, str) and "{{" in value):
        return "; leave it out for the default" if value is not None else ""
    return f"; leave it out for the default ({_shown(value)})"


def _kind(value: Any) -> str:
    for types, word in (
        (bool, "true or false"),
        ((int, float), "a number"),
        (str, "text"),
        (Mapping, "a mapping"),
        (Sequence, "a list"),
    ):
        if isinstance(value, types):
            return word
    return "null" if value is None else type(value).__name__


def _shown(value: Any) -> str:
    text = repr(str(value)) if isinstance(value, str) else str(value)
    return text if len(text) <= 100 else text[:97] + "..."
