"""Plans for GPUs, whose products take every pairing of signs as it is."""

from __future__ import annotations

import dataclasses
import math
from typing import TypeAlias

from ...errors import UnsupportedError
from ...formats.integers import INTEGERS
from ...formats.spec import MatmulSpec
from ...targets.cuda import CudaTarget
from ...targets.cuda_layout import CudaLayout, cuda_layout
from .. import plan as plans
from ..plan import Plan, group_size, weight_bits

#: Of stored weights that the products take.
BITS = (8, 4)

CudaPlan: TypeAlias = Plan[CudaTarget, CudaLayout]


def plan_for(spec: MatmulSpec, target: CudaTarget) -> CudaPlan:
    """The plan of a spec on a GPU.

    Raises
    ------
    UnsupportedError
        K is so long that the sums of 4-bit weights, which count 16 times, leave int32; or the
        weight's last offset, with experts that of the last one's, is beyond int32.
    """
    layout = layout_for(spec)
    size = math.prod(layout.shape) * (spec.experts or 1)
    if size - 1 > plans.MAX_ELEMENTS:
        raise plans.too_large(spec, size, "bytes")
    return Plan(spec, target, target.instruction, 0, 0, layout)


def layout_for(spec: MatmulSpec) -> CudaLayout:
    """The private layout of the spec's weight; see `plan_for`."""
    bits = weight_bits(spec)
    if bits not in BITS:
        raise UnsupportedError(f"a GPU has no products for {spec.weight} weights of {bits} bits")
    layout = cuda_layout(
        spec.n,
        spec.k,
        group_size=group_size(spec),
        bits=bits,
        dtype="uint8" if spec.weight.startswith("u") else "int8",
    )
    layout = dataclasses.replace(layout, matrices=spec.matrices)
    # Eight-bit sums may leave int32 on the way, since what is subtracted brings them back; where
    # products count several times, a shift follows, and nothing may be lost before it.
    largest = (max(map(abs, INTEGERS[each].range)) for each in (spec.activation, spec.weight))
    most = (2**31 - 1) // (math.prod(largest) * layout.factor)
    if layout.factor > 1 and (layout.group_size or spec.k) > most:
        raise UnsupportedError(
            f"k={spec.k} with {spec.activation} x {spec.weight}, group_size={spec.group_size}: "
            f"on a GPU a group of these has at most {most} k"
        )
    return layout
