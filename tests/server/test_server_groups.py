"""Consumer groups from outside: membership, assignments, expiry, fencing, and what a restart keeps."""

import itertools
import signal
import time

import grpc
import pytest
from calls import PATIENCE, create, drain, fresh, publish_many, refused, subscribe, take, until
from harness import Server, freeze

from liftbridge.proto import api_pb2

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
REFUSED = grpc.StatusCode.FAILED_PRECONDITION
SECOND = 10**9


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("groups"), {"groups.coordinator.timeout": "20s"}) as running:
        yield running
        assert "Traceback" not in running.log


@pytest.fixture(scope="module")
def api(server):
    return server.api()


def join(api, group, consumer, *streams):
    request = api_pb2.JoinConsumerGroupRequest(groupId=group, consumerId=consumer, streams=streams)
    return api.JoinConsumerGroup(request, timeout=PATIENCE)


def leave(api, group, consumer):
    request = api_pb2.LeaveConsumerGroupRequest(groupId=group, consumerId=consumer)
    api.LeaveConsumerGroup(request, timeout=PATIENCE)


def report(api, group, consumer, coordinator, epoch):
    request = api_pb2.ReportConsumerGroupCoordinatorRequest(
        groupId=group, consumerId=consumer, coordinator=coordinator, epoch=epoch
    )
    api.ReportConsumerGroupCoordinator(request, timeout=PATIENCE)


def described(api, group):
    request = api_pb2.FetchMetadataRequest(groups=[group])
    return api.FetchMetadata(request, timeout=PATIENCE).groupMetadata[0]


def epoch_of(api, group):
    return described(api, group).epoch


def exists(api, group):
    return described(api, group).error == api_pb2.ConsumerGroupMetadata.OK


def assigned(api, group, consumer, epoch=None):
    """What a consumer is assigned; under the group's epoch of now unless told another one."""
    request = api_pb2.FetchConsumerGroupAssignmentsRequest(
        groupId=group, consumerId=consumer, epoch=epoch_of(api, group) if epoch is None else epoch
    )
    response = api.FetchConsumerGroupAssignments(request, timeout=PATIENCE)
    assert response.epoch == request.epoch
    return {entry.stream: list(entry.partitions) for entry in response.assignments}


def consumer(group, consumer_id, epoch):
    return api_pb2.Consumer(groupId=group, consumerId=consumer_id, groupEpoch=epoch)


# -- membership ----------------------------------------------------------------------------------------------


def test_the_first_member_begins_the_group(server, api):
    stream, group = create(api, partitions=4), fresh("g")
    assert not exists(api, group)
    response = join(api, group, "c1", stream)
    assert (response.coordinator, response.epoch) == (server.server_id, 0)
    assert (response.consumerTimeout, response.coordinatorTimeout) == (15 * SECOND, 20 * SECOND)
    known = described(api, group)
    assert (known.groupId, known.coordinator, known.epoch) == (group, server.server_id, 0)
    assert known.error == api_pb2.ConsumerGroupMetadata.OK
    assert assigned(api, group, "c1", 0) == {stream: [0, 1, 2, 3]}


def test_two_members_share_and_one_gets_all_when_the_other_leaves(api):
    stream, group = create(api, partitions=4), fresh("g")
    epochs = [join(api, group, "c1", stream).epoch, join(api, group, "c2", stream).epoch]
    assert assigned(api, group, "c1") == {stream: [0, 1]}, "who was there keeps what it can"
    assert assigned(api, group, "c2") == {stream: [2, 3]}
    leave(api, group, "c1")
    epochs.append(epoch_of(api, group))
    assert epochs == sorted(set(epochs))
    assert assigned(api, group, "c2") == {stream: [0, 1, 2, 3]}
    leave(api, group, "c2")
    assert not exists(api, group)


def test_members_of_different_streams(api):
    """The example of the original: one member of two streams, another of one of them only."""
    foo, bar, group = create(api, partitions=2), create(api, partitions=2), fresh("g")
    join(api, group, "c1", foo, bar, foo)
    join(api, group, "c2", foo)
    assert assigned(api, group, "c1") == {bar: [0, 1]}
    assert assigned(api, group, "c2") == {foo: [0, 1]}


def test_more_members_than_partitions(api):
    stream, group = create(api), fresh("g")
    join(api, group, "c1", stream)
    epoch = join(api, group, "c2", stream).epoch
    assert assigned(api, group, "c1", epoch) == {stream: [0]}
    assert assigned(api, group, "c2", epoch) == {}


