"""Third-party clients over HTTP against `python -m handler serve`.

They are imported in the tests, because only `make test-clients` installs them.
"""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpt2core import Engine
from tests.conftest import DEMO, ROOT
from tests.support.docs import code_blocks
from tests.support.serve import KEY

pytestmark = [
    pytest.mark.clients,
    pytest.mark.filterwarnings("ignore"),  # warnings of the clients
]

HERE = Path(__file__).parent
PROMPT = "Once upon a time"
# HF_HUB_OFFLINE would also block requests to the local server.
OFFLINE = {"HF_ENDPOINT": "http://127.0.0.1:9", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}


@pytest.fixture(scope="module", autouse=True)
def _offline() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in OFFLINE.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def expected() -> str:
    return Engine.open(DEMO).generate(PROMPT, 12).text


@pytest.fixture
def client(address: str) -> Any:
    from openai import OpenAI

    return OpenAI(base_url=f"{address}/v1", api_key="-", max_retries=0)


def test_openai_creates_completions(client: Any, expected: str) -> None:
    done = client.completions.create(model="demo", prompt=PROMPT, max_tokens=12)
    assert (done.choices[0].text, done.choices[0].finish_reason) == (expected, "length")
    assert (done.usage.prompt_tokens, done.usage.total_tokens) == (5, 17)
    assert done._request_id


@pytest.mark.parametrize(
    ("page", "begin"),
    [("README.md", "from openai import"), ("docs/api.md", "python -c 'from huggingface_hub")],
)
def test_a_snippet_of_the_docs_prints_a_text(page: str, begin: str, address: str) -> None:
    (snippet,) = (block for block in code_blocks(ROOT / page) if block.startswith(begin))
    code = snippet
    if snippet.startswith("python -c"):
        code = shlex.split(snippet.replace("\\\n", " "))[2]
    code = code.replace("http://127.0.0.1:8080", address)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip()


def test_openai_accepts_every_field(client: Any) -> None:
    done = client.completions.create(
        model="demo", prompt=[PROMPT, "The fox"], max_tokens=8, n=2, best_of=2, echo=True,
        logprobs=5, stop=["king"], seed=1, temperature=0.8, top_p=0.9, presence_penalty=0.5,
        frequency_penalty=-0.5, logit_bias={"5": -100}, user="u",
        extra_body={"top_k": 20, "repetition_penalty": 1.1, "no_repeat_ngram_size": 3},
    )  # fmt: skip
    assert [choice.index for choice in done.choices] == [0, 1, 2, 3]
    for choice in done.choices:
        scored = choice.logprobs
        assert len(scored.tokens) == len(scored.token_logprobs) == len(scored.text_offset)
        assert choice.text.startswith((PROMPT, "The fox"))


def test_openai_streams(client: Any, expected: str) -> None:
    chunks = list(
        client.completions.create(
            model="demo", prompt=PROMPT, max_tokens=12, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == expected
    assert (len(chunks), chunks[-1].usage.completion_tokens) == (13, 12)


def test_openai_lists_and_retrieves_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").object == "model"


@pytest.mark.parametrize(
    ("fields", "error", "param", "code"),
    [
        ({"prompt": PROMPT, "max_tokens": 9999}, "BadRequestError", "max_tokens",
         "context_length_exceeded"),
        ({"prompt": "a b " * 900}, "BadRequestError", "prompt", "context_length_exceeded"),
        ({"prompt": PROMPT, "suffix": "."}, "BadRequestError", "suffix", None),
        ({"prompt": PROMPT, "extra_body": {"best": 1}}, "BadRequestError", "best", None),
        ({"prompt": PROMPT, "model": "gpt-4"}, "NotFoundError", "model", "model_not_found"),
    ],
)  # fmt: skip
def test_openai_raises_its_own_errors(
    client: Any, fields: dict[str, Any], error: str, param: str, code: str | None
) -> None:
    import openai

    with pytest.raises(getattr(openai, error)) as caught:
        client.completions.create(**{"model": "demo"} | fields)
    assert (caught.value.param, caught.value.code) == (param, code)


def test_openais_chat_is_not_found(client: Any) -> None:
    import openai

    with pytest.raises(openai.NotFoundError, match="no chat template"):
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "x"}])


def test_openai_sends_the_key(guarded: str, expected: str) -> None:
    import openai

    def ask(key: str) -> str:
        client = openai.OpenAI(base_url=f"{guarded}/v1", api_key=key, max_retries=0)
        done = client.completions.create(model="demo", prompt=PROMPT, max_tokens=12)
        text: str = done.choices[0].text
        return text

    assert ask(KEY) == expected
    with pytest.raises(openai.AuthenticationError) as caught:
        ask("another")
    assert caught.value.code == "invalid_api_key"


