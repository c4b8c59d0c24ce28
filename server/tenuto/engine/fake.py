"""A scripted engine behind the same seam, for tests and for client developers without vLLM.

Tokens are the UTF-8 bytes of the text. The same test asserts each behaviour on real vLLM.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from tenuto.engine.types import (
    Canary,
    ChatPrompt,
    Delta,
    EngineSpec,
    EngineStats,
    FinishReason,
    ModelFacts,
    Prompt,
    Sampling,
    SleepLevel,
    Step,
    TextPrompt,
    TokenLogprob,
    TopLogprob,
)
from tenuto.errors import BadRequest, EngineLost, EngineStartError

VOCAB_SIZE = 256
FIRST_CANARY = Canary(token_ids=(1, 2, 3))
Reply = Callable[[Prompt, Sampling, int], str]


def echo_reply(prompt: Prompt, sampling: Sampling, index: int) -> str:
    """Says which candidate it is, and differs by the seed and the LoRA."""
    adapted = f", as {sampling.lora}" if sampling.lora else ""
    return f"reply {index} to {len(prompt.token_ids)} tokens, seed {sampling.seed}{adapted}"


def embedding_of(prompt: Prompt) -> list[float]:
    """Tells texts apart, and every value is a float32."""
    ids = prompt.token_ids
    return [len(ids) / 2, ids[0] / 4, -ids[-1] / 8, sum(ids) / 16]


@dataclass
class FakePrompts:
    facts: ModelFacts

    async def chat(self, chat: ChatPrompt, *, bounded: bool = True) -> Prompt:
        text = "".join(f"<{m['role']}>{m['content']}" for m in chat.messages)
        if chat.add_generation_prompt:
            text += "<assistant>"
        return self._bounded(list(text.encode()), text, "messages", bounded)

    async def text(self, text: TextPrompt, *, bounded: bool = True) -> Prompt:
        content = text.content
        if isinstance(content, str):
            return self._bounded(list(content.encode()), content, text.param, bounded)
        if max(content) >= VOCAB_SIZE:
            raise BadRequest("A token id is out of vocabulary.", param=text.param)
        return self._bounded(content, None, text.param, bounded)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        if token_ids and max(token_ids) >= VOCAB_SIZE:
            raise BadRequest("A token id is out of vocabulary.", param="tokens")
        return bytes(token_ids).decode(errors="replace")

    async def token_strings(self, token_ids: Sequence[int]) -> list[str]:
        return [chr(token_id) for token_id in token_ids]

    def _bounded(self, ids: list[int], text: str | None, param: str, bounded: bool) -> Prompt:
        if bounded and len(ids) > self.facts.max_model_len:
            raise BadRequest(
                f"This model's maximum context length is {self.facts.max_model_len} tokens.",
                param=param,
            )
        return Prompt(ids, text)


@dataclass
class FakeEngine:
    """`go` holds every token back while cleared; `lose` ends the engine under its requests.

    `asleep` is the level while it sleeps, `slept` every level so far. Set `canary` to the weights
    that a wake is to leave behind.
    """

    reply: Reply = echo_reply
    capacity: int = 1024
    running: int = 0
    num_tokens: int = 0
    generated: list[Sampling] = field(default_factory=list)
    can_sleep: bool = False
    canary: Canary = FIRST_CANARY
    asleep: SleepLevel | None = None
    slept: list[SleepLevel] = field(default_factory=list)
    start_phases: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.started = asyncio.Event()
        self.idle = asyncio.Event()
        self._lost = asyncio.Event()

    def lose(self) -> None:
        self._lost.set()
        self.go.set()

    async def generate(
        self, prompt: Prompt, sampling: Sampling, request_id: str
    ) -> AsyncGenerator[Step, None]:
        self.generated.append(sampling)
        with self._running(sampling.n):
            candidates = [self._tokens(prompt, sampling, index) for index in range(sampling.n)]
            whole = [_whole(index, c, sampling) for index, c in enumerate(candidates)]
            for step in self._steps(candidates, sampling) if sampling.stream else [Step(whole)]:
                await self._allowed()
                self.num_tokens += sum(len(delta.token_ids) for delta in step.deltas)
                yield step

    async def embed(self, prompt: Prompt, dimensions: int | None, request_id: str) -> list[float]:
        with self._running(1):
            await self._allowed()
            return embedding_of(prompt)[:dimensions]

    async def wait_lost(self) -> None:
        await self._lost.wait()

    async def sleep(self, level: SleepLevel) -> None:
        if self.running or not self.can_sleep:
            raise RuntimeError("cannot sleep")
        await self._allowed()
        self.asleep = level
        self.slept.append(level)

    async def wake(self) -> None:
        await self._allowed()
        self.asleep = None

    async def check(self) -> Canary:
        await self._allowed()
        return self.canary

    def stats(self) -> EngineStats:
        return EngineStats(
            unfinished_requests=self.running,
            running_sequences=self.running,
            kv_cache_usage=min(1.0, self.running / self.capacity),
            generated_tokens=self.num_tokens,
        )

    async def close(self, drain_s: float) -> None:
        self.lose()

    @contextmanager
    def _running(self, num_requests: int) -> Iterator[None]:
        self.running += num_requests
        self.idle.clear()
        self.started.set()
        try:
            yield
        finally:
            self.running -= num_requests
            if self.running == 0:
                self.idle.set()

    async def _allowed(self) -> None:
        await asyncio.sleep(0)
        await self.go.wait()
        if self._lost.is_set():
            raise EngineLost

    def _tokens(self, prompt: Prompt, sampling: Sampling, index: int) -> "_Candidate":
        text = self.reply(prompt, sampling, index)
        ends = {stop: text.find(stop) + len(stop) for stop in sampling.stop if stop in text}
        stop = min(ends, key=ends.__getitem__) if ends else None
        token_ids = list(text[: ends[stop] if stop else None].encode())
        if len(token_ids) > sampling.max_tokens:
            return _Candidate(token_ids[: sampling.max_tokens], "length")
        return _Candidate(token_ids, "stop", stop, ends[stop] - len(stop) if stop else None)

    def _steps(self, candidates: list["_Candidate"], sampling: Sampling) -> list[Step]:
        longest = max(len(candidate.token_ids) for candidate in candidates)
        return [
            Step([candidate.delta(index, position, sampling)])
            for position in range(max(longest, 1))
            for index, candidate in enumerate(candidates)
            if position < max(len(candidate.token_ids), 1)
        ]


@dataclass
class FakeBackend:
    """`fails` names models whose engine does not start; `dimensions` are those of embeddings.

    Engines can sleep when `can_sleep` and their spec say so.
    """

    max_model_len: int = 2048
    fails: frozenset[str] = frozenset()
    reply: Reply = echo_reply
    dimensions: Sequence[int] = ()
    can_sleep: bool = False
    engines: dict[str, FakeEngine] = field(default_factory=dict)

    async def prompts(self, spec: EngineSpec) -> FakePrompts:
        max_model_len = spec.max_model_len or self.max_model_len
        return FakePrompts(ModelFacts(max_model_len, VOCAB_SIZE, dimensions=self.dimensions))

    async def engine(self, spec: EngineSpec) -> FakeEngine:
        if spec.model_id in self.fails:
            raise EngineStartError(f"model {spec.model_id}: did not start: told to fail")
        for lora in spec.loras:
            if not lora.adapter.is_dir():
                raise EngineStartError(
                    f"model {spec.model_id}: cannot load its LoRAs: {lora.id} is not there"
                )
        can_sleep = self.can_sleep and spec.sleep
        self.engines[spec.model_id] = FakeEngine(self.reply, can_sleep=can_sleep)
        return self.engines[spec.model_id]


@dataclass
class _Candidate:
    """`shown` characters come before the stop string, whose tokens were generated all the same."""

    token_ids: list[int]
    finish: FinishReason
    stop_reason: str | None = None
    shown: int | None = None

    def text(self, num_tokens: int) -> str:
        """Bytes of an unfinished character are held back, as real detokenizers do."""
        return bytes(self.token_ids[:num_tokens]).decode(errors="ignore")[: self.shown]

    def delta(self, index: int, position: int, sampling: Sampling) -> Delta:
        last = position >= len(self.token_ids) - 1
        text = self.text(position + 1).removeprefix(self.text(position))
        token_ids = self.token_ids[position : position + 1]
        num_tokens = position + len(token_ids)
        return self._made(index, token_ids, text, last, sampling, num_tokens)

    def _made(
        self,
        index: int,
        token_ids: list[int],
        text: str,
        last: bool,
        sampling: Sampling,
        num_tokens: int,
    ) -> Delta:
        delta = Delta(index=index, text=text if sampling.detokenize else "", token_ids=token_ids)
        if last:
            delta.finish_reason = self.finish
            delta.stop_reason = self.stop_reason
        if sampling.logprobs is not None:
            delta.logprobs = [_logprob(token, sampling) for token in token_ids]
            delta.cumulative_logprob = self._cumulative(index, num_tokens)
        return delta

    def _cumulative(self, index: int, num_tokens: int) -> float:
        """The same for the same candidate, and not in the order of the candidates."""
        return -num_tokens * random.Random(index).random()


def _whole(index: int, candidate: _Candidate, sampling: Sampling) -> Delta:
    ids = candidate.token_ids
    return candidate._made(index, ids, candidate.text(len(ids)), True, sampling, len(ids))


def _logprob(token_id: int, sampling: Sampling) -> TokenLogprob:
    def token(token_id: int) -> str | None:
        return chr(token_id) if sampling.detokenize else None

    top = tuple(TopLogprob(i, token(i), -1.0 - i) for i in range(sampling.logprobs or 0))
    return TokenLogprob(token_id, token(token_id), -0.5, top)
