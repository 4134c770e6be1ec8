"""The caller's arrays as tvm_ffi tensors: checked, and copied only where a kernel cannot read them.

NumPy, torch and every other library with DLPack on the CPU. float16 and bfloat16 go to a kernel as
uint16, packed 4-bit integers as uint8 (`spec.stored_as`).
"""

from __future__ import annotations

import ctypes
import functools
import math
import sys
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ..errors import ArrayError
from ..formats.spec import stored_as
from ..formats.values import refuse_masked
from ..schedules.plan import MAX_ELEMENTS
from .tvm_runtime import tvm_ffi

#: NumPy dtypes that a kernel takes as another one of the same size.
VIEWED = {np.dtype(t): np.dtype(np.uint16) for t in (np.float16, ml_dtypes.bfloat16)}

#: What traces, exports and compilations of torch can hold.
HOW_TO_TRACE = "a call outside of torch's tracing, or quantmm.nn.Linear, a module that it takes"


@functools.cache
def name_of(dtype: np.dtype) -> str:
    """`dtype.name`, which takes NumPy microseconds."""
    return dtype.name


@functools.cache
def torch_name(dtype: Any) -> str:
    """NumPy's name for a torch dtype."""
    return str(dtype).removeprefix("torch.")


def import_array(name: str, x: Any, dtype: np.dtype, columns: int) -> Any:
    """`x` (M, columns) as a tensor whose rows are contiguous; copies what is not.

    Raises
    ------
    ArrayError
        No array, or one of another shape, dtype or device.
    """
    if not isinstance(x, np.ndarray):
        read = import_torch if is_torch(x) else import_dlpack
        return read(name, x, dtype, columns)
    if type(x) is not np.ndarray:
        refuse_masked(name, x)
    native = x.dtype == dtype
    if x.ndim != 2 or x.shape[1] != columns or not (native or x.dtype.newbyteorder("=") == dtype):
        raise unfit(name, x.dtype.name, x.shape, dtype, columns)
    fits = native and x.flags.writeable and rows_fit(x, columns, dtype.itemsize)
    return tensor(x if fits else np.array(x, dtype, order="C"))


