"""A program that uses gufo-liftbridge's test helper. Run as a process of its own, never imported by tests.

Arguments: the server program, and the host:port it is to listen on. Prints the value it read back.
"""

import asyncio
import sys

from gufo.liftbridge.client import LiftbridgeClient
from gufo.liftbridge.liftbridge import Liftbridge
from gufo.liftbridge.types import StartPosition


async def use(address: str) -> bytes:
    """Write messages, and read from the place that a cursor keeps."""
    async with LiftbridgeClient([address]) as client:
        await client.create_stream("helped", wait_for_stream=True)
        await client.publish(b"read before", stream="helped")
        await client.publish(b"through the helper", stream="helped")
        # The configuration of the helper has cursors, in one partition.
        await client.wait_for_cursors()
        assert await client.get_cursor("helped", 0, "position") == -1
        await client.set_cursor("helped", 0, "position", 0)
        assert await client.get_cursor("helped", 0, "position") == 1
        async for message in client.subscribe(
            "helped", start_position=StartPosition.RESUME, cursor_id="position"
        ):
            return message.value
    raise AssertionError("the subscription ended")


with Liftbridge(sys.argv[1], sys.argv[2]) as helper:
    print(asyncio.run(asyncio.wait_for(use(helper.broker), 30)))
