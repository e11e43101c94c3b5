"""A proxy before several servers."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class RoundRobin:
    """Hands each connection to the next of some servers on this machine. handed: how many each was given, by port."""

    def __init__(self, ports: Sequence[int]) -> None:
        self.handed = Counter(dict.fromkeys(ports, 0))

    async def serve(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        """Carry one connection, until either side ends it."""
        port = min(self.handed, key=lambda port: self.handed[port])
        self.handed[port] += 1
        server, request = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_carry(client, request), _carry(server, answer))


async def _carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while part := await source.read(65536):
            sink.write(part)
            await sink.drain()
    except ConnectionError:
        pass
    finally:
        sink.close()


async def _end() -> None:
    """Break off the connections that are open."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def round_robin(*ports: int) -> Iterator[tuple[str, RoundRobin]]:
    """The address of a proxy before the servers at some ports, and what it hands out."""
    loop, proxy = asyncio.new_event_loop(), RoundRobin(ports)
    listening = loop.run_until_complete(asyncio.start_server(proxy.serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", proxy
    finally:
        asyncio.run_coroutine_threadsafe(_end(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        listening.close()
        loop.close()
