"""Our sampling as vLLM's, and vLLM's outputs as our steps."""

from collections.abc import Mapping, Sequence

from vllm import SamplingParams
from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from tenuto.engine.types import Constraint, Delta, Sampling, Step, TokenLogprob, TopLogprob
from tenuto.errors import BadRequest, EngineLost


def sampling_params(sampling: Sampling) -> SamplingParams:
    return SamplingParams(
        n=sampling.n,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        seed=sampling.seed,
        stop=list(sampling.stop),
        stop_token_ids=list(sampling.stop_token_ids),
        max_tokens=sampling.max_tokens,
        min_tokens=sampling.min_tokens,
        ignore_eos=sampling.ignore_eos,
        include_stop_str_in_output=sampling.include_stop_str_in_output,
        detokenize=sampling.detokenize,
        skip_special_tokens=sampling.skip_special_tokens,
        spaces_between_special_tokens=sampling.spaces_between_special_tokens,
        logprobs=sampling.logprobs,
        prompt_logprobs=sampling.prompt_logprobs,
        logit_bias=dict(sampling.logit_bias) if sampling.logit_bias else None,
        bad_words=list(sampling.bad_words),
        allowed_token_ids=list(sampling.allowed_token_ids) if sampling.allowed_token_ids else None,
        structured_outputs=_structured(sampling.constraint),
        output_kind=RequestOutputKind.DELTA if sampling.stream else RequestOutputKind.FINAL_ONLY,
        # These parameters belong to one request, so vLLM need not copy them deeply.
        skip_clone=True,
    )


def step(output: RequestOutput, sampling: Sampling, *, first: bool) -> Step:
    """Errors: `EngineLost` for an end that nobody asked for, which vLLM reports as a finish."""
    prompt_logprobs = None
    if first and sampling.prompt_logprobs is not None:
        prompt_logprobs = _prompt_logprobs(output.prompt_logprobs or (), sampling.prompt_logprobs)
    return Step(
        deltas=[_delta(completion, sampling) for completion in output.outputs],
        cached_tokens=output.num_cached_tokens or 0,
        prompt_logprobs=prompt_logprobs,
    )


def _structured(constraint: Constraint | None) -> StructuredOutputsParams | None:
    if constraint is None:
        return None
    kind = "json" if constraint.kind == "json_schema" else constraint.kind
    return StructuredOutputsParams(**{kind: constraint.value})


def judge_finish(reason: str | None, sampling: Sampling) -> None:
    """Errors: `BadRequest`, `EngineLost` for an end that nobody asked for."""
    if reason == "error" and sampling.constraint is not None:
        raise BadRequest(
            f"{sampling.constraint.param} is too complex to be enforced.",
            param=sampling.constraint.param,
        )
    if reason not in (None, "stop", "length"):
        raise EngineLost


def _delta(completion: CompletionOutput, sampling: Sampling) -> Delta:
    judge_finish(completion.finish_reason, sampling)
    logprobs = None
    if sampling.logprobs is not None and completion.logprobs is not None:
        logprobs = [
            _token_logprob(token_id, entry, sampling.logprobs)
            for token_id, entry in zip(completion.token_ids, completion.logprobs, strict=False)
        ]
    return Delta(
        index=completion.index,
        text=completion.text,
        token_ids=completion.token_ids,
        finish_reason=completion.finish_reason,
        stop_reason=completion.stop_reason,
        logprobs=logprobs,
        cumulative_logprob=completion.cumulative_logprob,
    )


def _prompt_logprobs(
    entries: Sequence[Mapping[int, Logprob] | None], most: int
) -> list[TokenLogprob | None]:
    # The prompt's own token is the first key of its position.
    return [
        None if entry is None else _token_logprob(next(iter(entry)), entry, most)
        for entry in entries
    ]


def _token_logprob(token_id: int, entry: Mapping[int, Logprob], most: int) -> TokenLogprob:
    taken = entry[token_id]
    ranked = sorted(entry.items(), key=lambda item: item[1].rank or 0)
    top = tuple(TopLogprob(i, p.decoded_token, p.logprob) for i, p in ranked[:most])
    return TokenLogprob(token_id, taken.decoded_token, taken.logprob, top)
