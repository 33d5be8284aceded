# SPDX-License-Identifier: LGPL-2.1-only
"""Packages of a Debian release, from wherever this machine's own apt gets its packages."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.lib.cache import step

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# Settings of this machine that reach its archive: proxies, time-outs, snapshots of the past
PASSED_ON = re.compile(r'^Acquire::(https?::|Retries|Check-Valid-Until|Check-Date).* ".+";$')

HOST_ARCHITECTURE = "amd64"
EXCLUDES = ("doc", "man", "locale", "info", "lintian")


class AptError(Exception):
    """The machine's apt configuration cannot provide the packages."""


@dataclass(frozen=True)
class Source:
    """One suite of an archive."""

    uri: str
    suite: str
    component: str

    def line(self) -> str:
        """As sources.list has it."""
        option = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
        return f"deb {option}{self.uri} {self.suite} {self.component}"


def _run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise AptError(f"{' '.join(command)}: {result.stderr.strip() or result.stdout.strip()}")
    return result.stdout


def host_codename() -> str:
    """The code name of the Debian release that this machine runs."""
    match = re.search(r"^VERSION_CODENAME=(\w+)$", Path("/etc/os-release").read_text(encoding="utf-8"), re.M)
    if not match:
        raise AptError("/etc/os-release: no VERSION_CODENAME; the test bed needs a Debian machine")
    return match[1]


def parse_policy(text: str, codename: str) -> list[Source]:
    """Debian's own sources in the output of `apt-cache policy`: the release, its updates and its security fixes."""
    pattern = re.compile(
        r"^ *-?\d+ (?P<uri>\S+) (?P<suite>\S+)/(?P<component>main) \S+ Packages\n"
        r" +release (?=.*\bo=Debian,)(?=.*\bl=Debian(?:-Security)?,)",
        re.M,
    )
    wanted = (codename, f"{codename}-updates", f"{codename}-security")
    found = [Source(m["uri"], m["suite"], m["component"]) for m in pattern.finditer(text)]
    return [source for source in dict.fromkeys(found) if source.suite in wanted]


def sources(suite: str) -> list[Source]:
    """This machine's Debian sources with `suite` in the place of its own."""
    own = host_codename()
    found = parse_policy(_run("apt-cache", "policy"), own)
    if own not in [source.suite for source in found]:
        with step("apt-get update"):
            _run("apt-get", "-qq", "update")
        found = parse_policy(_run("apt-cache", "policy"), own)
    if own not in [source.suite for source in found]:
        raise AptError(f"apt-cache policy: no Debian source of {own}/main; add one to /etc/apt/sources.list")
    return [Source(s.uri, s.suite.replace(own, suite, 1), s.component) for s in found]


def options() -> list[str]:
    """Settings of this machine's apt that a private apt must share, as `Name "value";` lines."""
    return [line for line in _run("apt-config", "dump").splitlines() if PASSED_ON.match(line)]


def mmdebstrap(root: Path, suite: str, packages: list[str]) -> None:
    """Make a root directory of `suite` with `packages` and what they need."""
    command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--include={','.join(packages)}"]
    command += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in EXCLUDES]
    command += [f"--aptopt={option}" for option in options()]
    command += [suite, str(root), *(source.line() for source in sources(suite))]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise AptError(f"mmdebstrap of {suite} failed with {result.returncode}:\n{result.stderr[-3000:]}")


class Archive:
    """A private apt for one suite: its own lists and no installed packages, in `directory`.

    For another architecture it has the release without its updates: such packages are linked with, and
    installed nowhere.
    """

    def __init__(self, directory: Path, suite: str, architecture: str = HOST_ARCHITECTURE) -> None:
        self.directory = directory
        for part in ("lists/partial", "archives/partial", "etc/preferences.d"):
            (directory / part).mkdir(parents=True, exist_ok=True)
        (directory / "status").touch()
        (directory / "sources.list").write_text(
            "".join(
                source.line() + "\n"
                for source in sources(suite)
                if architecture == HOST_ARCHITECTURE or source.suite == suite
            ),
            encoding="utf-8",
        )
        self._options = []
        for name, value in (
            ("Dir::Etc", f"{directory}/etc"),
            ("Dir::Etc::SourceList", f"{directory}/sources.list"),
            ("Dir::Etc::SourceParts", "/dev/null"),
            ("Dir::Etc::Parts", "/dev/null"),
            ("Dir::State", f"{directory}"),
            ("Dir::State::status", f"{directory}/status"),
            ("Dir::State::Lists", f"{directory}/lists"),
            ("Dir::Cache", f"{directory}"),
            ("APT::Sandbox::User", "root"),
            ("APT::Architecture", architecture),
            ("Acquire::Languages", "none"),
        ):
            self._options += ["-o", f"{name}={value}"]

    def update(self) -> None:
        """Fetch the package lists."""
        _run("apt-get", "-qq", *self._options, "update")

    def dependency(self, package: str, pattern: str) -> str:
        """The one package that `package` depends on and whose name matches `pattern`."""
        text = _run("apt-cache", *self._options, "depends", package)
        found = re.findall(rf"^ *\|?Depends: ({pattern})$", text, re.M)
        if len(found) != 1:
            raise AptError(f"{package}: expected one dependency like {pattern}, found {found or 'none'}")
        return str(found[0])

    def unpack(self, package: str, where: Path) -> None:
        """Download a package and unpack its files under `where`, keeping a merged /usr's links."""
        archives = self.directory / "archives"
        before = set(archives.glob("*.deb"))
        result = subprocess.run(
            ["apt-get", "-qq", *self._options, "download", package],
            cwd=archives,
            capture_output=True,
            text=True,
            check=False,
        )
        new = set(archives.glob("*.deb")) - before
        if result.returncode or len(new) != 1:
            raise AptError(f"{package}: cannot download: {result.stderr.strip()}")
        deb = new.pop()
        where.mkdir(parents=True, exist_ok=True)
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as tar:
            subprocess.run(
                ["tar", "-x", "--keep-directory-symlink", "-C", str(where)], stdin=tar.stdout, check=True
            )
        if tar.returncode:
            raise AptError(f"{deb.name}: dpkg-deb failed with {tar.returncode}")
        deb.unlink()
