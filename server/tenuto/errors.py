"""Every error that Tenuto raises, and the one envelope that renders them.

TenutoError
├── ConfigError              the owner's input is wrong; nothing is started (exit code 2)
├── CheckpointError          a checkpoint cannot be served as it is
├── EngineStartError         an engine did not start
└── ApiError                 has a status; the only ones a client sees
    ├── InvalidRequest       400  missing field, broken JSON
    │   └── UnknownModel     400
    ├── BadRequest           400  a value, a type or a contradiction
    ├── AuthError            401
    │   ├── NotAdmin         403
    │   ├── UnknownKey       401
    │   └── ModelNotAllowed  401
    ├── NotFound             404
    ├── MethodNotAllowed     405
    ├── TooLarge             413, 431
    ├── TooSlow              408  the request did not arrive
    ├── RateLimited          429  more than its key may use
    ├── SystemPromptRejected 500  as the hosted API documents it
    ├── InternalError        500
    └── Unavailable          503  not loaded, draining
        ├── NotLoaded        503  the server was started without it, or it failed
        └── EngineLost       503  the engine ended under a running request
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

MAX_QUOTED_CHARACTERS = 64


class TenutoError(Exception):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ConfigError(TenutoError):
    pass


class CheckpointError(TenutoError):
    pass


class EngineStartError(TenutoError):
    pass


class ApiError(TenutoError):
    status = 500
    type: str | None = "internal_server_error"

    def __init__(
        self, message: str, *, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.param = param
        self.headers = dict(headers or {})


class InvalidRequest(ApiError):
    status = 400
    type = "invalid_request_error"


class UnknownModel(InvalidRequest):
    def __init__(self, route: str, name: object, advice: str = "") -> None:
        super().__init__(
            f"{route}: Invalid model name passed in model={quoted(name)}. "
            f"Call `/v1/models` to view available models for your key.{advice}"
        )


class BadRequest(ApiError):
    status = 400
    type = "BadRequestError"


class AuthError(ApiError):
    status = 401
    type = "auth_error"


class NotAdmin(AuthError):
    status = 403


class UnknownKey(AuthError):
    type = "token_not_found_in_db"


class ModelNotAllowed(AuthError):
    """Worded as LiteLLM words it, whether or not there is such a model."""

    type = "key_model_access_denied"

    def __init__(self, allowed: Sequence[str], name: str) -> None:
        super().__init__(
            "key not allowed to access model. This key can only access "
            f"models={list(allowed)}. Tried to access {quoted(name)}",
            param="model",
        )


class NotFound(ApiError):
    status = 404
    type = "invalid_request_error"


class MethodNotAllowed(ApiError):
    status = 405
    type = "invalid_request_error"


class TooLarge(ApiError):
    type = "invalid_request_error"

    def __init__(self, message: str, *, status: int, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.status = status


class SystemPromptRejected(ApiError):
    """Worded as the hosted documentation words it, with its dash taken as typography."""

    type = None

    def __init__(self, model: str) -> None:
        super().__init__(
            "litellm.APIError: APIError: OpenAIException - Internal Server Error\n"
            f"Received Model Group={model}\nAvailable Model Group Fallbacks=None",
            headers={"x-should-retry": "false"},
        )


class InternalError(ApiError):
    def __init__(self) -> None:
        super().__init__(
            "Internal server error. The server's log has more under this request's id."
        )

    def __reduce__(self) -> tuple[type, tuple[()]]:
        # Made without its message, also by pickle.
        return type(self), ()


class TooSlow(ApiError):
    status = 408
    type = "invalid_request_error"


class RateLimited(ApiError):
    """`is_final`: asking again soon cannot help."""

    status = 429
    type = "rate_limit_error"

    def __init__(self, message: str, *, retry_after_s: int, is_final: bool = False) -> None:
        super().__init__(message, headers={"retry-after": str(retry_after_s)})
        if is_final:
            self.headers["x-should-retry"] = "false"


class Unavailable(ApiError):
    status = 503
    type = "ServiceUnavailableError"

    def __init__(self, message: str, *, retry_after_s: int = 5) -> None:
        super().__init__(message, headers={"retry-after": str(retry_after_s)})


class NotLoaded(Unavailable):
    """Asking again soon cannot help; clients that would, wait a minute for nothing."""

    def __init__(self, message: str) -> None:
        super().__init__(message, retry_after_s=60)
        self.headers["x-should-retry"] = "false"


class EngineLost(Unavailable):
    def __init__(self) -> None:
        super().__init__("The model's engine ended while it served this request. Please retry.")

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()


def quoted(value: object) -> str:
    """`value` for an error message, at most 64 characters of it."""
    text = value if isinstance(value, str) else _shown(value)
    return text if len(text) <= MAX_QUOTED_CHARACTERS else text[:MAX_QUOTED_CHARACTERS] + "…"


def _shown(value: object) -> str:
    try:
        return repr(value)
    except (ValueError, RecursionError):
        # Python prints neither a number of more than 4,300 digits nor a list nested too deeply.
        return "a value too large to print"


def envelope(error: ApiError) -> dict[str, Any]:
    """The body of every error answer: `code` is the status as a string."""
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": str(error.status),
        }
    }


def encoded(error: ApiError) -> bytes:
    return msgspec.json.encode(envelope(error))
