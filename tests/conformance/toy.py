"""An engine with a toy language model and real sampling, fast enough for hundreds of requests.

Tokens are bytes and two special ones. Sampling is vLLM's, in vLLM's order.
"""

import asyncio
import codecs
import copy
import json
import math
import random
import re
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from zlib import crc32

from tenuto.engine.fake import FakeBackend, FakeEngine, FakePrompts
from tenuto.engine.types import (
    ChatPrompt,
    Delta,
    EngineSpec,
    FinishReason,
    Prompt,
    Sampling,
    Step,
    TextPrompt,
    TokenLogprob,
    TopLogprob,
)
from tenuto.errors import BadRequest
from tests.conformance.toy_constraints import canned

EOS, BEGIN, VOCAB_SIZE = 256, 257, 258
SPECIAL = {EOS: "<|end|>", BEGIN: "<|begin|>"}
SPECIAL_TEXT = re.compile("(" + "|".join(map(re.escape, SPECIAL.values())) + ")")
ANSWER_MARK = "[ASSISTANT]"
ALPHABET = b"abcdefghijklmnopqrstuvwxyz "
# Bytes of the chat template, which the model neither repeats nor takes for content.
TEMPLATE = frozenset(b"\n[]ABCDEFGHIJKLMNOPQRSTUVWXYZ")
MUSICAL = ("café", "emoji", "languages")
MUSIC = "é ☕ 🎵 ".encode()
# Logits. The letters lie between 4 and -2.2, and no step is a sum of usual penalties: no ties.
HIGHEST, STEP, LEAD = 4.0, 0.2371, 0.41
REPEATED, SPACED, SUNG, ENDING, DEAD = 9.0, 10.0, 13.0, 60.0, -30.0
SPACE = ord(" ")
LEAST_TEMPERATURE = 1e-5
UNPAUSED_TOKENS, PAUSE_S = 200, 0.001
HUGE = 1e300
Logits = dict[int, float]
RANKINGS = [random.Random(n).sample(ALPHABET, len(ALPHABET)) for n in range(251)]
# The likeliest stands out: a tie could be decided by rounding.
SPREADS = [
    {token: HIGHEST - STEP * i + LEAD * (i == 0) for i, token in enumerate(row)} for row in RANKINGS
]


def encoded(text: str) -> list[int]:
    ids = {name: token for token, name in SPECIAL.items()}
    parts = SPECIAL_TEXT.split(text)
    return [t for part in parts for t in ([ids[part]] if part in ids else part.encode())]


def known(token_ids: Iterable[int], param: str) -> list[int]:
    if all(0 <= token < VOCAB_SIZE for token in token_ids):
        return list(token_ids)
    raise BadRequest("A token id is out of vocabulary.", param=param)


