"""Start, TLS, keep-alive and the orderly end of the server."""

import ssl

import grpc
import pytest
import trio
import trio.testing
import trustme
from hyperframe.frame import GoAwayFrame, PingFrame
from rpc_support import PREFACE, Api, RawClient, grpcio, serve

from liftbridge.proto import api_pb2
from liftbridge.rpc import HealthServicer, Limits, RpcServer


@pytest.fixture
async def api(nursery):
    api = Api()
    api.server, api.port = await serve(nursery, api)
    return api


SUBSCRIBE_IDLE = api_pb2.SubscribeRequest(stream="idle").SerializeToString()


async def test_shutdown_ends_streams_and_lets_unary_calls_end(nursery, api, connect):
    client = await connect(api.port)
    subscription = await client.call("Subscribe", SUBSCRIBE_IDLE)
    publish = await client.call("Publish", api_pb2.PublishRequest(stream="wait").SerializeToString())
    await api.state.until(lambda state: state.running == 2)
    async with trio.open_nursery() as ending:
        ending.start_soon(api.server.shutdown, 60)
        goaway = await client.goaway()
        assert (goaway.error_code, goaway.last_stream_id) == (0, publish)
        trailers = await client.trailers(subscription)
        assert trailers["grpc-status"] == "14"
        late = await client.call("Publish", b"")
        assert await client.reset(late) == 7
        with pytest.raises(OSError, match="all attempts to connect"):
            await trio.open_tcp_stream("127.0.0.1", api.port)
        api.state.release.set()
        assert (await client.trailers(publish))["grpc-status"] == "0"
        assert await client.read() is None
        await client.stream.aclose()
    assert api.server.connections == 0


async def test_shutdown_is_bounded(api, connect, autojump_clock):
    client = await connect(api.port)
    publish = await client.call("Publish", api_pb2.PublishRequest(stream="sleep").SerializeToString())
    await api.state.until(lambda state: state.running == 1)
    before = trio.current_time()
    await api.server.shutdown(30)
    assert trio.current_time() - before <= 33
    assert (await client.trailers(publish))["grpc-status"] == "14"
    assert api.state.ended == ["Publish cancelled"]


async def test_shutdown_with_a_client_that_never_reads(api, connect, autojump_clock):
    client = await connect(api.port, settings={4: (1 << 31) - 1}, window=1 << 30)
    await client.call("Subscribe", api_pb2.SubscribeRequest(stream="flood frames").SerializeToString())
    await api.state.until(lambda state: state.running == 1)
    await api.server.shutdown(1)
    assert api.state.ended == ["Subscribe cancelled"]
    assert api.server.connections == 0


async def test_a_message_cut_off_by_shutdown_is_unavailable_to_a_real_client(api):
    """Half a message and then a status would be INTERNAL: the stream is reset instead."""
    async with grpcio(api.port) as client:
        stream = client.method("Subscribe")(api_pb2.SubscribeRequest(stream="flood frames"))
        await trio.to_thread.run_sync(next, stream)

        def drain():
            try:
                for _ in stream:
                    pass
            except grpc.RpcError as error:
                return error.code()

        async with trio.open_nursery() as ending:
            ending.start_soon(api.server.shutdown, 5)
            assert await trio.to_thread.run_sync(drain) is grpc.StatusCode.UNAVAILABLE
            client.channel.close()


async def test_grpcio_sees_unavailable(api):
    async with grpcio(api.port) as client:
        stream = client.method("Subscribe")(api_pb2.SubscribeRequest(stream="idle"))
        await trio.to_thread.run_sync(next, stream)
        async with trio.open_nursery() as ending:
            ending.start_soon(api.server.shutdown, 5)
            with pytest.raises(grpc.RpcError) as raised:
                await trio.to_thread.run_sync(next, stream)
            client.channel.close()
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "shutting down" in raised.value.details()


async def test_shutdown_before_serve_and_twice(nursery):
    server = RpcServer([Api().service])
    await server.shutdown(1)
    server, _ = await serve(nursery, Api())
    await server.shutdown(1)
    await server.shutdown(1)


async def test_methods_that_come_later(nursery, connect):
    """A server that is starting says to try again; the connections that it has then have the rest."""
    api = Api()
    server = RpcServer([HealthServicer().service], starting=True)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    await nursery.start(server.serve, [listener])
    client = await connect(listener.socket.getsockname()[1])
    early = await client.trailers(await client.call("Subscribe", SUBSCRIBE_IDLE))
    assert early["grpc-status"] == "14"
    assert "is starting" in early["grpc-message"]
    server.add([api.service])
    publish = await client.call("Publish", api_pb2.PublishRequest(stream="wait").SerializeToString())
    await api.state.until(lambda state: state.running == 1)
    api.state.release.set()
    assert (await client.trailers(publish))["grpc-status"] == "0"
    late = await client.trailers(await client.call("FetchCursor", b""))
    assert late["grpc-status"] == "12"
    with pytest.raises(ValueError, match="given twice"):
        server.add([api.service])


async def test_cancelling_serve_ends_everything(connect):
    api = Api()
    async with trio.open_nursery() as nursery:
        _, port = await serve(nursery, api)
        client = await connect(port)
        await client.call("Subscribe", SUBSCRIBE_IDLE)
        await api.state.until(lambda state: state.running == 1)
        nursery.cancel_scope.cancel()
    assert api.state.ended == ["Subscribe cancelled"]


