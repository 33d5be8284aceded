# SPDX-License-Identifier: LGPL-2.1-only
"""DKMS of each Debian release builds and installs what `make install-dkms` installs, for that release's kernel."""

import re
import tempfile
from pathlib import Path

from patchseries import HERE, SeriesError

from tests.lib import apt, builder, cache
from tests.lib.release import RELEASES
from tests.series.source import RELEASE, Source

PACKAGES = ["dkms", "linux-headers-amd64"]


def _root(number: int) -> Path:
    """A root of that release with DKMS and headers."""
    suite = RELEASES[number].suite

    def make(directory: Path) -> None:
        with cache.step(f"root of Debian {number} with DKMS"):
            apt.mmdebstrap(directory / "root", suite, PACKAGES)

    return cache.product(f"dkms-{number}", cache.key([suite, PACKAGES], []), make) / "root"


def _kernel(root: Path, kernel: str) -> str:
    """The version of the kernel whose headers are there."""
    found = [path.name for path in (root / "lib/modules").iterdir() if path.name.startswith(f"{kernel}.")]
    if len(found) != 1:
        raise SeriesError(f"{root}/lib/modules: expected one {kernel}, found {' '.join(found) or 'none'}")
    return found[0]


def dkms(source: Source) -> list[str]:
    """`dkms install` makes the module, without a warning, and puts it where modprobe looks first."""
    version = (HERE.parent / "VERSION").read_text(encoding="ascii").strip()
    root = _root(RELEASE[source.kernel])
    kernel = _kernel(root, source.kernel)
    with tempfile.TemporaryDirectory(prefix="xenblk-dkms-", dir="/var/tmp") as name:
        place = Path(name)
        result = builder.run(["make", "-s", "-C", str(HERE), "install-dkms", f"DESTDIR={name}"], place)
        if result.returncode:
            return [f"make install-dkms: {result.stdout}"]
        trees = ["--sourcetree", f"{name}/usr/src", "--dkmstree", f"{name}/dkms", "--installtree", f"{name}/modules"]
        (place / "dkms").mkdir()
        (place / "modules" / kernel).mkdir(parents=True)
        (place / "modules" / kernel / "build").symlink_to(f"/usr/src/linux-headers-{kernel}")
        command = ["nice", "dkms", "install", "--force", f"xenblk-blktap/{version}", "-k", kernel, *trees]
        with cache.step(f"dkms for Linux {kernel}"):
            result = builder.run(builder.inside(root, [place], place, command), place)
        log = "\n".join(path.read_text() for path in place.glob("dkms/xenblk-blktap/**/make.log"))
        if result.returncode:
            return [f"dkms: {result.stdout}\n{log}"]
        found = [f"dkms: {line}" for line in re.findall(r".*(?:warning|error):.*", log, re.I)]
        modules = [str(path.relative_to(place)) for path in (place / "modules").rglob("blktap.ko*")]
        if len(modules) != 1 or not re.fullmatch(rf"modules/{re.escape(kernel)}/updates/dkms/blktap\.ko(\.\w+)?", modules[0]):
            found.append(f"dkms installed {' '.join(modules) or 'nothing'}\n{result.stdout}")
        return found
