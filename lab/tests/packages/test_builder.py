# SPDX-License-Identifier: Apache-2.0
"""The builder of the lab's packages: real dpkg-deb, gpg, apt-get and dpkg, no network."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab import image_root, system
from lab.errors import LabError
from lab.packages import BuildError, Repository, build, build_repository, repository_digest
from lab.packages.build import HERE, find_packages, maintainer_scripts, read_package
from lab.system import telling
from lab.tests.doubles.harness import wait_for

TOOLS = ("dpkg-deb", "apt-ftparchive", "apt-get", "gpg", "gpg-agent")
pytestmark = pytest.mark.skipif(
    not all(shutil.which(tool) for tool in TOOLS), reason=f"needs {', '.join(TOOLS)}"
)


@pytest.fixture(scope="module")
def doubles(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return build_repository(tmp_path_factory.mktemp("doubles"))


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """A folder with one small package, as a root for build_repository()."""
    return make_package(tmp_path / "sources", "pve-example")


def make_package(root: Path, name: str, /, **control: Any) -> Path:
    folder = root / name
    unit = folder / "root/usr/lib/systemd/system" / f"{name}.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n")
    program = folder / "root/usr/bin" / name
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    data = {
        "name": name,
        "version": "1.2",
        "description": f"lab double of {name}",
        "units": [f"{name}.service"],
    }
    (folder / "control.json").write_text(json.dumps({**data, **control}))
    return root


def deb_of(repository: Repository, name: str) -> Path:
    assert repository.path is not None
    return next((repository.path / "pool").glob(f"{name}_*.deb"))


def deb_field(deb: Path, field: str) -> str:
    return subprocess.check_output(["dpkg-deb", "-f", str(deb), field], text=True).strip()


def deb_list(deb: Path) -> list[str]:
    return subprocess.check_output(["dpkg-deb", "-c", str(deb)], text=True).splitlines()


# --- what is built ------------------------------------------------------------------------------------------


def test_every_double_is_marked_as_one(doubles: Repository) -> None:
    assert {"pve-ha-manager": "5.2.0+lab1", "pve-manager": "9.1.4+lab1"}.items() <= doubles.packages.items()
    for name, version in doubles.packages.items():
        deb = deb_of(doubles, name)
        assert version.endswith("+lab1") and deb_field(deb, "Version") == version
        assert "lab double" in deb_field(deb, "Description").splitlines()[0]


def test_files_belong_to_root_and_have_plain_modes(doubles: Repository) -> None:
    lines = deb_list(deb_of(doubles, "pve-ha-manager"))
    assert all(line.split()[1] == "root/root" for line in lines)
    assert {line.split()[0] for line in lines} <= {"drwxr-xr-x", "-rw-r--r--", "-rwxr-xr-x", "lrwxrwxrwx"}
    assert any(line.endswith("./usr/sbin/pve-ha-lrm -> ../share/pve-ha-manager/lab-ha") for line in lines)
    assert any("-rwxr-xr-x" in line and line.endswith("./usr/sbin/watchdog-mux") for line in lines)


def test_same_sources_give_the_same_bytes(one: Path, tmp_path: Path) -> None:
    first = deb_of(build_repository(tmp_path / "a", root=one), "pve-example").read_bytes()
    copy = tmp_path / "elsewhere"
    shutil.copytree(one, copy)
    (copy / "pve-example/root/usr/bin/__pycache__").mkdir()
    (copy / "pve-example/root/usr/bin/__pycache__/x.pyc").write_text("left behind")
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
    old = os.umask(0o077)
    try:
        second = deb_of(build_repository(tmp_path / "b", root=copy), "pve-example").read_bytes()
    finally:
        os.umask(old)
    assert first == second


def test_package_checks_its_own_files(doubles: Repository, tmp_path: Path) -> None:
    deb = deb_of(doubles, "pve-ha-manager")
    subprocess.check_call(["dpkg-deb", "-R", str(deb), str(tmp_path / "x")])
    subprocess.check_call(["md5sum", "--quiet", "-c", "DEBIAN/md5sums"], cwd=tmp_path / "x")


def test_conffiles(tmp_path: Path) -> None:
    root = make_package(tmp_path / "s", "pve-example", conffiles=["/etc/default/pve-example"])
    with pytest.raises(BuildError, match="conffile /etc/default/pve-example is not under root/"):
        build_repository(tmp_path / "out", root=root)
    conffile = root / "pve-example/root/etc/default/pve-example"
    conffile.parent.mkdir(parents=True)
    conffile.write_text("A=1\n")
    deb = deb_of(build_repository(tmp_path / "out", root=root), "pve-example")
    assert subprocess.check_output(["dpkg-deb", "-I", str(deb), "conffiles"], text=True) == (
        "/etc/default/pve-example\n"
    )


def test_unit_files_named_in_control_exist(doubles: Repository) -> None:
    for package in find_packages():
        files = [line.split()[-1] for line in deb_list(deb_of(doubles, package.name))]
        for unit in package.units:
            assert any(path.endswith(f"/systemd/system/{unit.name}") for path in files), unit


@pytest.mark.parametrize(
    ("control", "message"),
    [
        ({"dependss": []}, "unknown keys dependss"),
        ({"version": 3}, "version must be a text"),
        ({"depends": "python3"}, "depends must be a list"),
        ({"units": ["x"]}, "'x' is no unit name"),
        ({"name": "No Name"}, "'No Name' is no package name"),
        ({"units": [{"name": "x.service", "strt": False}]}, "units: .*strt"),
    ],
)
def test_mistakes_in_control_json(tmp_path: Path, control: dict[str, Any], message: str) -> None:
    root = make_package(tmp_path, "pve-example", **control)
    with pytest.raises(BuildError, match=message) as error:
        read_package(root / "pve-example")
    assert str(root / "pve-example/control.json") in str(error.value)


@pytest.mark.parametrize("revision", ["", "-1", "lab1", "+real"])
def test_a_double_never_has_a_version_like_the_real_one(one: Path, tmp_path: Path, revision: str) -> None:
    with pytest.raises(BuildError, match="must look like \\+lab1"):
        build_repository(tmp_path / "out", root=one, revision=revision)
    assert not (tmp_path / "out/repository").exists()


# --- cache and digest ---------------------------------------------------------------------------------------


def test_nothing_is_rebuilt_without_need(one: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = build_repository(out, root=one)
    assert first.path is not None
    stamp = (first.path / "dists/trixie/InRelease").stat().st_ino
    assert build_repository(out, root=one) == first
    assert (first.path / "dists/trixie/InRelease").stat().st_ino == stamp

    (one / "pve-example/root/usr/bin/pve-example").write_text("#!/bin/sh\necho changed\n")
    changed = build_repository(out, root=one)
    assert changed.digest != first.digest
    assert changed.fingerprint == first.fingerprint, "one key for one work directory"
    upgraded = build_repository(out, root=one, revision="+lab2")
    assert upgraded.packages == {"pve-example": "1.2+lab2"}
    assert sorted(path.name for path in out.iterdir()) == ["key", "lock", "repository", "repository.json"]


def test_digest_sees_modes_links_and_revision(one: Path) -> None:
    seen = {repository_digest(root=one), repository_digest(root=one, revision="+lab2")}
    program = one / "pve-example/root/usr/bin/pve-example"
    program.chmod(0o644)
    seen.add(repository_digest(root=one))
    (program.parent / "other").symlink_to("pve-example")
    seen.add(repository_digest(root=one))
    assert len(seen) == 4


def test_every_work_directory_has_a_key_of_its_own_that_is_not_served(one: Path, tmp_path: Path) -> None:
    first, second = (build_repository(tmp_path / name, root=one) for name in "ab")
    assert first.fingerprint != second.fingerprint
    assert (tmp_path / "a/key/secret.asc").stat().st_mode & 0o777 == 0o600
    assert first.path is not None
    assert not any(b"PRIVATE" in path.read_bytes() for path in first.path.rglob("*") if path.is_file())


def test_no_agent_and_no_key_directory_is_left(
    one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    homes: list[Path] = []
    real = subprocess.run

    def watch(argv: list[str], **options: Any) -> Any:
        if "--homedir" in argv:
            homes.append(Path(argv[argv.index("--homedir") + 1]))
        return real(argv, **options)

    monkeypatch.setattr("lab.packages.build.subprocess.run", watch)
    build_repository(tmp_path / "out", root=one)
    assert homes and all(len(str(home)) < 60 and not home.exists() for home in homes)

    def used() -> bool:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                line = path.read_bytes()
                if any(str(home).encode() in line for home in homes):
                    return True
        return False

    # An agent that was told to end may still be about it.
    wait_for("the end of the agents", lambda: not used())


# --- apt ----------------------------------------------------------------------------------------------------


class Apt:
    """apt-get with a configuration, lists and package database of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("etc/sources.list.d", "etc/preferences.d", "etc/apt.conf.d", "etc/trusted.gpg.d"):
            (root / folder).mkdir(parents=True)
        (root / "state/lists/partial").mkdir(parents=True)
        (root / "cache/archives/partial").mkdir(parents=True)
        (root / "status").write_text("")
        (root / "apt.conf").write_text("")
        options = {
            "Dir::Etc": root / "etc",
            "Dir::State": root / "state",
            "Dir::Cache": root / "cache",
            "Dir::State::status": root / "status",
            "APT::Sandbox::User": "",
            "APT::Architecture": "amd64",
        }
        self.options = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]

    def use(self, repository: Repository, suite: str = "trixie", key: Path | None = None) -> None:
        text = repository.deb822(
            suite, uri=f"file:{repository.path}", signed_by=str(key or repository.key_file)
        )
        (self.root / "etc/sources.list.d/lab.sources").write_text(text)

    def get(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["apt-get", *self.options, *arguments],
            capture_output=True,
            text=True,
            cwd=self.root,
            env={**os.environ, "LC_ALL": "C", "APT_CONFIG": str(self.root / "apt.conf")},
        )


