"""The command line of the server."""

import re

import pytest

import liftbridge
from liftbridge.broker.config import all_keys, load
from liftbridge.cli.flags import help_text, parse_flags


@pytest.mark.parametrize(
    ("line", "settings"),
    [
        ("", {}),
        ("--server-id a", {"clustering.server.id": "a"}),
        ("--id=a", {"clustering.server.id": "a"}),
        ("--namespace n", {"clustering.namespace": "n"}),
        ("--ns n", {"clustering.namespace": "n"}),
        ("--nats-servers nats://a,nats://b", {"nats.servers": ["nats://a", "nats://b"]}),
        ("-n nats://a -n nats://b", {"nats.servers": ["nats://a", "nats://b"]}),
        ("--embedded-nats", {"nats.embedded": True}),
        ("-e", {"nats.embedded": True}),
        ("--embedded-nats=false", {"nats.embedded": False}),
        ("--embedded-nats=true", {"nats.embedded": True}),
        ("--embedded-nats-config f", {"nats.embedded.config": "f", "nats.embedded": True}),
        ("--nc f", {"nats.embedded.config": "f", "nats.embedded": True}),
        ("--nc f -e=false", {"nats.embedded.config": "f", "nats.embedded": False}),
        ("--data-dir d", {"data.dir": "d"}),
        ("-d d", {"data.dir": "d"}),
        ("--port 5050", {"port": "5050"}),
        ("-p=5050", {"port": "5050"}),
        ("-port 5050", {"port": "5050"}),
        ("-port=5050", {"port": "5050"}),
        ("--p 5050", {"port": "5050"}),
        ("--port 1 --port 2", {"port": "2"}),
        ("--tls-cert c --tls-key k", {"tls.cert": "c", "tls.key": "k"}),
        ("--level debug", {"logging.level": "debug"}),
        ("-l debug", {"logging.level": "debug"}),
        ("--raft-bootstrap-seed", {"clustering.raft.bootstrap.seed": True}),
        ("--raft-bootstrap-peers a,b", {"clustering.raft.bootstrap.peers": ["a", "b"]}),
        (
            "--raft-bootstrap-peers a --raft-bootstrap-peers b",
            {"clustering.raft.bootstrap.peers": ["a", "b"]},
        ),
    ],
)
def test_flags_become_settings(line: str, settings: dict[str, object]) -> None:
    assert parse_flags(line.split()) == (None, settings)
    assert set(settings) <= set(all_keys())


def test_items_of_a_list_are_trimmed() -> None:
    assert parse_flags(["--nats-servers", " a , b "])[1] == {"nats.servers": ["a", "b"]}


@pytest.mark.parametrize("form", ["-c", "--c", "-config", "--config"])
def test_the_file_is_no_setting(form: str) -> None:
    assert parse_flags([form, "lift.yaml"]) == ("lift.yaml", {})
    assert parse_flags([f"{form}=a=b.yaml"]) == ("a=b.yaml", {})


def test_a_value_may_begin_with_a_dash_but_is_no_flag() -> None:
    assert parse_flags(["--server-id", "-x"]) == (None, {"clustering.server.id": "-x"})


def test_the_line_of_the_test_helper_of_gufo_liftbridge() -> None:
    path, settings = parse_flags(["-c", "F", "-d", "D", "--embedded-nats", "--raft-bootstrap-seed"])
    assert path == "F"
    config = load(None, settings, {})
    assert config.nats.embedded and config.clustering.raft_bootstrap_seed and str(config.data_dir) == "D"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--prot 1", "unknown flag --prot"),
        ("--prot=secret", "unknown flag --prot\n"),
        ("--PORT 1", "unknown flag"),
        ("-x", "unknown flag -x"),
        ("server", "unexpected argument 'server'"),
        ("--", "unexpected argument"),
        ("-", "unexpected argument"),
        ("--port", "--port needs a value"),
        ("--config --port 1", "--config needs a value"),
        ("--port 1 -p 1", "--port is given in both its forms"),
        ("-e --embedded-nats", "--embedded-nats is given in both its forms"),
        ("--embedded-nats=maybe", "--embedded-nats=maybe: .* true or false"),
        ("--embedded-nats no", "unexpected argument 'no'"),
    ],
)
def test_mistakes_end_with_status_2_and_a_short_message(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse_flags(line.split())
    assert exit_.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 2
    assert re.search(message, printed.err)


@pytest.mark.parametrize("form", ["-h", "--help", "-help"])
def test_help(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse_flags([form])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    names = re.findall(r"^  (?:-\S+, )?--([a-z-]+)", text, re.MULTILINE)
    assert sorted(names) == [
        *("config", "data-dir", "embedded-nats", "embedded-nats-config", "help", "level", "namespace"),
        *("nats-servers", "port", "raft-bootstrap-peers", "raft-bootstrap-seed", "server-id"),
        *("tls-cert", "tls-key", "version"),
    ]
    assert max(len(line) for line in text.splitlines()) <= 110
    assert text.strip() == help_text().strip()


@pytest.mark.parametrize("form", ["-v", "--version"])
def test_version(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse_flags([form])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"liftbridge version {liftbridge.__version__}\n"