class Decoder:
    """Text token by token; the bytes of an unfinished character are held back."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def text(self, token: int) -> str:
        if token in SPECIAL:
            cut = self._utf8.decode(b"", final=True)
            self._utf8.reset()
            return cut + SPECIAL[token]
        return self._utf8.decode(bytes([token]))


@dataclass
class ToyPrompts(FakePrompts):
    async def chat(self, chat: ChatPrompt, *, bounded: bool = True) -> Prompt:
        turns = [json.dumps({"TOOLS": chat.tools})] if chat.tools else []
        for turn in chat.messages:
            calls = json.dumps(turn["tool_calls"]) if turn.get("tool_calls") else ""
            turns.append(f"[{turn['role'].upper()}]{turn['content']}{calls}")
        text = "\n".join(turns)
        if not chat.continue_final_message:
            text += "\n" + (ANSWER_MARK if chat.add_generation_prompt else "")
        ids = [BEGIN] * chat.add_special_tokens + encoded(text)
        return self._bounded(self._cut(ids, chat, bounded), text, "messages", bounded)

    async def text(self, text: TextPrompt, *, bounded: bool = True) -> Prompt:
        content = text.content
        if isinstance(content, str):
            ids = [BEGIN] * text.add_special_tokens + encoded(content)
        else:
            ids = known(content, text.param)
        whole = content if isinstance(content, str) and text.truncate_tokens is None else None
        return self._bounded(self._cut(ids, text, bounded), whole, text.param, bounded)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return "".join(map(Decoder().text, known(token_ids, "tokens")))

    async def token_strings(self, token_ids: Sequence[int]) -> list[str]:
        return [SPECIAL.get(i, chr(i) if i < 128 else f"<0x{i:02X}>") for i in token_ids]

    def _cut(self, ids: list[int], asked: TextPrompt | ChatPrompt, bounded: bool) -> list[int]:
        keep, most = asked.truncate_tokens, self.facts.max_model_len - 1
        if keep is None:
            return ids
        if keep > most and bounded:
            raise BadRequest(f"At most {most} tokens.", param="truncate_prompt_tokens")
        keep = most if keep < 0 else keep
        return ids[:keep] if asked.truncation_side == "right" else ids[max(0, len(ids) - keep) :]


class Context:
    """All that the next token depends on: the last two tokens, the last word's beginning and
    length, what followed the last three tokens before, and in an answer its length."""

    def __init__(self, lora: str | None) -> None:
        self._digest = self._topic = crc32((lora or "").encode())
        self._last = (0, 0)
        self._window: tuple[int, ...] = ()
        self._follows: dict[tuple[int, ...], int] = {}
        self._said, self._length, self._musical = -1, 0, False

    def answering(self, prompt: Sequence[int]) -> "Context":
        """A copy, past the prompt."""
        text = bytes(token for token in prompt if token < EOS).decode(errors="replace")
        answer = copy.copy(self)
        answer._follows = dict(self._follows)
        answer._said = 0
        answer._length = 12 + self._digest % 13 if ANSWER_MARK in text else 36 + self._digest % 9
        answer._musical = any(word in text for word in MUSICAL)
        return answer

    def add(self, token: int) -> None:
        self._digest = _mixed(self._digest, token)
        if not 97 <= token <= 122:
            self._topic = self._digest
        self._last = (self._last[1], token)
        if token < EOS and token not in TEMPLATE:
            if len(self._window) == 3:
                self._follows[self._window] = token
            self._window = (*self._window[-2:], token)
        if self._said >= 0:
            self._said = 0 if token == EOS else self._said + 1

    def logits(self) -> Logits:
        """Of the tokens that are worth a look; all others have `DEAD`."""
        first, second = self._last
        number = _mixed(_mixed(self._topic, first), second)
        logits = SPREADS[(number >> 8) % len(SPREADS)].copy()
        repeated = self._follows.get(self._window)
        if repeated is not None:
            logits[repeated] = REPEATED
        if len(self._window) == 3 and bytes(self._window).isalpha():
            logits[SPACE] = SPACED
        if self._musical:
            logits[MUSIC[self._said % len(MUSIC)]] = SUNG
        if self._said >= self._length > 0:
            logits[EOS] = ENDING
        return logits


def _mixed(digest: int, token: int) -> int:
    return ((digest ^ token) * 16777619) & 0xFFFFFFFF


def raw_logprob(logits: Logits, token: int, text: str | None, most: int) -> TokenLogprob:
    ranked = sorted(logits.items(), key=lambda item: -item[1])
    top = ranked[0][1]
    total = top + math.log(sum(math.exp(value - top) for value in logits.values()))

    def name(other: int) -> str | None:
        if text is None or other == token:
            return text
        # Parts of characters have no text of their own.
        return SPECIAL.get(other, chr(other) if other < 128 else "")

    alternatives = (TopLogprob(t, name(t), value - total) for t, value in ranked[:most])
    return TokenLogprob(token, text, logits.get(token, DEAD) - total, tuple(alternatives))


class Sampler:
    """One request's next tokens, from what the model thinks of them."""

    def __init__(self, prompt: Prompt, sampling: Sampling) -> None:
        self._sampling = sampling
        self._prompt = frozenset(prompt.token_ids)
        self._bad = [word.encode() for word in sampling.bad_words]
        self._ends = {EOS, *sampling.stop_token_ids}
        self._allowed = sampling.allowed_token_ids or ()

    def next(self, logits: Logits, output: list[int], rng: random.Random) -> int:
        return self._drawn(self._penalised(self._permitted(logits, output), output), rng)

    def _permitted(self, logits: Logits, output: list[int]) -> Logits:
        num = len(output)
        banned = {w[-1] for w in self._bad if list(w[:-1]) == output[num - len(w) + 1 :]}
        if num < self._sampling.min_tokens:
            banned |= self._ends
        bias = self._sampling.logit_bias or {}
        if self._allowed:
            logits = {token: logits.get(token, _dead(token)) for token in self._allowed}
        if not banned and not bias:
            return logits
        biased = {t: v + bias.get(t, 0) for t, v in logits.items() if t not in banned}
        for token in bias.keys() - logits.keys() - banned:
            if not self._allowed:
                biased[token] = _dead(token) + bias[token]
        others = self._allowed or range(VOCAB_SIZE)
        return biased or {t: _dead(t) for t in others if t not in banned} or logits

    def _penalised(self, logits: Logits, output: list[int]) -> Logits:
        asked = self._sampling
        repetition = asked.repetition_penalty
        if repetition == 1 and asked.frequency_penalty == 0 == asked.presence_penalty:
            return logits
        counts = Counter(output)
        changed = {}
        for token, value in logits.items():
            count = counts.get(token, 0)
            if count or token in self._prompt:
                value = value / repetition if value > 0 else value * repetition
            if count:
                value -= asked.frequency_penalty * count + asked.presence_penalty
            changed[token] = max(-HUGE, min(HUGE, value))
        return changed

    def _drawn(self, logits: Logits, rng: random.Random) -> int:
        asked = self._sampling
        if asked.temperature < LEAST_TEMPERATURE:
            return max(logits, key=logits.__getitem__)
        ranked = sorted(logits, key=logits.__getitem__, reverse=True)
        top = logits[ranked[0]]
        weights = [math.exp((logits[token] - top) / asked.temperature) for token in ranked]
        kept = sum(weight >= asked.min_p for weight in weights)
        kept = min(kept, asked.top_k or kept)
        share = asked.top_p * sum(weights[:kept])
        kept = min(kept, 1 + sum(mass < share for mass in accumulate(weights[:kept])))
        return rng.choices(ranked[:kept], weights[:kept])[0]


