"""Embeddings: one engine request per text, answered in the order of the texts."""

import asyncio
import base64
import uuid
from array import array
from collections.abc import Sequence

from tenuto.engine.base import Engine, Prompts
from tenuto.engine.types import ModelFacts, Prompt, TextPrompt
from tenuto.errors import BadRequest, quoted
from tenuto.generation.usage import Tally
from tenuto.wire.requests import EmbeddingRequest
from tenuto.wire.responses import Embedding, EmbeddingList, EmbeddingUsage


def judge_dimensions(asked: int | None, facts: ModelFacts) -> None:
    """Errors: `BadRequest`."""
    allowed = facts.dimensions
    if asked is None or asked in allowed:
        return
    if not allowed:
        must = "must be left out: this model's embeddings have one size"
    elif isinstance(allowed, range):
        must = f"must be from {allowed[0]} to {allowed[-1]}"
    else:
        must = f"must be one of {', '.join(map(str, allowed))}"
    raise BadRequest(f"dimensions {must}, got {quoted(asked)}.", param="dimensions")


async def render_inputs(batch: Sequence[str | list[int]], prompts: Prompts) -> list[Prompt]:
    """Errors: `BadRequest`."""
    return [await prompts.text(TextPrompt(content, param="input")) for content in batch]


async def embedded(
    engine: Engine, prompts: Sequence[Prompt], dimensions: int | None
) -> list[list[float]]:
    """All at once, so that the engine can batch them; the first failure ends the others."""
    tasks = [
        asyncio.create_task(engine.embed(prompt, dimensions, uuid.uuid4().hex))
        for prompt in prompts
    ]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def embedding_answer(
    request: EmbeddingRequest, vectors: Sequence[list[float]], tally: Tally
) -> EmbeddingList:
    shown = as_base64 if request.encoding_format == "base64" else list
    return EmbeddingList(
        data=[Embedding(index, shown(vector)) for index, vector in enumerate(vectors)],
        model=request.model,
        usage=EmbeddingUsage(tally.prompt_tokens, tally.prompt_tokens),
    )


def as_base64(vector: Sequence[float]) -> str:
    """Little-endian float32, as on every host that this server runs on."""
    return base64.b64encode(array("f", vector)).decode()
