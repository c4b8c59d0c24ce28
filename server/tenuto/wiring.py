"""Puts the parts together for `tenuto serve`."""

from dataclasses import replace

from tenuto.access.keys import Keys
from tenuto.api.services import Services
from tenuto.app import build_app
from tenuto.engine.forkserver import EngineContext
from tenuto.engine.lazy import LazyVllm
from tenuto.models.devices import devices_of, installed_devices, room_on
from tenuto.models.pool import Pool, Terms
from tenuto.models.registry import Registry
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
    pool = Pool(registry, backend, terms_of(settings, registry))
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


def terms_of(settings: Settings, registry: Registry) -> Terms:
    """Without a GPU, and without one named, memory sets no limit."""
    named = settings.gpus and devices_of(settings.gpus.split(","), "setting gpus")
    devices = named or installed_devices()
    terms = Terms(
        turn_s=settings.turn_s, max_wait_s=settings.max_wait_s, max_waiting=settings.max_waiting
    )
    return replace(terms, fits=room_on(devices, registry.present())) if devices else terms
