# SPDX-License-Identifier: Apache-2.0
"""The format of Proxmox's section configurations: storage.cfg, jobs.cfg, replication.cfg, domains.cfg, ha/*.cfg.

A section begins with a line ``TYPE: ID`` at the first column and has indented lines ``KEY VALUE``; ``#`` begins a comment
line. A type is any text without white space: plugins bring their own. Of its colons the last one that an id can follow ends
it. Lines end with LF or CRLF. After a blank line in a section Proxmox passes its other lines over; here they are seen rather
than missed.
"""

from __future__ import annotations

import re

_HEADER = re.compile(r"(\S+):[ \t]*(\S+)[ \t]*\Z")
_PROPERTY = re.compile(r"[ \t]+(\S+)(?:[ \t]+(.*\S))?[ \t]*\Z")


class Section:
    """``kind`` (its type), ``name`` (its id) and ``values``: {key: value, "" for a key alone}; the last one counts."""

    # Not a dataclass: programs on a node start with this.
    def __init__(self, kind: str, name: str) -> None:
        self.kind, self.name = kind, name
        self.values: dict[str, str] = {}


class Parsed:
    """``sections`` in order, and ``strange``: lines that are neither a header, a property of a section, a comment nor blank."""

    def __init__(self) -> None:
        self.sections: list[Section] = []
        self.strange: list[str] = []


def parse(text: str) -> Parsed:
    """Read a text; never raises."""
    found = Parsed()
    section: Section | None = None
    # Not splitlines(): an id may hold what Unicode takes for the end of a line.
    for line in re.split(r"\r?\n", text):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if match := _HEADER.match(line):
            section = Section(match[1], match[2])
            found.sections.append(section)
        elif section is not None and (match := _PROPERTY.match(line)):
            section.values[match[1]] = match[2] or ""
        else:
            if not line[0].isspace():
                section = None
            found.strange.append(line)
    return found
