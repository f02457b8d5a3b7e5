import purerpc
import liftbridge.proto.api_pb2 as liftbridge_dot_proto_dot_api__pb2


class APIServicer(purerpc.Servicer):
    async def CreateStream(self, input_message):
        raise NotImplementedError()

    async def DeleteStream(self, input_message):
        raise NotImplementedError()

    async def PauseStream(self, input_message):
        raise NotImplementedError()

    async def SetStreamReadonly(self, input_message):
        raise NotImplementedError()

    async def Subscribe(self, input_message):
        raise NotImplementedError()

    async def FetchMetadata(self, input_message):
        raise NotImplementedError()

    async def FetchPartitionMetadata(self, input_message):
        raise NotImplementedError()

    async def Publish(self, input_message):
        raise NotImplementedError()

    async def PublishAsync(self, input_messages):
        raise NotImplementedError()

    async def PublishToSubject(self, input_message):
        raise NotImplementedError()

    async def SetCursor(self, input_message):
        raise NotImplementedError()

    async def FetchCursor(self, input_message):
        raise NotImplementedError()

    async def JoinConsumerGroup(self, input_message):
        raise NotImplementedError()

    async def LeaveConsumerGroup(self, input_message):
        raise NotImplementedError()

    async def FetchConsumerGroupAssignments(self, input_message):
        raise NotImplementedError()

    async def ReportConsumerGroupCoordinator(self, input_message):
        raise NotImplementedError()

    @property
    def service(self) -> purerpc.Service:
        service_obj = purerpc.Service(
            "proto.API"
        )
        service_obj.add_method(
            "CreateStream",
            self.CreateStream,
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                liftbridge_dot_proto_dot_api__pb2.CreateStreamRequest,
                liftbridge_dot_proto_dot_api__pb2.CreateStreamResponse,
            )
        )
        service_obj.add_method(
            "DeleteStream",
            self.DeleteStream,
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                liftbridge_dot_proto_dot_api__pb2.DeleteStreamRequest,
                liftbridge_dot_proto_dot_api__pb2.DeleteStreamResponse,
            )
        )
        service_obj.add_method(
            "PauseStream",
            self.PauseStream,
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                liftbridge_dot_proto_dot_api__pb2.PauseStreamRequest,
                liftbridge_dot_proto_dot_api__pb2.PauseStreamResponse,
            )
        )
        service_obj.add_method(
            "SetStreamReadonly",
            self.SetStreamReadonly,
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                liftbridge_dot_proto_dot_api__pb2.SetStreamReadonlyRequest,
                liftbridge_dot_proto_dot_api__pb2.SetStreamReadonlyResponse,
            )
        )
        service_obj.add_method(
            "Subscribe",
            self.Subscribe,
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_STREAM,
                liftbridge_dot_proto_dot_api__pb2.SubscribeRequest,
                liftbridge_dot_proto_dot_api__pb2.Message,
            )
        )
        service_obj.add_method(
            "FetchMetadata",
            self.FetchMetadata,
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                liftbridge_dot_proto_dot_api__pb2.FetchMetadataRequest,
                liftbridge_dot_proto_dot_api__pb2.FetchMetadataResponse,
            )
        )
        service_obj.add_method(
            "FetchPartitionMetadata",
            self.FetchPartitionMetadata,
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                liftbridge_dot_proto_dot_api__pb2.FetchPartitionMetadataRequest,
                liftbridge_dot_proto_dot_api__pb2.FetchPartitionMetadataResponse,
            )
        )
        service_obj.add_method(
            "Publish",
            self.Publish,
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                liftbridge_dot_proto_dot_api__pb2.PublishRequest,
                liftbridge_dot_proto_dot_api__pb2.PublishResponse,
            )
        )
        service_obj.add_method(
            "PublishAsync",
            self.PublishAsync,
            purerpc.RPCSignature(
                purerpc.Cardinality.STREAM_STREAM,
                liftbridge_dot_proto_dot_api__pb2.PublishRequest,
                liftbridge_dot_proto_dot_api__pb2.PublishResponse,
            )
        )
        service_obj.add_method(
            "PublishToSubject",
            self.PublishToSubject,
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                liftbridge_dot_proto_dot_api__pb2.PublishToSubjectRequest,
                liftbridge_dot_proto_dot_api__pb2.PublishToSubjectResponse,
            )
        )
        service_obj.add_method(
            "SetCursor",
            self.SetCursor,
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                liftbridge_dot_proto_dot_api__pb2.SetCursorRequest,
                liftbridge_dot_proto_dot_api__pb2.SetCursorResponse,
            )
        )
        service_obj.add_method(
            "FetchCursor",
            self.FetchCursor,
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                liftbridge_dot_proto_dot_api__pb2.FetchCursorRequest,
                liftbridge_dot_proto_dot_api__pb2.FetchCursorResponse,
            )
        )
        service_obj.add_method(
            "JoinConsumerGroup",
            self.JoinConsumerGroup,
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                liftbridge_dot_proto_dot_api__pb2.JoinConsumerGroupRequest,
                liftbridge_dot_proto_dot_api__pb2.JoinConsumerGroupResponse,
            )
        )
        service_obj.add_method(
            "LeaveConsumerGroup",
            self.LeaveConsumerGroup,
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                liftbridge_dot_proto_dot_api__pb2.LeaveConsumerGroupRequest,
                liftbridge_dot_proto_dot_api__pb2.LeaveConsumerGroupResponse,
            )
        )
        service_obj.add_method(
            "FetchConsumerGroupAssignments",
            self.FetchConsumerGroupAssignments,
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                liftbridge_dot_proto_dot_api__pb2.FetchConsumerGroupAssignmentsRequest,
                liftbridge_dot_proto_dot_api__pb2.FetchConsumerGroupAssignmentsResponse,
            )
        )
        service_obj.add_method(
            "ReportConsumerGroupCoordinator",
            self.ReportConsumerGroupCoordinator,
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                liftbridge_dot_proto_dot_api__pb2.ReportConsumerGroupCoordinatorRequest,
                liftbridge_dot_proto_dot_api__pb2.ReportConsumerGroupCoordinatorResponse,
            )
        )
        return service_obj


