"""Single values: what each kind accepts, what it makes of it, and that everything else is refused by name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liftbridge.broker import config_values as values
from liftbridge.broker.config_values import ConfigError, Kind, ListenAddress, Raw, Setting, parse_duration

HOUR = 3_600_000_000_000


def read(kind: Kind, raw: Raw) -> object:
    return kind.read("some.key", Setting(raw, "a file, line 7"))


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0", 0),
        ("1", 1),
        ("86400", 86_400),
        ("0s", 0),
        ("5ns", 5),
        ("5us", 5_000),
        ("5\u00b5s", 5_000),
        ("5\u03bcs", 5_000),
        ("250ms", 250_000_000),
        ("1.5s", 1_500_000_000),
        (".5s", 500_000_000),
        ("1.s", 1_000_000_000),
        ("1h30m", HOUR + HOUR // 2),
        ("1h15m30.918273645s", HOUR + HOUR // 4 + 30_918_273_645),
        ("168h", 168 * HOUR),
        ("0.3333333333333333333h", 1_199_999_999_999),
        ("1.9ns", 1),
        ("+5s", 5_000_000_000),
        ("9223372036854775807", 2**63 - 1),
    ],
)
def test_a_duration_is_read_exactly(text: str, nanoseconds: int) -> None:
    assert parse_duration(text) == nanoseconds
    assert read(values.duration(), text) == nanoseconds


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ".",
            "s",
            ".s",
            "7d",
            "1 h",
            "1x",
            "1h2",
            "++1s",
            "+-1s",
            "1e3s",
            "-1s",
            "1,5s",
            "\u0663s",
            "9e99h",
        ),
        *(
            "9223372036854775808",
            "3000000h",
            "1" * 40 + "h",
            "0." + "1" * 40 + "h",
            "true",
            "1h\x00",
            "9e99h",
        ),
    ],
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"some\.key: the value .*a file, line 7.* not accepted.*1h30m"):
        read(values.duration(), text)


def test_the_error_on_days_says_how_to_write_them() -> None:
    with pytest.raises(ConfigError, match="one day is 24h"):
        read(values.duration(), "7d")


@given(
    st.lists(
        st.tuples(st.integers(0, 10**6), st.sampled_from(["ns", "us", "ms", "s", "m", "h"])),
        min_size=1,
        max_size=4,
    )
)
def test_the_parts_of_a_duration_add_up(parts: list[tuple[int, str]]) -> None:
    unit = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": HOUR}
    total = sum(number * unit[name] for number, name in parts)
    text = "".join(f"{number}{name}" for number, name in parts)
    if total < 2**63:
        assert parse_duration(text) == total
    else:
        with pytest.raises(ValueError, match="too long"):
            parse_duration(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("1", 1), (" 42 ", 42), ("1_000", 1000), ("0x10", 16), ("0o17", 15), ("0b11", 3), ("+7", 7)],
)
def test_integers(text: str, number: int) -> None:
    assert read(values.integer(), text) == number


@pytest.mark.parametrize(
    "text",
    ["", "1.0", "1e3", "1MB", "010", "ten", "true", "-1", "1 000", "0x", "\u0661", "9" * 5000, str(2**63)],
)
def test_what_is_no_integer_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"some\.key.*whole number of at least 0"):
        read(values.integer(), text)


def test_the_bounds_of_an_integer_are_part_of_the_error() -> None:
    assert read(values.integer(1, 5), "5") == 5
    for outside in ("0", "6"):
        with pytest.raises(ConfigError, match="at least 1 and at most 5"):
            read(values.integer(1, 5), outside)


@pytest.mark.parametrize("text", ["1", "t", "T", "TRUE", "true", "True", "yes", "Yes", "on", "ON", "y"])
def test_words_for_true(text: str) -> None:
    assert read(values.boolean(), text) is True


@pytest.mark.parametrize("text", ["0", "f", "F", "FALSE", "false", "False", "no", "No", "off", "OFF", "n"])
def test_words_for_false(text: str) -> None:
    assert read(values.boolean(), text) is False


@pytest.mark.parametrize("raw", ["", "2", "enabled", "-1", ("true",), ()])
def test_what_is_no_boolean_is_refused(raw: Raw) -> None:
    with pytest.raises(ConfigError, match="give true or false"):
        read(values.boolean(), raw)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:5050", ListenAddress("127.0.0.1", 5050)),
        ("localhost:0", ListenAddress("localhost", 0)),
        ("[::1]:9292", ListenAddress("::1", 9292)),
        (":9292", ListenAddress("", 9292)),
        ("9292", ListenAddress("", 9292)),
        ("", None),
    ],
)
def test_listen_addresses(text: str, address: ListenAddress | None) -> None:
    assert read(values.listen_address(), text) == address


@pytest.mark.parametrize(
    "text",
    ["localhost", "localhost:", "localhost:http", "a:b:1", "::1:9292", "h:65536", "h:-1", "u@h:1", "h h:1"],
)
def test_what_is_no_listen_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="give host:port"):
        read(values.listen_address(), text)


@pytest.mark.parametrize(
    ("raw", "urls"),
    [
        (("nats://a:1", "tls://b:2"), ("nats://a:1", "tls://b:2")),
        ("nats://a:1, nats://b:2", ("nats://a:1", "nats://b:2")),
        ("nats://a:1 nats://b:2", ("nats://a:1", "nats://b:2")),
        ("a:1,b", ("nats://a:1", "nats://b")),
        ("nats://u:p@[::1]:4222", ("nats://u:p@[::1]:4222",)),
    ],
)
def test_nats_servers(raw: Raw, urls: tuple[str, ...]) -> None:
    assert read(values.nats_urls(), raw) == urls


@pytest.mark.parametrize(
    "raw", ["", (), "http://a", "ws://a", "nats://", "nats://a:port", "nats://[a", ("a b",)]
)
def test_what_is_no_nats_server_is_refused(raw: Raw) -> None:
    with pytest.raises(ConfigError, match="give a list of NATS servers"):
        read(values.nats_urls(), raw)


@pytest.mark.parametrize(
    "raw",
    [
        "nats://joe:hunter2@a:port",
        "http://joe:hunter2@a",
        ("nats://b", "joe:hunter2@a:x"),
        "tls://joe:hunter2@[",
    ],
)
def test_no_error_shows_a_password(raw: Raw) -> None:
    with pytest.raises(ConfigError) as error:
        read(values.nats_urls(), raw)
    assert "hunter2" not in str(error.value)
    with pytest.raises(ConfigError) as error:
        read(values.secret(), "hunter2\x00")
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("text", ["a.b", "a b", "a/b", "a*", ">", "..", "a\tb", "x" * 256, "a\\b"])
def test_names_that_would_break_a_subject_or_a_path_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="give a name"):
        read(values.name(), text)


def test_a_long_or_strange_value_is_shown_short_and_on_one_line() -> None:
    with pytest.raises(ConfigError) as error:
        read(values.boolean(), "x\n\x1b[31m" * 1000)
    assert len(str(error.value)) < 300
    assert str(error.value).isprintable()


ALL_KINDS = [
    values.boolean(),
    values.integer(),
    values.duration(),
    values.text(),
    values.secret(),
    values.name(),
    values.file_path(),
    values.choice("a", "b"),
    values.listen_address(),
    values.host_name(),
    values.list_of_names(),
    values.nats_urls(),
]


@pytest.mark.parametrize("kind", ALL_KINDS, ids=lambda kind: kind.accepts[:20])
@given(
    raw=st.text()
    | st.lists(st.text(), max_size=3).map(tuple)
    | st.from_regex(r"[-+]?[0-9.]{1,5}[a-z\u00b5]{0,3}")
)
def test_every_text_is_read_or_refused(kind: Kind, raw: Raw) -> None:
    try:
        read(kind, raw)
    except ConfigError as error:
        assert "some.key" in str(error)
