"""What users of llama-index's OpenAILike call, as JSON. Runs in .clients/llama-index."""

import asyncio
import json
import os
from typing import Any

from llama_index.core.llms import ChatMessage  # type: ignore[import-not-found]
from llama_index.llms.openai_like import OpenAILike  # type: ignore[import-not-found]

HELLO = "Hello!"
MESSAGES = [ChatMessage(role="user", content=HELLO)]


def model(**fields: Any) -> Any:
    return OpenAILike(
        model="tenuto-demo",
        api_base=os.environ["TENUTO_URL"] + "/v1",
        api_key="none",
        context_window=8192,
        max_tokens=64,
        max_retries=0,
        **{"temperature": 0.0} | fields,
    )


def main() -> None:
    chat, text = model(is_chat_model=True), model(is_chat_model=False)
    answer = chat.chat(MESSAGES)
    streamed = list(chat.stream_chat(MESSAGES))
    completed = list(text.stream_complete(HELLO))
    sampler = {"extra_body": {"top_k": 1, "best_of": 1}}
    report = {
        "chat": answer.message.content,
        "usage": answer.raw.usage.total_tokens,
        "stream_chat": "".join(part.delta or "" for part in streamed),
        "last": streamed[-1].message.content,
        "async": asyncio.run(chat.achat(MESSAGES)).message.content,
        "complete_by_chat": chat.complete(HELLO).text,
        "complete": text.complete(HELLO).text,
        "stream_complete": "".join(part.delta or "" for part in completed),
        "chat_by_complete": text.chat(MESSAGES).message.content,
        "sampled": model(is_chat_model=True, temperature=1.5, additional_kwargs=sampler)
        .chat(MESSAGES)
        .message.content,
        "logprobs": len(
            model(is_chat_model=True, logprobs=True, top_logprobs=2).chat(MESSAGES).logprobs
        ),
    }
    print(json.dumps(report))


main()