@pytest.mark.skipif(
    not (shutil.which("node") and (HERE / "node_modules" / "openai").is_dir()),
    reason="no node, or no openai for it, which comes by npm with make test-clients",
)
def test_openai_in_javascript(address: str, expected: str) -> None:
    found = subprocess.run(
        ["node", HERE / "completions.mjs", address, PROMPT],
        capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    assert json.loads(found.stdout) == {
        "plain": expected,
        "streamed": expected,
        "tokens": 12,
        "models": ["demo"],
        "error": [True, "max_tokens", "context_length_exceeded"],
    }


def test_langchain_with_its_defaults(address: str, expected: str) -> None:
    from langchain_openai import OpenAI

    llm = OpenAI(base_url=f"{address}/v1", api_key="-", model="demo", max_tokens=12)
    assert llm.invoke(PROMPT)  # the default temperature is 0.7
    greedy = OpenAI(
        base_url=f"{address}/v1", api_key="-", model="demo", max_tokens=12, temperature=0
    )
    assert greedy.invoke(PROMPT) == expected
    assert "".join(greedy.stream(PROMPT)) == expected
    assert greedy.batch([PROMPT, PROMPT]) == [expected] * 2


def test_litellm(address: str, expected: str) -> None:
    import litellm

    done = litellm.text_completion(
        model="text-completion-openai/demo", prompt=PROMPT, max_tokens=12,
        api_base=f"{address}/v1", api_key="-",
    )  # fmt: skip
    assert done.choices[0].text == expected


def test_hugging_faces_client(address: str, guarded: str, expected: str) -> None:
    from huggingface_hub import InferenceClient

    client = InferenceClient(address)
    text = client.text_generation(PROMPT, max_new_tokens=12, return_full_text=False)
    assert text == expected
    options = {"max_new_tokens": 12, "do_sample": True, "temperature": 0.8, "top_k": 20,
               "top_p": 0.9, "seed": 1, "repetition_penalty": 1.1}  # fmt: skip
    assert client.text_generation(PROMPT, **options) == client.text_generation(PROMPT, **options)
    done = client.text_generation(PROMPT, details=True, return_full_text=False, **options)
    assert (done.details.seed, done.details.generated_tokens) == (1, 12)
    assert InferenceClient(guarded, token=KEY).text_generation(PROMPT, max_new_tokens=3)


def test_hugging_faces_client_streams(address: str, expected: str) -> None:
    from huggingface_hub import InferenceClient

    client = InferenceClient(address)
    texts = list(client.text_generation(PROMPT, max_new_tokens=12, stream=True))
    assert (len(texts), "".join(texts)) == (12, expected)
    *events, last = client.text_generation(PROMPT, max_new_tokens=12, stream=True, details=True)
    assert all(event.token.logprob < 0 and event.details is None for event in [*events])
    assert last.generated_text.endswith(expected)
    assert (last.details.finish_reason, last.details.generated_tokens) == ("length", 12)


@pytest.mark.parametrize("stream", [True, False])
def test_hugging_faces_client_raises_its_own_errors(address: str, stream: bool) -> None:
    from huggingface_hub import InferenceClient
    from huggingface_hub.errors import ValidationError

    with pytest.raises(ValidationError, match="max_new_tokens is 9999"):
        list(InferenceClient(address).text_generation("x", max_new_tokens=9999, stream=stream))


def test_curl_without_buffering_prints_events_as_they_arrive(address: str, expected: str) -> None:
    body = json.dumps({"prompt": PROMPT, "max_new_tokens": 12, "stream": True})
    done = subprocess.run(
        ["curl", "-sSN", f"{address}/generate", "-d", body],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    events = [json.loads(line[6:]) for line in done.stdout.splitlines() if line]
    assert [next(iter(event)) for event in events] == [*12 * ["token"], "generated_text"]
    assert "".join(event["token"]["text"] for event in events[:-1]) == expected


def test_curl_sends_json_and_the_key(guarded: str, expected: str) -> None:
    body = json.dumps({"prompt": PROMPT, "max_tokens": 12})
    found = subprocess.run(
        ["curl", "-sS", f"{guarded}/v1/completions", "-d", body,
         "-H", f"authorization: Bearer {KEY}"],
        capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    assert json.loads(found.stdout)["choices"][0]["text"] == expected
