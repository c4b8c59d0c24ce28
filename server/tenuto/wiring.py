"""Puts the parts together for `tenuto serve`."""

import time
from pathlib import Path

from tenuto.access.guessing import Guesses
from tenuto.access.limits import Limiter
from tenuto.access.usage import Recorder
from tenuto.access.usage_queries import tokens_this_month
from tenuto.access.watching import KeyWatcher
from tenuto.api.readings import metrics_of
from tenuto.api.services import Services
from tenuto.app import build_app
from tenuto.engine.forkserver import EngineContext
from tenuto.engine.lazy import LazyVllm
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
    backend = LazyVllm(context, settings.cache_dir.expanduser(), settings.drain_s)
    pool = Pool(registry, backend, terms_of(settings))
    database = key_watcher.store.engine
    limiter = Limiter()
    limiter.spent_this_month(tokens_this_month(database, time.time()))
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
