"""Where commands connect to, contexts, TLS and authorization, and what they say when there is nobody."""

import json
import os
import socket
import stat
import subprocess

import pytest
from calls import create
from cli_support import COMMAND, NOBODY, cli, environment, on_terminal
from harness import Server, freeze
from secured import Files

TALKING = [
    ("stream", "list"),
    ("stream", "info", "s"),
    ("publish", "s", "v"),
    ("publish", "--stream", "s", "v"),
    ("subscribe", "s"),
    ("cursor", "get", "c", "s"),
    ("cursor", "set", "c", "s", "1"),
    ("group", "list"),
    ("group", "describe", "g"),
    ("top",),
    ("events",),
]


@pytest.mark.parametrize("command", TALKING, ids=" ".join)
def test_no_server(command):
    done = cli(NOBODY, *command, status=5)
    assert NOBODY in done.err
    assert "liftbridge dev" in done.err
    assert done.err.count("\n") == 1
    assert json.loads(cli(NOBODY, *command, "--json", status=5).err)["exit"] == 5


@pytest.mark.parametrize("command", TALKING, ids=" ".join)
def test_a_server_that_does_not_answer(command):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        done = cli(address, *command, "--timeout", "0.2", status=5)
        assert address in done.err


def test_a_server_that_stands_still_times_out(tmp_path):
    with Server(tmp_path / "server") as server:
        cli(server, "stream", "create", "s")
        # Its kernel takes the connection, and nobody answers it.
        freeze(server.pid)
        done = cli(server, "stream", "list", "--timeout", "0.3", status=5)
        assert done.err.count("\n") == 1


def test_the_first_server_that_is_there_is_asked(shared):
    cli(None, "stream", "list", "--server", f"{NOBODY},{shared.address}")
    cli(None, "stream", "list", "--server", NOBODY, "--server", shared.address)


@pytest.mark.parametrize(
    ("arguments", "variables", "text"),
    [
        (("--server", "nowhere"), {}, "--server: "),
        (("--server", "a:b"), {}, "--server: "),
        (("--timeout", "0"), {}, "'0' is no time to wait"),
        (("--timeout", "soon"), {}, "no duration"),
        (("--tls-ca", "/nonexistent/ca"), {}, "/nonexistent/ca"),
        (("--tls-ca", "/dev/null"), {}, "/dev/null"),
        (("--tls-key", "/dev/null"), {}, "--tls-key"),
        (("--context", "none"), {}, "no context 'none'"),
        ((), {"LIFTBRIDGE_CLIENT_TLS": "perhaps"}, "LIFTBRIDGE_CLIENT_TLS"),
        ((), {"LIFTBRIDGE_CLIENT_SERVER": "nowhere"}, "LIFTBRIDGE_CLIENT_SERVER"),
        ((), {"LIFTBRIDGE_CLIENT_TIMEOUT": "x"}, "LIFTBRIDGE_CLIENT_TIMEOUT"),
    ],
)
def test_settings_that_make_no_sense(arguments, variables, text):
    status = 3 if "--context" in arguments else 2
    assert text in cli(None, "stream", "list", *arguments, status=status, **variables).err


def test_contexts(shared, stubs, tmp_path):
    name = create(stubs)
    file = tmp_path / "liftbridge" / "contexts.json"

    def context(*arguments, status=0):
        return cli(None, "context", *arguments, home=tmp_path, status=status)

    assert context("list").out == ""
    assert "no context is in use" in context("show", status=3).err
    assert "used from now on" in context("save", "here", "--server", shared.address, "--timeout", "20").out
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert name in cli(None, "stream", "list", home=tmp_path).out
    assert "context use" in context("save", "away", "--server", NOBODY).out
    assert [row.split("\t") for row in context("list").out.splitlines()] == [
        ["away", NOBODY, "plain", "-"],
        ["here", shared.address, "plain", "in use"],
    ]
    assert cli(None, "stream", "list", "--context", "away", home=tmp_path, status=5).err
    assert cli(None, "stream", "list", home=tmp_path, status=5, LIFTBRIDGE_CLIENT_CONTEXT="away").err
    cli(None, "stream", "list", "--context", "here", home=tmp_path, LIFTBRIDGE_CLIENT_CONTEXT="away")
    context("use", "away")
    assert cli(None, "stream", "list", home=tmp_path, status=5).err
    assert cli(None, "stream", "list", "--server", shared.address, home=tmp_path).out
    assert cli(None, "stream", "list", "--context", "away", "--server", shared.address, home=tmp_path).out
    assert cli(shared, "stream", "list", home=tmp_path).out, "the environment comes before the context in use"
    (shown,) = context("show", "here", "--json").documents
    assert shown == {"context": "here", "current": False, "servers": [shared.address], "timeout": 20.0}
    assert "timeout      20 s" in context("show", "here").out
    context("use", "--none")
    assert "no context is in use" in context("show", status=3).err
    context("delete", "away")
    assert "no context 'away'" in context("delete", "away", status=3).err
    assert "no context 'away'" in context("use", "away", status=3).err
    assert os.listdir(file.parent) == ["contexts.json"]


