# SPDX-License-Identifier: LGPL-2.1-only
"""The Xen bridge of xenblk: configuration, disk specs, libxl."""

VERSION = "0.1.0"
