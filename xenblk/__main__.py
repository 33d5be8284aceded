# SPDX-License-Identifier: LGPL-2.1-only
"""`python3 -m xenblk`."""

import sys

from xenblk.cli import main

sys.exit(main(sys.argv[1:]))
