from typing import Any

import pytest

from handler.errors import SettingsError
from handler.settings import Settings

DIGEST = "248DFC3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707"


def test_a_rejected_uri_is_reported_without_its_signature() -> None:
    uri = "https://key:hunter2@bucket.s3.amazonaws.com/gpt2?X-Amz-Signature=abc"
    with pytest.raises(SettingsError) as caught:
        Settings.from_environ({"GPT2_MODEL_URI": uri})
    assert "https://bucket.s3.amazonaws.com/gpt2'" in caught.value.message
    assert "hunter2" not in caught.value.message
    assert "Signature" not in caught.value.message


def test_an_empty_environment_is_the_demo_with_the_defaults() -> None:
    settings = Settings.from_environ({})
    assert (settings.model_dir, settings.model_dir_named) == ("/mnt/gpt2", False)
    assert (settings.model_uri, settings.cache_dir, settings.preload) == (None, "/tmp/gpt2", "lazy")
    assert (settings.max_new_tokens, settings.max_prompt_tokens) == (None, None)
    assert settings.threads >= 1


def test_every_variable_is_read() -> None:
    settings = Settings.from_environ(
        {
            "GPT2_MODEL_DIR": "/mnt/model",
            "GPT2_MODEL_URI": "s3://bucket/gpt2",
            "GPT2_MODEL_SHA256": DIGEST,
            "GPT2_CACHE_DIR": "/mnt/cache",
            "GPT2_MAX_NEW_TOKENS": "100",
            "GPT2_MAX_PROMPT_TOKENS": "200",
            "GPT2_MAX_WAITING": "7",
            "GPT2_PRELOAD": "init",
            "GPT2_THREADS": "3",
            "GPT2_KERNELS": "numpy",
            "GPT2_PROMPT_LOOKUP": "off",
        }
    )
    assert settings == Settings(
        model_dir="/mnt/model",
        model_uri="s3://bucket/gpt2",
        model_dir_named=True,
        model_sha256=DIGEST.lower(),
        cache_dir="/mnt/cache",
        max_new_tokens=100,
        max_prompt_tokens=200,
        max_waiting=7,
        preload="init",
        threads=3,
        kernels="numpy",
        prompt_lookup=False,
    )


def test_an_empty_variable_counts_as_unset() -> None:
    names = ("MODEL_DIR", "MODEL_URI", "MODEL_SHA256", "CACHE_DIR", "MAX_NEW_TOKENS", "PRELOAD")
    assert Settings.from_environ({f"GPT2_{n}": "" for n in names}) == Settings.from_environ({})


@pytest.mark.parametrize(
    ("memory", "threads"), [("128", 1), ("1769", 1), ("1770", 2), ("3538", 2), ("10240", 6)]
)
def test_threads_default_to_the_vcpus_of_the_memory_size(
    memory: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)))
    settings = Settings.from_environ({"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": memory})
    assert settings.threads == threads


def test_threads_outside_of_lambda_default_to_the_usable_cpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {4, 5, 6})
    assert Settings.from_environ({}).threads == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GPT2_MODEL_DIR", "models/demo"),
        ("GPT2_MODEL_URI", "https://example.com/gpt2"),
        ("GPT2_MODEL_URI", "gpt2"),
        ("GPT2_MODEL_SHA256", "abc"),
        ("GPT2_MODEL_SHA256", "g" * 64),
        ("GPT2_CACHE_DIR", "cache"),
        ("GPT2_MAX_NEW_TOKENS", "0"),
        ("GPT2_MAX_NEW_TOKENS", "-5"),
        ("GPT2_MAX_NEW_TOKENS", "ten"),
        ("GPT2_MAX_NEW_TOKENS", "1.5"),
        ("GPT2_MAX_NEW_TOKENS", "٣"),
        ("GPT2_MAX_NEW_TOKENS", "9" * 5000),
        ("GPT2_MAX_PROMPT_TOKENS", "all"),
        ("GPT2_PRELOAD", "yes"),
        ("GPT2_THREADS", "0"),
        ("GPT2_KERNELS", "fast"),
        ("GPT2_PROMPT_LOOKUP", "yes"),
        ("GPT2_STREAM", "rest,url"),
        ("GPT2_STREAM", "http"),
        ("GPT2_RESULTS", "s3://results/" + "ü" * 300),
    ],
)
def test_an_invalid_value_is_an_error_that_names_what_is_accepted(name: str, value: Any) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environ({name: value})
    assert caught.value.param == name
    assert str(caught.value).startswith(f"{name} is {value!r}; accepted: ")


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("GPT2_MAX_OBJECT_BYTES", "max_object_bytes"),
        ("GPT2_MAX_NEW_TOKENS", "max_new_tokens"),
        ("GPT2_MAX_WAITING", "max_waiting"),
        ("GPT2_HTTP_TIMEOUT", "http_timeout"),
    ],
)
@pytest.mark.parametrize(
    ("value", "found"),
    [("5000000000", 5_000_000_000), ("1", 1), ("007", 7), (f"{2**63 - 1}", 2**63 - 1)],
)
def test_large_numbers_and_leading_zeros_are_accepted(
    name: str, field: str, value: str, found: int
) -> None:
    assert getattr(Settings.from_environ({name: value}), field) == found


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("GPT2_MAX_OBJECT_BYTES", value)
            for value in ("0", "-1", "1.5", "5e9", "9" * 5000, "٣", "000")
        ),
        ("GPT2_HTTP_TIMEOUT", "29s"),
        ("GPT2_THREADS", "5000000000"),
        *(("GPT2_BASE_PATH", value) for value in ("gpt2", "/a b", "/a?b", "/a//b", "/%61", "/a#b")),
    ],
)
def test_an_invalid_value_is_an_error_that_names_its_variable(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        Settings.from_environ({name: value})


@pytest.mark.parametrize(
    ("value", "found"),
    [("", ""), ("/", ""), ("/gpt2", "/gpt2"), ("/gpt2/", "/gpt2"), ("/a/b", "/a/b")],
)
def test_a_base_path_must_be_a_path(value: str, found: str) -> None:
    assert Settings.from_environ({"GPT2_BASE_PATH": value}).base_path == found
