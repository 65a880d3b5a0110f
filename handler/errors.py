"""What a caller or an operator can do wrong. `replies` gives each its HTTP status."""

from gpt2core.errors import GPT2Error


class SettingsError(GPT2Error):
    """An environment variable that makes no sense. `param` is its name."""

    def __init__(self, variable: str, value: str, accepted: str) -> None:
        super().__init__(f"{variable} is {value!r}; accepted: {accepted}", param=variable)


class BadRequest(GPT2Error):
    """An event or a body that is no request. `param` is the field at fault."""


class RouteNotFound(GPT2Error):
    """No such path."""


class MethodNotAllowed(GPT2Error):
    """The path exists for other methods. `allow` lists them for the `Allow` header."""

    def __init__(self, method: str, path: str, allow: str) -> None:
        super().__init__(f"{path} answers {allow}, not {method}")
        self.allow = allow


class BodyTooLarge(GPT2Error):
    """A request or a reply beyond what the event's source can carry."""


class UnsupportedContentType(GPT2Error):
    """A body that is neither JSON nor a form."""


class LimitExceeded(GPT2Error):
    """More than the model's context or the function's settings allow."""


class ModelUnavailable(GPT2Error):
    """The model that the settings name cannot be had now."""


class ModelNotFound(ModelUnavailable):
    """There is no such bucket, repository, revision or file, or it holds no GPT-2."""


class AccessDenied(ModelUnavailable):
    """The credentials are missing, expired, or not allowed to read the model."""


class ModelChanged(ModelUnavailable):
    """The model was replaced while it was downloaded, so that its parts do not belong together."""


class DigestMismatch(ModelUnavailable):
    """What arrived is not what its source or the settings promise. It has been removed."""


class DownloadFailed(ModelUnavailable):
    """The download did not succeed, however often it was tried or as long as there was time."""


class NoRoom(ModelUnavailable):
    """The model does not fit where it should go."""


class NotWritable(ModelUnavailable):
    """The place where the model should go cannot be written."""


class Unfinished(GPT2Error):
    """The time ran out before all was done; what was is kept, and a retry goes on from there."""


class ResultsUnavailable(GPT2Error):
    """The place for results cannot be had, or is not named."""


class ObjectUnavailable(GPT2Error):
    """A file of prompts is not there any more, has changed, or may not be read."""


class UnsupportedObject(GPT2Error):
    """An object that holds no prompts, by its name."""


class UnsupportedEvent(GPT2Error):
    """An event of a source that this function does not serve. Always raised, never a reply:
    a queue would take any reply for success and delete its messages.
    """


class InternalError(GPT2Error):
    """A defect of ours. The reason is in the log, not in the reply."""
