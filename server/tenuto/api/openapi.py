"""The OpenAPI page, from the types and bounds that judge the requests."""

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from tenuto import __version__
from tenuto.access.new_key import NewKey
from tenuto.engine.types import Sampling
from tenuto.generation.translate import DEFAULT_COMPLETION_MAX_TOKENS
from tenuto.wire.bounds import Bounds, Range, ranges
from tenuto.wire.requests import (
    ChatRequest,
    CompletionRequest,
    CounterRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    GenerationRequest,
    TokenizeRequest,
)

REFERENCE = "#/components/schemas/{model}"
REQUESTS: dict[str, type[BaseModel]] = {
    model.__name__: model
    for model in (
        ChatRequest,
        CompletionRequest,
        EmbeddingRequest,
        CounterRequest,
        TokenizeRequest,
        DetokenizeRequest,
        NewKey,
    )
}
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": ["string", "null"]},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of a route whose body is read by our own parser."""
    schema = {"$ref": REFERENCE.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def answers() -> dict[int | str, dict[str, Any]]:
    """`responses` of every route: all errors come in one envelope."""
    error = {"schema": {"$ref": REFERENCE.format(model="Error")}}
    return {
        "default": {"description": "An error.", "content": {"application/json": error}},
    }


def describe(app: FastAPI, bounds: Bounds) -> None:
    """Makes `app.openapi()` show the request types with this server's bounds."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title="Tenuto", version=__version__, routes=app.routes, description=app.description
            )
            components = document.setdefault("components", {})
            components.setdefault("schemas", {}).update(_schemas(bounds))
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{"key": []}]
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _schemas(bounds: Bounds) -> dict[str, Any]:
    schemas: dict[str, Any] = {"Error": ERROR}
    for name, model in REQUESTS.items():
        schema = model.model_json_schema(ref_template=REFERENCE)
        schemas.update(schema.pop("$defs", {}))
        # A chat's `logprobs` is no number.
        intervals = {**ranges(bounds), "logprobs": Range(0, bounds.logprobs)}
        for parameter, interval in intervals.items():
            for option in schema["properties"].get(parameter, {}).get("anyOf", []):
                if option.get("type") in ("integer", "number"):
                    option.update(_limits(interval))
        if issubclass(model, GenerationRequest):
            for parameter, value in _defaults(model).items():
                schema["properties"][parameter]["default"] = value
        schemas[name] = schema
    return schemas


def _defaults(model: type[GenerationRequest]) -> dict[str, float]:
    """Of the numbers and switches that a request may leave out."""
    known = {field.name: field.default for field in msgspec.structs.fields(Sampling)}
    if model is CompletionRequest:
        known["max_tokens"] = DEFAULT_COMPLETION_MAX_TOKENS
    return {
        name: value
        for name, value in known.items()
        if name in model.model_fields and isinstance(value, int | float)
    }


def _limits(interval: Range) -> dict[str, float]:
    limits = {"exclusiveMinimum" if interval.above else "minimum": interval.low}
    if interval.high is not None:
        limits["maximum"] = interval.high
    return limits
