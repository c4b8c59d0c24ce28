"""Streamed answers: the SSE frames of both endpoints. The hot path; measure before changing."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import msgspec
from msgspec import UNSET

from tenuto.engine.types import AnswerParser, Delta, Prompt, Step, TokenLogprob, ToolCall
from tenuto.errors import ApiError, encoded
from tenuto.generation.answer import SYSTEM_FINGERPRINT, Head, finish_of
from tenuto.generation.fold import Choice, Folded
from tenuto.generation.logprobs import chat_logprobs, completion_logprobs, name_first_token
from tenuto.generation.parsing import answer_parser
from tenuto.generation.translate import Plan
from tenuto.generation.usage import Tally
from tenuto.wire.responses import (
    ChatChunkChoice,
    ChatDelta,
    CompletionChoice,
    FunctionCall,
    MessageToolCall,
)

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
        self._around: dict[int, tuple[bytes, bytes]] = {}
        is_more = plan.logprobs is not None or plan.return_token_ids or plan.drop_completion
        self._is_text_alone = not is_more

    def _frame(self, choice: msgspec.Struct) -> bytes:
        return self._prefix + _encode(choice) + b"]}\n\n"

    def _is_plain(self, delta: Delta) -> bool:
        """Of this delta the client gets its text, and nothing else."""
        return self._is_text_alone and delta.finish_reason is None

    def _text_frame(self, index: int, text: str) -> bytes:
        """Most frames of a stream: all but the text is encoded once."""
        if index not in self._around:
            # Behind an empty text there are only nulls.
            before, _, after = self._frame(self._empty(index)).rpartition(b'""')
            self._around[index] = before, after
        before, after = self._around[index]
        return before + _encode(text) + after

    def _empty(self, index: int) -> msgspec.Struct:
        """A choice with an empty text, and nothing else."""
        raise NotImplementedError

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

    def __init__(self, head: Head, prompts: Sequence[Prompt], plan: Plan) -> None:
        super().__init__(head, prompts, plan)
        self._parsers: dict[int, AnswerParser | None] = {}
        self._callers: set[int] = set()

    def opening(self) -> bytes:
        delta = ChatDelta(role="assistant", content="")
        return b"".join(
            self._frame(ChatChunkChoice(index=index, delta=delta)) for index in range(self._plan.n)
        )

    def step(self, step: Step) -> bytes:
        self.tally.add(step)
        return b"".join([frame for delta in step.deltas for frame in self._delta(delta)])

    def _empty(self, index: int) -> msgspec.Struct:
        return ChatChunkChoice(index=index, delta=ChatDelta(content=""))

    def _delta(self, delta: Delta) -> Iterable[bytes]:
        if delta.index not in self._parsers:
            self._parsers[delta.index] = answer_parser(self._plan, self._prompts[0])
        if self._parsers[delta.index] is None and self._is_plain(delta):
            return (self._text_frame(delta.index, delta.text),) if delta.text else ()
        return self._any_delta(delta)

    def _any_delta(self, delta: Delta) -> Iterator[bytes]:
        gained = self._gained(delta)
        logprobs = chat_logprobs(delta.logprobs, self._plan)
        if gained or logprobs or (delta.token_ids and self._plan.return_token_ids):
            yield self._frame(
                ChatChunkChoice(
                    index=delta.index,
                    delta=gained or ChatDelta(content=""),
                    logprobs=logprobs,
                    token_ids=self._token_ids(delta),
                )
            )
        if delta.finish_reason is not None:
            called = delta.index in self._callers
            yield self._frame(
                ChatChunkChoice(
                    index=delta.index,
                    delta=ChatDelta(),
                    finish_reason=finish_of(delta.finish_reason, called, self._plan),
                    stop_reason=delta.stop_reason,
                )
            )

    def _gained(self, delta: Delta) -> ChatDelta | None:
        """What the client is told of this delta's text; None when that is nothing."""
        parser = self._parsers[delta.index]
        if parser is None:
            return ChatDelta(content=delta.text) if delta.text else None
        finished = delta.finish_reason is not None
        parsed = parser.feed(delta.text, delta.token_ids, finished=finished)
        if not (parsed.content or parsed.reasoning or parsed.tool_calls):
            return None
        if parsed.tool_calls:
            self._callers.add(delta.index)
        reasoning = parsed.reasoning or UNSET
        return ChatDelta(
            content=parsed.content or UNSET,
            reasoning_content=reasoning,
            reasoning=reasoning,
            tool_calls=[_tool_call(call) for call in parsed.tool_calls] or UNSET,
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
            [frame for delta in step.deltas for frame in self._delta(delta, step.prompt_index)]
        )

    def _empty(self, index: int) -> msgspec.Struct:
        return CompletionChoice(index=index, text="")

    def _delta(self, delta: Delta, position: int) -> Iterable[bytes]:
        if delta.index in self._offsets and self._is_plain(delta):
            return (self._text_frame(delta.index, delta.text),) if delta.text else ()
        return self._any_delta(delta, position)

    def _any_delta(self, delta: Delta, position: int) -> Iterator[bytes]:
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


def _tool_call(call: ToolCall) -> MessageToolCall:
    opens = call.id is not None
    return MessageToolCall(
        FunctionCall(call.name or UNSET, call.arguments),
        index=call.index,
        id=call.id or UNSET,
        type="function" if opens else UNSET,
    )
