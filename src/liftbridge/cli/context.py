"""`liftbridge context`: save, list, show, use and delete named connections (`contexts.py` is the file)."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from liftbridge.cli import contexts
from liftbridge.cli.contexts import Context, Contexts
from liftbridge.cli.exits import CommandError, Exit
from liftbridge.cli.output import Output, plain
from liftbridge.cli.session import (
    DEFAULT_SERVER,
    DEFAULT_TIMEOUT,
    PREFIX,
    Parser,
    add_connection_settings,
    add_json,
    completes,
    ending,
    from_flags,
)

Work = Callable[[argparse.Namespace, Path, Contexts, Output], None]


def parser() -> argparse.ArgumentParser:
    """The command line of `liftbridge context`."""
    top = Parser(prog="liftbridge context", description="Keep connections under names.")
    actions = top.add_subparsers(metavar="ACTION", required=True)

    save = actions.add_parser("save", help="make a context, or replace it")
    _add_name(save, new=True)
    save.add_argument("--use", action="store_true", help="use it from now on; the first one is used anyway")
    add_connection_settings(save.add_argument_group("connection"))
    _finish(save, _save)

    _finish(actions.add_parser("list", help="list the contexts"), _list)

    show = actions.add_parser("show", help="show a context")
    _add_name(show, optional=True)
    _finish(show, _show)

    use = actions.add_parser("use", help="use a context whenever nothing else is said")
    which = use.add_mutually_exclusive_group(required=True)
    completes(which.add_argument("name", nargs="?", metavar="NAME"), "context")
    which.add_argument("--none", action="store_true", help="use no context")
    _finish(use, _use)

    delete = actions.add_parser("delete", help="delete a context")
    _add_name(delete)
    _finish(delete, _delete)
    return top


def _add_name(action: argparse.ArgumentParser, *, new: bool = False, optional: bool = False) -> None:
    text = "(default: the one in use)" if optional else None
    name = action.add_argument("name", nargs="?" if optional else None, help=text)
    if not new:
        completes(name, "context")


def _finish(action: argparse.ArgumentParser, work: Work) -> None:
    add_json(action)

    def run(options: argparse.Namespace) -> int:
        def do() -> None:
            file = contexts.path(os.environ)
            work(options, file, contexts.load(file), Output(as_json=options.json))

        return ending(options, do)

    action.set_defaults(run=run)


def _save(options: argparse.Namespace, file: Path, known: Contexts, output: Output) -> None:
    name = contexts.check_name(options.name)
    context = from_flags(options)
    # A path is meant from here, and the context is used from everywhere.
    context = replace(
        context,
        ca=_absolute(context.ca),
        certificate=_absolute(context.certificate),
        key=_absolute(context.key),
    )
    if context.key and not context.certificate:
        raise CommandError("--tls-key is of use with --tls-cert only; give both", Exit.USAGE)
    known.contexts[name] = context
    if options.use or len(known.contexts) == 1:
        known.current = name
    contexts.save(file, known)
    used = (
        ", which is used from now on"
        if known.current == name
        else f"; `liftbridge context use {name}` uses it"
    )
    output.told(f"context {name} is saved{used}", {"context": name, "current": known.current == name})


def _absolute(path: str | None) -> str | None:
    return str(Path(path).expanduser().absolute()) if path else None


def _list(options: argparse.Namespace, file: Path, known: Contexts, output: Output) -> None:
    if output.as_json:
        for name, context in sorted(known.contexts.items()):
            output.document(_document(name, context, known))
    elif not known.contexts and output.terminal:
        output.line("There are no contexts; `liftbridge context save NAME --server HOST:PORT` makes one.")
    else:
        rows = [
            (
                name,
                ",".join(context.servers) or DEFAULT_SERVER,
                "tls" if _tls(context) else "plain",
                "in use" if name == known.current else "-",
            )
            for name, context in sorted(known.contexts.items())
        ]
        output.table(("CONTEXT", "SERVERS", "TRANSPORT", "USED"), rows)


def _tls(context: Context) -> bool:
    return context.tls if context.tls is not None else any((context.ca, context.certificate, context.key))


def _document(name: str, context: Context, known: Contexts) -> dict[str, object]:
    settings = {key: value for key, value in asdict(context).items() if value is not None}
    return {"context": name, "current": name == known.current, **settings}


def _show(options: argparse.Namespace, file: Path, known: Contexts, output: Output) -> None:
    name = options.name or os.environ.get(PREFIX + "CONTEXT") or known.current
    if name is None:
        text = f"no context is in use; servers are looked for at {DEFAULT_SERVER}"
        raise CommandError(text, Exit.NOT_FOUND)
    context = known.get(name)
    output.document(_document(name, context, known))
    for label, value in (
        ("context", name),
        ("in use", "yes" if name == known.current else "no"),
        ("servers", ", ".join(context.servers) or DEFAULT_SERVER),
        ("tls", "yes" if _tls(context) else "no"),
        ("ca", context.ca or ("the system's" if _tls(context) else "-")),
        ("certificate", context.certificate or "-"),
        ("key", context.key or "-"),
        ("timeout", f"{context.timeout or DEFAULT_TIMEOUT:g} s"),
        ("file", str(file)),
    ):
        output.line(f"{label:<12} {plain(value)}")


def _use(options: argparse.Namespace, file: Path, known: Contexts, output: Output) -> None:
    if not options.none:
        known.get(options.name)
    known.current = None if options.none else options.name
    contexts.save(file, known)
    text = "no context is used from now on" if options.none else f"context {options.name} is used from now on"
    output.told(text, {"context": known.current})


def _delete(options: argparse.Namespace, file: Path, known: Contexts, output: Output) -> None:
    known.get(options.name)
    del known.contexts[options.name]
    if known.current == options.name:
        known.current = None
    contexts.save(file, known)
    output.told(f"context {options.name} is deleted", {"context": options.name, "deleted": True})
