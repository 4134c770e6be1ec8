"""The devices of this machine, and which rows of `targets` stand for them."""

from __future__ import annotations

from .. import targets
from ..errors import TargetError
from ..targets import CudaTarget, Target, cuda
from . import driver
from .driver import Device


def find(name: str | Target | CudaTarget) -> Target | CudaTarget:
    """As `targets.find`, and "cuda" is the best row for this machine's GPU.

    Raises
    ------
    TargetError
        `name` is in neither table; or it is "cuda", and there is no GPU.
    """
    return present_gpu() if name == "cuda" else targets.find(name)


def why_no_gpu(capability: tuple[int, int]) -> str | None:
    """Why no GPU of this machine can execute code for `capability`; None where one can."""
    try:
        devices = driver.driver().devices()
    except TargetError as error:
        return str(error)
    if any(device.capability >= capability for device in devices):
        return None
    names = ", ".join(
        f"{each.name} ({each.capability[0]}.{each.capability[1]})" for each in devices
    )
    return f"needs compute capability {capability[0]}.{capability[1]}; there is {names or 'no GPU'}"


def gpu_for(row: CudaTarget) -> Device:
    """The first GPU of this machine, if it executes a row's code.

    Raises
    ------
    TargetError
        It does not, or there is none.
    """
    if reason := why_no_gpu(row.capability):
        raise TargetError(f"target {row.name} cannot run here: {reason}")
    first = driver.driver().devices()[0]
    if first.capability < row.capability:
        raise TargetError(
            f"target {row.name} cannot run on {first.name}, the first GPU; CUDA_VISIBLE_DEVICES "
            "says which GPUs there are, and in which order"
        )
    return first


def present_gpu() -> CudaTarget:
    """The best row for the machine's first GPU.

    Raises
    ------
    TargetError
        No driver, no GPU, or one that is older than every row.
    """
    devices = driver.driver().devices()
    if not devices:
        raise TargetError("no CUDA device: the driver knows none")
    capability = devices[0].capability
    fits = [row for row in targets.CUDA_TARGETS if row.matrix and row.capability <= capability]
    if not fits:
        raise TargetError(f"{devices[0].name} has compute capability {capability}; 7.5 is needed")
    return max(fits, key=lambda row: (cuda.runs(row.capability, capability), row.capability))
