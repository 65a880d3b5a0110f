"""The work that an event asks for: one class for each kind.

`render` converts the result of the work to the content of the reply.
"""

from collections.abc import Mapping, Sequence

from gpt2core.startup.slim_typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from gpt2core.errors import GPT2Error
    from handler.completions import Completion
    from handler.dialects.request import Request
    from handler.items import Item, Record, S3Object
    from handler.telemetry import Report


class Job:
    """A job whose result is the reply."""

    def render(self, result: Any, report: "Report") -> Any:  # noqa: ARG002
        """The content of the reply."""
        return result


class Generate(Job):
    """Continue the prompts of one request."""

    def __init__(self, request: "Request") -> None:
        self.request = request

    def render(self, result: "Sequence[Completion]", report: "Report") -> Any:
        """The reply in the request's dialect."""
        return self.request.dialect.render(self.request, result, report)


class Models(Job):
    """List the models, or look up one by name."""

    def __init__(self, name: str | None = None) -> None:
        self.name = name


class Status(Job):
    """A job whose reply has a status and the report."""

    def render(self, result: dict[str, Any], report: "Report") -> dict[str, Any]:
        """The result with the report."""
        return result | report.fields()


class Health(Status):
    """Report that the function is running."""


class Document(NamedTuple):
    """An HTTP reply that is not JSON, with its headers."""

    text: str
    headers: Mapping[str, str]


class Preflight(Job):
    """Reply to a CORS preflight request with these headers."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.headers = headers


class Page(Job):
    """Reply with the web page."""


class OpenApi(Job):
    """Reply with the OpenAPI document."""


class WarmUp(Status):
    """Open the model and load its weights into memory."""


class Populate(Status):
    """Download the configured model to the volume."""


# Actions for operators, who may invoke the function directly; not available over HTTP.
ACTIONS: dict[str, type[Job]] = {"warmup": WarmUp, "populate": Populate}


class Messages(Job):
    """Messages of a queue; the result is the ids of those that failed."""

    def __init__(self, records: "tuple[Record, ...]", fifo: bool) -> None:
        self.records = records
        self.fifo = fifo
        """Whether messages must be processed in order."""


class Objects(Job):
    """Files of prompts."""

    def __init__(self, objects: "tuple[S3Object | GPT2Error, ...]") -> None:
        self.objects = objects


class Items(Job):
    """Requests of one batch."""

    def __init__(self, items: "tuple[Item, ...]") -> None:
        self.items = items

    def render(
        self,
        result: "Sequence[Sequence[Completion] | GPT2Error]",
        report: "Report",  # noqa: ARG002
    ) -> "list[tuple[Item, Sequence[Completion] | GPT2Error]]":
        """Each item with its result."""
        return list(zip(self.items, result, strict=True))
