"""prepare: X as the other kernels read it. A thread block per row.

grid over rows: a thread block
  x_range = max over k                  where scales are to be found: shuffles, shared memory; of
                                        groups with scales of their own each warp finds some
  x_scale, x_zero_point = f(x_range)
  for k: xq = quantize(x)               what was just read is still in L1
  for group: x_sum = sum of xq          where zero points or offsets of weights need it
"""

from __future__ import annotations

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV

from ...targets.cuda import WARP
from ...targets.cuda_layout import SUMMED_AT_ONCE

#: Warps of a thread block.
WARPS = SUMMED_AT_ONCE
#: What is found of a row before its integers, in the order in which it is computed.
OF_ROW = ("x_range", "x_range_low", "x_scale", "x_zero_point")
#: Dimensions of those where each group has one.
OF_GROUPS = 4
#: What is written, in the order in which it is computed. A scale in shared memory and its copy for
#: the caller have one name, which TVM numbers.
RESULTS = ("x_scale_1", "x_zero_point_1", "xq", "x_sum")


def schedule(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """`func`, a frontend's `prepare`."""
    sch = Schedule(func)
    there = {
        block.name_hint for block in map(sch.get, sch.get_child_blocks(sch.get_sblock("root")))
    }
    _, k = sch.get_loops(sch.get_sblock("xq"))
    results = [name for name in RESULTS if name in there]
    row, *others = [sch.get_loops(sch.get_sblock(name))[0] for name in results]
    for other in others:
        row = sch.merge(row, other)
    if "x_sum" in there:
        sum_groups(sch, in_parts="x_part" in there)
    for name in RESULTS[:2]:
        if name in there and len(sch.get_loops(sch.get_sblock(name))) > 1:
            together(sch, sch.get_loops(sch.get_sblock(name))[-1])
    for name in reversed(OF_ROW):
        if name in there:
            block = sch.get_sblock(name)
            grouped = len(sch.get(block).writes[0].region) == OF_GROUPS
            sch.set_scope(block, 0, "shared")
            sch.compute_at(block, row, preserve_unit_loops=True)
            if name.startswith("x_range"):
                group, _, position = sch.get_loops(block)[-3:]
                over_groups(sch, group if grouped else None, position)
            elif grouped:
                together(sch, sch.get_loops(block)[-2])
    sch.bind(row, "blockIdx.x")
    together(sch, k)
    return sch.mod["main"]


def sum_groups(sch: Schedule, *, in_parts: bool) -> None:
    """The sums of a row's groups; those of which "x_sum" is computed stay in registers."""
    if not in_parts:
        over_groups(sch, *sch.get_loops(sch.get_sblock("x_sum"))[-2:])
        return
    _, group = sch.get_loops(sch.get_sblock("x_sum"))
    several = int(sch.get(group).extent) > 1
    if several:
        _, group = sch.split(group, [None, WARPS])
        sch.bind(group, "threadIdx.y")
    sums = sch.get_sblock("x_part")
    sch.set_scope(sums, 0, "local")
    sch.compute_at(sums, group, preserve_unit_loops=True)
    position = sch.get_loops(sums)[-1]
    if several:
        sch.bind(sch.split(position, [None, WARP])[1], "threadIdx.x")
    else:
        together(sch, position)


def over_groups(sch: Schedule, group: LoopRV | None, k: LoopRV) -> None:
    """A reduction of each group shared out among the lanes of a warp, groups among warps.

    Where there is only one, among all threads.
    """
    if group is None or int(sch.get(group).extent) == 1:
        together(sch, k)
        return
    sch.bind(sch.split(group, [None, WARPS])[1], "threadIdx.y")
    sch.bind(sch.split(k, [None, WARP])[1], "threadIdx.x")


def together(sch: Schedule, k: LoopRV) -> None:
    """A loop over k shared out among all threads, neighbours to neighbours."""
    _, warp, lane = sch.split(k, [None, WARPS, WARP])
    sch.bind(warp, "threadIdx.y")
    sch.bind(lane, "threadIdx.x")