async def test_client_going_away_keeps_its_calls(api, connect):
    client = await connect(api.port)
    publish = await client.call("Publish", api_pb2.PublishRequest(stream="wait").SerializeToString())
    await client.send(GoAwayFrame(0, last_stream_id=0))
    await api.state.until(lambda state: state.running == 1)
    api.state.release.set()
    assert (await client.trailers(publish))["grpc-status"] == "0"


async def test_idle_subscription_outlives_keepalive(api, autojump_clock):
    """Hours without a message: the client answers PINGs, and that is enough."""
    client = await RawClient.connect(api.port)
    await client.call("Subscribe", SUBSCRIBE_IDLE)
    await api.state.until(lambda state: state.running == 1)
    for _ in range(100):
        ping = await client.until(lambda frame: isinstance(frame, PingFrame))
        await client.send(PingFrame(0, opaque_data=ping.opaque_data, flags=["ACK"]))
    assert trio.current_time() > 100 * 59
    assert api.state.running == 1
    await client.stream.aclose()


async def test_client_that_does_not_answer_is_dropped(api, connect, autojump_clock):
    client = await connect(api.port)
    await client.call("Subscribe", SUBSCRIBE_IDLE)
    await api.state.until(lambda state: state.ended)
    assert api.state.ended == ["Subscribe cancelled"]
    assert trio.current_time() < 200


@pytest.mark.parametrize("sent", [b"", PREFACE[:10], PREFACE])
async def test_connection_without_preface_is_dropped(api, autojump_clock, sent):
    async with await trio.open_tcp_stream("127.0.0.1", api.port) as stream:
        await stream.send_all(sent)
        while await stream.receive_some():
            pass
        assert trio.current_time() < 30


CA = trustme.CA()
SERVER_CERTIFICATE = CA.issue_cert("127.0.0.1", "localhost")
CLIENT_CERTIFICATE = CA.issue_cert("client@example.org", common_name="ingest-1")


def tls_context(verify: ssl.VerifyMode = ssl.CERT_NONE) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    SERVER_CERTIFICATE.configure_cert(context)
    CA.configure_trust(context)
    context.verify_mode = verify
    return context


def root() -> bytes:
    return CA.cert_pem.bytes()


async def test_tls(nursery):
    api = Api()
    _, port = await serve(nursery, api, ssl_context=tls_context())
    async with grpcio(port, grpc.ssl_channel_credentials(root())) as client:
        assert (await client.publish()).correlationId == "c"
        stream = client.method("Subscribe")(api_pb2.SubscribeRequest(stream="frames"))
        assert await trio.to_thread.run_sync(lambda: len(list(stream))) == 10_000
    assert api.state.contexts[0].peer_certificate is None


async def test_client_certificate_reaches_the_handler(nursery):
    api = Api()
    _, port = await serve(nursery, api, ssl_context=tls_context(ssl.CERT_REQUIRED))
    credentials = grpc.ssl_channel_credentials(
        root(),
        CLIENT_CERTIFICATE.private_key_pem.bytes(),
        b"".join(pem.bytes() for pem in CLIENT_CERTIFICATE.cert_chain_pems),
    )
    async with grpcio(port, credentials) as client:
        assert (await client.publish()).correlationId == "c"
    subject = dict(pair[0] for pair in api.state.contexts[0].peer_certificate["subject"])
    assert subject["commonName"] == "ingest-1"


async def test_missing_client_certificate(nursery):
    api = Api()
    _, port = await serve(nursery, api, ssl_context=tls_context(ssl.CERT_REQUIRED))
    async with grpcio(port, grpc.ssl_channel_credentials(root())) as client:
        error = await client.publish(timeout=10)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert api.state.contexts == []


async def test_no_tls_handshake(nursery, autojump_clock):
    _, port = await serve(nursery, Api(), ssl_context=tls_context())
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        while await stream.receive_some():
            pass
        assert trio.current_time() < 30


async def test_plaintext_to_a_tls_port(nursery):
    _, port = await serve(nursery, Api(), ssl_context=tls_context())
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(PREFACE)
        try:
            while await stream.receive_some():
                pass
        except trio.BrokenResourceError:
            pass
    async with grpcio(port, grpc.ssl_channel_credentials(root())) as client:
        assert (await client.publish()).correlationId == "c"


async def test_tls_shutdown(nursery):
    api = Api()
    server, port = await serve(nursery, api, ssl_context=tls_context())
    async with grpcio(port, grpc.ssl_channel_credentials(root())) as client:
        stream = client.method("Subscribe")(api_pb2.SubscribeRequest(stream="idle"))
        await trio.to_thread.run_sync(next, stream)
        async with trio.open_nursery() as ending:
            ending.start_soon(server.shutdown, 5)
            with pytest.raises(grpc.RpcError) as raised:
                await trio.to_thread.run_sync(next, stream)
            client.channel.close()
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_limits_apply_to_tls(nursery, autojump_clock):
    limits = Limits(handshake_timeout=1, preface_timeout=1)
    _, port = await serve(nursery, Api(), limits=limits, ssl_context=tls_context())
    context = ssl.create_default_context()
    CA.configure_trust(context)
    context.set_alpn_protocols(["h2"])
    tcp = await trio.open_tcp_stream("127.0.0.1", port)
    async with trio.SSLStream(tcp, context, server_hostname="127.0.0.1", https_compatible=True) as stream:
        await stream.do_handshake()
        assert stream.selected_alpn_protocol() == "h2"
        while await stream.receive_some():
            pass
