"""Every error's status, type and envelope, and what a message may quote."""

import json
import pickle

import pytest

from tenuto.errors import (
    ApiError,
    AuthError,
    BadRequest,
    EngineLost,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    SystemPromptRejected,
    TooLarge,
    Unavailable,
    UnknownKey,
    UnknownModel,
    encoded,
    envelope,
    quoted,
)


@pytest.mark.parametrize(
    ("error", "status", "kind", "param"),
    [
        (InvalidRequest("m", param="prompt"), 400, "invalid_request_error", "prompt"),
        (UnknownModel("/completions", "x"), 400, "invalid_request_error", None),
        (BadRequest("m", param="n"), 400, "BadRequestError", "n"),
        (AuthError("m", param="None"), 401, "auth_error", "None"),
        (UnknownKey("m", param="key"), 401, "token_not_found_in_db", "key"),
        (NotFound("m"), 404, "invalid_request_error", None),
        (MethodNotAllowed("m"), 405, "invalid_request_error", None),
        (TooLarge("m", status=413, param="b"), 413, "invalid_request_error", "b"),
        (TooLarge("m", status=431), 431, "invalid_request_error", None),
        (SystemPromptRejected("x"), 500, None, None),
        (InternalError(), 500, "internal_server_error", None),
        (Unavailable("m"), 503, "ServiceUnavailableError", None),
        (EngineLost(), 503, "ServiceUnavailableError", None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, ApiError) else "",
)
def test_envelope(error: ApiError, status: int, kind: str | None, param: str | None) -> None:
    assert error.status == status
    expected = {"message": error.message, "type": kind, "param": param, "code": str(status)}
    assert envelope(error) == {"error": expected}
    assert json.loads(encoded(error)) == {"error": expected}


def test_unknown_model_is_worded_as_recorded() -> None:
    assert UnknownModel("/chat/completions", "nope").message == (
        "/chat/completions: Invalid model name passed in model=nope. "
        "Call `/v1/models` to view available models for your key."
    )


def test_rejected_system_prompt_is_worded_as_documented() -> None:
    error = SystemPromptRejected("Midnight-Miqu-70B-v1.5")
    assert error.message == (
        "litellm.APIError: APIError: OpenAIException - Internal Server Error\n"
        "Received Model Group=Midnight-Miqu-70B-v1.5\n"
        "Available Model Group Fallbacks=None"
    )
    assert error.headers == {"x-should-retry": "false"}


@pytest.mark.parametrize(
    ("error", "seconds"), [(Unavailable("m", retry_after_s=60), "60"), (EngineLost(), "5")]
)
def test_unavailable_says_when_to_come_back(error: Unavailable, seconds: str) -> None:
    assert error.headers == {"retry-after": seconds}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x" * 64, "x" * 64),
        ("x" * 65, "x" * 64 + "…"),
        (1.5, "1.5"),
        (None, "None"),
        ([1] * 40, str([1] * 40)[:64] + "…"),
    ],
)
def test_quoted_is_at_most_64_characters(value: object, text: str) -> None:
    assert quoted(value) == text


def nested_list(depth: int) -> list[object]:
    value: list[object] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value", [10**5000, [10**5000], nested_list(5000)], ids=["number", "list", "deep"]
)
def test_quoted_survives_what_python_refuses_to_print(value: object) -> None:
    assert quoted(value) == "a value too large to print"


@pytest.mark.parametrize("error", [EngineLost(), InternalError()], ids=str)
def test_errors_of_an_engine_pass_between_processes(error: ApiError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), envelope(copy)) == (type(error), envelope(error))
