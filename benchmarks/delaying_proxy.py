"""A TCP proxy that holds every byte for a while, in each direction, without making the connection narrower.

python benchmarks/delaying_proxy.py PORT TARGET_PORT SECONDS
"""

import asyncio
import sys

_BLOCK = 1 << 18
# Bytes on their way in one direction of a connection: 64 MiB, what a window of 3 GB/s at 20 ms holds.
_BLOCKS_ON_THE_WAY = 256


async def pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter, seconds: float) -> None:
    """Pass on what comes from a connection, each block after a while, and its end."""
    waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_BLOCKS_ON_THE_WAY)

    async def read() -> None:
        block = b"-"
        while block:
            block = await source.read(_BLOCK)
            await waiting.put((asyncio.get_running_loop().time() + seconds, block))

    reading = asyncio.create_task(read())
    try:
        while True:
            due, block = await waiting.get()
            await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
            if not block:
                target.write_eof()
                return
            target.write(block)
            await target.drain()
    except (ConnectionError, OSError):
        target.close()
    finally:
        reading.cancel()


async def serve(port: int, target: int, seconds: float) -> None:
    """Serve for ever."""

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", target, limit=_BLOCK)
        await asyncio.gather(pass_on(reader, there_writer, seconds), pass_on(there_reader, writer, seconds))
        for ended in (writer, there_writer):
            ended.close()

    async with await asyncio.start_server(connect, "127.0.0.1", port, limit=_BLOCK) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
