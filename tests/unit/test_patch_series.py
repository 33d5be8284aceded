# SPDX-License-Identifier: LGPL-2.1-only
"""The patch series for kernels: what is committed is what the sources give, applies to its place, and leaves nothing out.

tests/series has what needs a kernel's source.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from patchseries import HERE, KERNELS, SeriesError
from patchseries.base import ADDITIONS, CONTEXT, added_text, read_base, write_base
from patchseries.make import added_files, make_series
from patchseries.resolve import resolve

from tests.series.steps import wrong

SRC = HERE / "src"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """kernel-patches, to be changed."""
    (tmp_path / "VERSION").write_text("1.2.3\n")
    here = tmp_path / "kernel-patches"
    here.mkdir()
    for part in ("src", "messages", "base"):
        shutil.copytree(HERE / part, here / part)
    return here


def read(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir()}


# What is committed


@pytest.mark.parametrize("kernel", KERNELS)
def test_committed_series_is_what_the_sources_give(kernel: str) -> None:
    made = make_series(kernel)
    committed = read(HERE / f"series-{kernel}")
    stale = sorted(name for name in made | committed if made.get(name) != committed.get(name))
    assert not stale, "run `make -C kernel-patches series` and commit what it changes"


def git(tree: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *arguments]
    result = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def bare_kernel(kernel: str, tree: Path) -> None:
    """A tree with the files that a series adds lines to, of which only the lines around are right."""
    for path, place in read_base(kernel).places.items():
        lines = [f"line {number}" for number in range(place.line - len(place.before))] + [*place.before, *place.behind]
        if len(place.behind) == CONTEXT:  # with less the file ends there
            lines.append("more")
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text("".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize("kernel", KERNELS)
def test_series_applies_and_gives_the_sources(kernel: str, tmp_path: Path) -> None:
    bare_kernel(kernel, tmp_path)
    before = {path: (tmp_path / path).read_text() for path in read_base(kernel).places}
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "base")
    series = HERE / f"series-{kernel}"
    patches = [str(series / name) for name in (series / "series").read_text().split()]
    git(tmp_path, "am", "-q", "--whitespace=error-all", *patches)
    subjects = git(tmp_path, "log", "--format=%s", "--reverse").splitlines()[1:]
    assert len(subjects) == len(patches)
    assert all(f"  {subject}\n" in (series / "0000-cover-letter.patch").read_text() for subject in subjects)
    found = {
        str(path.relative_to(tmp_path)): path.read_text()
        for path in tmp_path.rglob("*")
        if path.is_file() and ".git" not in path.parts
    }
    for addition in ADDITIONS:
        text = added_text(addition, SRC)
        assert found[addition.path].count(text) == 1
        found[addition.path] = found[addition.path].replace(text, "")
    assert found == before | added_files(kernel)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_series_asks_nothing_of_the_version(kernel: str) -> None:
    for path, text in added_files(kernel).items():
        assert not re.search(r"LINUX_VERSION|KERNEL_VERSION|linux/version\.h|__KERNEL__|obj-m", text), path
        assert '"blktap.h"' not in text, path


def test_the_two_kernels_get_what_they_have() -> None:
    old, new = (added_files(kernel)["drivers/block/blktap/main.c"] for kernel in KERNELS)
    assert 'class_create(THIS_MODULE, "blktap2")' in old
    assert 'class_create("blktap2")' in new


def test_all_parameters_and_attributes_are_documented() -> None:
    sources = "".join(path.read_text() for path in SRC.glob("*.c"))
    guide, abi = (SRC / "blktap.rst").read_text(), (SRC / "sysfs-class-blktap2").read_text()
    parameters = re.findall(r"module_param(?:_named)?\((\w+)", sources)
    attributes = re.findall(r"DEVICE_ATTR_(?:RO|RW|WO)\((\w+)\)", sources)
    assert parameters
    assert attributes
    assert [name for name in parameters if f"``{name}``" not in guide] == []
    assert [name for name in attributes if not re.search(rf"^What:.*/{name}$", abi, re.M)] == []


def test_lines_are_as_short_as_checkpatch_wants_them() -> None:
    long = [
        f"{path.name}:{number}"
        for path in sorted(SRC.iterdir())
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line.expandtabs(8)) > 100 and '"' not in line  # messages are not to be split
    ]
    long += [
        f"{path.name}:{number}"
        for path in sorted((SRC.parent / "messages").glob("*.txt"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > 75 and not line.startswith("Files:")
    ]
    assert long == []


def test_the_guide_is_valid() -> None:
    result = subprocess.run(
        ["rst2html", "--strict", SRC / "blktap.rst", "/dev/null"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


# What is refused


def test_a_source_in_no_patch_is_refused(copy: Path) -> None:
    (copy / "src/new.h").write_text("\n")
    with pytest.raises(SeriesError, match=r"drivers/block/blktap/new\.h is in no patch: add it to Files: of one of"):
        make_series("6.1", copy)


def test_an_object_that_is_not_built_is_refused(copy: Path) -> None:
    (copy / "src/new.c").write_text("\n")
    with pytest.raises(SeriesError, match=r"src/Kbuild: new\.o: an object without a source, or the reverse"):
        make_series("6.1", copy)


def test_a_patch_of_a_source_that_is_gone_is_refused(copy: Path) -> None:
    (copy / "src/copy.c").unlink()
    kbuild = copy / "src/Kbuild"
    kbuild.write_text(kbuild.read_text().replace(" copy.o", ""))
    with pytest.raises(SeriesError, match=r"messages/04-copy\.txt: drivers/block/blktap/copy\.c: src/ and base\.py have"):
        make_series("6.1", copy)


def test_a_source_in_two_patches_is_refused(copy: Path) -> None:
    message = copy / "messages/05-gendisk.txt"
    message.write_text(message.read_text().replace("Files: ", "Files: drivers/block/blktap/copy.c "))
    with pytest.raises(SeriesError, match=r"05-gendisk\.txt: .*copy\.c is in messages/04-copy\.txt already"):
        make_series("6.1", copy)


def test_a_base_without_a_place_is_refused(copy: Path) -> None:
    base = copy / "base/linux-6.1.json"
    base.write_text(base.read_text().replace('"drivers/block/Kconfig"', '"drivers/Kconfig"'))
    with pytest.raises(SeriesError, match=r"linux-6\.1\.json: has no place in drivers/block/Kconfig; make it again"):
        make_series("6.1", copy)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 5, 0)\n", r"src/a\.c: unifdef: "),
        ("#if defined(X) && LINUX_VERSION_CODE > MINE\n#endif\n", r"src/a\.c: LINUX_VERSION_CODE is used where"),
        ("int v = LINUX_VERSION_CODE;\n", r"src/a\.c: LINUX_VERSION_CODE is used where"),
    ],
)
def test_a_version_that_cant_be_decided_is_refused(text: str, message: str) -> None:
    with pytest.raises(SeriesError, match=message):
        resolve("a.c", text, 0x060100)


def test_versions_are_decided_and_the_rest_is_kept() -> None:
    text = (
        "#include <linux/version.h>\n#if LINUX_VERSION_CODE >= KERNEL_VERSION(6,5,0)\nnew\n"
        "#elif LINUX_VERSION_CODE >= KERNEL_VERSION(6, 2, 0)\nmiddle\n#else\nold\n#endif\n#ifdef X\nx\n#endif\n"
    )
    kept = "#ifdef X\nx\n#endif\n"
    assert resolve("a.c", text, 0x060100) == "old\n" + kept
    assert resolve("a.c", text, 0x060200) == "middle\n" + kept
    assert resolve("a.c", text, 0x060500) == "new\n" + kept


# The places in a kernel's files


def kernel_source(tree: Path) -> None:
    bare_kernel("6.1", tree)
    (tree / "Makefile").write_text("# SPDX\nVERSION = 6\nPATCHLEVEL = 1\nSUBLEVEL = 300\n")


def test_places_are_found_in_a_newer_kernel(tmp_path: Path, copy: Path) -> None:
    kernel_source(tmp_path)
    path = tmp_path / "MAINTAINERS"
    path.write_text("one\nmore\n" + path.read_text())
    write_base("6.1", tmp_path, "6.1.300-1", copy)
    old, new = read_base("6.1"), read_base("6.1", copy)
    assert (new.linux, new.debian, new.version_code) == ("6.1.300", "6.1.300-1", 0x0601FF)
    assert new.places["MAINTAINERS"].line == old.places["MAINTAINERS"].line + 2
    del new.places["MAINTAINERS"], old.places["MAINTAINERS"]
    assert new.places == old.places


def test_a_place_that_is_gone_is_told(tmp_path: Path, copy: Path) -> None:
    kernel_source(tmp_path)
    (tmp_path / "drivers/block/Kconfig").write_text("\n")
    with pytest.raises(SeriesError, match=r"drivers/block/Kconfig: 0 lines are 'source \"drivers/block/rnbd/Kconfig\"'"):
        write_base("6.1", tmp_path, "6.1.300-1", copy)


# What check-series takes for a finding


def test_a_quiet_build_says_nothing_else() -> None:
    quiet = "make[1]: Entering directory '/x'\n  CC [M]  a.o\n\nmake: Leaving directory '/x'\n"
    assert wrong(quiet) == []
    for line in ("a.c:1:2: warning: unused variable", "WARNING: modpost: missing MODULE_LICENSE()", "a.c:1: error: x"):
        assert wrong(f"{quiet}{line}\n{quiet}") == [line]
