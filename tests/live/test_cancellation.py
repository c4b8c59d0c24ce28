"""A client that leaves ends its request in the engine, whatever it was waiting for."""

import fcntl
import json
import socket
import struct
import termios
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.live.conftest import MODEL, LiveServer

pytestmark = pytest.mark.live
GONE_S = 1.0
ENDLESS = {"model": MODEL, "prompt": "The", "max_tokens": 8000, "ignore_eos": True}


@contextmanager
def posted(
    live: LiveServer, body: dict[str, Any], receive_bytes: int = 0
) -> Iterator[socket.socket]:
    """A raw connection that has sent the request; leaving the block closes it at once."""
    address = urlsplit(live.url)
    with closing(socket.socket()) as client:
        if receive_bytes:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        client.connect((address.hostname, address.port))
        content = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n"
        client.sendall(head.encode() + content)
        wait_until(lambda: live.unfinished() > 0)
        yield client


def test_before_the_first_token(live: LiveServer) -> None:
    # Half the context in one prompt: its prefill takes long enough to leave in the middle of it.
    prompt = [list(range(10, 1000)) * 4] * 8
    with posted(live, ENDLESS | {"prompt": prompt, "stream": True, "cache_salt": "new"}) as client:
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(1)
    ended_in_time(live)


def test_in_the_middle_of_a_stream(live: LiveServer) -> None:
    with posted(live, ENDLESS | {"stream": True}) as client:
        received = b""
        while received.count(b"data: ") < 5:
            received += client.recv(4096)
    ended_in_time(live)


def test_while_the_reader_does_not_read(live: LiveServer) -> None:
    body = ENDLESS | {"stream": True, "n": 16, "logprobs": 20}
    with posted(live, body, receive_bytes=4096) as client:
        wait_until(lambda: is_full(client), timeout_s=20)
        assert live.unfinished() == 16
    ended_in_time(live)


@pytest.mark.parametrize(
    "fields", [{}, {"n": 2, "best_of": 4}, {"n": 2, "best_of": 4, "stream": True}]
)
def test_during_an_unstreamed_call(live: LiveServer, fields: dict[str, Any]) -> None:
    with posted(live, ENDLESS | fields):
        pass
    ended_in_time(live)


def test_a_cut_stream_leaves_others_alone(live: LiveServer) -> None:
    with posted(live, ENDLESS | {"stream": True}):
        alone = live.complete("The", max_tokens=50, temperature=0).json()
        with posted(live, ENDLESS | {"stream": True}):
            pass
        again = live.complete("The", max_tokens=50, temperature=0).json()
    assert alone["choices"] == again["choices"]
    ended_in_time(live)


def ended_in_time(live: LiveServer) -> None:
    """The front's count falls to 0 in time, and the engine's process then does nothing."""
    wait_until(lambda: live.unfinished() == 0, timeout_s=GONE_S)
    (pid,) = live.engine_pids()[:1]
    wait_until(lambda: cpu_ticks_in(pid, 0.1) == 0, timeout_s=GONE_S)


def is_full(client: socket.socket) -> bool:
    """Nothing more has arrived for a while, although nothing was read."""
    waiting = unread(client)
    time.sleep(0.3)
    return 0 < waiting == unread(client)


def unread(client: socket.socket) -> int:
    answer = fcntl.ioctl(client, termios.FIONREAD, b"\0" * 4)
    return int(struct.unpack("i", answer)[0])


def cpu_ticks_in(pid: int, seconds: float) -> int:
    before = cpu_ticks(pid)
    time.sleep(seconds)
    return cpu_ticks(pid) - before


def cpu_ticks(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def wait_until(holds: Any, timeout_s: float = 10) -> None:
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < timeout_s, f"not within {timeout_s} s"
        time.sleep(0.01)
