"""The CUDA driver without a GPU: against a libcuda that writes calls down, and an emulated one."""

from __future__ import annotations

import ctypes
import functools
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
import quantmm as qmm
from quantmm.compiler.emulation import toolchain
from quantmm.compiler.emulation.driver import EmulatedDriver
from quantmm.errors import EmulationError
from quantmm.runtime import libcuda
from quantmm.runtime.cuda_buffer import Buffer
from quantmm.runtime.driver import CudaDriver, Driver, stream_of
from quantmm.runtime.libcuda import SIGNATURES

KERNEL, MODULE, ADDRESS = "0x4600000000f1", "0x4d0000000001", 0x7F0000000100
CONTEXTS = {0: "c00a", 1: "c00b"}
IMAGE = b"\x7fELFimage"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The path of the library that writes calls down."""
    path = tmp_path_factory.mktemp("libcuda") / "libcuda.so.1"
    source = Path(__file__).parent.parent / "emulators" / "libcuda.cpp"
    command = [*toolchain.compiler(), *toolchain.OPTIONS, "-shared"]
    toolchain.run([*command, "-o", path, source])
    return path


class Fake:
    """What the test asks of the library."""

    def __init__(self, path):
        self.library = ctypes.CDLL(str(path))
        self.library.fake_current.argtypes = [ctypes.c_size_t]
        self.fail("", 0)
        self.library.fake_current(0)
        self.calls()

    def calls(self):
        """The calls since the last time; those of cuCtxSetCurrent apart from the others."""
        text = ctypes.create_string_buffer(1 << 16)
        self.library.fake_calls(text, ctypes.c_size_t(len(text)))
        return text.value.decode().splitlines()

    def fail(self, name, status=700):
        self.library.fake_fail(name.encode(), status)


@pytest.fixture
def fake(monkeypatch, library):
    monkeypatch.setattr(libcuda, "LIBRARY", str(library))
    return Fake(library)


@pytest.fixture
def cuda(fake):
    """A driver whose device 1 has been used; its context is not current."""
    cuda = CudaDriver()
    cuda.context(1)
    fake.calls()
    return cuda


def in_context(*calls, device=1, before="0"):
    """Calls between those that change the context."""
    return [f"cuCtxSetCurrent {CONTEXTS[device]}", *calls, f"cuCtxSetCurrent {before}"]


def test_devices(fake):
    first, second = CudaDriver().devices()
    assert (first.number, second.number) == (0, 1)
    assert (first.name, second.name) == ("Fake 10", "Fake 11")
    assert second.capability == (11075, 11076)
    assert second.multiprocessors == 11016
    assert second.shared_bytes == 11097
    assert second.l2_bytes == 11038
    assert "cuInit 0" in fake.calls()


def test_memory_and_copies(fake, cuda):
    x = np.frombuffer(b"abcdef", np.uint8)
    y = np.zeros(6, np.uint8)
    assert cuda.allocate(1, 6) == ADDRESS
    relaxed = [f"cuThreadExchangeStreamCaptureMode {mode}" for mode in (2, 0)]
    assert fake.calls() == in_context(relaxed[0], "cuMemAlloc_v2 6", relaxed[1])
    cuda.copy_to(1, ADDRESS, x, 0x51)
    assert fake.calls() == in_context(f"cuMemcpyHtoDAsync_v2 {ADDRESS:x} abc 6 0x51")
    cuda.copy_from(1, y, ADDRESS + 4, 0x51)
    copied = f"cuMemcpyDtoHAsync_v2 {ADDRESS + 4:x} 6 0x51"
    assert fake.calls() == in_context(copied, "cuStreamSynchronize 0x51")
    assert bytes(y) == b"zzzzzz"
    cuda.free(1, ADDRESS)
    assert fake.calls() == in_context(relaxed[0], f"cuMemFree_v2 {ADDRESS:x}", relaxed[1])
    cuda.synchronize(1, 0)
    assert fake.calls() == in_context("cuStreamSynchronize (nil)")
    assert cuda.is_capturing(1, 0x51)
    assert not cuda.is_capturing(1, 0x52)


def test_load_and_launch(fake, cuda):
    module = cuda.load(1, IMAGE)
    assert fake.calls() == in_context("cuModuleLoadDataEx \x7fELF 9")
    launch = module.function("scale", "Pifq", (32, 4, 2), shared_bytes=1000)
    found = [f"cuModuleGetFunction {MODULE} scale", f"cuFuncGetAttribute 1 {KERNEL}"]
    assert fake.calls() == in_context(*found)
    for number in (-7, 2**31 - 1):
        launch((2**31 - 1, 5, 6), 0x510000000000, ADDRESS, number, 0.5, 2**40)
        sizes = "2147483647 5 6 32 4 2 1000 0x510000000000"
        values = f"{ADDRESS:#x} {number} 0.5 {2**40} 1 {CONTEXTS[1]}"
        assert fake.calls() == in_context(f"cuLaunchKernel {KERNEL} {sizes} {values}")


def test_code_is_unloaded_when_nobody_can_launch_it(fake, cuda):
    module = cuda.load(1, IMAGE)
    launch = module.function("scale", "Pifq", (1, 1, 1))
    fake.calls()
    del module
    assert fake.calls() == []
    del launch
    relaxed = [f"cuThreadExchangeStreamCaptureMode {mode}" for mode in (2, 0)]
    unloaded = in_context(relaxed[0], f"cuModuleUnload {MODULE}", relaxed[1])
    assert fake.calls() == unloaded
    fake.fail("cuModuleUnload")
    cuda.load(1, IMAGE)  # and nothing is said of it
    assert unloaded[1] in fake.calls()


def test_memory_can_be_given_back_while_another_context_is_made(fake, cuda):
    """The collector may end an object in the thread that makes it."""
    with cuda._lock:
        thread = threading.Thread(target=cuda.free, args=(1, ADDRESS), daemon=True)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()


def test_graphs_and_times(fake, cuda):
    assert cuda.new_stream(1) == 0x57
    assert fake.calls() == in_context("cuStreamCreate 1")
    graph = cuda.captured(1, 0x57, lambda: cuda.synchronize(1, 3))
    ended = ["cuStreamEndCapture 0x57", "cuGraphInstantiateWithFlags 0x6a 0", "cuGraphDestroy 0x6a"]
    within = ["cuStreamBeginCapture_v2 0x57 2", "cuStreamSynchronize 0x3", *ended]
    assert fake.calls() == in_context(*within)
    seconds = cuda.seconds(1, 0x57, functools.partial(graph.launch, 0x57))
    assert seconds == 0.0025
    recorded = ["cuEventRecord 0xe0 0x57", "cuGraphLaunch 0x6b 0x57", "cuEventRecord 0xe1 0x57"]
    timed = ["cuEventSynchronize 0xe1", "cuEventElapsedTime 0xe0 0xe1"]
    gone = ["cuEventDestroy_v2 0xe1", "cuEventDestroy_v2 0xe0"]
    assert fake.calls() == in_context(*["cuEventCreate 0"] * 2, *recorded, *timed, *gone)
    del graph
    assert "cuGraphExecDestroy 0x6b" in fake.calls()


def test_a_capture_that_fails_is_ended(fake, cuda):
    def broken():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cuda.captured(1, 0x57, broken)
    assert "cuStreamEndCapture 0x57" in fake.calls()
    fake.fail("cuStreamEndCapture")
    with pytest.raises(qmm.errors.CudaError, match="cuStreamEndCapture: CUDA_ERROR_ILLEGAL_ADD"):
        cuda.captured(1, 0x57, lambda: None)


def test_buffers(fake):
    gpu = EmulatedDriver()
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    buffer = Buffer(gpu, values, stream=7)
    assert np.array_equal(buffer.read(), values)
    part = buffer[1:3]
    assert (part.ndim, part.shape, part.address) == (2, (2, 3), buffer.address + 12)
    part.write(np.zeros((2, 3), np.float32))
    assert buffer.read()[:, 0].tolist() == [0, 0, 0, 9]
    with pytest.raises(qmm.errors.ArrayError, match=r"the values are int8\(4, 3\); expected float"):
        buffer.write(np.zeros((4, 3), np.int8))
    with pytest.raises(qmm.errors.ArrayError, match="a step of 2 through a buffer; expected 1"):
        buffer[::2]
    del buffer
    assert np.array_equal(part.read(), np.zeros((2, 3)))
    del part
    assert gpu.memories == {}


def test_code_stays_loaded_at_the_end_of_the_process(library):
    """The driver may be gone before this is."""
    program = f"""
        import atexit, ctypes
        from quantmm.runtime import driver, libcuda
        libcuda.LIBRARY = {str(library)!r}

        def last():
            text = ctypes.create_string_buffer(1 << 16)
            ctypes.CDLL(libcuda.LIBRARY).fake_calls(text, ctypes.c_size_t(len(text)))
            print(text.value.decode())

        atexit.register(last)
        module = driver.driver().load(0, b"image")
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "cuModuleLoadDataEx" in done.stdout
    assert "cuModuleUnload" not in done.stdout