class APIStub:
    def __init__(self, channel):
        self._client = purerpc.Client(
            "proto.API",
            channel
        )
        self.CreateStream = self._client.get_method_stub(
            "CreateStream",
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                liftbridge_dot_proto_dot_api__pb2.CreateStreamRequest,
                liftbridge_dot_proto_dot_api__pb2.CreateStreamResponse,
            )
        )
        self.DeleteStream = self._client.get_method_stub(
            "DeleteStream",
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                liftbridge_dot_proto_dot_api__pb2.DeleteStreamRequest,
                liftbridge_dot_proto_dot_api__pb2.DeleteStreamResponse,
            )
        )
        self.PauseStream = self._client.get_method_stub(
            "PauseStream",
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                liftbridge_dot_proto_dot_api__pb2.PauseStreamRequest,
                liftbridge_dot_proto_dot_api__pb2.PauseStreamResponse,
            )
        )
        self.SetStreamReadonly = self._client.get_method_stub(
            "SetStreamReadonly",
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                liftbridge_dot_proto_dot_api__pb2.SetStreamReadonlyRequest,
                liftbridge_dot_proto_dot_api__pb2.SetStreamReadonlyResponse,
            )
        )
        self.Subscribe = self._client.get_method_stub(
            "Subscribe",
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_STREAM,
                liftbridge_dot_proto_dot_api__pb2.SubscribeRequest,
                liftbridge_dot_proto_dot_api__pb2.Message,
            )
        )
        self.FetchMetadata = self._client.get_method_stub(
            "FetchMetadata",
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                liftbridge_dot_proto_dot_api__pb2.FetchMetadataRequest,
                liftbridge_dot_proto_dot_api__pb2.FetchMetadataResponse,
            )
        )
        self.FetchPartitionMetadata = self._client.get_method_stub(
            "FetchPartitionMetadata",
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                liftbridge_dot_proto_dot_api__pb2.FetchPartitionMetadataRequest,
                liftbridge_dot_proto_dot_api__pb2.FetchPartitionMetadataResponse,
            )
        )
        self.Publish = self._client.get_method_stub(
            "Publish",
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                liftbridge_dot_proto_dot_api__pb2.PublishRequest,
                liftbridge_dot_proto_dot_api__pb2.PublishResponse,
            )
        )
        self.PublishAsync = self._client.get_method_stub(
            "PublishAsync",
            purerpc.RPCSignature(
                purerpc.Cardinality.STREAM_STREAM,
                liftbridge_dot_proto_dot_api__pb2.PublishRequest,
                liftbridge_dot_proto_dot_api__pb2.PublishResponse,
            )
        )
        self.PublishToSubject = self._client.get_method_stub(
            "PublishToSubject",
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                liftbridge_dot_proto_dot_api__pb2.PublishToSubjectRequest,
                liftbridge_dot_proto_dot_api__pb2.PublishToSubjectResponse,
            )
        )
        self.SetCursor = self._client.get_method_stub(
            "SetCursor",
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                liftbridge_dot_proto_dot_api__pb2.SetCursorRequest,
                liftbridge_dot_proto_dot_api__pb2.SetCursorResponse,
            )
        )
        self.FetchCursor = self._client.get_method_stub(
            "FetchCursor",
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                liftbridge_dot_proto_dot_api__pb2.FetchCursorRequest,
                liftbridge_dot_proto_dot_api__pb2.FetchCursorResponse,
            )
        )
        self.JoinConsumerGroup = self._client.get_method_stub(
            "JoinConsumerGroup",
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                liftbridge_dot_proto_dot_api__pb2.JoinConsumerGroupRequest,
                liftbridge_dot_proto_dot_api__pb2.JoinConsumerGroupResponse,
            )
        )
        self.LeaveConsumerGroup = self._client.get_method_stub(
            "LeaveConsumerGroup",
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                liftbridge_dot_proto_dot_api__pb2.LeaveConsumerGroupRequest,
                liftbridge_dot_proto_dot_api__pb2.LeaveConsumerGroupResponse,
            )
        )
        self.FetchConsumerGroupAssignments = self._client.get_method_stub(
            "FetchConsumerGroupAssignments",
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                liftbridge_dot_proto_dot_api__pb2.FetchConsumerGroupAssignmentsRequest,
                liftbridge_dot_proto_dot_api__pb2.FetchConsumerGroupAssignmentsResponse,
            )
        )
        self.ReportConsumerGroupCoordinator = self._client.get_method_stub(
            "ReportConsumerGroupCoordinator",
            purerpc.RPCSignature(
                purerpc.Cardinality.UNARY_UNARY,
                liftbridge_dot_proto_dot_api__pb2.ReportConsumerGroupCoordinatorRequest,
                liftbridge_dot_proto_dot_api__pb2.ReportConsumerGroupCoordinatorResponse,
            )
        )