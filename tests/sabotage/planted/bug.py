"""What a planted bug is, and names of test files in short."""

from __future__ import annotations

from dataclasses import dataclass

# What a change of these files makes stale; the parts of `_wire.pyx` and `bench/_load.pyx` are included, and
# all else is `_log.pyx`.
_BUILT = (".pyx", ".pxi", ".h")


@dataclass(frozen=True)
class Bug:
    """One planted bug.

    Arguments:
        name: for `--only`.
        what: what the code does wrong with it, for the table.
        file: below `src/liftbridge`.
        old, new: the text that is replaced, and by what.
        tests: arguments for pytest, from the folder of the repository.
        times: how often the old text occurs; every occurrence is replaced.
    """

    name: str
    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    times: int = 1

    @property
    def extension(self) -> str:
        """The C core that has to be built anew, "" for none."""
        if not self.file.endswith(_BUILT):
            return ""
        if self.file.startswith("bench/"):
            return "bench._load"
        return "_wire" if self.file.startswith("_wire") else "_log"


def log_tests(*names: str) -> tuple[str, ...]:
    """Tests of the log; "x.py::test_y" is one in test_log_x.py."""
    return tuple(f"tests/log/test_log_{name}" for name in names)


def server_tests(*names: str) -> tuple[str, ...]:
    """Tests of a server, as `log_tests`."""
    return tuple(f"tests/server/test_server_{name}" for name in names)


def client_tests(*names: str) -> tuple[str, ...]:
    """Tests of the client, as `log_tests`."""
    return tuple(f"tests/client/test_client_{name}" for name in names)


def cli_tests(*names: str) -> tuple[str, ...]:
    """Tests of the command line, as `log_tests`."""
    return tuple(f"tests/cli/test_cli_{name}" for name in names)
