"""A real uvicorn in a thread, over the scripted engine: what the fast tests talk to."""

import asyncio
import json
import ssl
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import yaml
from starlette.types import ASGIApp

from tenuto.access.guessing import Guesses
from tenuto.access.keys import Keys
from tenuto.access.limits import Limiter
from tenuto.access.usage import Recorder
from tenuto.api.readings import metrics_of
from tenuto.api.services import Services
from tenuto.app import build_app
from tenuto.cli.serve import with_stored
from tenuto.engine.fake import FakeBackend, FakeEngine
from tenuto.models.base import Models
from tenuto.models.pool import Pool, Terms
from tenuto.models.registry import Registry, load_registry
from tenuto.serving import Server, Tls, address, listen
from tenuto.wire.bounds import Bounds

# A fixture must be a name of this module.
from tests.databases.services import postgres as postgres
from tests.databases.services import redis_server as redis_server
from tests.databases.services import redis_url as redis_url
from tests.deploy.conftest import installed as installed

T = TypeVar("T")
MODEL = "demo"


@pytest.fixture(scope="session", autouse=True)
def _state_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test meets the keys of whoever runs it; theirs are shut out of each other's servers."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TENUTO_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        yield


def unfinished(pool: Models) -> dict[str, int]:
    """Requests in each loaded engine."""
    engines = {name: slot.engine for name, slot in pool.slots.items() if slot.engine is not None}
    return {name: engine.stats().unfinished_requests for name, engine in engines.items()}


@dataclass(repr=False)
class Running:
    """A server under test. `call` runs something in its event loop."""

    url: str
    services: Services
    backend: FakeBackend
    loop: asyncio.AbstractEventLoop
    client: httpx.Client
    process: Server
    thread: threading.Thread

    def engine(self, model: str = MODEL) -> FakeEngine:
        """The model's engine, once it is loaded."""
        for _ in range(1000):
            if model in self.backend.engines:
                break
            self.call(lambda: None)
        return self.backend.engines[model]

    def engine_after(self, lost: FakeEngine, model: str = MODEL) -> FakeEngine:
        """The one that was started in its place."""
        for _ in range(5000):
            if self.engine(model) is not lost:
                break
            self.call(lambda: None)
        assert self.engine(model) is not lost
        return self.engine(model)

    def left(self) -> None:
        """Lets no request in any more; every one has gone, and nothing of it stays behind."""
        assert self.call(lambda: self.services.gate.drain(5))
        assert all(slot.leases == 0 for slot in self.services.pool.slots.values())
        assert set(unfinished(self.services.pool).values()) <= {0}

    def call(self, work: Callable[[], Any]) -> Any:
        async def run() -> Any:
            result = work()
            return await result if asyncio.iscoroutine(result) else result

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(timeout=10)

    def until(self, condition: Callable[[], bool]) -> None:
        """Looks in the event loop, whose turns the condition waits for."""
        began = time.monotonic()
        while not self.call(condition):
            assert time.monotonic() - began < 10, "it did not come to that"

    def wait(self, event: asyncio.Event) -> None:
        async def waited() -> None:
            async with asyncio.timeout(5):
                await event.wait()

        self.call(waited)

    def wait_ended(self, timeout_s: float = 10) -> None:
        self.thread.join(timeout_s)
        assert not self.thread.is_alive(), self._where()

    def _where(self) -> str:
        """What a server does that should have ended."""
        assert self.thread.ident is not None
        frames = traceback.format_stack(sys._current_frames()[self.thread.ident])
        tasks = map(repr, asyncio.all_tasks(self.loop))
        connections = map(repr, self.process.server_state.connections)
        return "\n".join((*frames, *tasks, *connections))

    def chat(self, content: str = "Hi", **fields: Any) -> httpx.Response:
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}], **fields}
        return self.client.post("/v1/chat/completions", json=body)

    def complete(self, prompt: Any = "Hi", **fields: Any) -> httpx.Response:
        body = {"model": MODEL, "prompt": prompt, **fields}
        return self.client.post("/v1/completions", json=body)