def test_contexts_are_put_back(fake, cuda):
    launch = cuda.load(1, IMAGE).function("scale", "Pifq", (1, 1, 1))
    fake.library.fake_current(0xC00B)  # as torch leaves it, on the same device
    fake.calls()
    launch((1, 1, 1), 0, 0, 0, 0, 0)
    cuda.synchronize(1, 0)
    assert [line.split()[0] for line in fake.calls()] == ["cuLaunchKernel", "cuStreamSynchronize"]
    fake.library.fake_current(0xC00A)  # and on another
    launch((1, 1, 1), 0, 0, 0, 0, 0)
    changed = [line for line in fake.calls() if "Ctx" in line]
    assert changed == in_context(before="c00a")
    fake.fail("cuStreamSynchronize")
    with pytest.raises(qmm.errors.CudaError):
        cuda.synchronize(1, 0)
    assert [line for line in fake.calls() if "Ctx" in line] == in_context(before="c00a")


def test_shared_memory_is_asked_for_above_48_kb(fake, cuda):
    module = cuda.load(1, IMAGE)

    def asked(size):
        fake.calls()
        module.function("scale", "Pifq", (1, 1, 1), shared_bytes=size)
        return [line for line in fake.calls() if "Set" in line and "Ctx" not in line]

    assert asked(47 << 10) == []  # and 1 KB of static arrays
    assert asked((47 << 10) + 1) == [f"cuFuncSetAttribute {KERNEL} 8 48129"]
    assert asked(99 << 10) == [f"cuFuncSetAttribute {KERNEL} 8 101376"]
    assert asked(64 << 10) == [f"cuFuncSetAttribute {KERNEL} 8 101376"]  # the other still may


