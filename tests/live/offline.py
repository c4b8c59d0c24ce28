"""A server and its client without any network but the loopback: run by `test_offline.py` as a
process of its own, inside a network namespace. Prints one JSON object."""

import errno
import fcntl
import json
import socket
import struct
import sys
from pathlib import Path
from typing import Any

from tests.live.conftest import MODEL, LiveServer, launched, write_registry
from tests.live.knowledge import HELLO

LATER = "owner/later"
SET_FLAGS, IS_UP = 0x8914, 1
# An address that is reserved for documents: with any route the answer would be a time-out.
ELSEWHERE = ("192.0.2.1", 443)


def raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SET_FLAGS, struct.pack("16sH22x", b"lo", IS_UP))


def is_offline() -> bool:
    with socket.socket() as attempt:
        attempt.settimeout(5)
        return attempt.connect_ex(ELSEWHERE) == errno.ENETUNREACH


def asked(server: LiveServer) -> dict[str, Any]:
    """What a client is told, by the name of what it asked for."""
    counter = {"model": LATER, "messages": [{"role": "user", "content": HELLO}]}
    return {
        "chat": server.chat(HELLO, temperature=0).json(),
        "counter": server.client.post("/utils/token_counter", json=counter).json(),
        "later": server.chat(HELLO, model=LATER, temperature=0).json(),
        "documentation": server.client.get("/docs").status_code,
        "log": server.log.read_text(),
    }


def main(directory: Path) -> None:
    raise_loopback()
    rows = [{"id": MODEL}, {"id": LATER, "load": "on_demand"}]
    registry = write_registry(directory / "registry.yaml", rows)
    with launched(directory, "--registry", str(registry)) as server:
        json.dump({"offline": is_offline(), **asked(server)}, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
