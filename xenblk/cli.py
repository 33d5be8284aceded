# SPDX-License-Identifier: LGPL-2.1-only
"""The command line. Exit status: 0, 1 for a UserError, 2 for usage."""

import argparse
import io
import itertools
import json
import signal
import sys
from typing import Any, NoReturn

from xenblk import VERSION, attach, config, create, guestconfig, libxl, override, xlcall
from xenblk.errors import UsageError, UserError


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 86400:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds, 0 to 86400")
    return value


class _Parser(argparse.ArgumentParser):
    """Options have one name: a part of it might be taken for a guest's."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="xenblk", description="Guests whose disks tapdisk serves.", epilog="See xenblk(8) and xenblk.yaml(5)."
    )
    parser.add_argument("--version", action="version", version=f"xenblk {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    # Only for the help: the arguments are xl's, and main() passes them on.
    commands.add_parser("xl", help="any command of xl, with disks like tap2:vhd:/srv/a.vhd,xvda,w")
    for command in xlcall.COMMANDS:
        commands.add_parser(command.name, help=f"the same as xl {command.name}")

    rewrite = commands.add_parser("rewrite", help="show the disks of a guest as xenblk create gives them to xl")
    rewrite.add_argument("config_file", help="the guest's configuration, as in xl.cfg(5)")
    rewrite.add_argument(
        "settings", nargs="*", default=[], metavar="KEY=VALUE", help="settings added to it, as with xl create"
    )
    rewrite.add_argument("--json", action="store_true", help="all that is known of each disk")
    rewrite.set_defaults(run=_rewrite)

    listing = commands.add_parser("ls", help="list the disks that tapdisk serves, and whose they are")
    listing.add_argument("guest", nargs="?", help="only those of this guest, by its name or domid")
    listing.add_argument("--json", action="store_true", help="all that is known of each disk")
    listing.set_defaults(run=_ls)

    info = commands.add_parser("info", help="show all that is known of a guest's disks")
    info.add_argument("guest", help="its name or domid")
    info.add_argument("vdevs", nargs="*", metavar="VDEV", help="only these disks")
    info.add_argument("--json", action="store_true")
    info.set_defaults(run=_info)

    attach = commands.add_parser("attach", help="attach a disk to a guest that runs")
    attach.add_argument("guest", help="its name or domid")
    attach.add_argument("spec", nargs="+", help="the disk, as for xl block-attach: tap2:vhd:/srv/a.vhd,xvdb,w")
    attach.add_argument("--json", action="store_true", help="all that is known of it then")
    attach.set_defaults(run=_attach)

    detach = commands.add_parser("detach", help="detach a disk from a guest that runs")
    detach.add_argument("guest", help="its name or domid")
    detach.add_argument("vdev", metavar="VDEV")
    detach.add_argument("-f", "--force", action="store_true", help="even if the guest doesn't let it go")
    detach.add_argument("--json", action="store_true", help="all that was known of it")
    detach.set_defaults(run=_detach)

    for name, run, text in (
        ("chain", _chain, "show the images that a disk is made of, the leaf first"),
        ("check", _check, "check all images that a disk is made of"),
    ):
        images = commands.add_parser(name, help=text)
        images.add_argument("place", metavar="IMAGE|GUEST", help="the path of a VHD, or a guest's name or domid")
        images.add_argument("vdevs", nargs="*", metavar="VDEV", help="only these disks of the guest")
        images.add_argument("--json", action="store_true")
        images.set_defaults(run=run)

    snapshot = commands.add_parser("snapshot", help="keep what a guest's disks hold now; the guest goes on")
    snapshot.add_argument("guest", help="its name or domid")
    snapshot.add_argument("vdevs", nargs="*", metavar="VDEV", help="only these disks; all that it may write otherwise")
    snapshot.add_argument("--name", help="part of the new images' names, a.NAME.vhd; the time otherwise")
    snapshot.add_argument("--json", action="store_true")
    snapshot.set_defaults(run=_snapshot)

    rubbish = commands.add_parser("gc", help="remove the disks that are left of guests that are gone")
    rubbish.add_argument("-n", "--dry-run", action="store_true", help="say what there is, and leave it")
    rubbish.add_argument(
        "--settle",
        type=_seconds,
        default=60.0,  # longer than libxl waits for blkback and a script
        metavar="SECONDS",
        help="look twice, so long apart, as xl may be removing it (default: %(default)s)",
    )
    rubbish.add_argument("--json", action="store_true")
    rubbish.set_defaults(run=_gc)

    settings = commands.add_parser("config", help="xenblk.yaml").add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    for name, run, text in (
        ("apply", _config_apply, f"check xenblk.yaml and write {config.FLAT_PATH}, which tapdisk reads"),
        ("check", _config_check, "check xenblk.yaml and change nothing"),
        ("show", _config_show, "show the settings that apply, with the defaults"),
    ):
        action = settings.add_parser(name, help=text)
        action.add_argument("file", nargs="?", help=f"another file than {config.YAML_PATH}")
        if name == "show":
            action.add_argument("--json", action="store_true")
        action.set_defaults(run=run)
    return parser


def _rewrite(arguments: argparse.Namespace) -> None:
    for setting in arguments.settings:
        if "=" not in setting:
            raise UsageError(f"rewrite: {setting} isn't KEY=VALUE; name one configuration file")
    source = guestconfig.Source(arguments.config_file, tuple(arguments.settings))
    try:
        disks = guestconfig.read_disks(source, guestconfig.read_text(source))
    except libxl.GrammarError as error:
        raise UserError(f"{arguments.config_file}: not understood by libxl: {error}") from None
    if arguments.json:
        keys = ("vdev", "driver", "path", "spec", "rewritten")
        print(json.dumps([{key: getattr(disk, key) for key in keys} for disk in disks], indent=2))
    else:
        print("disk = [")
        for disk in disks:
            print(f"    {guestconfig.quote(disk.rewritten)},")
        print("]")


def _ls(arguments: argparse.Namespace) -> None:
    from xenblk import listing  # noqa: PLC0415 # the commands of xl, which are timed, don't need it

    listing.run(arguments.guest, as_json=arguments.json)


def _info(arguments: argparse.Namespace) -> None:
    from xenblk import info  # noqa: PLC0415 # as above

    info.run(arguments.guest, arguments.vdevs, as_json=arguments.json)


def _attach(arguments: argparse.Namespace) -> None:
    from xenblk import hotplug  # noqa: PLC0415 # as above

    hotplug.attach(arguments.guest, arguments.spec, as_json=arguments.json)


def _detach(arguments: argparse.Namespace) -> None:
    from xenblk import hotplug  # noqa: PLC0415 # as above

    hotplug.detach(arguments.guest, arguments.vdev, force=arguments.force, as_json=arguments.json)


def _chain(arguments: argparse.Namespace) -> None:
    from xenblk import chain  # noqa: PLC0415 # as above

    chain.show(arguments.place, arguments.vdevs, as_json=arguments.json)


def _check(arguments: argparse.Namespace) -> None:
    from xenblk import chain  # noqa: PLC0415 # as above

    chain.check(arguments.place, arguments.vdevs, as_json=arguments.json)


def _snapshot(arguments: argparse.Namespace) -> None:
    from xenblk import snapshot  # noqa: PLC0415 # as above

    snapshot.run(arguments.guest, arguments.vdevs, arguments.name, as_json=arguments.json)


def _gc(arguments: argparse.Namespace) -> None:
    from xenblk import gc  # noqa: PLC0415 # as above

    gc.run(dry_run=arguments.dry_run, settle=arguments.settle, as_json=arguments.json)


def _config_apply(arguments: argparse.Namespace) -> None:
    config.apply(config.load(arguments.file))


def _config_check(arguments: argparse.Namespace) -> None:
    config.load(arguments.file)


def _config_show(arguments: argparse.Namespace) -> None:
    values = config.show(config.load(arguments.file))
    if arguments.json:
        print(json.dumps(values, indent=2))
    else:
        import yaml  # noqa: PLC0415 # it's slow to import, see config.load

        print(yaml.safe_dump(values, sort_keys=False, default_flow_style=False), end="")


def _run_xl(words: list[str]) -> NoReturn:
    call = xlcall.read(words)
    if call is None:
        xlcall.become_xl(words)
    elif call.command.name == "block-attach":
        attach.run(call)
    elif call.command.name in ("create", "config-update"):
        create.run(call)
    else:
        override.run(call)


def options_first(arguments: list[str]) -> list[str]:
    """As users expect, options may come anywhere: argparse takes none behind the first of several names."""
    options: list[str] = []
    names: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            return [*options, *names, word, *words]
        if not word.startswith("-") or word == "-":
            names.append(word)
            continue
        options.append(word)
        if word in ("--name", "--settle"):
            options.extend(itertools.islice(words, 1))
    return [*options, *names]


def main(arguments: list[str]) -> int:
    """Runs a command and returns the exit status; the commands of xl become xl and don't return."""
    # Python ignores these, and xl would inherit it
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    # Whoever ignores it hands that down, and then every child would seem to have succeeded
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Surrogates stand for bytes of file names that aren't text
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")
    try:
        words = xlcall.read_own(arguments)
        if words is not None:
            _run_xl(words)
        # the options of config are those of what follows it
        if arguments[:1] != ["config"]:
            arguments = [*arguments[:1], *options_first(arguments[1:])]
        parsed = _parser().parse_args(arguments)
        parsed.run(parsed)
    except UserError as error:
        print("xenblk: " + "; ".join(str(error).splitlines()), file=sys.stderr)
        return error.exit_status
    return 0
