"""The checks of requests: each alone, and their order."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liftbridge.log.codec import COMPRESSIONS
from liftbridge.metadata.errors import MetadataCode, MetadataError
from liftbridge.metadata.model import REQUEST_FIELDS, StreamSettings
from liftbridge.metadata.validation import (
    MAX_PARTITIONS,
    SETTING_WORDS,
    check_ack_inbox,
    check_create_stream,
    check_delete_stream,
    check_publish_subject,
    resolve_replication_factor,
)

NAMESPACE = "liftbridge-default"


def check(**changes: object) -> int:
    request: dict[str, object] = {
        "name": "orders",
        "subject": "shop.orders",
        "group": "",
        "partitions": 1,
        "settings": StreamSettings(),
        "namespace": NAMESPACE,
    }
    assert changes.keys() <= request.keys()
    return check_create_stream(**{**request, **changes})  # type: ignore[arg-type]


# In the order of the checks: each request fails this check, and the text names the fault.
FAULTS = [
    ({"name": ""}, "needs a name"),
    ({"subject": ""}, "needs a NATS subject"),
    ({"subject": "a b"}, "' '"),
    ({"name": "__cursors"}, "reserved"),
    ({"name": "a/b"}, "percent-encoded"),
    ({"subject": "$SYS.x"}, "belong to NATS"),
    ({"subject": f"{NAMESPACE}.cursors"}, "belong to the servers"),
    ({"group": "a b"}, "group"),
    ({"partitions": -1}, "partitions must not be negative, got -1"),
    ({"settings": StreamSettings(min_isr=-2)}, "minIsr must not be negative, got -2"),
]


@pytest.mark.parametrize(("changes", "text"), FAULTS)
def test_a_request_with_one_fault_is_refused_for_it(changes, text):
    with pytest.raises(MetadataError) as caught:
        check(**changes)
    assert caught.value.code is MetadataCode.INVALID_ARGUMENT
    assert text in caught.value.text


PAIRS = [
    (earlier, later)
    for earlier, later in itertools.combinations(FAULTS, 2)
    if not earlier[0].keys() & later[0].keys()
]


@pytest.mark.parametrize(("earlier", "later"), PAIRS)
def test_of_two_faults_the_earlier_check_decides(earlier, later):
    with pytest.raises(MetadataError) as caught:
        check(**earlier[0], **later[0])
    assert earlier[1] in caught.value.text


@pytest.mark.parametrize(
    "name",
    [
        ".",
        "..",
        "a b",
        "a\tb",
        "a\0b",
        "a/b",
        "*",
        "a*",
        ">",
        "a>",
        "x" * 250,
        "ä",
        "100%",
        "%zz",
        "a\n",
        "__activity",
    ],
)
def test_names_that_are_refused(name):
    with pytest.raises(MetadataError) as caught:
        check(name=name)
    assert caught.value.code is MetadataCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "subject",
    ["a", "a.b", "*", "a.*", ">", "a.>", "a*", "größe.ß", "liftbridge-default2.x", "a.$b", "x" * 2048],
)
def test_subjects_that_are_accepted(subject):
    assert check(subject=subject) == 1


@pytest.mark.parametrize(
    "subject",
    [
        "a b",
        "a\tb",
        "a\rb",
        "a\nb",
        "a\0b",
        ".a",
        "a.",
        "a..b",
        ".",
        ">.a",
        "$x",
        NAMESPACE,
        "x" * 2049,
        "ß" * 1025,
    ],
)
def test_subjects_that_are_refused(subject):
    with pytest.raises(MetadataError) as caught:
        check(subject=subject)
    assert caught.value.code is MetadataCode.INVALID_ARGUMENT


@pytest.mark.parametrize("subject", [">", "a.>"])
def test_a_subject_of_everything_takes_one_partition_only(subject):
    assert check(subject=subject, partitions=0) == 1
    with pytest.raises(MetadataError, match="ends in '>'"):
        check(subject=subject, partitions=2)


def test_partitions():
    assert check(partitions=0) == 1
    assert check(partitions=MAX_PARTITIONS) == MAX_PARTITIONS
    for refused in (-1, -(2**31), MAX_PARTITIONS + 1, 2**31 - 1):
        with pytest.raises(MetadataError, match="partitions"):
            check(partitions=refused)


@pytest.mark.parametrize("setting", [setting for setting in REQUEST_FIELDS if setting not in SETTING_WORDS])
def test_negative_settings_are_refused_zero_is_not(setting):
    assert check(settings=StreamSettings(**{setting: 0})) == 1
    if "enabled" in setting or setting in {
        "auto_pause_disable_if_subscribers",
        "optimistic_concurrency_control",
        "encryption",
    }:
        assert check(settings=StreamSettings(**{setting: True})) == 1
        return
    with pytest.raises(MetadataError, match=REQUEST_FIELDS[setting]):
        check(settings=StreamSettings(**{setting: -1}))


@pytest.mark.parametrize("setting", SETTING_WORDS)
def test_settings_that_are_words(setting):
    for word in SETTING_WORDS[setting]:
        assert check(settings=StreamSettings(**{setting: word})) == 1
    for word in ("sometimes", "", "ALWAYS", "Zstd", "none "):
        with pytest.raises(MetadataError, match=REQUEST_FIELDS[setting]) as caught:
            check(settings=StreamSettings(**{setting: word}))
        assert caught.value.code is MetadataCode.INVALID_ARGUMENT
        assert repr(word) in caught.value.text


def test_a_stream_can_choose_every_compression_that_the_log_knows():
    assert list(SETTING_WORDS["compression"]) == list(COMPRESSIONS)


@pytest.mark.parametrize(
    ("requested", "brokers", "expected"), [(0, 3, 1), (1, 1, 1), (3, 3, 3), (-1, 3, 3), (-1, 1, 1)]
)
def test_replication_factor(requested, brokers, expected):
    assert resolve_replication_factor(requested, brokers) == expected


@pytest.mark.parametrize(
    ("requested", "text"),
    [(-2, "must be positive"), (4, "more than the 3 brokers"), (2**31 - 1, "more than")],
)
def test_replication_factor_that_is_refused(requested, text):
    with pytest.raises(MetadataError, match=text) as caught:
        resolve_replication_factor(requested, 3)
    assert caught.value.code is MetadataCode.INVALID_ARGUMENT


def test_only_the_servers_own_streams_are_protected_from_deletion():
    for name in ("orders", "", "__other"):
        check_delete_stream(name)
    for name in ("__activity", "__cursors"):
        with pytest.raises(MetadataError) as caught:
            check_delete_stream(name)
        assert caught.value.code is MetadataCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "subject", [b"a", b"a.b", b"a.*", b">", "größe.1".encode(), b"_INBOX.x.y", b"x" * 2048]
)
def test_publish_subjects_that_are_accepted(subject):
    check_publish_subject(subject)


@pytest.mark.parametrize(
    "subject",
    [b"", b".", b"a.", b".a", b"a..b", b"a b", b"a\r\nPUB x 0", b"a\n", b"a\0", b"\x7f", b"x" * 2049],
)
def test_publish_subjects_and_inboxes_that_are_refused(subject):
    for refuse in (check_publish_subject, check_ack_inbox):
        with pytest.raises(MetadataError) as caught:
            refuse(subject)
        assert caught.value.code is MetadataCode.INVALID_ARGUMENT


@pytest.mark.parametrize("inbox", [b"*", b">", b"a.*", b"a.>", b"*.b"])
def test_an_ack_inbox_has_no_wildcards(inbox):
    check_publish_subject(inbox)
    with pytest.raises(MetadataError, match="wildcard"):
        check_ack_inbox(inbox)
    check_ack_inbox(b"a*.b>")


@given(st.binary(max_size=40))
def test_what_passes_fits_in_one_line_of_the_nats_protocol(subject):
    try:
        check_publish_subject(subject)
    except MetadataError as error:
        assert len(error.text) < 300
    else:
        assert subject.split() == [subject]
        assert all(subject.split(b"."))


@given(name=st.text(max_size=20), subject=st.text(max_size=20), group=st.text(max_size=20))
def test_any_text_is_accepted_or_refused_with_a_clear_error(name, subject, group):
    try:
        check(name=name, subject=subject, group=group)
    except MetadataError as error:
        assert error.code is MetadataCode.INVALID_ARGUMENT
    else:
        line = f"SUB {subject} {group} 1\r\n".encode()
        assert len(line) <= 4096
        assert len(line.split()) == (4 if group else 3)