def test_wrong_numbers_of_arguments_never_reach_the_driver(fake, cuda):
    launch = cuda.load(1, IMAGE).function("scale", "Pifq", (1, 1, 1))
    fake.calls()
    for arguments in ((0, 0, 0), (0,) * 5):
        with pytest.raises(ValueError, match="argument 2 is"):
            launch((1, 1, 1), 0, *arguments)
    with pytest.raises(TypeError):
        launch((1, 1, 1), 0, 0, 0.5, 0, 0)
    assert fake.calls() == []


def test_threads_share_a_launch(fake, cuda):
    launch = cuda.load(1, IMAGE).function("scale", "Pifq", (1, 1, 1))
    fake.library.fake_current(0xC00B)
    fake.calls()

    def work(number):
        for _ in range(50):
            launch((number, 1, 1), number, number, number, number, number)

    threads = [threading.Thread(target=work, args=(number,)) for number in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen = fake.calls()
    assert len(seen) == 150
    for line in seen:
        _, _, grid, *_, stream, pointer, integer, real, long, _, _ = line.split()
        assert {grid, integer, real, long} == {grid}
        assert {stream, pointer} == {f"0x{grid}"}


#: What to do for each function to be called.
CALLS = {
    "cuDeviceGetCount": lambda cuda: cuda.devices(),
    "cuDeviceGet": lambda cuda: cuda.context(0),
    "cuDeviceGetName": lambda cuda: cuda.devices(),
    "cuDeviceGetAttribute": lambda cuda: cuda.devices(),
    "cuDevicePrimaryCtxRetain": lambda cuda: cuda.context(0),
    "cuCtxSetCurrent": lambda cuda: cuda.synchronize(1, 0),
    "cuModuleLoadDataEx": lambda cuda: cuda.load(1, IMAGE),
    "cuModuleGetFunction": lambda cuda: cuda.load(1, IMAGE).function("f", "", (1, 1, 1)),
    "cuFuncGetAttribute": lambda cuda: cuda.load(1, IMAGE).function("f", "", (1, 1, 1)),
    "cuFuncSetAttribute": lambda cuda: cuda.load(1, IMAGE).function(
        "f", "", (1, 1, 1), shared_bytes=99999
    ),
    "cuLaunchKernel": lambda cuda: cuda.load(1, IMAGE).function("f", "Pifq", (1, 2, 3))(
        (4, 5, 6), 0, 0, 0, 0, 0
    ),
    "cuMemAlloc_v2": lambda cuda: cuda.allocate(1, 123),
    "cuMemFree_v2": lambda cuda: cuda.free(1, ADDRESS),
    "cuMemcpyHtoDAsync_v2": lambda cuda: cuda.copy_to(1, ADDRESS, np.zeros(1), 0),
    "cuMemcpyDtoHAsync_v2": lambda cuda: cuda.copy_from(1, np.zeros(1), ADDRESS, 0),
    "cuStreamSynchronize": lambda cuda: cuda.synchronize(1, 0),
    "cuStreamIsCapturing": lambda cuda: cuda.is_capturing(1, 0),
    "cuStreamCreate": lambda cuda: cuda.new_stream(1),
    "cuStreamBeginCapture_v2": lambda cuda: cuda.captured(1, 0x57, int),
    "cuStreamEndCapture": lambda cuda: cuda.captured(1, 0x57, int),
    "cuGraphInstantiateWithFlags": lambda cuda: cuda.captured(1, 0x57, int),
    "cuGraphDestroy": lambda cuda: cuda.captured(1, 0x57, int),
    "cuGraphLaunch": lambda cuda: cuda.captured(1, 0x57, int).launch(0),
    "cuEventCreate": lambda cuda: cuda.seconds(1, 0, int),
    "cuEventRecord": lambda cuda: cuda.seconds(1, 0, int),
    "cuEventSynchronize": lambda cuda: cuda.seconds(1, 0, int),
    "cuEventElapsedTime": lambda cuda: cuda.seconds(1, 0, int),
    "cuThreadExchangeStreamCaptureMode": lambda cuda: cuda.allocate(1, 123),
}
#: Those whose message also says what they were about.
ABOUT = {
    "cuDeviceGet": "device 0",
    "cuDevicePrimaryCtxRetain": "device 0",
    "cuModuleGetFunction": "f",
    "cuFuncGetAttribute": "f",
    "cuFuncSetAttribute": "f, 99999 bytes of dynamic shared memory",
    "cuLaunchKernel": "f, grid (4, 5, 6), block (1, 2, 3)",
    "cuMemAlloc_v2": "123 bytes",
}
#: Their failures have no message of their own: they make one, or happen where there is no caller.
SILENT = {"cuInit", "cuGetErrorName", "cuGetErrorString", "cuCtxGetCurrent", "cuModuleUnload"}
SILENT |= {"cuGraphExecDestroy", "cuEventDestroy_v2"}


def test_every_function_is_failed():
    assert {*CALLS, *SILENT} == {*SIGNATURES}


@pytest.mark.parametrize("name", CALLS)
def test_failures_name_the_call_and_the_reason(fake, cuda, name):
    fake.fail(name)
    with pytest.raises(qmm.errors.CudaError) as caught:
        CALLS[name](cuda)
    about = f" ({ABOUT[name]})" if name in ABOUT else ""
    reason = "CUDA_ERROR_ILLEGAL_ADDRESS, an illegal memory access was encountered"
    said = "; ptxas error; line 7" if name == "cuModuleLoadDataEx" else ""
    assert str(caught.value) == f"{name}{about}: {reason}{said}"
    fake.library.fake_current(0)
    fake.fail(name, 12345)
    with pytest.raises(qmm.errors.CudaError, match="CUresult 12345"):
        CALLS[name](cuda)


def test_an_image_for_another_gpu(fake, cuda):
    fake.fail("cuModuleLoadDataEx", 209)
    with pytest.raises(
        qmm.errors.TargetError,
        match="cannot load this machine code on device 1: CUDA_ERROR_NO_BINARY_FOR_GPU, no kernel",
    ):
        cuda.load(1, IMAGE)


def test_a_machine_without_a_gpu(fake):
    fake.fail("cuInit", 100)
    with pytest.raises(
        qmm.errors.TargetError, match=r"no usable GPU: cuInit: .*NO_DEVICE, no CUDA"
    ):
        CudaDriver()


def test_a_machine_without_a_driver(monkeypatch):
    monkeypatch.setattr(libcuda, "LIBRARY", "libcuda-that-is-not-there.so.1")
    expected = r"no CUDA driver: libcuda-that-is-not-there\.so\.1 not found"
    with pytest.raises(qmm.errors.TargetError, match=expected):
        CudaDriver()


def test_a_driver_that_lacks_a_function(monkeypatch, fake):
    monkeypatch.setitem(SIGNATURES, "cuNewerThanThis", [])
    with pytest.raises(qmm.errors.TargetError, match="is too old: it has no cuNewerThanThis"):
        CudaDriver()


def test_nothing_else_is_needed(library):
    """Neither TVM nor torch is imported, and NVIDIA's own bindings may be missing."""
    program = f"""
        import sys
        sys.modules["cuda"] = None
        from quantmm.runtime import driver, libcuda
        libcuda.LIBRARY = {str(library)!r}
        assert len(driver.driver().devices()) == 2
        assert driver.driver() is driver.driver()
        assert not {{"tvm", "torch"}} & {{*sys.modules}}
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)


def test_streams(monkeypatch):
    class Stream:
        cuda_stream = 0x51
        ptr = 0x52

    class Libraries:
        """Stands for torch and for cupy."""

        @staticmethod
        def current_stream(device):
            assert device == "cuda:1"
            return Stream

        get_current_stream = Stream

        class Array:
            device, is_cuda = "cuda:1", True

    Libraries.cuda = Libraries
    for name in ("torch", "cupy"):
        monkeypatch.setitem(sys.modules, name, Libraries)
    streams = []
    for module in ("torch", "cupy.core", "jax"):
        array = type("Array", (Libraries.Array,), {"__module__": module})
        streams.append(stream_of(array()))
    assert streams == [0x51, 0x52, 0]
    assert stream_of(np.zeros(1)) == 0


# The emulated one.

SAXPY = """
extern "C" __global__ void __launch_bounds__(64) saxpy(
    float* __restrict__ x, float* __restrict__ y, float a, int n) {
  extern __shared__ float tile[];
  int i = blockIdx.x * 64 + threadIdx.x;
  tile[63 - threadIdx.x] = i < n ? x[i] : 0.0f;
  __syncthreads();
  if (i < n) y[i] = a * tile[63 - threadIdx.x] + y[i];
}
"""


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("image", [SAXPY.encode(), b"\x7fELF\x80"])
def test_saxpy_from_loading_to_the_result(image, seed):
    driver: Driver = EmulatedDriver({b"\x7fELF\x80": SAXPY}, seed=seed)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 200), np.float32)
    launch = driver.load(0, image).function("saxpy", "PPfi", (64, 1, 1), shared_bytes=256)
    there = [driver.allocate(0, x.nbytes) for _ in range(2)]
    for address, array in zip(there, (x, y), strict=True):
        driver.copy_to(0, address, array, 5)
    launch((4, 1, 1), 5, *there, 0.5, 200)
    result = np.empty_like(y)
    driver.copy_from(0, result, there[1], 5)
    assert np.array_equal(result, np.float32(0.5) * x + y)
    assert driver.launches == [("saxpy", (4, 1, 1), 5)]

    with pytest.raises(EmulationError, match=r"byte 800 of allocation \d, outside of 800"):
        launch((4, 1, 1), 5, *there, 0.5, 201)
    driver.copy_to(0, there[1] + 4, np.zeros(2, np.float32), 5)
    driver.copy_from(0, result, there[1], 5)
    assert np.array_equal(result[1:3], [0, 0])
    driver.free(0, there[0])
    with pytest.raises(EmulationError, match="read at"):
        launch((4, 1, 1), 5, *there, 0.5, 200)


def test_what_the_emulated_driver_refuses():
    driver = EmulatedDriver()
    module = driver.load(0, SAXPY.encode())
    for message, kernel in {
        "no kernel other": ("other", "PPfi", (64, 1, 1), 0),
        "parameters 'PPfi', not 'PPif'": ("saxpy", "PPif", (64, 1, 1), 0),
        "200000 bytes of dynamic shared memory": ("saxpy", "PPfi", (64, 1, 1), 200000),
    }.items():
        *words, shared_bytes = kernel
        with pytest.raises(qmm.errors.CudaError, match=message):
            module.function(*words, shared_bytes=shared_bytes)
    with pytest.raises(qmm.errors.TargetError, match="an image without a source"):
        driver.load(0, b"\x80")
    with pytest.raises(qmm.errors.CudaError, match="are in no allocation"):
        driver.copy_to(0, driver.allocate(0, 8), np.zeros(2), 0)
    with pytest.raises(qmm.errors.CudaError, match="was not allocated"):
        driver.free(0, 1)
    with pytest.raises(qmm.errors.CudaError, match="device 1; expected 0"):
        driver.allocate(1, 8)
