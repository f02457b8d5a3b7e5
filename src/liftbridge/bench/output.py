"""Where results go: text or JSON on standard output, CSV, a plot. Checked before anything is measured."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from liftbridge.bench import plot, report
from liftbridge.bench.errors import BenchError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where results go."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument(
        "--csv", metavar="FILE", help="write a line for each run, - for standard output instead of the text"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="draw the result; needs the extra liftbridge[bench]"
    )


def check(options: argparse.Namespace) -> None:
    """Find out whether the results can go where they are to go.

    Raises:
        BenchError: they cannot.
    """
    if options.json and options.csv == "-":
        raise BenchError("standard output takes one of --json and --csv -; name a file for the other")
    if options.plot is not None:
        plot.check(options.plot)
    for name in (options.csv if options.csv != "-" else None, options.plot):
        if name is not None and not Path(name).parent.is_dir():
            raise BenchError(f"{Path(name).parent} is no directory; create it, or write elsewhere")


def write(options: argparse.Namespace, machine: Mapping[str, str], results: Sequence[report.Result]) -> None:
    """Write the results to where the options say.

    Raises:
        OSError: a file cannot be written.
    """
    if options.json:
        print(json.dumps(report.as_json(options.command, machine, results), indent=2))
    elif options.csv != "-":
        print(report.header(options.command, machine))
        for result in results:
            print("\n" + report.table(result))
        if compared := report.ratio_table(results):
            print("\n" + compared)
    if options.csv == "-":
        write_csv(sys.stdout, options.command, machine, results)
    elif options.csv is not None:
        with Path(options.csv).open("w", newline="") as file:
            write_csv(file, options.command, machine, results)
    if options.plot is not None:
        plot.draw(options.plot, options.command, machine, results)


def write_csv(
    file: TextIO, command: str, machine: Mapping[str, str], results: Sequence[report.Result]
) -> None:
    """Write a line for each run: what was set, on what, and all figures."""
    rows = [
        {
            "command": command,
            **{f"machine_{name}": text for name, text in machine.items()},
            **result.settings,
            **result.disk,
            "run": number,
            **run,
        }
        for result in results
        for number, run in enumerate(result.runs, 1)
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
