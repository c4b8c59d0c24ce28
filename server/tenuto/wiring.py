"""Puts the parts together for `tenuto serve`."""

from tenuto.access.keys import Keys
from tenuto.api.services import Services
from tenuto.app import build_app
from tenuto.engine.forkserver import EngineContext
from tenuto.engine.lazy import LazyVllm
from tenuto.models.pool import Pool
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
    pool = Pool(registry, backend)
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