@pytest.fixture
def apt(tmp_path: Path) -> Apt:
    return Apt(tmp_path / "apt")


@pytest.mark.parametrize("suite", ["trixie", "bookworm"])
def test_apt_takes_the_signed_repository(doubles: Repository, apt: Apt, suite: str) -> None:
    apt.use(doubles, suite)
    update = apt.get("update", "--error-on=any")
    assert update.returncode == 0, update.stdout + update.stderr
    assert "W:" not in update.stderr
    download = apt.get("download", "pve-manager")
    assert download.returncode == 0, download.stderr
    name = f"pve-manager_{doubles.packages['pve-manager']}_all.deb"
    assert (apt.root / name).read_bytes() == deb_of(doubles, "pve-manager").read_bytes()


@pytest.fixture
def tampered(one: Path, tmp_path: Path) -> Repository:
    return build_repository(tmp_path / "tampered", root=one)


def test_apt_refuses_a_changed_release_file(tampered: Repository, apt: Apt) -> None:
    assert tampered.path is not None
    release = tampered.path / "dists/trixie/InRelease"
    release.write_text(release.read_text().replace("Label: lab", "Label: LAB"))
    apt.use(tampered)
    update = apt.get("update", "--error-on=any")
    assert update.returncode != 0
    assert "signature" in (update.stdout + update.stderr).lower()
    assert apt.get("download", "pve-example").returncode != 0


