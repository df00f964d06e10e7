"""The Triton kernels without a GPU."""

from __future__ import annotations

import pytest

BFLOAT16 = {"cuda": 2.0**-8, "cpu": 2.0**-7}  # relative, by rounding once; the interpreter cuts off instead


def interpret(patch: pytest.MonkeyPatch) -> None:
    """Run the kernels in Triton's interpreter, whatever was imported before and without its environment variable."""
    import triton.language
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    from toolkit.models import kernels

    for name, kernel in list(vars(kernels).items()):
        if isinstance(kernel, JITFunction):
            patch.setattr(kernels, name, InterpretedFunction(kernel.fn))

    def add_up(x, axis):  # type: ignore[no-untyped-def]
        return triton.language.reduce(x, axis, triton.language.standard._sum_combine)

    patch.setattr(triton.language, "sum", add_up)  # interpreted itself, it would leave the language changed
