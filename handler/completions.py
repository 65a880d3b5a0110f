"""Results of decoding, as dialects render them."""

from collections.abc import Sequence

from gpt2core.errors import InvalidArgument
from gpt2core.startup.slim_typing import TYPE_CHECKING, NamedTuple
from handler.dialects.request import Request

if TYPE_CHECKING:
    from gpt2core.engine import Engine
    from gpt2core.generation import Generation, Logprob, Token


class Completion(NamedTuple):
    """The result of one prompt."""

    prompt: str
    text: str
    ids: list[int]
    prompt_tokens: int
    finish_reason: str
    """`length`, `stop`, `eos` or `deadline`, see `gpt2core.generation.FinishReason`."""
    seed: int | None = None
    """The seed of sampling; None for greedy decoding."""
    tokens: "tuple[ScoredToken, ...]" = ()
    """The new tokens including the end-of-text token, if logprobs were requested."""
    prompt_scores: "tuple[ScoredToken, ...]" = ()
    """The prompt's tokens, if requested; the first has no logprob."""


class StreamedToken(NamedTuple):
    """A new token in a stream."""

    id: int
    text: str
    """"" for special tokens, and while a character or a stop string is incomplete. The
    concatenated texts of a stream are the completion's text."""
    is_special: bool
    scored: "ScoredToken | None" = None
    """Only if logprobs were requested."""


class Piece(NamedTuple):
    """The tokens that one pass added to one completion of a request."""

    completion_index: int
    """Index of the completion: that of its prompt times `n`, plus that of the choice."""
    prompt: str
    """The prompt, if it is part of the reply, else ""."""
    tokens: list[StreamedToken]
    """Includes the end-of-text token if logprobs were requested."""
    completion: Completion | None
    """The complete result, once the sequence has ended."""


class ScoredToken(NamedTuple):
    """The bytes of a token and its logprob."""

    text: bytes
    in_text: bool
    """False for special tokens, which are not part of the text."""
    logprob: float | None
    top: tuple[tuple[bytes, float], ...] = ()
    """The most likely tokens, best first."""


def completions_of(
    engine: "Engine", request: Request, results: "dict[int, Generation]"
) -> list[Completion]:
    """The results of a request in the order of its prompts."""
    return [completion_of(engine, request, i, results[i]) for i in range(len(results))]


def completion_of(engine: "Engine", request: Request, index: int, done: "Generation") -> Completion:
    """The result of completion `index` of a request."""
    sampling, prompt = request.sampling, request.prompts[index // request.n]
    prompt_scores = _scored(engine, done.prompt_logprobs)
    if done.prompt_logprobs is not None:
        ids = (
            engine.encode_prompt(prompt, None, request.allow_special)
            if isinstance(prompt, str)
            else prompt
        )
        first = _token(engine, ids[0] if ids else engine.config.bos_token_id or 0)
        prompt_scores = (first, *prompt_scores)
    return Completion(
        prompt if isinstance(prompt, str) else engine.tokenizer.decode(prompt),
        done.text,
        done.ids,
        done.prompt_tokens,
        done.finish_reason,
        sampling.seed if sampling and sampling.temperature else None,
        _scored(engine, done.logprobs),
        prompt_scores,
    )


def piece_of(
    engine: "Engine",
    request: Request,
    index: int,
    tokens: "Sequence[Token]",
    done: "Generation | None",
) -> Piece:
    """The tokens that a pass added to completion `index`, and the complete result at its end."""
    tokenizer, prompt = engine.tokenizer, request.prompts[index // request.n]
    echo = prompt if request.return_full_text else ""
    text = echo if isinstance(echo, str) else tokenizer.decode(echo)
    new = [
        StreamedToken(
            token.id,
            token.text,
            tokenizer.is_special(token.id),
            _scored(engine, [token.logprob])[0] if token.logprob else None,
        )
        for token in tokens
    ]
    if done is None:
        return Piece(index, text, new, None)
    if done.logprobs and len(done.logprobs) > len(done.ids):
        end = done.logprobs[-1]
        new.append(StreamedToken(end.id, "", True, _scored(engine, [end])[0]))
    return Piece(index, text, new, completion_of(engine, request, index, done))


def _scored(engine: "Engine", logprobs: "list[Logprob] | None") -> tuple[ScoredToken, ...]:
    return tuple(
        _token(engine, p.id)._replace(
            logprob=p.logprob, top=tuple((_bytes(engine, i), value) for i, value in p.top)
        )
        for p in logprobs or ()
    )


def _token(engine: "Engine", token: int) -> ScoredToken:
    tokenizer = engine.tokenizer
    return ScoredToken(_bytes(engine, token), not tokenizer.is_special(token), None)


def _bytes(engine: "Engine", token: int) -> bytes:
    """The bytes of a token; b"" if the tokenizer does not have it."""
    try:
        return engine.tokenizer.token_bytes(token)
    except InvalidArgument:
        return b""
