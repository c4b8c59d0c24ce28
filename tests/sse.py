"""Server-sent events as a client reads them, and a client that can leave or stop reading."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from tests.conftest import MODEL

DONE = "[DONE]"


def events(text: str) -> list[Any]:
    """The payload of each event in order, JSON decoded; `[DONE]` as a string."""
    blocks = [block for block in text.split("\n\n") if block.startswith("data: ")]
    payloads = [block.removeprefix("data: ") for block in blocks]
    return [payload if payload == DONE else json.loads(payload) for payload in payloads]


def choices_of(stream: list[Any], index: int = 0) -> list[Any]:
    """The chunks of one choice, in order."""
    found = [c for event in stream if event != DONE for c in event.get("choices", [])]
    return [choice for choice in found if choice["index"] == index]


def request_bytes(path: str, body: dict[str, Any], *, cut: int = 0) -> bytes:
    """A whole POST; the last `cut` bytes of its body are left out."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content[: len(content) - cut]


def chat_body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], **fields}


@contextmanager
def connected(url: str, receive_buffer: int | None = None) -> Iterator[socket.socket]:
    """A connection of its own, closed at the end: the client that leaves."""
    address = urlsplit(url)
    with socket.socket() as client:
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.settimeout(10)
        client.connect((address.hostname, address.port))
        yield client


def read_until(client: socket.socket, mark: bytes) -> bytes:
    received = bytearray()
    while mark not in received[-(1 << 17) :]:
        chunk = client.recv(1 << 16)
        assert chunk, received[-200:]
        received += chunk
    return bytes(received)
