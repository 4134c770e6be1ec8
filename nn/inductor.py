"""The operator in the code of torch.compile, without torch's dispatcher.

Inductor knows shapes and devices when it compiles, so that nothing is left for a call to look up:
x comes as a matrix, the result has its memory, and the generated code calls `write`. Where it
generates C++, it calls the operator as it would any other.
"""

from __future__ import annotations

import functools
import operator
import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch._C._autograd import _profiler_enabled
from torch.profiler import record_function

from ..runtime.linear import Linear
from . import packed
from .formats import DTYPES, kernel_spec
from .product import STORED

#: What compiles the operators of a graph, loaded by torch.compile alone.
LOWERING = "torch._inductor.lowering"
#: What generated code calls `write` and `write_named`.
CALLED = {"write": "quantmm_write", "write_named": "quantmm_write_named"}
#: The tensors that the operator takes beside x and data, in the order of its arguments.
NAMED = ("scale", "zero_point", "bias", "offset", "order")
_offered: list[Any] = []


def write(x: Tensor, data: Tensor, scale: Tensor, *others: Any, out: Tensor) -> None:
    """Compute into `out` (m, n) for a contiguous x (m, k).

    Code that torch keeps on disk calls this, also after another version was installed: what takes
    other arguments needs another name.

    Parameters
    ----------
    others : the zero point if there is one, the bias if there is one, whether there is a zero
        point, and the spec.
    """
    *optional, zero_pointed, spec = others
    zero_point = optional.pop(0) if zero_pointed else None
    bias = optional[0] if optional else None
    into(packed.find(x.dtype, data, scale, zero_point, bias, spec), x, out)


def write_named(x: Tensor, data: Tensor, *others: Any, out: Tensor) -> None:
    """As `write`, for a weight of any tensors.

    Parameters
    ----------
    others : tensors, their names among the arguments of the operator, and the spec.
    """
    *tensors, names, spec = others
    scale, zero_point, bias, offset, order = by_name(names)((*tensors, None))
    into(packed.find(x.dtype, data, scale, zero_point, bias, spec, offset, order), x, out)


@functools.cache
def by_name(names: str) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """From tensors of these names, and None behind them, to the arguments of the operator."""
    there = names.split()
    return operator.itemgetter(*(there.index(n) if n in there else -1 for n in NAMED))


def into(bound: Linear, x: Tensor, out: Tensor) -> None:
    """Compute into `out` (m, n) for a contiguous x (m, k)."""
    if (stored := STORED.get(x.dtype)) is not None:
        x, out = x.view(stored), out.view(stored)
    if _profiler_enabled():
        with record_function("quantmm::linear"):
            bound.compute(x.shape[0], x, out)
    else:
        bound.compute(x.shape[0], x, out)


def offer(linear: Any) -> None:
    """Tell inductor, if it is loaded, how the operator `linear` is compiled."""
    lowering = sys.modules.get(LOWERING)
    if lowering is None or _offered:
        return
    from torch._inductor import ir
    from torch._inductor.virtualized import V

    class Written(ir.ExternKernelOut):
        """A call of `write`, which the code that has it imports."""

        def codegen(self, wrapper: Any) -> None:
            for name, called in CALLED.items():
                if self.python_kernel_name == called:
                    wrapper.add_import_once(f"from {__name__} import {name} as {called}")
            super().codegen(wrapper)

    by_dispatcher = lowering.fallback_handler(linear, add_to_fallback_set=False)

    def lower(
        x: Any,
        data: Any,
        scale: Any,
        zero_point: Any,
        bias: Any,
        spec: str,
        offset: Any = None,
        order: Any = None,
    ) -> Any:
        named = {"scale": scale, "zero_point": zero_point, "bias": bias}
        named |= {"offset": offset, "order": order}
        there = {name: tensor for name, tensor in named.items() if tensor is not None}
        tensors = [x, data, *there.values()]
        on_cpu = all(tensor.get_device().type == "cpu" for tensor in tensors)
        if V.graph.cpp_wrapper or not on_cpu or x.get_dtype() not in DTYPES:
            return by_dispatcher(x, data, scale, zero_point, bias, spec, offset, order)
        fields = kernel_spec(spec, x.get_dtype())
        *lead, k = x.get_size()
        rows = lowering.view(x, [lowering.sympy_product(lead), k])
        layout = ir.FixedLayout(
            x.get_device(), x.get_dtype(), [rows.get_size()[0], fields.n], [fields.n, 1]
        )
        by_name = offset is not None or order is not None
        kernel = Written(
            layout=layout,
            inputs=[ir.ExternKernel.require_contiguous(each) for each in (rows, *tensors[1:])],
            constant_args=(" ".join(there) if by_name else zero_point is not None, spec),
            python_kernel_name=CALLED["write_named" if by_name else "write"],
            op_overload=linear,
        )
        return lowering.view(ir.TensorBox.create(kernel), [*lead, fields.n])

    lowering.register_lowering(linear, type_promotion_kind=None)(lower)
    _offered.append(linear)