def test_apt_refuses_a_changed_index(tampered: Repository, apt: Apt) -> None:
    assert tampered.path is not None
    for index in tampered.path.rglob("Packages"):
        index.write_text(index.read_text().replace("1.2+lab1", "9.9+lab1"))
    apt.use(tampered)
    update = apt.get("update", "--error-on=any")
    assert update.returncode != 0 and "Hash Sum mismatch" in update.stderr


def test_apt_refuses_a_changed_package(tampered: Repository, apt: Apt) -> None:
    deb = deb_of(tampered, "pve-example")
    data = bytearray(deb.read_bytes())
    data[-1] ^= 1
    deb.write_bytes(data)
    apt.use(tampered)
    assert apt.get("update", "--error-on=any").returncode == 0
    download = apt.get("download", "pve-example")
    assert download.returncode != 0 and "Hash Sum mismatch" in download.stderr


def test_apt_refuses_another_key(doubles: Repository, tampered: Repository, apt: Apt) -> None:
    apt.use(tampered, key=doubles.key_file)
    assert apt.get("update", "--error-on=any").returncode != 0


def test_a_higher_revision_is_seen_as_an_upgrade(one: Path, tmp_path: Path, apt: Apt) -> None:
    first = build_repository(tmp_path / "out", root=one)
    apt.use(first)
    assert apt.get("update", "--error-on=any").returncode == 0
    build_repository(tmp_path / "out", root=one, revision="+lab2")
    assert apt.get("update", "--error-on=any").returncode == 0
    assert "pve-example_1.2%2blab2_all.deb" in apt.get(
        "--print-uris", "download", "pve-example"
    ).stdout.replace("+", "%2b")


# --- packages from elsewhere --------------------------------------------------------------------------------


