"""Names of number types in configs; loads nothing, since an engine such as vLLM breaks where numba came before it."""

from typing import Final

INT8: Final = "int8"
"""The dtype of configs that asks for `int8_linear`."""


def floating(dtype: str) -> str:
    """The type of torch that a model of this dtype is loaded and computes in."""
    return "float32" if dtype == INT8 else dtype
