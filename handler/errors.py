"""The exceptions of the handler, and the HTTP status of each.

Lambda logs the message of an error that the function raises. So the messages of errors from queues,
buckets and state machines do not contain anything that a caller chose.
"""

from gpt2core.errors import GPT2Error, InvalidArgument, ModelError, PromptTooLong


class SettingsError(GPT2Error):
    """An environment variable has an invalid value. `param` is its name."""

    def __init__(self, variable: str, value: str, accepted: str) -> None:
        super().__init__(f"{variable} is {value!r}; accepted: {accepted}", param=variable)


class BadRequest(GPT2Error):
    """An event or a body is not a valid request. `param` is the field at fault."""


class RouteNotFound(GPT2Error):
    """The path does not exist."""


class Unauthorized(GPT2Error):
    """The request has no API key or a wrong one (GPT2_API_KEY)."""

    def __init__(self, has_key: bool) -> None:
        problem = "the API key is invalid" if has_key else "an API key is required"
        super().__init__(
            f"{problem}: send the header Authorization: Bearer KEY", param="authorization"
        )


class ModelNotServed(RouteNotFound):
    """The request names a model that this function does not serve."""


class MethodNotAllowed(GPT2Error):
    """The path does not accept this method. `allow` is the value of the `Allow` header."""

    def __init__(self, method: str, path: str, allow: str) -> None:
        super().__init__(f"{path} does not accept {method}: use {allow}")
        self.allow = allow


class BodyTooLarge(GPT2Error):
    """A request or a reply exceeds the size limit of the event's source."""


class UnsupportedContentType(GPT2Error):
    """The body is neither JSON nor a form."""


class UnsupportedContentEncoding(GPT2Error):
    """The compression of the body is not supported."""


class LimitExceeded(GPT2Error):
    """A value exceeds a limit of the model's context or of the settings."""


class TooManyRequests(GPT2Error):
    """More concurrent requests than GPT2_MAX_WAITING. `retry_after` is in seconds."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"{limit} requests are already in progress (GPT2_MAX_WAITING): retry later"
        )
        self.retry_after = 1


class Cancelled(GPT2Error):
    """The caller has disconnected."""


class ModelUnavailable(GPT2Error):
    """The configured model is not available."""


class ModelNotFound(ModelUnavailable):
    """The bucket, repository, revision or file does not exist, or is not a GPT-2 model."""


class AccessDenied(ModelUnavailable):
    """The credentials are missing, expired, or do not permit reading the model."""


class ModelChanged(ModelUnavailable):
    """The model was replaced during the download, so its parts do not belong together."""


class DigestMismatch(ModelUnavailable):
    """The downloaded files do not have the expected digests. They have been removed."""


class DownloadFailed(ModelUnavailable):
    """The download failed after all retries, or at the deadline."""


class InsufficientStorage(ModelUnavailable):
    """The model does not fit on the disk or the volume."""


class NotWritable(ModelUnavailable):
    """The directory for the model is not writable."""


class Unfinished(GPT2Error):
    """The deadline passed before the work was complete. A retry of a file continues from its
    checkpoint.
    """


class ResultsUnavailable(GPT2Error):
    """The location for results is not available or not configured."""


class ObjectUnavailable(GPT2Error):
    """A file of prompts is missing, has changed, or cannot be read."""


class ObjectGone(ObjectUnavailable):
    """It was deleted or replaced: a retry cannot succeed."""


class UnsupportedObject(GPT2Error):
    """An object is not a readable file of prompts."""


class UnsupportedEvent(GPT2Error):
    """The source of an event is not supported. Always raised, never returned as a reply:
    a queue treats any reply as success and deletes its messages.
    """


class InternalError(GPT2Error):
    """An unexpected error. The cause is in the log, not in the reply."""


_STATUS: tuple[tuple[type[GPT2Error], int], ...] = (
    (BadRequest, 400),
    (InvalidArgument, 400),
    (Unauthorized, 401),
    (RouteNotFound, 404),
    (MethodNotAllowed, 405),
    (BodyTooLarge, 413),
    (UnsupportedContentType, 415),
    (UnsupportedContentEncoding, 415),
    (PromptTooLong, 422),
    (LimitExceeded, 422),
    (TooManyRequests, 429),
    (Cancelled, 499),  # nginx's status code; only seen in logs
    (ModelError, 503),
    (ModelUnavailable, 503),
)


def status_of(error: GPT2Error) -> int:
    """The HTTP status of an error; 500 for unexpected ones."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