def rows_fit(array: np.ndarray, columns: int, size: int) -> bool:
    """Whether a kernel can follow a matrix's strides: rows are contiguous and do not overlap."""
    # What is said of a single column's stride means nothing to NumPy, but a kernel checks it.
    if columns > 1 and array.flags.c_contiguous:
        return True
    row, column = array.strides
    return column == size and not row % size and steps_fit(array.shape[0], columns, row // size)


def steps_fit(rows: int, columns: int, row: int) -> bool:
    """Whether rows that are `row` elements apart neither overlap nor leave int32."""
    return columns <= row <= MAX_ELEMENTS // max(1, rows)


def unfit(
    name: str, found: str, shape: tuple[int, ...], dtype: np.dtype, columns: int
) -> ArrayError:
    """The error for an array of another shape or dtype than (M, columns) of `dtype`."""
    text = f"{name} is {found}{shape}; expected {dtype.name}(M, {columns})"
    if len(shape) == 2 and shape[1] != columns == shape[0]:
        text += "; is it transposed?"
    elif name == "x" and dtype.kind in "iu" and "float" in found:
        text += "; quantize it before, or have the call do so: a spec with input='float32'"
    return ArrayError(text)


def tensor(array: np.ndarray) -> Any:
    """A NumPy array of a format that kernels take, as a tensor over the same memory."""
    stored = VIEWED.get(array.dtype)
    return tvm_ffi.from_dlpack(array if stored is None else array.view(stored))


def import_torch(name: str, x: Any, dtype: np.dtype, columns: int) -> Any:
    """As `import_array`, for torch, which tells of its tensors quicker than DLPack."""
    check_torch(name, x, "reads")
    shape, found = x.shape, torch_name(x.dtype)
    if len(shape) != 2 or shape[1] != columns or found != name_of(dtype):
        raise unfit(name, found, tuple(shape), dtype, columns)
    if x.is_neg():
        x = x.resolve_neg()
    if not torch_rows_fit(x, columns):
        x = x.clone(memory_format=sys.modules["torch"].contiguous_format)
    return torch_tensor(name, x, dtype)


def check_torch(name: str, x: Any, verb: str) -> None:
    """Refuse what DLPack hands over as something else, or with a page of C++ for a message."""
    torch = sys.modules["torch"]
    check_dense(name, x)
    if verb == "reads":
        refuse_traced(name, x)
    if not x.is_cpu:
        raise ArrayError(f"{name} is on {x.device}; this kernel {verb} arrays of the CPU")
    if x.requires_grad and torch.is_grad_enabled():
        raise ArrayError(
            f"{name} requires a gradient, which kernels do not compute; pass {name}.detach(), or "
            "call within torch.no_grad()"
        )


def refuse_traced(name: str, x: Any) -> None:
    """Refuse a torch tensor whose operations become a graph, which would not hold the call.

    Its result would be in the graph as what `torch.empty` happened to give.
    """
    torch = sys.modules["torch"]
    if type(x) is not torch.Tensor:
        fakes = sys.modules.get("torch._subclasses.fake_tensor")
        if fakes is not None and isinstance(x, fakes.FakeTensor):
            raise ArrayError(
                f"{name} is a FakeTensor, which has no numbers; expected {HOW_TO_TRACE}"
            )
    core = torch._C
    if (
        core._get_tracing_state() is not None
        or core._get_dispatch_mode(core._TorchDispatchModeKey.PROXY) is not None
    ):
        raise ArrayError(
            f"{name} is traced, and a kernel's call would be missing in the graph; expected "
            f"{HOW_TO_TRACE}"
        )


def check_dense(name: str, x: Any) -> None:
    """Refuse a torch tensor whose numbers do not lie at strides."""
    if x.layout is not sys.modules["torch"].strided or x.is_nested:
        kind = "nested" if x.is_nested else torch_name(x.layout)
        raise ArrayError(f"{name} is a {kind} tensor; expected a dense one")


def torch_rows_fit(x: Any, columns: int) -> bool:
    """`rows_fit` of a torch tensor."""
    if columns > 1 and x.is_contiguous():
        return True
    row, column = x.stride()
    return column == 1 and steps_fit(x.shape[0], columns, row)


def torch_tensor(name: str, x: Any, dtype: np.dtype) -> Any:
    """A torch tensor of a format that kernels take, as a tensor over the same memory."""
    stored = VIEWED.get(dtype)
    if stored is not None:
        x = x.view(getattr(sys.modules["torch"], name_of(stored)))
    given = from_dlpack(name, x)
    if not given.data_ptr() and x.numel():
        raise ArrayError(f"{name} is a {type(x).__name__} without memory; expected numbers")
    return given


def import_dlpack(name: str, x: Any, dtype: np.dtype, columns: int) -> Any:
    """As `import_array`, for arrays of other libraries."""
    given = from_dlpack(name, x)
    check_on_cpu(name, given, "reads")
    shape, found = tuple(given.shape), str(given.dtype)
    if len(shape) != 2 or shape[1] != columns or found != name_of(dtype):
        raise unfit(name, found, shape, dtype, columns)
    row, column = given.strides
    fits = column == 1 and steps_fit(shape[0], columns, row)
    stored = stored_as(found)
    if fits and stored == found:
        return given
    same_bits = viewed(name, x, stored)
    return tvm_ffi.from_dlpack(same_bits if fits else np.array(same_bits, order="C"))


def from_dlpack(name: str, x: Any) -> Any:
    """`x` through DLPack."""
    if not hasattr(x, "__dlpack__"):
        raise ArrayError(
            f"{name} is {type(x).__name__}; expected an array (NumPy, torch or DLPack)"
        )
    try:
        return tvm_ffi.from_dlpack(x)
    except Exception as error:
        # torch adds its C++ stack.
        reason = str(error).partition("\n")[0]
        raise ArrayError(f"{name} cannot be read through DLPack: {reason}") from error


def check_on_cpu(name: str, given: Any, verb: str) -> None:
    """Refuse a tensor on another device."""
    device = str(given.device)
    if not device.startswith("cpu"):
        raise ArrayError(f"{name} is on {device}; this kernel {verb} arrays of the CPU")


def viewed(name: str, x: Any, stored: str) -> np.ndarray:
    """The array of another library with its elements taken for `stored` of the same size."""
    try:
        return np.from_dlpack(x).view(stored)
    except Exception as error:
        raise ArrayError(
            f"{name} is {type(x).__name__}, which NumPy cannot read ({error}); "
            "pass a NumPy array or a torch tensor"
        ) from error


def export_array(name: str, out: Any, dtype: np.dtype, shape: tuple[int, int]) -> Any:
    """The caller's array as a tensor that a kernel may write; what does not fit is an error."""
    array, found = out, None
    if not isinstance(out, np.ndarray):
        if is_torch(out):
            return export_torch(name, out, dtype, shape)
        given = from_dlpack(name, out)
        check_on_cpu(name, given, "writes")
        found = str(given.dtype)
        array = viewed(name, out, stored_as(found))
    refuse_masked(name, array)
    fits = array.dtype == dtype if found is None else found == name_of(dtype)
    if not fits or array.shape != shape:
        found = found or array.dtype.name
        raise ArrayError(f"{name} is {found}{array.shape}; expected {dtype.name}{shape}")
    if not array.flags.writeable:
        raise ArrayError(f"{name} is read-only; expected a writable array")
    if not rows_fit(array, shape[1], dtype.itemsize):
        raise ArrayError(f"{name} has strides {array.strides}; expected contiguous rows")
    return tensor(array)


def export_torch(name: str, out: Any, dtype: np.dtype, shape: tuple[int, int]) -> Any:
    """As `export_array`, for torch."""
    check_torch(name, out, "writes")
    found = torch_name(out.dtype)
    if found != name_of(dtype) or out.shape != shape:
        raise ArrayError(f"{name} is {found}{(*out.shape,)}; expected {dtype.name}{shape}")
    if out.is_neg():
        raise ArrayError(f"{name} is a view of negated numbers; expected a tensor of its own")
    if not torch_rows_fit(out, shape[1]):
        raise ArrayError(f"{name} has strides {out.stride()} in elements; expected contiguous rows")
    return torch_tensor(name, out, dtype)


def apart(a: Any, b: Any) -> bool:
    """Whether two arrays are known to share no memory: quick, and never wrong when it says so."""
    ndarray = np.ndarray
    return isinstance(a, ndarray) and isinstance(b, ndarray) and not np.may_share_memory(a, b)


class Span(NamedTuple):
    """Where a matrix lies, in bytes.

    Attributes
    ----------
    start, stop : of all of it.
    width : of a row.
    step : from one row to the next; 0 where there are no gaps, which makes all of it one long row.
    """

    start: int
    stop: int
    width: int
    step: int


def refuse_overlap(name: str, written: Span, other_name: str, read: Span) -> None:
    """Refuse to write an array that shares bytes with one that is read meanwhile.

    Rows that take turns, such as two ranges of columns of one array, share none. Only where rows
    lie at different distances the question is left open, and the array refused.
    """
    if written.start >= read.stop or read.start >= written.stop:
        return
    verb, period = "shares", written.step or read.step
    if written.step and read.step and written.step != read.step:
        verb = "may share"
    elif period:
        # Both start over at every `period`; there one begins so far behind the other.
        behind = (read.start - written.start) % period
        if written.width <= behind and behind + read.width <= period:
            return
    raise ArrayError(f"{name} {verb} memory with {other_name}; expected memory of its own")


def span(address: int, shape: tuple[int, int], stride: int, itemsize: int) -> Span:
    """Where a matrix at `address` lies; `stride` counts elements."""
    rows, columns = shape
    if rows <= 1 or stride == columns:
        width = rows * columns * itemsize
        return Span(address, address + width, width, 0)
    width, step = columns * itemsize, stride * itemsize
    return Span(address, address + (rows - 1) * step + width, width, step)


def span_of(matrix: Any, itemsize: int) -> Span:
    """Where a tensor of the CPU lies."""
    rows, columns = matrix.shape
    return span(matrix.data_ptr(), (rows, columns), matrix.strides[0], itemsize)


def rows_of(array: Any, start: int, count: int) -> Any:
    """Some rows of a tensor of the CPU with the format that kernels take, over the same memory."""
    return tvm_ffi.from_dlpack(memory_of(array, start, count))


def copy_of(array: Any) -> Any:
    """The same numbers as a tensor of the CPU in other memory."""
    return tvm_ffi.from_dlpack(memory_of(array, 0, array.shape[0]).copy())


def memory_of(array: Any, start: int, count: int) -> np.ndarray:
    """Some rows of a tensor of the CPU as NumPy has them, as long as the tensor is there."""
    dtype = np.dtype(str(array.dtype))
    steps = [step * dtype.itemsize for step in array.strides]
    shape = (count, *array.shape[1:])
    size = steps[0] * max(0, count - 1) + math.prod(shape[1:]) * dtype.itemsize
    memory = (ctypes.c_char * size).from_address(array.data_ptr() + start * steps[0])
    return np.ndarray(shape, dtype, memory, strides=steps)


def new_array(like: Any, shape: tuple[int, int], dtype: np.dtype) -> Any:
    """An empty array of the library that `like` comes from, torch or NumPy, in the CPU's memory."""
    if isinstance(like, np.ndarray) or not is_torch(like):
        return np.empty(shape, dtype)
    torch = sys.modules["torch"]
    # On the device of `like`, whatever `torch.set_default_device` says.
    return torch.empty(shape, dtype=getattr(torch, name_of(dtype)), device="cpu")


def new_tensor(array: Any, dtype: np.dtype) -> Any:
    """The tensor over an array of `dtype` that `new_array` made."""
    return tensor(array) if isinstance(array, np.ndarray) else torch_tensor("out", array, dtype)


def is_torch(x: Any) -> bool:
    """Whether `x` is a torch tensor, without importing torch."""
    # While another thread imports torch, there may be no tensors yet.
    return isinstance(x, getattr(sys.modules.get("torch"), "Tensor", ()))
