"""One target under atheris, in the process that `fuzzer.py` starts: fuzz_one.py TARGET [ARGUMENTS].

The arguments are libFuzzer's.

The C cores come from build/fuzz in front of those of the installed package, which stay what they are.
"""

from __future__ import annotations

import ast
import importlib
import shlex
import sys
from pathlib import Path

import atheris

CORES = Path(__file__).parents[2] / "build" / "fuzz" / "lib" / "liftbridge"


def main() -> None:
    import liftbridge

    liftbridge.__path__.insert(0, str(CORES))
    name = sys.argv.pop(1)
    module = f"fuzz_targets.{name}"
    # A merge runs the program anew, as a shell command that begins with this.
    sys.argv[0] = f"{shlex.quote(sys.executable)} {shlex.quote(__file__)} {name}"
    with atheris.instrument_imports(include=list(instrumented(module))):
        target = importlib.import_module(module)
    core = importlib.import_module("liftbridge._wire")
    assert Path(core.__file__ or "").parent == CORES, f"{core.__file__} is not the copy with coverage"
    atheris.Setup(sys.argv, target.run, enable_python_coverage=bool(target.INSTRUMENTED))
    atheris.Fuzz()


def instrumented(module: str) -> tuple[str, ...]:
    """What a target says of itself, read before anything it needs is imported."""
    source = (Path(__file__).parent / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "INSTRUMENTED":
            names: tuple[str, ...] = ast.literal_eval(statement.value)
            return names
    raise AssertionError(f"{module} does not say what to instrument")


if __name__ == "__main__":
    main()
