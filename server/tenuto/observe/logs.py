"""Log lines: of a request one, never with a prompt, an answer or a key; as text or as JSON."""

import logging
import sys
import time
from collections.abc import Callable
from typing import Literal

import msgspec

from tenuto.engine.types import TASK_OF_MODEL
from tenuto.observe.metrics import Answered

Format = Literal["text", "json"]
# What most of their lines say, ours say as well.
QUIET = {"alembic": "WARNING", "httpx": "WARNING", "uvicorn": "WARNING", "vllm": "ERROR"}


class AnsweredLine(msgspec.Struct, frozen=True):
    """`request_id` is what the answer's header `x-request-id` says."""

    request_id: str
    method: str
    answer: Answered

    def level(self, slow_s: float, *, is_probe: bool) -> int:
        if self.answer.duration_s >= slow_s:
            return logging.WARNING
        # Probes come every few seconds and say nothing.
        return logging.DEBUG if is_probe else logging.INFO

    def __str__(self) -> str:
        answer = self.answer
        said = f"{self.request_id} {self.method} {answer.route} {answer.status}"
        said += f" {answer.duration_s:.3f} s {answer.model}"
        if answer.queue_s is not None:
            said += f" queue {answer.queue_s:.3f} s"
        if answer.first_token_s is not None:
            said += f" first token {answer.first_token_s:.3f} s"
        return said

    def fields(self) -> dict[str, object]:
        found = {
            "request_id": self.request_id,
            "method": self.method,
            **msgspec.structs.asdict(self.answer),
        }
        return {name: value for name, value in found.items() if value is not None}


class TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname).1s %(name)s: %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        model = _model_of(record)
        return line if model is None else f"{line} [model {model}]"


class JsonFormatter(logging.Formatter):
    """One object a line. `time` is UTC, as RFC 3339 has it."""

    def format(self, record: logging.LogRecord) -> str:
        whole_s = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{whole_s}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if (model := _model_of(record)) is not None:
            line["model"] = model
        if isinstance(record.msg, AnsweredLine):
            line |= record.msg.fields()
        else:
            # A path that no encoding knows would else cost the line.
            line["message"] = record.getMessage().encode(errors="backslashreplace").decode()
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def _model_of(record: logging.LogRecord) -> str | None:
    """Whose engine says it; ours name it themselves where it matters."""
    named: str | None = getattr(record, "model", None)
    return TASK_OF_MODEL.get() if named is None and record.name.startswith("vllm") else named


def _naming(model: str) -> Callable[[logging.LogRecord], bool]:
    def name(record: logging.LogRecord) -> bool:
        record.model = model
        return True

    return name


def log_to_stderr(level: str, form: Format, model: str | None = None) -> None:
    """`model`: the one whose engine's process this is."""
    # What no line says need not be found out (the logging module's documentation, Optimization).
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    if model is not None:
        handler.addFilter(_naming(model))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name, least in QUIET.items():
        logging.getLogger(name).setLevel("DEBUG" if level == "debug" else least)
