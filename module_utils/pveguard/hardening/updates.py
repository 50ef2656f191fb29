# SPDX-License-Identifier: Apache-2.0
"""Where a node's packages come from: sources of apt in both formats, keys, pending reboots, unattended upgrades.

Of an address only its host leaves this core: the rest may hold a name, a password or a token.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from urllib.parse import urlsplit

from .looking import Facts, Looking, area, assignments

CODENAMES = ("buster", "bullseye", "bookworm", "trixie", "forky", "duke")
FLOATING = ("oldstable", "stable", "testing", "unstable", "sid")
#: Suites of a release beside its own name.
_TAILS = (
    "-backports-sloppy",
    "-proposed-updates",
    "-security",
    "-updates",
    "-backports",
    "-proposed",
    "/updates",
)
_YES = ("yes", "true", "1", "with", "on", "enable")
_NO = ("no", "false", "0", "without", "off", "disable")
_LINE = re.compile(
    r"(?P<type>deb|deb-src)\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)(?P<components>(?:\s+\S+)*)\Z"
)


def host(uri: str) -> str:
    """The host of an address, its scheme where it has none; empty where it is not understood."""
    uri = re.sub(r"\A(?:mirror\+)?(?=\w+:)|\Ator\+", "", uri)
    try:
        parts = urlsplit(uri)
        name = parts.hostname or (f"{parts.scheme}:" if parts.scheme in ("file", "cdrom", "copy") else "")
    except ValueError:
        return ""
    return name if re.fullmatch(r"[\w.:-]*", name) else ""


def codename(suite: str) -> str:
    """The release that a suite belongs to: one of CODENAMES or FLOATING, else empty."""
    for tail in _TAILS:
        suite = suite.removesuffix(tail)
    return suite if suite in CODENAMES or suite in FLOATING else ""


def one_line(text: str) -> tuple[list[Facts], list[int]]:
    """Sources of a ``.list`` file, and the numbers of lines that are none."""
    found: list[Facts] = []
    strange = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        match = _LINE.match(line)
        if match is None or "=" in match["uri"]:
            strange.append(number)
            continue
        options = {}
        for each in re.findall(r"([\w-]+)\s*[+-]?=\s*(\S+)", match["options"] or ""):
            options[each[0].lower()] = each[1]
        found.append(_source([match["uri"]], [match["suite"]], match["components"].split(), options, number))
    return found, strange


def deb822(text: str) -> tuple[list[Facts], list[int]]:
    """The same of a ``.sources`` file."""
    found: list[Facts] = []
    strange: list[int] = []
    for number, fields in _stanzas(text, strange):
        if fields.get("enabled", "yes").lower() in _NO:
            continue
        uris, suites = fields.get("uris", "").split(), fields.get("suites", "").split()
        if not uris or not suites or not fields.get("types"):
            strange.append(number)
            continue
        found.append(_source(uris, suites, fields.get("components", "").split(), fields, number))
    return found, strange


def _stanzas(text: str, strange: list[int]) -> Iterator[tuple[int, dict[str, str]]]:
    fields: dict[str, str] = {}
    last, first = "", 0
    for number, line in enumerate([*text.split("\n"), ""], 1):
        if line.startswith("#"):
            continue
        if not line.strip():
            if fields:
                yield first, fields
            fields, last = {}, ""
        elif line[0] in " \t" and last:
            fields[last] += "\n" + line.strip()
        elif match := re.match(r"([A-Za-z][\w-]*):(.*)", line):
            first = first if fields else number
            last = match[1].lower()
            fields[last] = match[2].strip()
        else:
            strange.append(number)


def _source(
    uris: list[str], suites: list[str], components: list[str], options: dict[str, str], line: int
) -> Facts:
    signed = options.get("signed-by", "")
    keys = [each for each in re.split(r"[,\s]+", signed) if each.startswith("/")]
    return {
        "hosts": [host(uri) for uri in uris],
        "suites": [re.sub(r"[^\w./+~-]", "?", suite)[:60] for suite in suites],
        "components": [re.sub(r"[^\w.+~/-]", "?", each)[:40] for each in components][:20],
        "trusted": options.get("trusted", "no").lower() in _YES,
        "insecure": any(options.get(f"allow-{each}", "no").lower() in _YES for each in ("insecure", "weak")),
        # An embedded key counts as one, and a fingerprint.
        "signed_by": keys,
        "line": line,
    }


@area
def look(looking: Looking) -> Facts:
    """``installed`` (apt is there), ``release`` (code name), ``sources`` (path, line, hosts, suites, components, trusted,
    insecure,
    signed_by, missing: of the keys), ``strange`` ({path: lines}), ``subscription``, ``unattended``, ``reboot`` (why one is
    pending).
    """
    if not looking.exists("/etc/apt"):
        return {"installed": False}
    sources: list[Facts] = []
    strange: dict[str, list[int]] = {}
    listed = [("/etc/apt/sources.list", one_line)]
    listed += [(path, one_line) for path in looking.names("/etc/apt/sources.list.d", ".list")]
    listed += [(path, deb822) for path in looking.names("/etc/apt/sources.list.d", ".sources")]
    for path, parse in listed:
        found, odd = parse(looking.text(path) or "")
        for each in found:
            missing = [key for key in each["signed_by"] if not looking.exists(key)]
            sources.append({"path": path, **each, "missing": missing})
        if odd:
            strange[path] = odd[:20]
    release = assignments(looking.text("/etc/os-release") or looking.text("/usr/lib/os-release") or "").values
    return {
        "installed": True,
        "release": release.get("VERSION_CODENAME", ""),
        "sources": sources,
        "strange": strange,
        # It holds the key: whether there is one is all that counts.
        "subscription": looking.exists("/etc/subscription"),
        "unattended": _unattended(looking),
        "reboot": _reboot(looking),
    }


def _unattended(looking: Looking) -> Facts | None:
    """``on``, ``origins`` (patterns), ``reboot``; None where apt does not tell."""
    before = len(looking.unread)
    said = looking.output(["apt-config", "dump"])
    if said is None:
        if len(looking.unread) == before:
            looking.cannot("apt-config", "not there")
        return None
    values: dict[str, str] = {}
    origins = []
    for line in said.split("\n"):
        match = re.match(r'([\w:-]+) (".*");\Z', line)
        if not match:
            continue
        try:
            (value,) = shlex.split(match[2])
        except ValueError:
            continue
        if re.match(r"Unattended-Upgrade::(Origins-Pattern|Allowed-Origins)::\Z", match[1]):
            origins.append(re.sub(r"[^\w=,:$ {}.*/-]", "?", value)[:120])
        elif match[1] in ("APT::Periodic::Unattended-Upgrade", "Unattended-Upgrade::Automatic-Reboot"):
            values[match[1]] = value.lower()
    installed = looking.exists("/usr/bin/unattended-upgrade") or looking.exists(
        "/usr/bin/unattended-upgrades"
    )
    return {
        "on": installed
        and values.get("APT::Periodic::Unattended-Upgrade", "0") not in ("", "0", "no", "false"),
        "origins": origins,
        "reboot": values.get("Unattended-Upgrade::Automatic-Reboot", "false") in ("true", "1", "yes"),
    }


def _reboot(looking: Looking) -> str:
    if looking.exists("/run/reboot-required") or looking.exists("/var/run/reboot-required"):
        return "/run/reboot-required is there"
    running = looking.value("/proc/sys/kernel/osrelease") or ""
    series = "-pve" if running.endswith("-pve") else "-amd64" if running.endswith("-amd64") else ""
    kernels = [path.partition("vmlinuz-")[2] for path in looking.names("/boot") if "/vmlinuz-" in path]
    newer = [
        each for each in kernels if series and each.endswith(series) and _version(each) > _version(running)
    ]
    return f"kernel {max(newer, key=_version)} is installed, {running} runs" if newer else ""


def _version(release: str) -> list[int]:
    return [int(each) for each in re.findall(r"[0-9]+", release)]
