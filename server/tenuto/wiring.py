"""Puts the parts together for `tenuto serve`."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from tenuto.access.guessing import Guesses
from tenuto.access.limits import Limiter
from tenuto.access.shared_limits import SharedLimiter
from tenuto.access.usage import Recorder
from tenuto.access.usage_queries import tokens_this_month
from tenuto.access.watching import KeyWatcher
from tenuto.api.readings import metrics_of
from tenuto.api.services import Services
from tenuto.app import build_app
from tenuto.engine.base import Backend
from tenuto.engine.forkserver import EngineContext, SetUpLogs, prepare_environment
from tenuto.engine.lazy import LazyVllm
from tenuto.models.base import Models
from tenuto.models.cluster_pool import ClusterPool
from tenuto.models.devices import devices_of, installed_devices, sleep_bytes_of
from tenuto.models.planner import Host
from tenuto.models.pool import Pool, Terms
from tenuto.models.registry import Registry, chosen_models
from tenuto.models.room import GpuRoom, Room
from tenuto.reload import Reloader
from tenuto.serving import Server, Tls
from tenuto.settings import Settings


def server_of(
    settings: Settings,
    path: Path,
    registry: Registry,
    key_watcher: KeyWatcher,
    eager: tuple[str, ...],
    context: EngineContext,
    tls: Tls | None,
) -> Server:
    pool = models_of(settings, registry, context)
    database = key_watcher.store.engine
    limiter = limiter_of(settings, lambda: tokens_this_month(database, time.time()))
    guesses = Guesses()
    services = Services(
        registry=registry,
        pool=pool,
        keys=key_watcher.keys,
        metrics=metrics_of(pool, limiter, guesses),
        guesses=guesses,
        bounds=settings.bounds,
        eager=eager,
        strict_params=settings.strict_params,
        share_prefix_cache=settings.share_prefix_cache,
        admin_remote=settings.admin_remote,
        slow_s=settings.slow_s,
        state_dir=settings.state_dir.expanduser(),
        request_timeout_s=settings.request_timeout_s,
        keep_alive_s=settings.keep_alive_s,
        key_watcher=key_watcher,
        limiter=limiter,
        recorder=Recorder(database, retention_days=settings.usage_days),
    )
    app = build_app(services, settings.cors_origins, on_failure=lambda error: server.fail(error))
    reloader = Reloader(path, registry, pool, lambda found: chosen_models(found, settings.models))
    server = Server(app, services, settings.drain_s, reloader, watch=settings.watch, tls=tls)
    return server


def models_of(settings: Settings, registry: Registry, context: EngineContext) -> Models:
    cache_dir = settings.cache_dir.expanduser()
    backend = LazyVllm(context, cache_dir, settings.drain_s)
    if settings.cluster is None:
        return Pool(registry, backend, terms_of(settings))
    # Imported late: only a cluster needs Ray.
    from tenuto.engine.ray import RayCluster

    make_backend = partial(replica_backend, cache_dir, settings.drain_s, context.set_up_logs)
    cluster = RayCluster(make_backend, settings.max_wait_s, settings.max_waiting)
    return ClusterPool(registry, backend, cluster, settings.max_wait_s)


def replica_backend(cache_dir: Path, drain_s: float, set_up_logs: SetUpLogs) -> Backend:
    """Called in a replica's process."""
    set_up_logs(None)
    prepare_environment()
    context = EngineContext(set_up_logs)
    context.start_server()
    return LazyVllm(context, cache_dir, drain_s)


def limiter_of(settings: Settings, written: Callable[[], Mapping[str, int]]) -> Limiter:
    """`written`: as `SharedLimiter` wants it. Errors: `ConfigError`."""
    url = settings.redis_url
    limiter = Limiter() if url is None else SharedLimiter(url, written)
    limiter.spent_this_month(written())
    return limiter


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
