"""What one request used, as it is written down: never a prompt nor an answer."""

import time

from tenuto.access.usage import UsageRow
from tenuto.api.exchange import Exchange


def usage_of(exchange: Exchange, endpoint: str, status: int, duration_s: float) -> UsageRow:
    tally = exchange.tally
    return UsageRow(
        at=time.time(),
        key_id=exchange.key.id if exchange.key is not None else "",
        model=exchange.model,
        endpoint=endpoint,
        status=status,
        prompt_tokens=tally.prompt_tokens if tally is not None else 0,
        cached_tokens=sum(tally.cached_tokens.values()) if tally is not None else 0,
        completion_tokens=tally.completion_tokens if tally is not None else 0,
        generated_tokens=exchange.all_tokens,
        first_token_s=exchange.first_token_s,
        duration_s=duration_s,
        finish=tally.finish if tally is not None else None,
    )