def test_who_names_a_server_gets_nothing_of_the_context_in_use(shared, tmp_path):
    """Its certificate and its authorities are meant for other servers."""
    files = Files(tmp_path / "files")
    ca = str(files.directory / "ca.pem")
    cli(None, "context", "save", "elsewhere", "--server", NOBODY, "--tls-ca", ca, home=tmp_path)
    cli(None, "stream", "list", "--server", shared.address, home=tmp_path)
    cli(shared, "stream", "list", home=tmp_path)
    cli(None, "stream", "list", "--server", shared.address, "--context", "elsewhere", home=tmp_path, status=6)


def test_flags_come_before_the_environment(shared):
    cli(NOBODY, "stream", "list", "--server", shared.address)
    cli(shared, "stream", "list", "--no-tls", LIFTBRIDGE_CLIENT_TLS="true")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "mend it"),
        ("[]", "mend it"),
        ('{"contexts": {}, "secret": 1}', "nothing else"),
        ('{"contexts": {"a": {"password": "x"}}}', "no setting 'password'"),
        ('{"contexts": {"a": {"tls": "yes"}}}', "`tls`"),
        ('{"contexts": {"a": {"timeout": true}}}', "`timeout`"),
        ('{"contexts": {"a": {"servers": "x:1"}}}', "`servers`"),
        ('{"contexts": {}, "current": "a"}', "no context"),
        ('{"contexts": {"a": {"servers": ["nowhere"]}}, "current": "a"}', "save it anew"),
        ("[" * 100_000, "mend it"),
    ],
)
def test_a_file_that_cannot_be_understood(tmp_path, content, text):
    file = tmp_path / "liftbridge" / "contexts.json"
    file.parent.mkdir()
    file.write_text(content)
    done = cli(None, "stream", "list", home=tmp_path, status=2)
    assert text in done.err
    assert file.read_text() == content


def test_names_of_contexts_and_paths(tmp_path):
    assert "no name for a context" in cli(None, "context", "save", "../x", home=tmp_path, status=2).err
    assert "--tls-cert" in cli(None, "context", "save", "x", "--tls-key", "k", home=tmp_path, status=2).err
    ran = subprocess.run(
        [*COMMAND, "context", "save", "x", "--tls-ca", "ca.pem"], cwd=tmp_path, env=environment(tmp_path)
    )
    assert ran.returncode == 0
    (shown,) = cli(None, "context", "show", "x", "--json", home=tmp_path).documents
    assert shown["ca"] == str(tmp_path / "ca.pem")


def test_tls_and_a_policy(tmp_path):
    files = Files(tmp_path / "files")
    files.write_policy("p, ann, *, FetchMetadata", "p, ann, s, CreateStream", "p, ann, s, Publish")
    pair = files.ca.issue_cert("ann@example.org", common_name="ann")
    pair.private_key_pem.write_to_path(str(tmp_path / "ann.key"))
    pair.cert_chain_pems[0].write_to_path(str(tmp_path / "ann.pem"))
    ca = str(files.directory / "ca.pem")
    config = files.config() | {"activity.stream.enabled": True, "cursors.stream.partitions": 1}
    with Server(tmp_path / "server", config) as server:
        save = ("context", "save", "tls", "--server", server.address, "--tls-ca", ca)
        cli(
            None,
            *save,
            "--tls-cert",
            str(tmp_path / "ann.pem"),
            "--tls-key",
            str(tmp_path / "ann.key"),
            home=tmp_path,
        )
        cli(None, "stream", "create", "s", home=tmp_path)
        cli(None, "publish", "--stream", "s", "x", home=tmp_path)
        for denied in (
            ("stream", "create", "other"),
            ("stream", "delete", "s"),
            ("stream", "pause", "s"),
            ("stream", "readonly", "s"),
            ("publish", "--stream", "other", "x"),
            ("publish", "s", "x"),
            ("subscribe", "s"),
            ("events",),
            ("cursor", "set", "c", "s", "1"),
            ("cursor", "get", "c", "s"),
        ):
            done = cli(None, *denied, home=tmp_path, status=6)
            assert "not authorized" in done.err, denied
            assert "a rule in its policy" in done.err
        # What it may not ask the leader for, it shows as the metadata has it.
        assert cli(None, "stream", "info", "s", home=tmp_path).out
        no_tls = cli(server, "stream", "list", "--timeout", "1", status=5)
        assert server.address in no_tls.err
        stranger = Files(tmp_path / "stranger")
        wrong = cli(server, "stream", "list", "--tls-ca", str(stranger.directory / "ca.pem"), status=6)
        assert "--tls-ca" in wrong.err
        variables = {
            "LIFTBRIDGE_CLIENT_TLS_CA": ca,
            "LIFTBRIDGE_CLIENT_TLS_CERT": str(tmp_path / "ann.pem"),
            "LIFTBRIDGE_CLIENT_TLS_KEY": str(tmp_path / "ann.key"),
        }
        assert cli(server, "stream", "list", **variables).out


def test_commands_that_do_not_exist():
    done = cli(None, "fly", status=2)
    assert "stream" in done.err
    assert "--help" in done.err


def test_help_names_every_command():
    from liftbridge.cli.flags import COMMANDS

    text = cli(None, "--help").out
    for name in COMMANDS:
        assert f"\n  {name} " in text
        assert f"liftbridge {name}" in cli(None, name, "--help").out


def test_top_on_a_terminal_ends_with_an_error_where_a_person_sees_it(shared):
    status, shown = on_terminal(shared, "top", "--server", NOBODY)
    assert status == 5
    assert "\x1b[?1049h" not in shown
