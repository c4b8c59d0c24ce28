"""Puts the parts together for `tenuto serve`."""

from tenuto.access.keys import Keys
from tenuto.api.services import Services
from tenuto.app import build_app
from tenuto.engine.forkserver import EngineContext
from tenuto.engine.lazy import LazyVllm
from tenuto.models.devices import devices_of, installed_devices, sleep_bytes_of
from tenuto.models.planner import Host
from tenuto.models.pool import Pool, Terms
from tenuto.models.registry import Registry
from tenuto.models.room import GpuRoom, Room
from tenuto.observe.metrics import Metrics
from tenuto.serving import Server
from tenuto.settings import Settings


def server_of(
    settings: Settings,
    registry: Registry,
    keys: Keys,
    eager: tuple[str, ...],
    context: EngineContext,
) -> Server:
    backend = LazyVllm(context, settings.cache_dir.expanduser(), settings.drain_s)
    pool = Pool(registry, backend, terms_of(settings))
    services = Services(
        registry=registry,
        pool=pool,
        keys=keys,
        metrics=Metrics(pool.unfinished),
        bounds=settings.bounds,
        eager=eager,
        strict_params=settings.strict_params,
        keep_alive_s=settings.keep_alive_s,
    )
    app = build_app(services, settings.cors_origins, on_failure=lambda error: server.fail(error))
    server = Server(app, services, settings.drain_s)
    return server


def terms_of(settings: Settings) -> Terms:
    return Terms(
        room=room_of(settings),
        turn_s=settings.turn_s,
        max_wait_s=settings.max_wait_s,
        max_waiting=settings.max_waiting,
    )


def room_of(settings: Settings) -> Room:
    """Without a GPU, and without one named, memory sets no limit. Errors: `ConfigError`."""
    installed = installed_devices()
    named = settings.gpus and devices_of(settings.gpus.split(","), "setting gpus")
    devices = named or installed
    if not devices:
        return Room()
    sleep_bytes = sleep_bytes_of(settings.host_memory, "setting host_memory")
    return GpuRoom(Host(devices, sleep_bytes), rehearsal=not installed)