def _dead(token: int) -> float:
    return DEAD - token / VOCAB_SIZE


@dataclass
class Candidate:
    """One answer in the making; `taken` gives what it gained since the last time."""

    index: int
    sampling: Sampling
    sampler: Sampler
    context: Context
    script: list[int]
    finish: FinishReason | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    entries: list[TokenLogprob] = field(default_factory=list)
    cumulative: float = 0.0

    def __post_init__(self) -> None:
        seed = self.sampling.seed
        # The random module takes a negative seed for its absolute value.
        self._rng = random.Random(None if seed is None else (seed + self.index) % 2**64)
        self._decoder = Decoder()
        self._taken = self._shown = 0

    def advance(self) -> None:
        logits = self.context.logits()
        if self.script:
            token = self.script[min(len(self.token_ids), len(self.script) - 1)]
        else:
            token = self.sampler.next(logits, self.token_ids, self._rng)
        piece = self._decoder.text(token) if self.sampling.detokenize else ""
        if self.sampling.logprobs is not None:
            name = piece if self.sampling.detokenize else None
            entry = raw_logprob(logits, token, name, self.sampling.logprobs)
            self.entries.append(entry)
            self.cumulative += entry.logprob
        self.token_ids.append(token)
        self.context.add(token)
        self._end(token, piece)

    def taken(self) -> Delta:
        held = 0
        if self.finish is None and not self.sampling.include_stop_str_in_output:
            held = max((len(stop) for stop in self.sampling.stop), default=1) - 1
        shown = max(self._shown, len(self.text) - held)
        delta = Delta(self.index, self.text[self._shown : shown], self.token_ids[self._taken :])
        if self.finish is not None:
            delta.finish_reason, delta.stop_reason = self.finish, self.stop_reason
        if self.sampling.logprobs is not None:
            delta.logprobs, delta.cumulative_logprob = self.entries[self._taken :], self.cumulative
        self._shown, self._taken = shown, len(self.token_ids)
        return delta

    def _end(self, token: int, piece: str) -> None:
        asked = self.sampling
        if token == EOS and not asked.ignore_eos:
            self.finish = "stop"
        elif token in asked.stop_token_ids:
            self.finish, self.stop_reason = "stop", token
        if self.finish is not None and not asked.include_stop_str_in_output:
            return
        if self.finish is None and len(self.token_ids) >= asked.max_tokens:
            self.finish = "length"
        if token in SPECIAL and asked.skip_special_tokens:
            piece = piece.removesuffix(SPECIAL[token])
        self.text += piece
        if asked.stop and piece and len(self.token_ids) > asked.min_tokens:
            self._cut(len(piece))

    def _cut(self, gained: int) -> None:
        """At the stop string that ends first, if one ends in what was gained."""
        asked, least = self.sampling, len(self.text) - gained + 1
        starts = {stop: self.text.find(stop, max(0, least - len(stop))) for stop in asked.stop}
        ends = {stop: start + len(stop) for stop, start in starts.items() if start >= 0}
        if ends:
            stop = min(ends, key=ends.__getitem__)
            self.text = self.text[
                : ends[stop] if asked.include_stop_str_in_output else starts[stop]
            ]
            self.finish, self.stop_reason = "stop", stop


