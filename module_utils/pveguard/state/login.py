# SPDX-License-Identifier: Apache-2.0
"""Whether the login in use depends on /etc/pve, which goes away while the daemon is down."""

from __future__ import annotations

import hashlib
import os
import re

from ..base import ssh_login
from ..base.atomic import write_atomic
from .files import read_text, remove
from .node import pve_mounted
from .paths import LOGIN_MARKER, below
from .system import run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .paths import Paths


def ssh_connection(given: str | None) -> str:
    """The ssh connection this command came by: ``given``, or that of this process."""
    return given.strip() if given is not None else ssh_login.connection()


def key_fingerprint(line: str) -> str | None:
    """SHA256:... of a line of an authorized_keys file, None for a comment or a line without a key."""
    import base64
    import binascii

    line = line.strip()
    if not line or line.startswith("#"):
        return None
    words = line.split()
    for kind, blob in zip(words, words[1:], strict=False):
        if re.fullmatch(r"(ssh-|ecdsa-|sk-)[\w@.-]+", kind):
            try:
                raw = base64.b64decode(blob, validate=True)
            except (binascii.Error, ValueError):
                continue
            return "SHA256:" + base64.b64encode(hashlib.sha256(raw).digest()).decode().rstrip("=")
    return None


def accepted_login(address: str, port: str) -> tuple[str, str, str | None, bool] | None:
    """(method, user, fingerprint, certificate) of the connection from the journal, None when it is not
    there.
    """
    done = run(
        ["journalctl", "-b", "-o", "cat", "--no-pager", "-q", "-r", "-t", "sshd", "-t", "sshd-session"],
        timeout=120,
    )
    pattern = re.compile(
        rf"Accepted (\S+) for (\S+) from {re.escape(address)} port {re.escape(port)} ssh2(?:: (.*))?$"
    )
    for line in done.stdout.splitlines():
        match = pattern.search(line.strip())
        if match:
            tail = match.group(3) or ""
            found = re.search(r"SHA256:\S+", tail)
            return match.group(1), match.group(2), found.group(0) if found else None, "-CERT " in tail
    return None


def check_login(
    paths: Paths, connection: str | None = None, fallback: bool = False, write: bool = False
) -> dict[str, Any]:
    """Does the login that is in use work while /etc/pve is gone?

    Returns {independent, how, connection, fingerprint, file, fallback_file, added}. With ``fallback`` and ``write`` the key in
    use is added to a file of sshd's that does not lie on /etc/pve.
    """
    result: dict[str, Any] = {
        "independent": False,
        "how": "",
        "connection": ssh_connection(connection),
        "user": None,
        "fingerprint": None,
        "file": None,
        "fallback_file": None,
        "added": False,
    }
    if not result["connection"]:
        result.update(independent=True, how="not an ssh login: this is a local session")
        return result
    if not pve_mounted(paths):
        result.update(independent=True, how="/etc/pve is not mounted, and this login works")
        return result
    try:
        address, port = result["connection"].split()[:2]
    except ValueError:
        result["how"] = f"SSH_CONNECTION is {result['connection']!r}, which is not understood"
        return result
    accepted = accepted_login(address, port)
    if accepted is None:
        result["how"] = (
            f"the journal of this boot does not say how the connection from {address} port {port} was "
            "accepted"
        )
        return result
    method, user, fingerprint, certificate = accepted
    result.update(user=user, fingerprint=fingerprint)
    if method != "publickey":
        result.update(independent=True, how=f"login by {method}")
        return result
    settings: dict[str, str] = {}
    done = run(["sshd", "-T", "-C", f"user={user},host={address},addr={address}"])
    for line in done.stdout.splitlines():
        key, _, value = line.partition(" ")
        settings.setdefault(key.lower(), value.strip())
    if done.rc or "authorizedkeysfile" not in settings:
        result["how"] = f"sshd -T does not tell where it reads keys: {done.stderr.strip()[:200]}"
        return result
    if certificate:
        trusted = settings.get("trustedusercakeys", "none")
        if trusted != "none" and not below(os.path.realpath(paths.at(trusted)), os.path.realpath(paths.pve)):
            result.update(
                independent=True, how=f"login by certificate, its authority stands in {trusted}", file=trusted
            )
            return result
    line_in_pve = _look_for_key(paths, result, settings["authorizedkeysfile"])
    if line_in_pve is not None and fallback and write:
        _append_key(result["fallback_file"], line_in_pve, user)
        again = check_login(paths, result["connection"])
        again["added"] = True
        return again
    return result