def make_deb(folder: Path, name: str, version: str, *fields: str, **scripts: str) -> Path:
    """A small package that stands for a real one."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as tree:
        debian = Path(tree, "DEBIAN")
        debian.mkdir(mode=0o755)
        lines = [f"Package: {name}", f"Version: {version}", "Architecture: amd64", *fields]
        lines += ["Maintainer: Someone <x@example.org>", "Description: not a double"]
        (debian / "control").write_text("\n".join(lines) + "\n")
        for script, text in scripts.items():
            (debian / script).write_text(f"#!/bin/sh\n{text}\n")
            (debian / script).chmod(0o755)
        deb = folder / f"{name}_{version}_amd64.deb"
        subprocess.check_call(["dpkg-deb", "--root-owner-group", "-b", tree, str(deb)], stdout=subprocess.DEVNULL)
    return deb


DOUBLES = ("pve-cluster", "pve-ha-manager", "pve-manager", "pve-firewall", "proxmox-firewall", "libpve-access-control")


def test_doubles_complete_a_directory_of_packages(tmp_path: Path, apt: Apt, doubles: Repository) -> None:
    given = tmp_path / "given"
    make_deb(given, "pve-cluster", "1.9-1")
    make_deb(given / "sub", "pve-cluster", "1.10-1")
    repository = build_repository(tmp_path / "out", source=str(given))
    assert repository.packages == {**doubles.packages, "pve-cluster": "1.10-1"} and not repository.doubles
    assert set(repository.completed) == set(DOUBLES) - {"pve-cluster"}
    assert repository.digest != doubles.digest
    assert build_repository(tmp_path / "out", source=str(given)) == repository
    apt.use(repository)
    assert apt.get("update", "--error-on=any").returncode == 0
    assert apt.get("download", "pve-cluster").returncode == 0
    assert (apt.root / "pve-cluster_1.10-1_amd64.deb").is_file()


def test_a_double_is_for_what_is_not_given(tmp_path: Path, doubles: Repository) -> None:
    for name in DOUBLES:
        make_deb(tmp_path / "all", name, "1.0")
    make_deb(tmp_path / "other", "libpve-something", "1.0")
    every = build_repository(tmp_path / "out", source=str(tmp_path / "all"))
    assert every.packages == dict.fromkeys(DOUBLES, "1.0") and every.completed == ()
    other = build_repository(tmp_path / "out", source=str(tmp_path / "other"))
    assert other.packages == {**doubles.packages, "libpve-something": "1.0"} and set(other.completed) == set(DOUBLES)


def test_a_changed_double_changes_a_directory_of_packages(one: Path, tmp_path: Path) -> None:
    make_deb(tmp_path / "given", "pve-cluster", "1.0")
    source = str(tmp_path / "given")
    before = repository_digest(source=source, root=one)
    (one / "pve-example/root/usr/bin/pve-example").write_text("#!/bin/sh\necho changed\n")
    assert repository_digest(source=source, root=one) != before


def test_a_file_that_is_no_package_is_named(tmp_path: Path) -> None:
    make_deb(tmp_path / "given", "pve-cluster", "1.0")
    (tmp_path / "given/pve-manager_9.deb").write_text("<html>not found</html>")
    with pytest.raises(BuildError, match=r"dpkg-deb failed \(2\): .*pve-manager_9.deb.*"):
        build_repository(tmp_path / "out", source=str(tmp_path / "given"))
    assert not (tmp_path / "out/repository").exists()


def installed(apt: Apt, *names: str) -> None:
    """Count these packages as installed, for what depends on them."""
    (apt.root / "status").write_text(
        "".join(
            f"Package: {name}\nStatus: install ok installed\nVersion: 3.12\nArchitecture: amd64\n"
            "Maintainer: Someone <x@example.org>\nDescription: x\n\n"
            for name in names
        )
    )


def use_as_the_build_does(apt: Apt, about: dict[str, Any], served: Path) -> None:
    sources, pins = image_root.apt_settings(about, "trixie", str(served))
    (apt.root / "etc/sources.list.d/lab-build.sources").write_text(sources)
    (apt.root / "etc/preferences.d/lab-build").write_text(pins)


def resolved(apt: Apt) -> dict[str, str]:
    assert apt.get("update", "--error-on=any").returncode == 0
    done = apt.get("-s", "--no-install-recommends", "install", *DOUBLES)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(re.findall(r"^Inst (\S+) \((\S+) ", done.stdout, re.MULTILINE))


NEEDED = ("python3", "corosync", "libcpg4", "libquorum5", "kmod", "rrdcached", "iptables", "ipset", "nftables", "procps")


def test_apt_installs_given_packages_and_doubles_together(tmp_path: Path, apt: Apt, doubles: Repository) -> None:
    make_deb(tmp_path / "given", "pve-cluster", "1.0", "Depends: corosync, libpve-common")
    make_deb(tmp_path / "given", "libpve-common", "1.0")
    repository = build_repository(tmp_path / "out", source=str(tmp_path / "given"))
    installed(apt, *NEEDED)
    assert repository.path is not None
    use_as_the_build_does(apt, repository.as_dict(), repository.path)
    wanted = {**doubles.packages, "pve-cluster": "1.0", "libpve-common": "1.0"}
    assert resolved(apt) == wanted


@pytest.mark.parametrize("version", ["0.1", "99"])
def test_apt_prefers_what_a_url_has_whatever_its_version(
    tmp_path: Path, apt: Apt, doubles: Repository, version: str
) -> None:
    """A ``file:`` URL stands for the repository of real packages."""
    for name in DOUBLES[:2]:
        make_deb(tmp_path / "given", name, version)
    root = make_package(tmp_path / "s", "pve-x")
    elsewhere = build_repository(tmp_path / "elsewhere", source=str(tmp_path / "given"), root=root)
    assert elsewhere.path is not None and doubles.path is not None
    for release in elsewhere.path.rglob("*Release*"):
        release.unlink()
    rename_origin(elsewhere.path, tmp_path / "elsewhere/key")
    remote = build_repository(tmp_path / "out", source=f"file:{elsewhere.path}", key=str(elsewhere.key_file))
    served = tmp_path / "served"
    served.mkdir()
    shutil.copyfile(elsewhere.path / "key.asc", served / "key.asc")
    shutil.copytree(doubles.path, served / image_root.DOUBLES_AT)
    installed(apt, *NEEDED)
    use_as_the_build_does(apt, remote.as_dict(), served)
    assert resolved(apt) == {**doubles.packages, **dict.fromkeys(DOUBLES[:2], version)}


def rename_origin(served: Path, key: Path) -> None:
    """Sign a repository anew as somebody else's."""
    original, build.ORIGIN = build.ORIGIN, "Somebody"
    try:
        with build._signing_key(key) as (gnupg, fingerprint):
            build._sign(served, gnupg, fingerprint, doubles=False)
    finally:
        build.ORIGIN = original


