"""Log-probabilities in the shapes of the two endpoints. Values are the raw model's."""

from collections.abc import Sequence

from tenuto.engine.types import Prompt, TokenLogprob
from tenuto.generation.translate import Plan
from tenuto.wire.responses import ChatLogprob, ChatLogprobs, CompletionLogprobs, TopLogprob

# JSON has no -inf; vLLM writes this in its place.
LEAST_LOGPROB = -9999.0


def chat_logprobs(entries: Sequence[TokenLogprob] | None, plan: Plan) -> ChatLogprobs | None:
    if entries is None or plan.logprobs is None:
        return None
    return ChatLogprobs(content=[_chat_entry(entry, plan) for entry in entries])


def completion_logprobs(
    entries: Sequence[TokenLogprob | None] | None, plan: Plan, offset: int = 0
) -> CompletionLogprobs | None:
    """`offset` is the position, in characters, of the first token's text. The first prompt token
    of an echo has no log-probability: its entry is None and carries only the token."""
    if entries is None or plan.logprobs is None:
        return None
    logprobs = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    for entry in entries:
        _append(logprobs, entry, plan, offset)
        offset += len(logprobs.tokens[-1])
    return logprobs


def _append(
    logprobs: CompletionLogprobs, entry: TokenLogprob | None, plan: Plan, offset: int
) -> None:
    logprobs.text_offset.append(offset)
    if entry is None:
        logprobs.tokens.append("")
        logprobs.token_logprobs.append(None)
        logprobs.top_logprobs.append(None)
        return
    token = token_text(entry.token_id, entry.token, plan)
    logprobs.tokens.append(token)
    logprobs.token_logprobs.append(finite(entry.logprob))
    top = {token: finite(entry.logprob)}
    for other in entry.top:
        # Parts of characters have no text of their own: of equal ones the most likely counts.
        text, logprob = token_text(other.token_id, other.token, plan), finite(other.logprob)
        top[text] = max(logprob, top.get(text, logprob))
    logprobs.top_logprobs.append(top if plan.logprobs else None)


def name_first_token(logprobs: CompletionLogprobs, prompt: Prompt, plan: Plan) -> None:
    """The engine has no entry for the first prompt token: its text is what the others leave."""
    text = prompt.text or ""
    rest = sum(len(token) for token in logprobs.tokens[1 : len(prompt.token_ids)])
    first = text[: max(0, len(text) - rest)]
    if plan.token_ids_as_text:
        first = token_text(prompt.token_ids[0], None, plan)
    logprobs.tokens[0] = first
    logprobs.text_offset[1:] = [offset + len(first) for offset in logprobs.text_offset[1:]]


def token_text(token_id: int, token: str | None, plan: Plan) -> str:
    return f"token_id:{token_id}" if plan.token_ids_as_text or token is None else token


def _chat_entry(entry: TokenLogprob, plan: Plan) -> ChatLogprob:
    top = [
        TopLogprob(
            token=token_text(t.token_id, t.token, plan),
            logprob=finite(t.logprob),
            bytes=_bytes(t.token, plan),
        )
        for t in entry.top
    ]
    return ChatLogprob(
        token=token_text(entry.token_id, entry.token, plan),
        logprob=finite(entry.logprob),
        bytes=_bytes(entry.token, plan),
        top_logprobs=top,
    )


def _bytes(token: str | None, plan: Plan) -> list[int] | None:
    return None if token is None or plan.token_ids_as_text else list(token.encode())


def finite(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)
