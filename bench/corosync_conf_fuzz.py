#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Damage corosync.conf files and edit them, as fast as possible, until the parser, the checks or an edit breaks.

    python bench/corosync_conf_fuzz.py --seconds 60 [--seed 1] [--corosync] [--json] [FILE ...]

Each case takes a file of tests/corosync/configurations (or FILE), damages it, and wants: the text parses, or the error
names a line and column of it; a parsed text serializes to the same bytes; the checks end; an edit is read back as it was
wanted, changes nothing a second time, and leaves every other value alone. With ``--corosync`` a part of the cases is
also given to ``corosync -t``: texts that it accepts and pveguard cannot read, and texts that pveguard reads although their
form is wrong for corosync, are counted and shown.

Cases follow from the seed alone. Exit code: 0; 1 when something broke; 2 when it could not be run.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "module_utils"))

from pveguard.base.errors import PveguardError  # noqa: E402
from pveguard.formats import corosync_check, corosync_conf, corosync_edit  # noqa: E402
from pveguard.formats.corosync_conf import CorosyncConfError, Document  # noqa: E402

CONFIGURATIONS = ROOT / "tests" / "corosync" / "configurations"
CHUNKS = ("{", "}", "{\n", "}\n", ":", "#", "\n", "\r\n", "\r", "\t", " ", "\0", "\f", "\u2028", "é", "\udcff")
WORDS = ("totem", "nodelist", "node", "interface", "quorum", "logging", "ring0_addr", "nodeid", "linknumber", "name")
VALUES = ("", "0", "1", "-1", "99999999999999999999", "on", "knet", "10.0.0.1", "fd00::1", "::", "300.1.1.1", "ipv4", "x" * 600)
#: Messages of corosync's parser about the form of a line (coroparse.c), as opposed to what it says about values.
GRAMMAR = ("Line is not", "Missing closing", "Unexpected closing", "Extra characters", "Unexpected end")


def damage(text: str, rng: random.Random) -> str:
    """One to five changes of the kind that editors, scripts and full disks make."""
    for _ in range(rng.randint(1, 5)):
        lines = text.split("\n")
        where, line = rng.randrange(len(text) + 1), rng.randrange(len(lines))
        match rng.randrange(9):
            case 0:
                text = text[:where] + rng.choice(CHUNKS) + text[where:]
            case 1:
                text = text[:where] + text[where + rng.randint(1, 30) :]
            case 2:
                text = "\n".join(lines[:line] + lines[line + 1 :])
            case 3:
                text = "\n".join([*lines[:line], lines[line], *lines[line:]])
            case 4:
                other = rng.randrange(len(lines))
                lines[line], lines[other] = lines[other], lines[line]
                text = "\n".join(lines)
            case 5:
                lines[line] = f"{rng.choice(WORDS)}{rng.choice((':', ': ', ' {', ' '))}{rng.choice(VALUES)}"
                text = "\n".join(lines)
            case 6:
                key, colon, _ = lines[line].partition(":")
                lines[line] = f"{key}{colon}{rng.choice(VALUES)}" if colon else lines[line]
                text = "\n".join(lines)
            case 7:
                text = text[:where]
            case 8:
                text = text.replace("\n", "\r\n") if rng.random() < 0.5 else text.replace(" ", rng.choice(("", "\t", "  ")))
    return text


def values(doc: Document) -> dict[str, Any]:
    """What a text says: options, nodes with everything they have, links."""
    return {
        "options": dict(corosync_edit._flat(doc.root)),
        "nodes": [[(line.key, line.value) for line in node.pairs()] for node in doc.node_sections()],
        "links": [[(line.key, line.value) for line in part.pairs()] for part in doc.interface_sections()],
    }