def _look_for_key(paths: Paths, result: dict[str, Any], patterns: str) -> str | None:
    """Judge a login by key, in ``result``; the key's line where it stands on /etc/pve alone and could stand elsewhere too.

    ``patterns``: sshd's AuthorizedKeysFile.
    """
    fingerprint = result["fingerprint"]
    files = authorized_keys_files(paths, result["user"], patterns)
    pve = os.path.realpath(paths.pve)
    line_in_pve = None
    for file in files:
        inside = below(os.path.realpath(file), pve)
        for line in read_text(file).splitlines():
            if fingerprint and key_fingerprint(line) == fingerprint:
                if not inside:
                    result.update(independent=True, how=f"the key in use stands in {file}", file=file)
                    return None
                line_in_pve = line_in_pve or line.strip()
    outside = [f for f in files if not below(os.path.realpath(f), pve)]
    result["fallback_file"] = outside[-1] if outside else None
    if not outside:
        result["how"] = f"sshd reads keys only from /etc/pve ({patterns})"
        return None
    if line_in_pve is None:
        result["how"] = f"the key in use ({fingerprint}) stands in none of {', '.join(files)}"
        result["fallback_file"] = None
        return None
    result["how"] = f"the key in use ({fingerprint}) stands only on /etc/pve"
    return line_in_pve


def authorized_keys_files(paths: Paths, user: str, patterns: str) -> list[str]:
    """Absolute paths of AuthorizedKeysFile for a user, tokens filled in."""
    import pwd

    try:
        entry = pwd.getpwnam(user)
        home, uid = paths.at(entry.pw_dir), str(entry.pw_uid)
    except KeyError:
        home, uid = paths.at(f"/home/{user}"), ""
    tokens = {"%%": "%", "%h": home, "%u": user, "%U": uid}
    found = []
    for pattern in patterns.split():
        if pattern == "none":
            continue
        path = re.sub(r"%[%huU]", lambda m: tokens[m.group(0)], pattern)
        if not path.startswith("/"):
            path = f"{home}/{path}"
        elif not path.startswith(home):
            path = paths.at(path)
        found.append(path)
    return found


def _append_key(path: str, line: str, user: str) -> None:
    import pwd

    words = line.split()
    for index, word in enumerate(words[:-1]):
        if re.fullmatch(r"(ssh-|ecdsa-|sk-)[\w@.-]+", word):
            words = [*words[: index + 2], LOGIN_MARKER]
            break
    folder = os.path.dirname(path)
    entry = pwd.getpwnam(user)
    if not os.path.isdir(folder):
        os.mkdir(folder, 0o700)
        os.chown(folder, entry.pw_uid, entry.pw_gid)
    old = read_text(path)
    if old and not old.endswith("\n"):
        old += "\n"
    write_atomic(path, (old + " ".join(words) + "\n").encode(), 0o600, entry.pw_uid, entry.pw_gid)


def remove_login_fallback(paths: Paths) -> list[str]:
    """Take back the key lines that the fallback added; only where /etc/pve is there again and has the key (a restored
    state may not know it).
    """
    removed: list[str] = []
    if not pve_mounted(paths):
        return removed
    known = {key_fingerprint(line) for line in read_text(f"{paths.pve}/priv/authorized_keys").splitlines()}
    for path in (paths.at("/root/.ssh/authorized_keys2"), paths.at("/root/.ssh/authorized_keys")):
        if below(os.path.realpath(path), os.path.realpath(paths.pve)):
            continue
        text = read_text(path)
        lines = text.splitlines(keepends=True)
        rest = [
            line
            for line in lines
            if not (line.rstrip().endswith(" " + LOGIN_MARKER) and key_fingerprint(line) in known)
        ]
        if rest == lines:
            continue
        if "".join(rest).strip():
            write_atomic(path, "".join(rest).encode(), 0o600)
        else:
            remove(path)
        removed.append(path)
    return removed