@dataclass
class ToyEngine(FakeEngine):
    async def generate(
        self, prompt: Prompt, sampling: Sampling, request_id: str
    ) -> AsyncGenerator[Step, None]:
        self.generated.append(sampling)
        for param in ("logit_bias", "allowed_token_ids", "stop_token_ids"):
            known(getattr(sampling, param) or (), param)
        script = [*encoded(canned(sampling.constraint)), EOS] if sampling.constraint else []
        with self._running(sampling.n):
            context, logprobs = _read(prompt, sampling)
            sampler = Sampler(prompt, sampling)
            running = candidates = [
                Candidate(index, sampling, sampler, context.answering(prompt.token_ids), script)
                for index in range(sampling.n)
            ]
            while running:
                await self._allowed()
                if len(running[0].token_ids) >= UNPAUSED_TOKENS:
                    await asyncio.sleep(PAUSE_S)
                for candidate in running:
                    candidate.advance()
                    if sampling.stream:
                        yield Step([candidate.taken()], prompt_logprobs=logprobs)
                        logprobs = None
                running = [candidate for candidate in running if candidate.finish is None]
            if not sampling.stream:
                yield Step([one.taken() for one in candidates], prompt_logprobs=logprobs)


@dataclass
class ToyBackend(FakeBackend):
    async def prompts(self, spec: EngineSpec) -> ToyPrompts:
        facts = (await super().prompts(spec)).facts
        return ToyPrompts(replace(facts, vocab_size=VOCAB_SIZE))

    async def engine(self, spec: EngineSpec) -> ToyEngine:
        await super().engine(spec)
        engine = self.engines[spec.model_id] = ToyEngine()
        return engine


def _read(prompt: Prompt, sampling: Sampling) -> tuple[Context, list[TokenLogprob | None] | None]:
    context, decoder = Context(sampling.lora), Decoder()
    entries: list[TokenLogprob | None] = []
    for position, token in enumerate(prompt.token_ids):
        if sampling.prompt_logprobs is not None:
            text, most = decoder.text(token), sampling.prompt_logprobs
            entries.append(raw_logprob(context.logits(), token, text, most) if position else None)
        context.add(token)
    return context, None if sampling.prompt_logprobs is None else entries