def test_a_stream_that_goes_and_one_that_comes_back(api):
    stays, goes, group = create(api, partitions=2), create(api, partitions=2), fresh("g")
    before = join(api, group, "c1", stays, goes).epoch
    api.DeleteStream(api_pb2.DeleteStreamRequest(name=goes), timeout=PATIENCE)
    assert epoch_of(api, group) > before
    assert assigned(api, group, "c1") == {stays: [0, 1]}
    before = epoch_of(api, group)
    create(api, goes, partitions=3)
    assert epoch_of(api, group) > before
    assert assigned(api, group, "c1") == {stays: [0, 1], goes: [0, 1, 2]}


def test_several_groups_have_nothing_to_do_with_each_other(api):
    stream, one, other = create(api, partitions=2), fresh("g"), fresh("g")
    join(api, one, "c", stream)
    join(api, other, "c", stream)
    assert assigned(api, one, "c", 0) == assigned(api, other, "c", 0) == {stream: [0, 1]}
    request = api_pb2.FetchMetadataRequest(groups=[other, "nope", one, other], streams=[stream])
    entries = api.FetchMetadata(request, timeout=PATIENCE).groupMetadata
    assert [(entry.groupId, entry.error) for entry in entries] == [
        (other, 0),
        ("nope", 1),
        (one, 0),
        (other, 0),
    ]


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known(api):
    """A group "known" with the members c1 and c2, and its stream."""
    stream = create(api, partitions=2)
    join(api, "known", "c1", stream)
    join(api, "known", "c2", stream)
    return stream


@pytest.mark.parametrize(
    "group, consumer_id, streams, code, text",
    [
        ("", "c", ["known"], INVALID, "groupId"),
        ("g", "", ["known"], INVALID, "consumerId"),
        ("g", "c", [], INVALID, "streams"),
        ("g" * 257, "c", ["known"], INVALID, "256 bytes"),
        ("g", "\u00e4" * 129, ["known"], INVALID, "256 bytes"),
        ("g", "c", [f"s{number}" for number in range(501)], INVALID, "501 streams"),
        ("known", "c1", ["never"], REFUSED, "already"),
        ("known", "c3", ["never"], REFUSED, "no stream 'never'"),
        ("new", "c", ["never"], REFUSED, "no stream 'never'"),
        ("new", "c", [""], REFUSED, "no stream ''"),
    ],
)
def test_a_join_that_cannot_be(api, known, group, consumer_id, streams, code, text):
    with refused(code, text):
        join(api, group, consumer_id, *streams)
    assert not exists(api, "new")
    assert not exists(api, "g")


@pytest.mark.parametrize(
    "group, consumer_id, code",
    [
        ("", "c1", INVALID),
        ("known", "", INVALID),
        ("never", "c1", NOT_FOUND),
        ("known", "c3", REFUSED),
    ],
)
def test_a_leave_that_cannot_be(api, known, group, consumer_id, code):
    with refused(code):
        leave(api, group, consumer_id)


@pytest.mark.parametrize(
    "group, consumer_id, change, code",
    [
        ("", "c1", 0, INVALID),
        ("known", "", 0, INVALID),
        ("never", "c1", 0, NOT_FOUND),
        ("known", "c1", -1, REFUSED),
        ("known", "c1", 1, REFUSED),
        ("known", "c3", 0, REFUSED),
    ],
)
def test_assignments_that_nobody_gets(api, known, group, consumer_id, change, code):
    with refused(code):
        assigned(api, group, consumer_id, epoch_of(api, "known") + change)


@pytest.mark.parametrize(
    "group, consumer_id, coordinator, change, code",
    [
        ("", "c1", None, 0, INVALID),
        ("known", "", None, 0, INVALID),
        ("known", "c1", "", 0, INVALID),
        ("never", "c1", None, 0, REFUSED),
        ("known", "c1", "another", 0, REFUSED),
        ("known", "c1", None, 1, REFUSED),
        ("known", "c3", None, 0, REFUSED),
    ],
)
def test_reports_that_do_not_count(server, api, known, group, consumer_id, coordinator, change, code):
    coordinator = server.server_id if coordinator is None else coordinator
    with refused(code):
        report(api, group, consumer_id, coordinator, epoch_of(api, "known") + change)


def test_a_wrong_epoch_is_answered_with_the_right_one(api, known):
    epoch = epoch_of(api, "known")
    with refused(REFUSED, f"is {epoch}, not 7777"):
        assigned(api, "known", "c1", 7777)


