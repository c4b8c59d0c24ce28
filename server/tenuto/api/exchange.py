"""One request and its answer, as the middleware and the routes share it."""

import math
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from starlette.requests import Request
from starlette.types import Scope

from tenuto.access.keys import Key
from tenuto.access.limits import Admission
from tenuto.engine.types import Prompt
from tenuto.generation.fold import Folded
from tenuto.generation.usage import Tally
from tenuto.models.waiting import Asker
from tenuto.observe.metrics import Gaps

SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
CLIENT_LEFT = 499
# The OpenAI clients for Python and Node say how long they wait for an answer's next byte.
PATIENCE_HEADERS = (b"x-stainless-read-timeout", b"x-stainless-timeout")
SCOPE_KEY = "tenuto.exchange"


@dataclass
class Exchange:
    """`is_metered`: its use is written down. `tally` is there once the prompt is charged.
    `folded` are the candidates so far, where they are not answered as they come. `ended`: the
    answer's last byte was handed over; else the client left: a 499. `patience_s` is how long the
    client waits in silence, as far as it says. `model` is what was asked for, `engine`
    the model whose engine serves it: a LoRA's base. `queue_s` is what that was waited for, `gaps`
    lie between the events of a stream."""

    request_id: str
    patience_s: float = math.inf
    key: Key | None = None
    admission: Admission | None = None
    is_metered: bool = False
    model: str = ""
    engine: str = ""
    tally: Tally | None = None
    folded: Folded | None = None
    queue_s: float | None = None
    first_token_s: float | None = None
    gaps: Gaps | None = None
    status: int = 0
    started: bool = False
    ended: bool = False

    def charge(self, prompts: Sequence[Prompt]) -> None:
        """Errors: `RateLimited`."""
        tally = Tally.of(prompts)
        if self.admission is not None:
            self.admission.charge(tally.prompt_tokens)
        self.tally = tally

    def release(self) -> None:
        """What the request used is known, and its place free, however it ended."""
        if self.admission is not None:
            self.admission.release(self.all_tokens)

    @property
    def all_tokens(self) -> int:
        """Completion tokens of all candidates."""
        if self.folded is not None:
            return self.folded.num_tokens
        return self.tally.completion_tokens if self.tally is not None else 0

    def asker(self, priority: int = 0) -> Asker:
        """Whose turn it is, where requests wait for a model."""
        return Asker("" if self.key is None else self.key.id, priority, self.patience_s)


def exchange_of(request: Request) -> Exchange:
    exchange: Exchange = request.scope[SCOPE_KEY]
    return exchange


def request_id_of(scope: Scope) -> str:
    """The client's `x-request-id` where it is harmless, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            given: str = value.decode("latin-1")
            if SAFE_ID.fullmatch(given):
                return given
    return os.urandom(16).hex()


def patience_of(scope: Scope) -> float:
    for name, value in scope["headers"]:
        if name in PATIENCE_HEADERS:
            with suppress(ValueError):
                seconds = float(value)
                return seconds if seconds > 0 else math.inf
    return math.inf
