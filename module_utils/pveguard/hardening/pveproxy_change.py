# SPDX-License-Identifier: Apache-2.0
"""Who may reach the web interface, and with which TLS: a block at the end of /etc/default/pveproxy, where the last one counts.

The file is sourced by bash. It is never run here: one with more than plain assignments is refused, as nobody could say what
counts. Every other line stays byte for byte.

There is no timer as for sshd: a wrong list closes the web interface, never ssh, by which this run is there and takes it back.
A run that dies in between leaves a note, and the next one asks for the proof again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..base.managed_file import FileSpec
from .change_parts import Facts, Options, is_on, text
from .looking import Looking, area, assignments
from .pveproxy import DEFAULTS, NAMES

NAME = "pveproxy"
PROVED = True
BEGIN, END = "# pveguard node_hardening: begin", "# pveguard node_hardening: end"
#: Cannot come from another machine; for a reverse proxy on the node, and for the proof.
LOOPBACK = ("127.0.0.1", "::1")
_CORE = "/usr/bin/pveproxy"


@area
def look(looking: Looking) -> dict[str, Any]:
    """``installed``, ``block`` (the lines of ours, None without one), ``last`` (nothing follows it), ``values`` of NAMES without
    the block, ``strange`` (numbers of lines that are no plain assignment).
    """
    if not looking.exists(_CORE):
        return {"installed": False}
    content = looking.text(DEFAULTS) or ""
    others, block, last = _split(content)
    found = assignments(content)
    return {
        "installed": True,
        "block": block,
        "last": last,
        "values": {
            name: value for name, value in assignments("".join(others)).values.items() if name in NAMES
        },
        "strange": found.strange[:20],
    }


def _split(content: str) -> tuple[list[str], list[str] | None, bool]:
    """Lines of others, with their ends; the lines of the block; whether the block is the end of the file."""
    others: list[str] = []
    block: list[str] | None = None
    inside: list[str] | None = None
    last = False
    for line in content.splitlines(keepends=True):
        if line.strip() == BEGIN:
            # One without its end may be somebody's.
            others += inside or []
            inside = [line]
        elif inside is not None and line.strip() == END:
            block, inside, last = [each.rstrip("\n") for each in inside[1:]], None, True
        elif inside is not None:
            inside.append(line)
        else:
            others.append(line)
            last = False
    return [*others, *(inside or [])], block, last and inside is None


def wanted(options: Options) -> dict[str, str]:
    """What the block sets, by name."""
    found = {}
    if listed := allowed(options):
        found = {"ALLOW_FROM": ",".join([*listed, *LOOPBACK]), "DENY_FROM": "all", "POLICY": "allow"}
    if options.get("ciphers"):
        found["CIPHERS"] = str(options["ciphers"])
    if options.get("ciphersuites"):
        found["CIPHERSUITES"] = str(options["ciphersuites"])
    if not is_on(options.get("tls_1_2", True)):
        found["DISABLE_TLS_1_2"] = "1"
    return found


def allowed(options: Options) -> list[str]:
    listed = options.get("allow_from") or []
    return [
        str(each).strip() for each in ([listed] if isinstance(listed, str) else listed) if str(each).strip()
    ]


def _lines(options: Options) -> list[str]:
    return [f'{name}="{value}"' for name, value in wanted(options).items()]


def differs(options: Options, facts: Facts) -> list[str]:
    lines = _lines(options)
    if (
        not facts.get("installed")
        or (facts["block"] == lines and facts["last"])
        or (not lines and facts["block"] is None)
    ):
        return []
    what = ["access rules"] if "ALLOW_FROM" in wanted(options) else []
    what += ["TLS"] if set(wanted(options)) - {"ALLOW_FROM", "DENY_FROM", "POLICY"} else []
    return [f"set {' and '.join(what) or 'nothing any more'} of pveproxy ({DEFAULTS})"]


def advice(options: Options, facts: Facts) -> list[str]:
    if not facts.get("installed"):
        return ["there is no pveproxy on this host, so its concern is passed over"]
    return (
        []
        if wanted(options)
        else ["neither access rules nor TLS of pveproxy are asked for, so nothing is done"]
    )


def owned(options: Options, facts: Facts, root: Path) -> list[FileSpec]:
    place = root / DEFAULTS.lstrip("/")
    before = text(place)
    lines = _lines(options)
    others = "".join(_split(before)[0])
    gap = "" if not others or others.endswith("\n") else "\n"
    content = others + (gap + "\n".join([BEGIN, *lines, END]) + "\n" if lines else "")
    data = content.encode("utf-8", "surrogateescape")
    try:
        found = place.stat()
    except FileNotFoundError:
        return [FileSpec(DEFAULTS, data)]
    return [FileSpec(DEFAULTS, data, f"{found.st_mode & 0o7777:04o}", uid=found.st_uid, gid=found.st_gid)]


def stays(original: bytes | None, root: Path) -> dict[str, bytes]:
    """What a revert leaves of a file in which somebody has changed other lines since: these, and not our block."""
    place = root / DEFAULTS.lstrip("/")
    others, was = ("".join(_split(each)[0]) for each in (text(place), (original or b"").decode("utf-8", "surrogateescape")))
    # A last line without its end has got one.
    same = others == was or (was and others == f"{was}\n")
    return {} if same or not place.exists() else {DEFAULTS: others.encode("utf-8", "surrogateescape")}
