# SPDX-License-Identifier: LGPL-2.1-only
"""The driver's patch series in Debian's kernels: what `make -C kernel-patches check-series` checks."""
