"""Completion, in the shells themselves. zsh and fish where they are installed."""

import os
import pty
import shutil
import subprocess
import threading

import pytest
from calls import PATIENCE, create, fresh, until
from cli_support import NOBODY, cli, environment

HAS = {shell: shutil.which(shell) for shell in ("bash", "zsh", "fish")}
needs_zsh = pytest.mark.skipif(not HAS["zsh"], reason="there is no zsh")
needs_fish = pytest.mark.skipif(not HAS["fish"], reason="there is no fish")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shared, stubs):
    """The scripts, `liftbridge` on a path of its own, a context, and a stream."""
    path = tmp_path_factory.mktemp("completion")
    (path / "bin").mkdir()
    import sys

    program = path / "bin" / "liftbridge"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m liftbridge.cli.main "$@"\n')
    program.chmod(0o755)
    for shell in HAS:
        (path / shell).write_text(cli(None, "completion", shell).out)
    cli(None, "context", "save", "workshop", "--server", shared.address, home=path)
    create(stubs, fresh("greetings"))
    return path


def variables(folder):
    found = environment(folder)
    return found | {"PATH": f"{folder / 'bin'}:{found['PATH']}", "HOME": str(folder), "TERM": "xterm"}


def bash(folder, *words):
    script = """source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _liftbridge
for word in "${COMPREPLY[@]}"; do printf '%s\\n' "$word"; done"""
    ran = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", str(folder / "bash"), *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=variables(folder),
    )
    assert ran.stderr == ""
    return ran.stdout.split("\n")[:-1]


def test_bash(folder):
    assert {"stream", "publish", "completion", "log", "dev"} <= set(bash(folder, "liftbridge", ""))
    assert bash(folder, "liftbridge", "str") == ["stream"]
    assert bash(folder, "liftbridge", "stream", "re") == ["resume", "readonly"]
    assert bash(folder, "liftbridge", "stream", "create", "--compression", "") == ["none", "lz4", "zstd"]
    assert bash(folder, "liftbridge", "stream", "create", "--compression", "=", "l") == ["lz4"]
    assert bash(folder, "liftbridge", "stream", "create", "--compression", "=") == ["none", "lz4", "zstd"]
    assert bash(folder, "liftbridge", "stream", "create", "x", "--syn") == ["--sync-policy"]
    assert bash(folder, "liftbridge", "completion", "") == ["bash", "zsh", "fish"]
    assert bash(folder, "liftbridge", "log", "v") == ["verify"]
    assert "--nats-servers" in bash(folder, "liftbridge", "--")
    assert bash(folder, "liftbridge", "publish", "--tls-ca", "") == [], "bash offers files"
    assert bash(folder, "liftbridge", "subscribe", "--context", "") == ["workshop"]
    (name,) = bash(folder, "liftbridge", "subscribe", "greet")
    assert bash(folder, "liftbridge", "stream", "info", name) == [name]


def test_bash_never_runs_a_name(folder, tmp_path):
    """A name that is a command in whatever quotes is offered in quotes."""
    bad = ["$(touch ran)", "`touch ran`", "a;touch ran", "it's", "a b"]
    script = """source "$1"; cur=''; COMPREPLY=(); _liftbridge_offer <<< "$2"
printf '%s\\n' "${COMPREPLY[@]}"
eval "set -- ${COMPREPLY[*]}"; printf '%s\\n' "$@" """
    for name in bad:
        ran = subprocess.run(
            ["bash", "--norc", "-c", script, "bash", str(folder / "bash"), name],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        offered, typed = ran.stdout.splitlines()
        assert typed == name
        assert offered != name
    assert os.listdir(tmp_path) == []


def test_no_server_means_no_names(folder):
    cli(None, "context", "save", "workshop", "--server", NOBODY, home=folder / "gone")
    script = 'source "$1"; COMP_WORDS=(liftbridge subscribe ""); COMP_CWORD=2; _liftbridge'
    ran = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", str(folder / "bash")],
        capture_output=True,
        env=variables(folder) | {"XDG_CONFIG_HOME": str(folder / "gone")},
        timeout=PATIENCE,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b"")


@needs_fish
def test_fish(folder):
    def offered(line):
        ran = subprocess.run(
            ["fish", "--no-config", "-c", f"source {folder / 'fish'}; complete -C '{line}'"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env=variables(folder),
        )
        assert ran.stderr == ""
        return [entry.split("\t")[0] for entry in ran.stdout.splitlines()]

    assert {"stream", "publish", "completion"} <= set(offered("liftbridge "))
    assert sorted(offered("liftbridge stream re")) == ["readonly", "resume"]
    assert sorted(offered("liftbridge stream create --compression ")) == ["lz4", "none", "zstd"]
    assert "--sync-policy" in offered("liftbridge stream create x --sy")
    assert offered("liftbridge subscribe --context ") == ["workshop"]
    assert [name.startswith("greetings") for name in offered("liftbridge subscribe greet")] == [True]


@needs_zsh
def test_zsh(folder):
    """Typed into a real zsh: what Tab makes of a line is on the line."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        ["zsh", "-f", "-i"],
        stdin=child,
        stdout=child,
        stderr=child,
        env=variables(folder),
        start_new_session=True,
    )
    os.close(child)
    shown = bytearray()

    def read():
        try:
            while data := os.read(parent, 65536):
                shown.extend(data)
        except OSError:
            pass

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        setup = f"PS1=; autoload -U compinit; compinit -u -D; source {folder / 'zsh'}; echo rea''dy\n"
        os.write(parent, setup.encode())
        until(lambda: b"ready" in shown)
        for typed, whole in (
            ("liftbridge publ\t", "publish"),
            ("liftbridge stream cre\t", "create"),
            ("liftbridge stream create x --compression zs\t", "zstd"),
            ("liftbridge stream create x --sync-p\t", "--sync-policy"),
            ("liftbridge subscribe --context work\t", "workshop"),
            ("liftbridge subscribe greet\t", "greetings"),
        ):
            shown.clear()
            # What it made of the line, printed by the shell: an echo in front of it, as the words are data.
            os.write(parent, f"{typed}".encode())
            until(lambda whole=whole: whole.encode() in shown)
            os.write(parent, b"\x15")
    finally:
        process.kill()
        process.wait()
        os.close(parent)
        reader.join(PATIENCE)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_scripts_are_well_formed(folder, shell):
    if not HAS[shell]:
        pytest.skip(f"there is no {shell}")
    checked = subprocess.run([shell, "-n", str(folder / shell)], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_every_flag_of_every_command_is_there(folder):
    import importlib

    from liftbridge.cli.completion import command_of
    from liftbridge.cli.flags import COMMANDS

    scripts = {shell: (folder / shell).read_text() for shell in HAS}
    for name in COMMANDS:
        module = importlib.import_module(f"liftbridge.cli.{ {'log': 'log_tools'}.get(name, name) }")
        waiting = [command_of(f"liftbridge {name}", "", module.parser())]
        while waiting:
            command = waiting.pop()
            waiting += command.actions
            for flag in command.flags:
                for form in flag.spellings:
                    assert form in scripts["bash"]
                    assert form in scripts["zsh"]
                    assert f" {form[1:]}" in scripts["fish"] or f"-l {form[2:]}" in scripts["fish"]