@dataclass
class Setup:
    """What a test may choose of its server."""

    models: list[dict[str, Any]] = field(default_factory=lambda: [{"id": MODEL}])
    eager: tuple[str, ...] = (MODEL,)
    backend: FakeBackend = field(default_factory=FakeBackend)
    keys: Keys = field(default_factory=Keys)
    bounds: Bounds = field(default_factory=Bounds)
    cors_origins: list[str] = field(default_factory=list)
    strict_params: bool = False
    keep_alive_s: float = 15
    drain_s: float = 5
    terms: Terms = field(default_factory=Terms)
    services: dict[str, Any] = field(default_factory=dict)
    state_dir: Path | None = None
    database_url: str | None = None
    tls: Tls | None = None
    wrap: Callable[[ASGIApp], ASGIApp] = lambda app: app


def make_checkpoint(directory: Path) -> Path:
    """A directory that the registry takes for a checkpoint."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text("{}")
    return directory


def make_adapter(directory: Path, rank: int = 8) -> Path:
    """A directory that the registry takes for a LoRA."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps({"r": rank}))
    (directory / "adapter_model.safetensors").touch()
    return directory


def make_registry(directory: Path, models: list[dict[str, Any]]) -> Registry:
    """A registry whose models lie in `directory`, unless they name their source."""
    make_checkpoint(directory / "checkpoint")
    rows = [{"source": "./checkpoint", **model} for model in models]
    path = directory / "registry.yaml"
    path.write_text(yaml.safe_dump({"models": rows}))
    return load_registry(path)


@contextmanager
def served(directory: Path, setup: Setup) -> Iterator[Running]:
    """The server, its models loaded, on a free port of the loopback interface."""
    started: Future[tuple[Server, Services, asyncio.AbstractEventLoop]] = Future()
    listener = listen("127.0.0.1", 0)
    state_dir, url = setup.state_dir, setup.database_url
    watcher = with_stored(setup.keys, state_dir, url) if state_dir else None

    async def serve() -> None:
        registry = make_registry(directory, setup.models)
        pool = Pool(registry, setup.backend, setup.terms)
        limiter = setup.services.get("limiter") or Limiter()
        guesses = setup.services.get("guesses") or Guesses()
        services = Services(
            registry=registry,
            pool=pool,
            keys=setup.keys,
            metrics=metrics_of(pool, limiter, guesses),
            bounds=setup.bounds,
            eager=setup.eager,
            strict_params=setup.strict_params,
            keep_alive_s=setup.keep_alive_s,
            key_watcher=watcher,
            recorder=Recorder(watcher.store.engine) if watcher is not None else None,
            **{"limiter": limiter, "guesses": guesses, **setup.services},
        )
        # The server asks no more of its app than uvicorn does.
        app: Any = setup.wrap(build_app(services, setup.cors_origins))
        server = Server(app, services, setup.drain_s, tls=setup.tls)
        started.set_result((server, services, asyncio.get_running_loop()))
        await server.serve(sockets=[listener])

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    server, services, loop = started.result(timeout=10)
    url = address(listener, is_tls=setup.tls is not None)
    trusted: Any = ssl.create_default_context(cafile=setup.tls.certificate) if setup.tls else True
    with httpx.Client(base_url=url, timeout=10, verify=trusted) as client:
        running = Running(url, services, setup.backend, loop, client, server, thread)
        yield running
    server.should_exit = True
    # Whatever the other processes do to this machine meanwhile.
    running.wait_ended(30)
    if watcher is not None:
        # Its last look has a connection, which must not outlive the pool.
        watcher._thread.shutdown()
        watcher.store.engine.dispose()


Serve = Callable[..., Running]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts servers that end with the test: `serve(keys=…, bounds=…)`, the fields of `Setup`."""
    with ExitStack() as stack:

        def start(**fields: Any) -> Running:
            return stack.enter_context(served(tmp_path, Setup(**fields)))

        yield start


@pytest.fixture
def quick_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenuto.models.transitions.FIRST_BACK_OFF_S", 0.001)


@pytest.fixture
def no_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenuto.models.transitions.FIRST_BACK_OFF_S", 600)


@pytest.fixture
def own(serve: Serve) -> Running:
    """A server for this test alone."""
    return serve()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server for all tests that only ask."""
    with served(tmp_path_factory.mktemp("server"), Setup()) as running:
        running.engine()
        yield running
