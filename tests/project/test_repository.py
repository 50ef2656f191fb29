# SPDX-License-Identifier: Apache-2.0
"""What holds for the repository as a whole."""

from __future__ import annotations

import configparser
import functools
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from tests.loading import load_file, load_filters
from tests.project import ansible_runs

ROOT = Path(__file__).resolve().parents[2]
#: Top-level folders that every Debian machine has (FHS 3.0); any other is peculiar to one machine.
COMMON_FOLDERS = {
    *("bin", "boot", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32", "lost+found", "media", "mnt"),
    *("opt", "proc", "root", "run", "sbin", "srv", "sys", "tmp", "usr", "var"),
}
#: Servers that the product itself names; the mirrors of a machine are never among them.
PUBLIC_HOSTS = {
    "debian.example.net",
    "security.debian.org",
    "download.proxmox.com",
    "enterprise.proxmox.com",
    "github.com",
    "localhost",
    "127.0.0.1",
}


@functools.cache
def tracked_files() -> tuple[Path, ...]:
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    listing = subprocess.run(command, capture_output=True, check=False)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    names = [name for name in listing.stdout.decode().split("\0") if name]
    return tuple(path for name in names if (path := ROOT / name).is_file() and not path.is_symlink())


def _texts() -> list[tuple[Path, str]]:
    found = []
    for path in tracked_files():
        data = path.read_bytes()
        if b"\0" not in data[:8192]:
            found.append((path.relative_to(ROOT), data.decode("utf-8", "replace")))
    return found


def _machine_paths() -> set[str]:
    """Folders that exist only here: peculiar top-level ones, this checkout, the user's home."""
    folders = {f"/{name}" for name in os.listdir("/") if (Path("/") / name).is_dir()}
    folders -= {f"/{name}" for name in COMMON_FOLDERS}
    folders.add(str(ROOT))
    if Path.home() not in (Path("/root"), Path("/")):
        folders.add(str(Path.home()))
    return folders


def _mirrors() -> set[str]:
    """Hosts and folders of this machine's package mirrors and proxies, as its settings name them."""
    values: list[str] = []
    command = [sys.executable, "-m", "pip", "config", "list"]
    values += re.findall(r"\S+", subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    variables = re.compile(r"(?i)^(pip_|npm_config_|.*_proxy$)")
    values += [value for key, value in os.environ.items() if variables.search(key)]
    apt = Path("/etc/apt")
    files = [apt / "sources.list", *apt.glob("sources.list.d/*"), *apt.glob("apt.conf.d/*")]
    for file in [*files, Path.home() / ".npmrc", Path("/etc/npmrc")]:
        try:
            values.append(file.read_text())
        except OSError:
            continue
    found = set()
    for text in values:
        for url in re.findall(r"\b(?:https?|file)://[^\s'\"\];,]+", text):
            parts = urlsplit(url)
            try:
                host = parts.hostname
            except ValueError:
                continue
            if host and host not in PUBLIC_HOSTS:
                found.add(host)
            if parts.scheme == "file" and parts.path.count("/") > 1:
                found.add(parts.path.rstrip("/"))
    return found


def test_no_path_of_one_machine() -> None:
    paths = "|".join(map(re.escape, sorted(_machine_paths())))
    pattern = re.compile(rf"(?<![\w./}}-])(?:{paths})(?=[/\s'\"`):]|$)")
    hits = [f"{path}: {match[0]}" for path, text in _texts() for match in pattern.finditer(text)]
    assert hits == []


@pytest.mark.slow
def test_no_mirror_of_one_machine() -> None:
    mirrors = sorted(_mirrors())
    hits = [f"{path}: {mirror}" for path, text in _texts() for mirror in mirrors if mirror in text]
    assert hits == []


def test_no_private_key() -> None:
    pattern = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=]{40}")
    assert [str(path) for path, text in _texts() if pattern.search(text)] == []


def test_nothing_generated_is_tracked() -> None:
    forbidden = re.compile(r"(^|/)(\.lab|\.venv|reports|__pycache__|\.hypothesis|\.\w+_cache)/|\.pyc$")
    names = [str(path.relative_to(ROOT)) for path in tracked_files()]
    assert [name for name in names if forbidden.search(name)] == []


def test_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert text.startswith("# Changelog\n")
    assert "## [Unreleased]" in text
    headings = re.findall(r"^### (.*)$", text, re.MULTILINE)
    assert set(headings) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-build.lock"])
def test_lock_is_complete_and_names_no_index(name: str) -> None:
    text = (ROOT / name).read_text()
    assert not re.search(r"(?m)^--|://", text), f"{name} names an index"
    blocks = re.split(r"(?m)^(?=[A-Za-z0-9])", text)[1:]
    assert blocks
    for block in blocks:
        assert re.match(r"[a-z0-9-]+==\S+ ", block), block.splitlines()[0]
        assert "--hash=sha256:" in block, block.splitlines()[0]


def test_lock_has_what_requirements_ask_for() -> None:
    asked = re.findall(r"(?m)^([A-Za-z][\w.-]*)", (ROOT / "requirements.in").read_text())
    locked = set(re.findall(r"(?m)^([a-z0-9-]+)==", (ROOT / "requirements.lock").read_text()))
    assert {name.lower().replace("_", "-") for name in asked} <= locked


def test_ansible_cfg_paths_exist() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "ansible.cfg")
    for key in ("inventory", "roles_path", "library", "module_utils", "filter_plugins"):
        assert (ROOT / config["defaults"][key]).exists(), f"ansible.cfg: {key}"


