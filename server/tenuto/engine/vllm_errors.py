"""vLLM's exceptions as ours, by type and never by text."""

from collections.abc import Iterator
from contextlib import contextmanager

from vllm.exceptions import GracefulHTTPError, VLLMClientError, VLLMValidationError
from vllm.v1.engine.exceptions import EngineDeadError

from tenuto.errors import BadRequest, EngineLost, Unavailable

MAX_REASON_CHARACTERS = 300
# vLLM's names of what the contract calls otherwise.
PROMPT_PARAMETERS = {"input_tokens", "input_text", "max_total_tokens", "prompt_token_ids"}


@contextmanager
def translated(param: str | None = None) -> Iterator[None]:
    """`param` is blamed for a refusal for which vLLM names none."""
    try:
        yield
    except VLLMValidationError as error:
        raise _refused(error.args[0], error.parameter, param) from None
    except VLLMClientError as error:
        raise _refused(str(error), None, param) from None
    except EngineDeadError:
        raise EngineLost from None
    except GracefulHTTPError:
        raise Unavailable("The model's queue is full. Please retry.") from None


@contextmanager
def constraint_errors(param: str) -> Iterator[None]:
    """vLLM's words for a bad constraint quote it, and constraints are request content."""
    try:
        yield
    except (VLLMClientError, ValueError) as error:
        if getattr(error, "parameter", None) is not None:
            # vLLM verifies the other parameters at the same time, and names those.
            raise
        raise BadRequest(
            f"{param} is not a valid constraint, or not one that can be enforced.", param=param
        ) from None


def _refused(reason: str, named: str | None, param: str | None) -> BadRequest:
    blamed = param if named is None or named in PROMPT_PARAMETERS else named
    return BadRequest(reason[:MAX_REASON_CHARACTERS], param=blamed)