def edit(doc: Document, rng: random.Random) -> tuple[str, Callable[[Document], bool], Callable[[Document], bool]]:
    """An edit: its name, how it is done, and whether a text says what was wanted."""
    names = [node.name for node in doc.nodes() if node.name]
    link, value = rng.randrange(8), f"172.16.{rng.randrange(256)}.{rng.randrange(256)}"
    number = rng.randrange(1, 10000)
    choice = rng.randrange(7)
    if choice == 0:
        section, key = rng.choice(("totem", "quorum", "logging", "fresh")), f"key_{rng.randrange(5)}"
        return "set", lambda d: d.set(section, key, number), lambda d: d.get(section, key) == str(number)
    if choice == 1:
        section, key = rng.choice(("totem", "quorum", "logging")), rng.choice(("debug", "to_syslog", "provider", "token"))
        return "unset", lambda d: d.unset(section, key), lambda d: d.get(section, key) is None
    if choice == 2:
        return "token", lambda d: d.set_token(number), lambda d: d.token_ms == number
    if choice == 3 and names:
        name = rng.choice(names)
        return (
            "address",
            lambda d: corosync_edit.set_link(d, link, {name: value}),
            lambda d: any(node.name == name and node.addresses.get(link) == value for node in d.nodes()),
        )
    if choice == 4 and names:
        name, votes = rng.choice(names), rng.randrange(10)
        return (
            "node",
            lambda d: corosync_edit.update_node(d, name, {link: value}, votes),
            lambda d: any((n.name, n.addresses, n.votes) == (name, {link: value}, votes) for n in d.nodes()),
        )
    if choice == 5:
        return (
            "remove link",
            lambda d: corosync_edit.remove_link(d, link),
            lambda d: link not in d.link_numbers() and not corosync_edit.link_options(d, link),
        )
    cipher, digest = rng.choice((("none", "none"), ("aes256", "sha256"), ("aes128", "sha512"), ("none", "sha1")))
    return "crypto", lambda d: corosync_edit.set_crypto(d, cipher, digest), lambda d: d.crypto == (cipher, digest)


def case(text: str, rng: random.Random, done: Counter[str]) -> Document | None:
    """One text through everything. Raises what is wrong. None when the text does not parse."""
    try:
        doc = corosync_conf.parse(text)
    except CorosyncConfError as error:
        lines = text.split("\n")
        assert 1 <= error.line <= len(lines), f"line {error.line} of {len(lines)}"
        assert 1 <= error.column <= len(lines[error.line - 1]) + 1, f"column {error.column} of line {error.line}"
        assert f"line {error.line}, column {error.column}: " in str(error), str(error)
        done["refused"] += 1
        return None
    assert doc.text() == text, "the round trip changed the text"
    corosync_check.problems(doc)
    corosync_check.problems(doc, with_pmxcfs=False, resolve=lambda _name: [])
    done["parsed"] += 1
    name, change, holds = edit(doc, rng)
    edited = corosync_conf.parse(text)
    before = values(doc)
    try:
        changed = change(edited)
    except PveguardError:
        done["edits refused"] += 1
        return doc
    done[f"edits: {name}"] += 1
    after = edited.text()
    read = corosync_conf.parse(after)
    assert holds(read), f"{name}: what is read back is not what was wanted"
    assert changed == (after != text), f"{name}: says changed={changed}"
    assert values(read) == values(edited), f"{name}: the document and its text differ"
    assert change(read) is False and read.text() == after, f"{name}: a second time changes again"
    if not changed:
        assert values(read) == before, f"{name}: values changed without a change"
    corosync_edit.restart_keys(doc, edited)
    try:
        steps = corosync_edit.steps(doc, edited)
    except PveguardError:
        # A damaged option of a link cannot be written anew.
        done["steps refused"] += 1
        return doc
    assert steps[-1] == after, f"{name}: the last step is not the wanted text"
    return doc


def corosync_says(text: str, folder: Path) -> str:
    """What ``corosync -t`` says against a text; empty when it accepts it."""
    path = folder / "corosync.conf"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    done = subprocess.run(
        ["corosync", "-c", str(path), "-t"],
        env={"PATH": "/usr/sbin:/sbin:/usr/bin:/bin", "LC_ALL": "C"},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=30,
    )
    return "" if done.returncode == 0 else (done.stderr + done.stdout).strip() or f"code {done.returncode}"


