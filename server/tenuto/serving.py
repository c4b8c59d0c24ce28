"""The serving process: one listener, and an end that loses no request."""

import asyncio
import logging
import os
import signal
import socket
import ssl
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from tenuto.api.services import Services
from tenuto.errors import ConfigError, TenutoError
from tenuto.reload import Reloader
from tenuto.slow_senders import timed_protocol

logger = logging.getLogger(__name__)
CLOSE_CONNECTIONS_S = 5
SAME_SIGNAL_S = 1
BACKLOG = 2048


@dataclass(frozen=True)
class Tls:
    """Files, PEM; read once, at the start."""

    certificate: Path
    key: Path


def tls_of(certificate: Path | None, key: Path | None) -> Tls | None:
    """Errors: `ConfigError` for one without the other, and for files that are not a pair."""
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise ConfigError("TLS wants both a certificate and its key: --tls-cert and --tls-key")
    try:
        # Never asks for a passphrase: nobody may be there.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:
        raise ConfigError(f"TLS with {certificate} and {key}: {error}") from None
    return Tls(certificate, key)


class Server(uvicorn.Server):
    """uvicorn closes its listener on the first signal; this one keeps answering 503 while the
    running requests finish, then closes. A second signal ends at once."""

    def __init__(
        self,
        app: FastAPI,
        services: Services,
        drain_s: float,
        reloader: Reloader | None = None,
        *,
        watch: bool = False,
        tls: Tls | None = None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=CLOSE_CONNECTIONS_S,
                http=timed_protocol(services.request_timeout_s, services.bounds.header_bytes),
                ssl_certfile=tls.certificate if tls is not None else None,
                ssl_keyfile=tls.key if tls is not None else None,
            )
        )
        self.failed = False
        self._signalled_s = 0.0
        self._services = services
        self._drain_s = drain_s
        self._reloader, self._watch = reloader, watch
        self._has_terminal = os.isatty(0)
        self._tasks: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._reloader is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._hang_up)
            if self._watch:
                self._begin(self._reloader.watch())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for task in self._tasks:
            task.cancel()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._services.gate.draining:
            # Supervisors such as timeout(1) signal the process and its group in one breath.
            if now - self._signalled_s > SAME_SIGNAL_S:
                self.should_exit = self.force_exit = True
            return
        self._signalled_s = now
        self._services.gate.draining = True
        logger.info("%s: draining, at most %g s", signal.Signals(sig).name, self._drain_s)
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(self._start_draining)

    def fail(self, error: TenutoError) -> None:
        logger.error("%s", error.message)
        self.failed = True
        self.should_exit = True

    def _hang_up(self) -> None:
        """A supervisor's wish to read the registry again, or the end of the user's terminal."""
        assert self._reloader is not None
        if self._has_terminal and not _has_terminal():
            self.handle_exit(signal.SIGTERM, None)
        else:
            self._begin(self._reloader.reload())

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _start_draining(self) -> None:
        self._begin(self._drain())

    async def _drain(self) -> None:
        if not await self._services.gate.drain(self._drain_s):
            logger.warning("requests still ran after %g s and are ended", self._drain_s)
        # Engines first: a stream that is cut this way ends with an error event.
        await self._services.pool.close(0)
        self.should_exit = True


def _has_terminal() -> bool:
    try:
        os.tcgetpgrp(0)
    except OSError:
        return False
    return True


def listen(host: str, port: int) -> socket.socket:
    """A bound socket that no child process inherits. Errors: `ConfigError`."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
        # Inherited by each connection: asyncio sets it only on sockets that name their protocol,
        # which this one does not, and Nagle costs 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot listen on {host} port {port}: {error}") from None
    return listener


def address(listener: socket.socket, *, is_tls: bool = False) -> str:
    host, port = listener.getsockname()[:2]
    scheme = "https" if is_tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
