# SPDX-License-Identifier: LGPL-2.1-only
"""Errors for the person at the command line. Anything else that is raised is a fault of xenblk's own: a traceback."""


class UserError(Exception):
    """One line that names the file, what is wrong with it and the remedy. Nothing was changed. Exit status 1."""

    exit_status = 1


class UsageError(UserError):
    """The command line can't be understood. Exit status 2."""

    exit_status = 2