def compare(text: str, parsed: bool, said: str) -> str | None:
    """How pveguard and corosync differ about a text's grammar."""
    grammar = any(part in said for part in GRAMMAR)
    if not parsed and not said:
        return "corosync accepts what pveguard refuses"
    if parsed and grammar:
        return "corosync refuses what pveguard reads"
    return None


def run(options: argparse.Namespace, sources: list[tuple[str, str]], folder: Path) -> dict[str, Any]:
    done: Counter[str] = Counter()
    broken: list[dict[str, Any]] = []
    differ: Counter[str] = Counter()
    examples: dict[str, list[dict[str, str]]] = {}
    asked, number = 0, 0
    start = time.monotonic()
    while time.monotonic() - start < options.seconds and len(broken) < options.max_broken:
        # A case can be run again by its number, without the ones before it.
        rng = random.Random(f"{options.seed}-{number}")
        name, source = rng.choice(sources)
        text = source if rng.random() < 0.1 else damage(source, rng)
        parsed = False
        try:
            parsed = case(text, rng, done) is not None
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            broken.append(
                {
                    "case": number,
                    "file": name,
                    "error": f"{type(error).__name__}: {error}",
                    "at": f"{Path(where.filename).name}:{where.lineno}",
                    "text": text,
                }
            )
        if options.corosync and number % options.every == 0:
            asked += 1
            said = corosync_says(text, folder)
            if kind := compare(text, parsed, said):
                differ[kind] += 1
                examples.setdefault(kind, [])
                if len(examples[kind]) < 5:
                    examples[kind].append({"case": str(number), "corosync": said[:200], "text": text})
        number += 1
    seconds = time.monotonic() - start
    return {
        "seed": options.seed,
        "cases": number,
        "seconds": round(seconds, 1),
        "cases_per_second": round(number / seconds, 1) if seconds else 0.0,
        "done": dict(sorted(done.items())),
        "broken": broken,
        "corosync": {"asked": asked, "differ": dict(differ), "examples": examples} if options.corosync else None,
    }


def show(result: dict[str, Any]) -> None:
    print(
        f"{result['cases']} cases in {result['seconds']} s, {result['cases_per_second']} a second, seed {result['seed']}: "
        + ", ".join(f"{name} {count}" for name, count in result["done"].items())
    )
    if result["corosync"]:
        differ = ", ".join(f"{kind}: {count}" for kind, count in result["corosync"]["differ"].items())
        print(f"corosync -t was asked {result['corosync']['asked']} times; {differ or 'it reads the same texts'}")
        for kind, found in result["corosync"]["examples"].items():
            for example in found[:2]:
                print(f"\n{kind} (case {example['case']}): {example['corosync']}\n{example['text']!r}")
    for found in result["broken"]:
        print(f"\nBROKEN: case {found['case']} of {found['file']}, {found['error']} ({found['at']})\n{found['text']!r}")
    print(f"{len(result['broken'])} broken" if result["broken"] else "nothing broke")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="files to start from")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long (default: 30)")
    parser.add_argument("--seed", default="1", help="the cases follow from it (default: 1)")
    parser.add_argument("--corosync", action="store_true", help="compare with corosync -t")
    parser.add_argument("--every", type=int, default=20, help="ask corosync about every so many cases (default: 20)")
    parser.add_argument("--max-broken", type=int, default=10, help="stop after so many failures (default: 10)")
    parser.add_argument("--json", action="store_true", help="the result as JSON")
    options = parser.parse_args(argv)
    files = options.files or sorted(CONFIGURATIONS.glob("*.conf"))
    try:
        sources = [(path.name, path.read_bytes().decode("utf-8", "surrogateescape")) for path in files]
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    if options.corosync and shutil.which("corosync", path="/usr/sbin:/sbin:/usr/bin:/bin") is None:
        print("corosync is not installed; run it without --corosync", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        result = run(options, sources, Path(folder))
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        show(result)
    return 1 if result["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
