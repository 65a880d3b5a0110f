"""`Matrix`: the weights of one product, as stored in their file."""

from gpt2core.files.safetensors import Tensor
from gpt2core.startup.slim_typing import Any


class Matrix:
    """Weights [n_in, n_out], F32, F16, BF16 or I8 with scales at any alignment, and a bias [n_out].

    `tensor` may be a transposed view: embeddings and packed matrices are stored as [n_out, n_in].
    `bias` is a float32 buffer or None. The kernels in use decide whether to convert the weights,
    and keep their own form of them in `prepared`.
    """

    __slots__ = ("bias", "prepared", "tensor")

    def __init__(self, tensor: Tensor, bias: Any = None) -> None:
        self.tensor = tensor
        self.bias = bias
        self.prepared: Any = None
