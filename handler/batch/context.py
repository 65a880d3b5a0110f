"""`BatchContext`: what every kind of batch needs."""

from collections.abc import Callable
from functools import cached_property

from gpt2core.startup.slim_typing import TYPE_CHECKING
from handler.settings import Settings
from handler.telemetry import Counts

if TYPE_CHECKING:
    from gpt2core.engine import Engine
    from handler.batch.storage import Storage


class BatchContext:
    """The settings, engine, storage and counts of one invocation.

    `deadline` is in `time.monotonic()` seconds.
    """

    def __init__(
        self,
        settings: Settings,
        open_engine: "Callable[[], Engine]",
        deadline: float | None,
        counts: Counts,
    ) -> None:
        self.settings = settings
        self.deadline = deadline
        self.counts = counts
        self._open_engine = open_engine

    @cached_property
    def engine(self) -> "Engine":
        """The engine, opened at first use.

        Raises:
            ModelUnavailable, ModelError: the model is not available.
        """
        return self._open_engine()

    @cached_property
    def storage(self) -> "Storage":
        """Where the results go.

        Raises:
            ResultsUnavailable: GPT2_RESULTS is not set.
        """
        from handler.batch.storage import Storage  # boto3

        return Storage(self.settings)
