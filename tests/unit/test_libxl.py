# SPDX-License-Identifier: LGPL-2.1-only
"""The binding to libxl: what can't be loaded says what to install, and a disaster of libxl's who met it."""

import importlib
import subprocess
from pathlib import Path

import pytest

from xenblk import _libxl_build, libxl
from xenblk.errors import UserError

pytestmark = pytest.mark.unit

MAIN = """
int main(void)
{
	disaster(NULL, LIBXL_EVENT_TYPE_OPERATION_COMPLETE, "lost the event fd", EIO);
	return 0;
}
"""


@pytest.mark.parametrize(
    ("missing", "remedy"),
    [
        (ModuleNotFoundError("No module named '_cffi_backend'", name="_cffi_backend"), "install python3-cffi-backend"),
        (ModuleNotFoundError("No module named 'xenblk._libxl'", name="xenblk._libxl"), "rebuild xenblk"),
        (ImportError("libxenlight.so.4.17: cannot open shared object file", name="xenblk._libxl"), "rebuild xenblk"),
    ],
)
def test_a_binding_that_cannot_be_loaded_has_its_remedy(
    monkeypatch: pytest.MonkeyPatch, missing: ImportError, remedy: str
) -> None:
    def load(_: str) -> None:
        raise missing

    monkeypatch.setattr(importlib, "import_module", load)
    with pytest.raises(UserError) as error:
        libxl.bindings()
    assert str(missing) in str(error.value) and remedy in str(error.value)


def test_a_disaster_is_one_line_and_the_end(tmp_path: Path) -> None:
    """Where libxl would end the process without a word of whose it was."""
    source = _libxl_build.SOURCE.replace("#include <stdio.h>", "#include <errno.h>\n#include <stdio.h>\n#include <string.h>")
    (tmp_path / "main.c").write_text(source + MAIN)
    libraries = ("-lxlutil", "-lxenlight", "-lxenstore", "-lxentoollog")
    subprocess.run(["cc", "-w", "-o", tmp_path / "main", tmp_path / "main.c", *libraries], check=True)
    done = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "xenblk: libxl: lost the event fd: Input/output error\n")