UNMET = """Reading package lists...
Building dependency tree...
Some packages could not be installed. This may mean that you have
requested an impossible situation.

The following packages have unmet dependencies:
 pve-cluster : Depends: libpve-common (>= 9)
               but it is not installable
E: Unable to correct problems, you have held broken packages.
"""


@pytest.mark.parametrize(
    ("output", "wanted"),
    [
        (
            UNMET,
            "pve-cluster : Depends: libpve-common (>= 9) | but it is not installable | "
            "E: Unable to correct problems, you have held broken packages.",
        ),
        ("I: installing\nE: Unable to locate package x\nI: cleaning\nI: done\n1\n2\n", "E: Unable to locate package x"),
        (
            "E: Unable to satisfy dependencies. Reached two conflicting decisions:\n   1. a is selected for install\nother\n  x",
            "E: Unable to satisfy dependencies. Reached two conflicting decisions: | 1. a is selected for install",
        ),
        (
            "pve-manager 9+lab1 is a lab double and refuses this machine, x\ndpkg: error processing archive a (--unpack):\n"
            "Errors were encountered while processing:\n a\nE: Sub-process /usr/bin/dpkg returned an error code (1)",
            "pve-manager 9+lab1 is a lab double and refuses this machine, x | dpkg: error processing archive a (--unpack): | "
            "E: Sub-process /usr/bin/dpkg returned an error code (1)",
        ),
        ("one\n\ntwo\nthree\nfour\nfive\n", "two | three | four | five"),
        ("", ""),
    ],
)
def test_the_lines_that_tell_why(output: str, wanted: str) -> None:
    assert telling(output) == wanted


