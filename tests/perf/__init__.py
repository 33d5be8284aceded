# SPDX-License-Identifier: LGPL-2.1-only
"""`make bench`: our NBD server against others', measured side by side. See docs/performance.md."""