def test_reports_of_more_than_half_ask_for_another_coordinator(server, api):
    stream, group = create(api), fresh("g")
    join(api, group, "c1", stream)
    with refused(REFUSED, "no other server"):
        report(api, group, "c1", server.server_id, 0)
    epoch = join(api, group, "c2", stream).epoch
    join(api, group, "c3", stream)
    epoch = join(api, group, "c4", stream).epoch
    for reporter in ("c2", "c2", "c3"):  # c1 has reported before
        if reporter == "c3":
            with refused(REFUSED, "no other server"):
                report(api, group, reporter, server.server_id, epoch)
        else:
            report(api, group, reporter, server.server_id, epoch)
    assert (described(api, group).coordinator, epoch_of(api, group)) == (server.server_id, epoch)


# -- fencing -------------------------------------------------------------------------------------------------


def test_an_older_epoch_is_refused_and_a_newer_one_takes_over(api):
    stream, group = create(api), fresh("g")
    first = subscribe(api, stream, consumer=consumer(group, "c2", 2))
    with refused(REFUSED, "epoch 2"):
        subscribe(api, stream, consumer=consumer(group, "c1", 1))
    publish_many(api, stream, [b"1"])
    assert [message.value for message in take(first, 1)] == [b"1"]
    third = subscribe(api, stream, consumer=consumer(group, "c3", 3))
    assert drain(first) == ([], grpc.StatusCode.OK)
    publish_many(api, stream, [b"2"])
    assert [message.value for message in take(third, 1)] == [b"2"]
    with refused(REFUSED, "epoch 3"):
        subscribe(api, stream, consumer=consumer(group, "c2", 2))
    third.cancel()
    # Nobody reads any more, so there is nobody to protect.
    until(lambda: _subscribes(api, stream, consumer(group, "c2", 2)))


def _subscribes(api, stream, who):
    try:
        subscribe(api, stream, consumer=who).cancel()
    except grpc.RpcError:
        return False
    return True


def test_an_equal_epoch_takes_over_and_ends_nothing_but_its_predecessor(api):
    stream, group = create(api, partitions=2), fresh("g")
    other_partition = subscribe(api, stream, partition=1, consumer=consumer(group, "c1", 5))
    other_group = subscribe(api, stream, consumer=consumer(fresh("g"), "c1", 5))
    alone = subscribe(api, stream)
    first = subscribe(api, stream, consumer=consumer(group, "c1", 5))
    second = subscribe(api, stream, consumer=consumer(group, "c1", 5))
    assert drain(first) == ([], grpc.StatusCode.OK)
    # The end of the first does not take the second's place away.
    with refused(REFUSED):
        subscribe(api, stream, consumer=consumer(group, "c1", 4))
    publish_many(api, stream, [b"0"])
    publish_many(api, stream, [b"1"], partition=1)
    assert [take(call, 1)[0].value for call in (second, other_group, alone)] == [b"0"] * 3
    assert take(other_partition, 1)[0].value == b"1"


def test_a_subscription_that_fails_ends_nothing(api):
    stream, group = create(api), fresh("g")
    first = subscribe(api, stream, consumer=consumer(group, "c1", 1))
    with refused(INVALID):
        subscribe(api, stream, startPosition=9, consumer=consumer(group, "c2", 2))
    publish_many(api, stream, [b"1"])
    assert take(first, 1)[0].value == b"1"


def test_who_is_in_the_middle_of_much_ends_behind_a_whole_message(server):
    api = server.api(**{"grpc.http2.bdp_probe": 0, "grpc.http2.lookahead_bytes": 65536})
    stream, group = create(api), fresh("g")
    publish_many(api, stream, [bytes(50_000)] * 40)
    slow = subscribe(api, stream, startPosition=api_pb2.EARLIEST, consumer=consumer(group, "c1", 1))
    subscribe(api, stream, consumer=consumer(group, "c2", 2))
    messages, status = drain(slow)
    assert status == grpc.StatusCode.OK
    assert [message.offset for message in messages] == list(range(len(messages)))
    assert len(messages) < 40, "it was ended before it had everything"


def test_the_assignment_decides_among_epochs_that_are_over(api):
    stream, group = create(api, partitions=2), fresh("g")
    old = join(api, group, "c1", stream).epoch
    new = join(api, group, "c2", stream).epoch
    assert (assigned(api, group, "c1"), assigned(api, group, "c2")) == ({stream: [0]}, {stream: [1]})
    for epoch in (old, new):
        with refused(REFUSED, "not assigned to consumer 'c1'"):
            subscribe(api, stream, partition=1, consumer=consumer(group, "c1", epoch))
        subscribe(api, stream, partition=0, consumer=consumer(group, "c1", epoch))
    subscribe(api, stream, partition=1, consumer=consumer(group, "c2", new))