def test_a_failure_in_the_image_is_apts_own_line_and_no_traceback(
    tmp_path: Path, apt: Apt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part that runs as root, with an apt of its own in place of the image's."""
    make_deb(tmp_path / "given", "pve-cluster", "1.0", "Depends: libpve-common (>= 9)")
    repository = build_repository(tmp_path / "out", source=str(tmp_path / "given"))
    apt.use(repository)
    installed(apt, *NEEDED)
    assert apt.get("update", "--error-on=any").returncode == 0
    program = (
        "import sys; from lab import image_root\n"
        "image_root.build = lambda argv: image_root.command(*argv)\nsys.exit(image_root.main())\n"
    )
    argv = [sys.executable, "-c", program, json.dumps(["apt-get", *map(str, apt.options), "-s", "install", *DOUBLES])]
    with pytest.raises(LabError) as error:
        system.run(argv, what="image pve-trixie-1", log=tmp_path / "log", cwd=HERE.parent.parent)
    said = str(error.value)
    assert said.startswith("image pve-trixie-1 failed with status 1: 'apt-get ")
    assert "pve-cluster : Depends: libpve-common (>= 9)" in said and "E: " in said
    assert "Traceback" not in said + (tmp_path / "log").read_text() and "\n" not in said
    assert "Reading package lists" in (tmp_path / "log").read_text()


def test_a_directory_that_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="neither a directory of .deb files nor a URL"):
        build_repository(tmp_path / "out", source=str(tmp_path / "missing"))
    with pytest.raises(BuildError, match="holds no .deb file"):
        build_repository(tmp_path / "out", source=str(tmp_path))


def test_a_url_is_passed_through(tmp_path: Path, doubles: Repository) -> None:
    url = "http://packages.example.org/debian/pve"
    repository = build_repository(tmp_path / "out", source=url, key=str(doubles.key_file))
    assert (repository.path, repository.url) == (None, url)
    assert repository.fingerprint == doubles.fingerprint
    assert repository.deb822("trixie", signed_by="/usr/share/keyrings/x.asc") == (
        "Types: deb\n"
        "URIs: http://packages.example.org/debian/pve\n"
        "Suites: trixie\n"
        "Components: pve-no-subscription\n"
        "Signed-By: /usr/share/keyrings/x.asc\n"
    )
    assert not (tmp_path / "out").exists()
    other = build_repository(tmp_path / "out", source=url, key="https://packages.example.org/key.gpg")
    assert other.key_file is None and other.key_url == "https://packages.example.org/key.gpg"


# --- command line -------------------------------------------------------------------------------------------


