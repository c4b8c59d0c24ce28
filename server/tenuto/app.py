"""The application: middleware, routes and lifespan, visible in one screen."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from tenuto.api.admin import AdminRoutes
from tenuto.api.admin_keys import KeyRoutes
from tenuto.api.admin_usage import UsageRoutes
from tenuto.api.edge import Edge, error_response
from tenuto.api.embed import EmbeddingRoutes
from tenuto.api.generate import GenerationRoutes
from tenuto.api.health import HealthRoutes
from tenuto.api.models import ModelRoutes
from tenuto.api.openapi import REQUESTS, answers, body_of, describe
from tenuto.api.page import FILES, PREFIX, page
from tenuto.api.readings import readings
from tenuto.api.services import Services
from tenuto.api.status import StatusRoutes
from tenuto.api.tokens import TokenRoutes
from tenuto.errors import ApiError, MethodNotAllowed, NotFound, TenutoError

logger = logging.getLogger(__name__)
LIMIT_HEADERS = [
    f"x-ratelimit-{what}-{of}"
    for what in ("limit", "remaining", "reset")
    for of in ("requests", "tokens")
]
Handler = Callable[[Request], Awaitable[Response]]
Failed = Callable[[TenutoError], None]


def build_app(
    services: Services, cors_origins: list[str] | None = None, on_failure: Failed | None = None
) -> FastAPI:
    """`on_failure` hears of an eager model that did not load."""
    app: FastAPI = FastAPIOffline(
        docs_url="/docs",
        redoc_url=None,
        static_url="/static/docs",
        title="Tenuto",
        description="The hosted TotalGPT/Infermatic API on one's own GPUs.",
        lifespan=_lifespan(services, on_failure or _log_failure),
    )
    app.add_exception_handler(ApiError, _render)
    app.add_exception_handler(HTTPException, _render_http)
    _add_routes(app, services)
    describe(app, services.bounds)
    # In place of Starlette's own order: its outermost layer would handle each piece of a stream.
    app.middleware_stack = Edge(app.build_middleware_stack(), services, _fixed_routes(app))
    if cors_origins:
        app.middleware_stack = _allowing(cors_origins, app.middleware_stack)
    return app


def _add_routes(app: FastAPI, services: Services) -> None:
    """Fixed routes first: a model's id may hold `/`, and the model in the path wins."""
    generation, tokens = GenerationRoutes(services), TokenRoutes(services)
    models, health = ModelRoutes(services), HealthRoutes(services)
    admin, keys = AdminRoutes(services), KeyRoutes(services)
    app.add_api_route("/", page, response_model=None, include_in_schema=False)
    app.mount(PREFIX, FILES)
    _add(app, "GET", "/health", health.health)
    _add(app, "GET", "/health/liveliness", health.liveliness)
    _add(app, "GET", "/health/readiness", health.readiness)
    _add(app, "GET", "/metrics", health.metrics)
    status = StatusRoutes(services)
    _add(app, "GET", "/status", status.status)
    _add(app, "GET", "/admin/conformance", status.conformance)
    _add(app, "GET", "/admin/models", admin.models)
    for action in (admin.load, admin.sleep, admin.unload):
        _add(app, "POST", f"/admin/models/{{name:path}}/{action.__name__}", action)
    _add(app, "GET", "/admin/keys", keys.keys)
    _add(app, "POST", "/admin/keys", keys.create, "NewKey")
    _add(app, "GET", "/admin/keys/{name}", keys.key)
    _add(app, "POST", "/admin/keys/{name}/rotate", keys.rotate)
    _add(app, "DELETE", "/admin/keys/{name}", keys.revoke)
    if services.key_watcher is not None:
        _add(app, "GET", "/admin/usage", UsageRoutes(services.key_watcher.store.engine).usage)
    _add(app, "POST", "/utils/token_counter", tokens.token_counter, "CounterRequest")
    _add(app, "POST", "/tokenize", tokens.tokenize, "TokenizeRequest")
    _add(app, "POST", "/detokenize", tokens.detokenize, "DetokenizeRequest")
    for prefix in ("/v1", ""):
        _add(app, "GET", f"{prefix}/models", models.models)
        _add(app, "GET", f"{prefix}/models/{{name:path}}", models.model)
        _add(app, "GET", f"{prefix}/model/info", models.model_info)
        _add_generation(app, prefix, generation)
    embed = EmbeddingRoutes(services).embeddings
    for prefix in ("/v1", "", "/engines/{model:path}", "/openai/deployments/{model:path}"):
        _add(app, "POST", f"{prefix}/embeddings", embed, "EmbeddingRequest")
    for prefix in ("/engines", "/openai/deployments", "/v1"):
        _add_generation(app, f"{prefix}/{{model:path}}", generation)


def _add_generation(app: FastAPI, prefix: str, generation: GenerationRoutes) -> None:
    _add(app, "POST", f"{prefix}/chat/completions", generation.chat_completions, "ChatRequest")
    _add(app, "POST", f"{prefix}/completions", generation.completions, "CompletionRequest")


def _add(app: FastAPI, method: str, path: str, handler: Handler, body: str | None = None) -> None:
    app.add_api_route(
        path,
        handler,
        methods=[method],
        response_class=Response,
        response_model=None,
        responses=answers(),
        openapi_extra=body_of(REQUESTS[body]) if body else None,
        name=handler.__name__,
    )


def _fixed_routes(app: FastAPI) -> dict[tuple[str, str], APIRoute]:
    """By method and path: of those without a parameter in their path."""
    routes = [route for route in app.routes if isinstance(route, APIRoute)]
    fixed = [route for route in routes if not route.param_convertors]
    return {(method, route.path): route for route in fixed for method in route.methods}


def _allowing(origins: list[str], app: ASGIApp) -> ASGIApp:
    return CORSMiddleware(
        app,
        allow_origins=origins,
        # Browsers refuse `*` together with credentials.
        allow_credentials="*" not in origins,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "x-tenuto-ignored-params", "retry-after", *LIMIT_HEADERS],
    )


def _lifespan(services: Services, on_failure: Failed) -> Any:
    """The port answers while the eager models load."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await services.limiter.start()
        tasks = [asyncio.create_task(_load(services, on_failure))]
        tasks.append(asyncio.create_task(services.history.run(lambda: readings(services.pool))))
        if services.key_watcher is not None:
            tasks.append(asyncio.create_task(services.key_watcher.run()))
        recorder = services.recorder
        recording = asyncio.create_task(recorder.run()) if recorder is not None else None
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await services.pool.close(0)
        await services.limiter.close()
        # It writes until the last engine has gone.
        if recorder is not None and recording is not None:
            await recorder.close()
            await recording

    return lifespan


async def _load(services: Services, on_failure: Failed) -> None:
    began = time.monotonic()
    try:
        await services.pool.load(services.eager)
    except TenutoError as error:
        on_failure(error)
    else:
        names = ", ".join(services.eager) or "no model"
        logger.info("ready: %s, %.1f s", names, time.monotonic() - began)


def _log_failure(error: TenutoError) -> None:
    logger.error("%s", error.message)


async def _render(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _render_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path[:64]}"
    if error.status_code == 405:
        allowed = Headers(error.headers).get("allow", "")
        headers = {"allow": allowed} if allowed else None
        return error_response(
            MethodNotAllowed(f"{where}: method not allowed; use {allowed}.", headers=headers)
        )
    return error_response(NotFound(f"{where}: no such route. See /docs."))