def test_help_lists_the_targets() -> None:
    command = ["make", "-C", str(ROOT), "help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for target in "site test lint unit slow molecule lab lab-down ssh bench lock docs clean".split():
        assert re.search(rf"(?m)^  {target} ", text), f"make help does not list {target}"


def test_filters_load_without_help() -> None:
    """As Ansible loads them: nothing has prepared the import path, and an error would be a mere warning."""
    files = sorted(str(path) for path in (ROOT / "filter_plugins").glob("*.py"))
    program = (
        "import importlib.util, sys\n"
        "for number, path in enumerate(sys.argv[1:]):\n"
        "    spec = importlib.util.spec_from_file_location(f'filters_{number}', path)\n"
        "    module = importlib.util.module_from_spec(spec)\n"
        "    spec.loader.exec_module(module)\n"
        "    filters = module.FilterModule().filters()\n"
        "    assert filters and all(map(callable, filters.values())), path\n"
    )
    assert files
    command = [sys.executable, "-c", program, *files]
    result = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_each_file_of_filters_loads_alone() -> None:
    """In a process of its own each, after what the plugin itself does: none leans on what another has imported."""
    names = sorted(path.stem for path in (ROOT / "module_utils/pveguard/filters").glob("[!_]*.py"))
    program = (
        "import importlib, os, sys\n"
        "import ansible.module_utils\n"
        "ansible.module_utils.__path__.append(sys.argv[1])\n"
        "for name in sys.argv[2:]:\n"
        "    if child := os.fork():\n"
        "        assert os.waitpid(child, 0)[1] == 0, name\n"
        "    else:\n"
        "        found = importlib.import_module(f'ansible.module_utils.pveguard.filters.{name}').FILTERS\n"
        "        assert found and all(map(callable, found.values()))\n"
        "        os._exit(0)\n"
    )
    assert len(names) > 1
    command = [sys.executable, "-c", program, str(ROOT / "module_utils"), *names]
    result = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_a_filter_has_one_home(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = load_file("filter_plugins/pveguard_filters.py")
    names = plugin.FilterModule().filters()
    assert {"pveguard_bool", "pveguard_link_pairs", "pveguard_report"} <= names.keys()
    monkeypatch.setitem(load_filters("gate").FILTERS, "pveguard_report", str)
    with pytest.raises(ValueError, match="report.py: pveguard_report is there already"):
        plugin.FilterModule().filters()


def _playbooks() -> list[Path]:
    candidates = [
        ROOT / "site.yml",
        *(ROOT / "playbooks").glob("*.yml"),
        *(ROOT / "molecule").glob("*/*.yml"),
    ]
    return sorted(path for path in candidates if path.is_file() and path.name != "molecule.yml")


def test_playbooks_pass_the_syntax_check() -> None:
    playbooks = [str(path) for path in _playbooks()]
    assert str(ROOT / "site.yml") in playbooks
    ansible_runs.run("ansible-playbook", "--syntax-check", "-i", "node,", *playbooks)


def test_playbooks_gather_no_facts_and_need_no_group() -> None:
    for path in [ROOT / "site.yml", *(ROOT / "playbooks").glob("*.yml")]:
        for play in yaml.safe_load(path.read_text()):
            if "hosts" not in play:
                continue
            assert play.get("gather_facts") is False, f"{path.name}: '{play.get('name')}' gathers facts"
            assert play["hosts"] in ("all", "localhost"), f"{path.name}: '{play.get('name')}' wants a group"


def test_example_inventory_is_readable_with_its_demonstration_password(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("example\n")
    command = [
        str(Path(sys.executable).parent / "ansible-inventory"),
        *("-i", "inventory/example", "--vault-password-file", str(password), "--list"),
    ]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    hostvars = yaml.safe_load(result.stdout)["_meta"]["hostvars"]
    clustered = {host for host, variables in hostvars.items() if variables.get("corosync_cluster_name")}
    assert clustered and clustered < set(hostvars)
    needed = {"corosync_node_id", "corosync_links", "corosync_authkey"}
    assert all(needed <= set(hostvars[host]) for host in clustered)


def test_an_inventory_program_that_was_imported_stays_readable(tmp_path: Path) -> None:
    """As the lab's after its tests: Python leaves a folder beside it, which is no inventory."""
    (tmp_path / "hosts.yml").write_text("all:\n  hosts:\n    pve1:\n")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__/hosts.cpython-311.pyc").write_bytes(b"\0")
    command = [str(Path(sys.executable).parent / "ansible-inventory"), "-i", str(tmp_path), "--list"]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and "pve1" in result.stdout, result.stderr
