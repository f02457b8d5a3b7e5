"""Two servers that say they are a cluster: what the client knows of clusters, before there are any.

Our server runs alone, so leaders that move and servers that refuse are played by grpcio servers, which are
given a stream of messages and a script. They keep to the API as the original speaks it: a server that does
not lead a partition answers FAILED_PRECONDITION, and who leads it is in the metadata.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from liftbridge.proto import api_pb2

STREAM = "s"


class Node:
    """A server of the cluster."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.name = name
        self._cluster = cluster
        self._server = grpc.server(ThreadPoolExecutor(8))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self.address = f"127.0.0.1:{self.port}"
        handlers = {
            "FetchMetadata": self._unary(self._metadata, api_pb2.FetchMetadataRequest),
            "FetchPartitionMetadata": self._unary(
                self._partition_metadata, api_pb2.FetchPartitionMetadataRequest
            ),
            "DeleteStream": self._unary(self._delete_stream, api_pb2.DeleteStreamRequest),
            "Subscribe": grpc.unary_stream_rpc_method_handler(
                self._subscribe, api_pb2.SubscribeRequest.FromString, _serialized
            ),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("proto.API", handlers),))
        self._server.start()

    @staticmethod
    def _unary(function: Callable[[Any, Any], Any], request: Any) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(function, request.FromString, _serialized)

    def stop(self) -> None:
        self._server.stop(None).wait()

    def _partition(self) -> api_pb2.PartitionMetadata:
        cluster = self._cluster
        return api_pb2.PartitionMetadata(
            id=0,
            leader=cluster.leader,
            replicas=sorted(cluster.nodes),
            isr=cluster.in_sync,
            highWatermark=cluster.messages - 1,
            newestOffset=cluster.messages - 1,
        )

    def _metadata(self, request: Any, context: Any) -> Any:
        return api_pb2.FetchMetadataResponse(
            brokers=[
                api_pb2.Broker(id=node.name, host="127.0.0.1", port=node.port)
                for node in self._cluster.nodes.values()
            ],
            streamMetadata=[
                api_pb2.StreamMetadata(name=STREAM, subject=STREAM, partitions={0: self._partition()})
            ],
        )

    def _note(self, method: str, context: Any) -> None:
        self._cluster.calls.append((self.name, method))
        code = self._cluster.refusals.get((self.name, method))
        if code is not None:
            context.abort(code, "the script says so")

    def _lead(self, context: Any) -> None:
        if self.name != self._cluster.leader:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "Server not partition leader")

    def _partition_metadata(self, request: Any, context: Any) -> Any:
        self._note("FetchPartitionMetadata", context)
        self._lead(context)
        return api_pb2.FetchPartitionMetadataResponse(metadata=self._partition())

    def _delete_stream(self, request: Any, context: Any) -> Any:
        self._note("DeleteStream", context)
        return api_pb2.DeleteStreamResponse()

    def _subscribe(self, request: Any, context: Any) -> Iterator[Any]:
        self._note("Subscribe", context)
        if not request.readISRReplica:
            self._lead(context)
        yield api_pb2.Message()
        stop = request.stopOffset if request.stopPosition == api_pb2.STOP_OFFSET else None
        if request.reverse:
            offsets = range(request.startOffset, -1 if stop is None else stop - 1, -1)
        else:
            offsets = range(request.startOffset, self._cluster.messages if stop is None else stop + 1)
        for offset in offsets:
            yield api_pb2.Message(offset=offset, stream=STREAM)
            if self._cluster.falls_after == offset:
                self._cluster.falls_after = None
                self._cluster.leader = self._cluster.next_leader
                context.abort(grpc.StatusCode.UNAVAILABLE, "the server is stopping")
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "end of the range")


class Cluster:
    """The servers "a" and "b" and one stream of ten messages.

    Attributes: `leader` of its partition; `in_sync`, its in-sync replicas; `falls_after`, the offset after
    which the leader breaks a subscription off and `next_leader` leads; `refusals`, the status that a call is
    answered with by server and method; `calls`, which were made, by server and method, apart from metadata.
    """

    def __init__(self) -> None:
        self.leader = self.next_leader = "a"
        self.in_sync = ["a", "b"]
        self.messages = 10
        self.falls_after: int | None = None
        self.refusals: dict[tuple[str, str], grpc.StatusCode] = {}
        self.calls: list[tuple[str, str]] = []
        self.nodes = {name: Node(self, name) for name in ("a", "b")}

    @property
    def addresses(self) -> list[str]:
        return [node.address for node in self.nodes.values()]

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes.values():
            node.stop()


def _serialized(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data