def test_a_group_that_begins_anew_takes_over_from_who_did_not_notice(api):
    stream, group = create(api), fresh("g")
    join(api, group, "c1", stream)
    join(api, group, "c2", stream)
    leave(api, group, "c2")
    late = epoch_of(api, group)
    zombie = subscribe(api, stream, consumer=consumer(group, "c1", late))
    leave(api, group, "c1")
    assert join(api, group, "c3", stream).epoch == 0 < late
    subscribe(api, stream, consumer=consumer(group, "c3", 0))
    assert drain(zombie) == ([], grpc.StatusCode.OK)


# -- members that fall silent --------------------------------------------------------------------------------


@pytest.fixture
def impatient(tmp_path):
    """A server whose members expire after two seconds."""
    with Server(tmp_path / "impatient", {"groups.consumer.timeout": "2s"}) as running:
        yield running
        assert "Traceback" not in running.log


def test_who_falls_silent_leaves_and_others_get_what_it_had(impatient):
    api = impatient.api()
    stream = create(api, partitions=4)
    join(api, "g", "silent", stream)
    before = join(api, "g", "alive", stream).epoch

    def has_all():
        try:
            return assigned(api, "g", "alive") == {stream: [0, 1, 2, 3]}
        except grpc.RpcError as error:  # the epoch may change while we ask
            assert error.code() == REFUSED
            assert "the epoch of group 'g' is" in error.details()
            return False

    until(has_all)
    assert epoch_of(api, "g") > before
    with refused(REFUSED, "not a member"):
        assigned(api, "g", "silent")
    impatient.wait_log("consumer silent of group g was silent for 2.0 s")
    # Its id is free again, and so is the group's when the other one falls silent too.
    join(api, "g", "silent", stream)
    until(lambda: not exists(api, "g"))
    assert join(api, "g", "alive", stream).epoch == 0


def test_a_refused_question_is_no_sign_of_life(impatient):
    api = impatient.api()
    stream = create(api)
    join(api, "g", "c1", stream)

    def gone():
        with pytest.raises(grpc.RpcError) as error:
            assigned(api, "g", "c1", 1)
        assert error.value.code() in (REFUSED, NOT_FOUND)
        return error.value.code() == NOT_FOUND

    until(gone)


def test_members_have_their_time_again_when_the_server_stood_still(impatient):
    api = impatient.api()
    stream = create(api, partitions=2)
    join(api, "g", "c1", stream)
    epoch = join(api, "g", "c2", stream).epoch
    freeze(impatient.pid)
    over = time.monotonic() + 3
    until(lambda: time.monotonic() > over)
    impatient.process.send_signal(signal.SIGCONT)
    impatient.wait_log("this server stood still")
    assert assigned(api, "g", "c1", epoch) == {stream: [0]}
    assert assigned(api, "g", "c2", epoch) == {stream: [1]}


# -- what stays ----------------------------------------------------------------------------------------------


def test_groups_survive_a_restart_and_kill_9(tmp_path):
    with Server(tmp_path) as server:
        api = server.api()
        stream = create(api, partitions=4)
        for number in range(3):
            join(api, "g", f"c{number}", stream)
        api.DeleteStream(api_pb2.DeleteStreamRequest(name=create(api)), timeout=PATIENCE)
        epoch = epoch_of(api, "g")
        before = [assigned(api, "g", f"c{number}") for number in range(3)]
        assert server.stop() == 0

        api = server.start().api()
        assert epoch_of(api, "g") == epoch
        assert [assigned(api, "g", f"c{number}", epoch) for number in range(3)] == before
        epoch = join(api, "g", "c3", stream).epoch
        server.kill()

        api = server.start().api()
        assert epoch_of(api, "g") == epoch
        owned = [assigned(api, "g", f"c{number}", epoch)[stream] for number in range(4)]
        assert sorted(itertools.chain(*owned)) == [0, 1, 2, 3]
        # Nothing is remembered of subscriptions, but a member that comes back late is late all the same.
        with refused(REFUSED, "not assigned"):
            subscribe(api, stream, partition=owned[3][0], consumer=consumer("g", "c0", epoch - 1))
