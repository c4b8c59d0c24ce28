"""Constraints tried out in a process of their own, which ends itself when one takes too long.

A few intersecting patterns of a schema can keep a compiler busy for hours, and no thread can be
stopped. Must start fast: it imports llguidance, which the engines compile with, and not vLLM.
"""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import OrderedDict
from hashlib import sha256
from typing import Any

LIMIT_S = 5
# With llguidance's own limit an ambiguous grammar of a kilobyte takes seconds per token.
MAX_ITEMS_PER_TOKEN = 2000
MAX_REMEMBERED = 1024


class Verifier:
    """One constraint at a time; verdicts are remembered."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._process: Process | None = None
        self._verdicts: OrderedDict[bytes, bool] = OrderedDict()

    async def accepts(self, kind: str, value: Any) -> bool:
        """False when `value` is invalid, or takes too long to compile."""
        try:
            question = json.dumps([kind, value]).encode() + b"\n"
        except RecursionError:
            return False
        key = sha256(question).digest()
        if key not in self._verdicts:
            async with self._turn:
                self._verdicts[key] = await self._asked(question)
            while len(self._verdicts) > MAX_REMEMBERED:
                self._verdicts.popitem(last=False)
        return self._verdicts[key]

    async def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            await self._process.wait()

    async def _asked(self, question: bytes) -> bool:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", __name__),
                stdin=PIPE,
                stdout=PIPE,
                stderr=DEVNULL,
                start_new_session=True,
            )
        process, self._process = self._process, None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(question)
            answer = await process.stdout.readline()
        except asyncio.CancelledError:
            process.kill()
            raise
        if answer:
            self._process = process
        return answer == b"yes\n"


def complaint(kind: str, value: Any) -> str:
    """Of llguidance, as vLLM uses it, up to an answer's first byte; empty when there is none."""
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer, grammar_from

    if kind == "json_schema":
        spec = value if isinstance(value, str) else json.dumps(value)
        grammar = LLMatcher.grammar_from_json_schema(spec, defaults={"whitespace_flexible": True})
    else:
        grammar = grammar_from("regex" if kind == "regex" else "grammar", value)
    if error := LLMatcher.validate_grammar(grammar, None):
        return str(error)
    limits = LLParserLimits(step_max_items=MAX_ITEMS_PER_TOKEN)
    matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0, limits=limits)
    matcher.compute_bitmask()
    return str(matcher.get_error())


def serve() -> None:
    """Answers questions until there are no more. Its own alarm ends the process."""
    os.nice(10)
    for question in sys.stdin.buffer:
        kind, value = json.loads(question)
        signal.alarm(LIMIT_S)
        try:
            answer = b"no\n" if complaint(kind, value) else b"yes\n"
        except (ValueError, TypeError, KeyError, RecursionError):
            answer = b"no\n"
        signal.alarm(0)
        sys.stdout.buffer.write(answer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    serve()