def cli(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["python3", "-m", "lab.packages", *arguments],
        cwd=HERE.parent.parent,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_command_line(tmp_path: Path) -> None:
    done = cli(str(tmp_path / "out"), "--revision", "+lab7")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["packages"]["pve-manager"] == "9.1.4+lab7"
    assert Path(printed["key_file"]).is_file() and len(printed["fingerprint"]) == 40
    digest = cli("ignored", "--revision", "+lab7", "--digest")
    assert digest.stdout.strip() == printed["digest"]


def test_command_line_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    done = cli(str(tmp_path / "out"), PVE_PACKAGES=str(tmp_path / "nowhere"))
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "nowhere is neither a directory" in done.stderr


def test_missing_tools_are_named_with_their_packages(
    one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lab.packages.build.shutil.which", lambda name: None)
    with pytest.raises(BuildError, match="apt-get install apt-utils dpkg gpg gpg-agent$"):
        build_repository(tmp_path / "out", root=one)


# --- maintainer scripts, run by dpkg under a root of its own ------------------------------------------------


class Dpkg:
    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in (
            "var/lib/dpkg/info",
            "var/lib/dpkg/updates",
            "etc/apt/sources.list.d",
            "etc/systemd/system",
        ):
            (root / folder).mkdir(parents=True)
        (root / "var/lib/dpkg/status").write_text("")

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["dpkg", f"--root={self.root}", f"--log={self.root}/log", "--force-script-chrootless",
             "--force-depends", *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )  # fmt: skip

    def state(self, name: str) -> str:
        return subprocess.run(
            ["dpkg-query", f"--root={self.root}", "-W", "-f", "${db:Status-Abbrev}${Version}", name],
            capture_output=True,
            text=True,
        ).stdout

    def wanted(self) -> list[str]:
        return sorted(p.name for p in (self.root / "etc/systemd/system/multi-user.target.wants").glob("*"))


@pytest.fixture
def dpkg(tmp_path: Path) -> Dpkg:
    if os.getuid() != 0 or not shutil.which("deb-systemd-helper"):
        pytest.skip("needs root and deb-systemd-helper")
    return Dpkg(tmp_path / "root")


HA_UNITS = ["pve-ha-crm.service", "pve-ha-lrm.service", "watchdog-mux.service"]


@pytest.mark.root
def test_install_upgrade_remove_purge(dpkg: Dpkg, doubles: Repository, tmp_path: Path) -> None:
    done = dpkg("-i", str(deb_of(doubles, "pve-ha-manager")))
    assert done.returncode == 0, done.stderr
    assert dpkg.wanted() == HA_UNITS
    # What an operator masked and disabled stays so across an upgrade.
    units = dpkg.root / "etc/systemd/system"
    (units / "multi-user.target.wants/pve-ha-crm.service").unlink()
    (units / "pve-ha-lrm.service").symlink_to("/dev/null")
    (dpkg.root / "etc/pve-ha-lab.conf").write_text("arm=never\n")
    newer = build_repository(tmp_path / "newer", revision="+lab2")
    done = dpkg("-i", str(deb_of(newer, "pve-ha-manager")))
    assert done.returncode == 0, done.stderr
    assert dpkg.state("pve-ha-manager") == "ii 5.2.0+lab2"
    assert dpkg.wanted() == ["pve-ha-lrm.service", "watchdog-mux.service"]
    assert os.readlink(units / "pve-ha-lrm.service") == "/dev/null"
    (units / "pve-ha-lrm.service").unlink()

    assert dpkg("-r", "pve-ha-manager").returncode == 0
    assert not (dpkg.root / "usr/sbin/watchdog-mux").exists()
    assert dpkg("-P", "pve-ha-manager").returncode == 0
    assert dpkg.wanted() == []
    assert not (dpkg.root / "etc/pve-ha-lab.conf").exists()
    left = [path for path in dpkg.root.rglob("*") if path.is_file() and "/var/lib/dpkg" not in str(path)]
    assert [path.name for path in left] == ["log"]


@pytest.mark.root
@pytest.mark.parametrize("package", ["pve-ha-manager", "pve-manager"])
def test_refuses_where_real_packages_are_installed(dpkg: Dpkg, doubles: Repository, package: str) -> None:
    (dpkg.root / "var/lib/dpkg/status").write_text(
        "Package: proxmox-ve\nStatus: install ok installed\nVersion: 9.0.0\nArchitecture: all\n"
        "Maintainer: Someone <x@example.org>\nDescription: the real one\n\n"
    )
    done = dpkg("-i", str(deb_of(doubles, package)))
    assert done.returncode != 0
    assert (
        "is a lab double and refuses this machine, real packages are there: proxmox-ve 9.0.0" in done.stderr
    )
    assert not dpkg.state(package).startswith("ii")
    assert dpkg.wanted() == []


@pytest.mark.root
def test_removed_or_lab_packages_are_no_reason_to_refuse(dpkg: Dpkg, doubles: Repository) -> None:
    common = "Architecture: all\nMaintainer: Someone <x@example.org>\nDescription: x\n\n"
    (dpkg.root / "var/lib/dpkg/status").write_text(
        f"Package: pve-firewall\nStatus: deinstall ok config-files\nVersion: 6.0\n{common}"
        f"Package: pve-cluster\nStatus: install ok installed\nVersion: 9.1.6+lab1\n{common}"
    )
    done = dpkg("-i", str(deb_of(doubles, "pve-ha-manager")))
    assert done.returncode == 0, done.stderr


@pytest.mark.root
@pytest.mark.parametrize(
    ("name", "text", "refused"),
    [
        ("sources.list", "deb http://download.proxmox.com/debian/pve trixie pve-no-subscription\n", True),
        ("sources.list.d/pve.list", "deb https://enterprise.proxmox.com/debian/pve trixie x\n", True),
        ("sources.list.d/pve.sources", "Types: deb\nURIs: http://download.proxmox.com/debian/pve\n", True),
        ("sources.list", "# deb http://download.proxmox.com/debian/pve trixie pve\n", False),
        ("sources.list.d/lab.sources", "Types: deb\nURIs: file:/srv/pve-repo\n", False),
        ("sources.list.d/pve.list.bak", "deb http://download.proxmox.com/debian/pve x y\n", False),
    ],
)
def test_refuses_where_the_real_repository_is_configured(
    dpkg: Dpkg, doubles: Repository, name: str, text: str, refused: bool
) -> None:
    (dpkg.root / "etc/apt" / name).write_text(text)
    done = dpkg("-i", str(deb_of(doubles, "pve-manager")))
    assert (done.returncode != 0) is refused, done.stderr
    assert (f"/etc/apt/{name} names Proxmox's host" in done.stderr) is refused


@pytest.mark.root
@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("a virtual machine of the pveguard lab\n", False),
        ("", True),
        ("another machine\n", True),
        ("a virtual machine of the pveguard lab\nmore\n", True),
        (None, True),
    ],
)
def test_only_the_labs_own_machines_take_doubles_beside_real_packages(
    dpkg: Dpkg, doubles: Repository, tmp_path: Path, text: str | None, refused: bool
) -> None:
    real = make_deb(tmp_path / "real", "pve-cluster", "9.1.6")
    assert dpkg("-i", str(real)).returncode == 0
    (dpkg.root / "etc/apt/sources.list").write_text("deb http://download.proxmox.com/debian/pve trixie x\n")
    if text is not None:
        (dpkg.root / "etc/pveguard-lab").write_text(text)
    for name in ("pve-ha-manager", "pve-manager"):
        done = dpkg("-i", str(deb_of(doubles, name)))
        assert (done.returncode != 0) is refused, done.stderr
        assert ("real packages are there: pve-cluster 9.1.6" in done.stderr) is refused
        assert dpkg.state(name).startswith("ii") is not refused


