"""Streamed answers: the SSE frames of both endpoints. The hot path; measure before changing."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import msgspec
from msgspec import UNSET

from tenuto.engine.types import Delta, Prompt, Step, TokenLogprob
from tenuto.errors import ApiError, encoded
from tenuto.generation.answer import SYSTEM_FINGERPRINT, Head
from tenuto.generation.fold import Choice, Folded
from tenuto.generation.logprobs import chat_logprobs, completion_logprobs, name_first_token
from tenuto.generation.translate import Plan
from tenuto.generation.usage import Tally
from tenuto.wire.responses import ChatChunkChoice, ChatDelta, CompletionChoice

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
_encode = msgspec.json.Encoder().encode


class Frames(Protocol):
    """Frames of one stream. `step` is called in the engine's order."""

    tally: Tally

    def opening(self) -> bytes: ...

    def step(self, step: Step) -> bytes: ...

    def closing(self) -> bytes: ...


def error_frame(error: ApiError) -> bytes:
    return b"data: " + encoded(error) + b"\n\n"


class _Frames:
    object: str

    def __init__(self, head: Head, prompts: Sequence[Prompt], plan: Plan) -> None:
        self.tally = Tally.of(prompts)
        self._prompts = prompts
        self._plan = plan
        fields = {
            "id": head.id,
            "object": self.object,
            "created": head.created,
            "model": head.model,
            "system_fingerprint": SYSTEM_FINGERPRINT,
        }
        self._prefix = b"data: " + _encode(fields)[:-1] + b',"choices":['

    def _frame(self, choice: msgspec.Struct) -> bytes:
        return self._prefix + _encode(choice) + b"]}\n\n"

    def closing(self) -> bytes:
        if not self._plan.include_usage:
            return DONE
        usage = _encode(self.tally.usage())
        return self._prefix + b'],"usage":' + usage + b"}\n\n" + DONE

    def _token_ids(self, delta: Delta) -> list[int] | msgspec.UnsetType:
        return list(delta.token_ids) if self._plan.return_token_ids else UNSET


class ChatFrames(_Frames):
    """For each choice: one role chunk, its content, one finish chunk."""

    object = "chat.completion.chunk"

    def opening(self) -> bytes:
        delta = ChatDelta(role="assistant", content="")
        return b"".join(
            self._frame(ChatChunkChoice(index=index, delta=delta)) for index in range(self._plan.n)
        )

    def step(self, step: Step) -> bytes:
        self.tally.add(step)
        return b"".join(frame for delta in step.deltas for frame in self._delta(delta))

    def _delta(self, delta: Delta) -> Iterator[bytes]:
        if delta.text or delta.logprobs or (delta.token_ids and self._plan.return_token_ids):
            yield self._frame(
                ChatChunkChoice(
                    index=delta.index,
                    delta=ChatDelta(content=delta.text),
                    logprobs=chat_logprobs(delta.logprobs, self._plan),
                    token_ids=self._token_ids(delta),
                )
            )
        if delta.finish_reason is not None:
            yield self._frame(
                ChatChunkChoice(
                    index=delta.index,
                    delta=ChatDelta(),
                    finish_reason=delta.finish_reason,
                    stop_reason=delta.stop_reason,
                )
            )


class CompletionFrames(_Frames):
    """For each choice: its text (after the prompt's, when echoed), one finish chunk."""

    object = "text_completion"

    def __init__(self, head: Head, prompts: Sequence[Prompt], plan: Plan) -> None:
        super().__init__(head, prompts, plan)
        self._offsets: dict[int, int] = {}
        self._echoed: dict[int, list[TokenLogprob | None]] = {}

    def opening(self) -> bytes:
        return b""

    def step(self, step: Step) -> bytes:
        self.tally.add(step)
        if step.prompt_logprobs is not None:
            self._echoed[step.prompt_index] = step.prompt_logprobs
        return b"".join(
            frame for delta in step.deltas for frame in self._delta(delta, step.prompt_index)
        )

    def _delta(self, delta: Delta, position: int) -> Iterator[bytes]:
        if delta.index not in self._offsets:
            self._offsets[delta.index] = 0
            if self._plan.echo:
                yield from self._echo(delta.index, self._prompts[position], position)
        if self._plan.drop_completion:
            self.tally.completion_tokens -= len(delta.token_ids)
        elif delta.text or delta.logprobs or (delta.token_ids and self._plan.return_token_ids):
            yield self._text(delta)
        if delta.finish_reason is not None:
            finish = "length" if self._plan.drop_completion else delta.finish_reason
            yield self._frame(
                CompletionChoice(
                    index=delta.index,
                    text="",
                    finish_reason=finish,
                    stop_reason=None if self._plan.drop_completion else delta.stop_reason,
                )
            )

    def _text(self, delta: Delta) -> bytes:
        offset = self._offsets[delta.index]
        self._offsets[delta.index] = offset + len(delta.text)
        return self._frame(
            CompletionChoice(
                index=delta.index,
                text=delta.text,
                logprobs=completion_logprobs(delta.logprobs, self._plan, offset),
                token_ids=self._token_ids(delta),
            )
        )

    def _echo(self, index: int, prompt: Prompt, position: int) -> Iterator[bytes]:
        text = prompt.text or ""
        self._offsets[index] = len(text)
        echoed = self._echoed.get(position)
        logprobs = completion_logprobs(echoed, self._plan)
        if logprobs is not None and echoed and echoed[0] is None:
            name_first_token(logprobs, prompt, self._plan)
        yield self._frame(CompletionChoice(index=index, text=text, logprobs=logprobs))


def step_of(choices: Sequence[Choice], folded: Folded, plan: Plan) -> Iterator[Step]:
    """Ranked choices as the steps of a stream, one per choice."""
    for choice in choices:
        position = choice.index // plan.n
        delta = Delta(
            index=choice.index,
            text=choice.text,
            token_ids=choice.token_ids,
            finish_reason=choice.finish_reason,
            stop_reason=choice.stop_reason,
            logprobs=choice.logprobs,
        )
        cached = folded.cached_tokens.get(position, 0)
        yield Step([delta], cached, position, folded.prompt_logprobs.get(position))
