"""What a `Scheduler` needs of a model's forward pass.

`gpt2core.model` computes it with NumPy, `gpt2core.kernels.native` with the compiled kernels, which
do not need NumPy: importing it would take a fifth of a cold start. So arrays are passed as float32
buffers, which `numpy.asarray` views without a copy.
"""

from collections.abc import Callable, Sequence

from gpt2core.config import GPT2Config
from gpt2core.errors import CheckpointError
from gpt2core.startup.slim_typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from gpt2core.kernels.reference import Float32
    from gpt2core.weights import Weights

# Rows of prefill in one pass: keeps attention scores below n_head * 256 * n_positions floats
# (26 MB for gpt2-xl) for prompts of any length.
PREFILL_ROWS = 256


class KVCache:
    """Keys and values of all layers for one sequence, preallocated for `capacity` positions.

    `keys`, `values`: float32 [n_layer, n_head, capacity, head_dim]. `empty(shape)` allocates an
    uninitialized float32 array.
    """

    @staticmethod
    def nbytes(config: GPT2Config, capacity: int) -> int:
        """Bytes of a cache of `capacity` positions."""
        return 4 * 2 * config.n_layer * config.n_embd * capacity

    def __init__(
        self, config: GPT2Config, capacity: int, empty: Callable[[tuple[int, ...]], Any]
    ) -> None:
        shape = (config.n_layer, config.n_head, capacity, config.head_dim)
        self.keys = empty(shape)
        self.values = empty(shape)
        self.capacity = capacity
        self.n_kv = 0
        """Number of positions in use."""


class ForwardPass(Protocol):
    """The forward pass of one model. Thread-safe. A pass has at least one row."""

    weights: "Weights"
    is_native: bool
    """Whether the compiled kernels are in use, not NumPy."""

    def prepare_ahead(self) -> None:
        """Start a thread that copies or converts the weights, if they need it."""

    def after_restore(self) -> None:
        """Expect that weights are read from disk again, after a snapshot restore."""

    def new_cache(self, capacity: int) -> KVCache:
        """An empty cache for one sequence of up to `capacity` positions."""

    def hidden_states(
        self,
        sequences: Sequence[Sequence[int]],
        caches: Sequence[KVCache],
        n_last: Sequence[int] | None = None,
    ) -> Any:
        """Run one pass on the new ids of each sequence, which follow the positions in its cache.

        Returns [sum(n_last), n_embd] before `ln_f`: the last `n_last[0]` rows of the first
        sequence, then of the second, …; all rows without `n_last`. The last block computes only
        keys and values of the other rows.
        """

    def greedy(self, x: Any) -> list[int | None]:
        """The most likely id after each row of hidden states x [n_tokens, n_embd].

        Ties go to the lowest id. None: a logit of the row is NaN, because weights are damaged.
        """

    def unchecked_logits(self, x: Any) -> "Float32":
        """Hidden states [n_tokens, n_embd] -> [n_tokens, vocab_size]; NaN for damaged weights."""


def damaged_error() -> CheckpointError:
    """The error for logits that are NaN or infinite.

    It does not name the directory: a downloaded model is opened before it gets its final name.
    """
    return CheckpointError(
        "the logits are NaN or infinite: the weights are damaged; download the model again"
    )