def test_the_labs_machines_say_that_they_are() -> None:
    guest = HERE.parent / "guest"
    assert (guest / build.LAB_FILE.lstrip("/")).read_text().strip() == build.LAB_TEXT


def fake_systemd(tmp_path: Path, script: str, *arguments: str) -> list[str]:
    """Runs a maintainer script as on a machine where systemd runs; returns the commands it gave."""
    log = tmp_path / "commands"
    log.write_text("")
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    for tool in ("deb-systemd-helper", "deb-systemd-invoke", "systemctl"):
        (tools / tool).write_text(f'#!/bin/sh\necho "{tool} $*" >> {log}\n')
        (tools / tool).chmod(0o755)
    text = script.replace("/run/systemd/system", str(tmp_path))
    subprocess.run(
        ["/bin/sh", "-c", text, "script", *arguments],
        check=True,
        env={"PATH": f"{tools}:/usr/bin:/bin"},
    )
    return log.read_text().splitlines()


@pytest.fixture(scope="module")
def ha_scripts() -> dict[str, str]:
    return maintainer_scripts(read_package(HERE / "pve-ha-manager"), "5.2.0+lab1")


def test_first_installation_starts_the_mux_first(tmp_path: Path, ha_scripts: dict[str, str]) -> None:
    commands = fake_systemd(tmp_path, ha_scripts["postinst"], "configure", "")
    assert commands[-2:] == [
        "systemctl --system daemon-reload",
        "deb-systemd-invoke start watchdog-mux.service pve-ha-crm.service pve-ha-lrm.service",
    ]


def test_upgrade_restarts_all_but_the_mux(tmp_path: Path, ha_scripts: dict[str, str]) -> None:
    commands = fake_systemd(tmp_path, ha_scripts["postinst"], "configure", "5.2.0+lab0")
    assert commands[-1] == "deb-systemd-invoke restart pve-ha-crm.service pve-ha-lrm.service"
    assert fake_systemd(tmp_path, ha_scripts["prerm"], "upgrade", "5.2.0+lab2") == []


def test_removal_stops_the_clients_before_the_mux(tmp_path: Path, ha_scripts: dict[str, str]) -> None:
    assert fake_systemd(tmp_path, ha_scripts["prerm"], "remove") == [
        "deb-systemd-invoke stop pve-ha-lrm.service",
        "deb-systemd-invoke stop pve-ha-crm.service",
        "deb-systemd-invoke stop watchdog-mux.service",
    ]


def test_given_scripts_are_used_as_they_are_except_for_the_markers(tmp_path: Path) -> None:
    root = make_package(tmp_path, "pve-example")
    (root / "pve-example/postinst").write_text("#!/bin/sh\necho before\n#UNITS#\necho after\n")
    (root / "pve-example/prerm").write_text("#!/bin/sh\ntrue\n")
    scripts = maintainer_scripts(read_package(root / "pve-example"), "1.2+lab1")
    assert scripts["postinst"].startswith("#!/bin/sh\necho before\ncase ")
    assert scripts["postinst"].endswith("esac\necho after\n")
    assert scripts["prerm"] == "#!/bin/sh\ntrue\n"
    assert "pve-example 1.2+lab1 is a lab double" in scripts["preinst"]


@pytest.mark.parametrize("package", [path.parent.name for path in sorted(HERE.glob("*/control.json"))])
def test_scripts_are_valid_shell(package: str, syntax: Callable[[str], None]) -> None:
    for text in maintainer_scripts(read_package(HERE / package), "1+lab1").values():
        if text.startswith("#!/bin/sh"):
            syntax(text)


@pytest.fixture
def syntax() -> Callable[[str], None]:
    def check(text: str) -> None:
        subprocess.run(["/bin/sh", "-n"], input=text, text=True, check=True)

    return check
