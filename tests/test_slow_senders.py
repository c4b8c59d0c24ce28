"""What a connection's transport writes, and when."""

import asyncio

from tenuto.slow_senders import OneWrite

HEAD, BODY = b"HTTP/1.1 200 OK\r\n\r\n", b"{}"


class Written(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__({"peername": "somebody"})
        self.writes: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes) -> None:  # type: ignore[override]
        assert not self.is_closed
        self.writes.append(data)

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed


async def test_a_head_goes_with_its_body() -> None:
    written = Written()
    transport = OneWrite(written, asyncio.get_running_loop())
    for _ in range(2):
        transport.write(HEAD)
        assert HEAD not in written.writes
        transport.write(BODY)
    await asyncio.sleep(0)
    transport.write(BODY)
    assert written.writes == [HEAD + BODY, HEAD + BODY, BODY]


async def test_a_head_does_not_wait_for_a_body_that_is_late() -> None:
    written = Written()
    transport = OneWrite(written, asyncio.get_running_loop())
    transport.write(HEAD)
    await asyncio.sleep(0)
    assert written.writes == [HEAD]
    transport.write(BODY)
    assert written.writes == [HEAD, BODY]


async def test_a_head_without_a_client_goes_nowhere() -> None:
    written = Written()
    transport = OneWrite(written, asyncio.get_running_loop())
    transport.write(HEAD)
    written.close()
    await asyncio.sleep(0)
    assert written.writes == []


async def test_a_head_goes_before_the_end() -> None:
    written = Written()
    transport = OneWrite(written, asyncio.get_running_loop())
    transport.write(HEAD)
    transport.close()
    await asyncio.sleep(0)
    assert written.writes == [HEAD]
    assert written.is_closed


async def test_all_else_is_the_transports() -> None:
    transport = OneWrite(Written(), asyncio.get_running_loop())
    assert transport.get_extra_info("peername") == "somebody"
