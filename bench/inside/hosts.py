"""Programs that contenders are called in: a host's own parallel operation stands before a call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from ...errors import BenchError, ToolError
from ...extras import install
from ..compare import first_missing
from ..contenders import CONTENDERS, Contender, Job, check_words, chosen

#: The operation is the product of (ROWS, WIDTH) with (WIDTH, WIDTH), a layer of the page's encoder.
ROWS, WIDTH = 512, 384


@dataclass(frozen=True)
class Operations:
    """What a host does in the process that measures.

    Attributes
    ----------
    set_threads : how many threads its operations have from now on.
    operate : an operation on all of them.
    """

    set_threads: Callable[[int], object]
    operate: Callable[[], object]


@dataclass(frozen=True)
class Host:
    """A library with threads of its own.

    Attributes
    ----------
    name : for `--inside`.
    groups : the words for `--against` that stand for contenders on the host's threads.
    needs : modules that have to be installed.
    start : makes its operations ready.
    """

    name: str
    groups: tuple[str, ...]
    needs: tuple[str, ...]
    start: Callable[[], Operations]

    def has(self, contender: Contender) -> bool:
        """Whether a contender runs on the host's threads."""
        return bool(contender.groups) and set(contender.groups) <= set(self.groups)


def torch_operations() -> Operations:
    """A float32 product and gelu by torch."""
    import torch

    x, w = torch.randn(ROWS, WIDTH), torch.randn(WIDTH, WIDTH)
    return Operations(torch.set_num_threads, lambda: torch.nn.functional.gelu(x @ w))


def numpy_operations() -> Operations:
    """A float32 product by the BLAS that NumPy has."""
    from threadpoolctl import ThreadpoolController

    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal((rows, WIDTH), np.float32) for rows in (ROWS, WIDTH))
    libraries = ThreadpoolController().select(user_api="blas").lib_controllers

    def set_threads(count: int) -> None:
        for library in libraries:
            library.set_num_threads(count)

    return Operations(set_threads, functools.partial(np.matmul, x, w, out=np.empty_like(x)))


HOSTS = (
    Host("torch", ("onednn", "torch"), ("torch",), torch_operations),
    Host("numpy", ("numpy",), (), numpy_operations),
)


def find_host(name: str) -> Host:
    """The host of a name.

    Raises
    ------
    BenchError
        No such host.
    """
    for host in HOSTS:
        if host.name == name:
            return host
    raise BenchError(f"no host {name!r}; expected one of {', '.join(each.name for each in HOSTS)}")


def require(host: Host, against: Collection[str]) -> None:
    """Refuse what could not be measured, before anything is.

    Raises
    ------
    BenchError
        A word of `against` that stands for no contender, or for none on the host's threads.
    ToolError
        The host is not installed.
    """
    check_words(against)
    for word in against:
        found = [each for each in CONTENDERS if word in (*each.groups, each.name)]
        if not any(map(host.has, found)):
            raise BenchError(
                f"{word!r} does not run on the threads of {host.name}; with --inside {host.name} "
                f"expected some of {', '.join(host.groups)}"
            )
    if module := first_missing(host.needs):
        raise ToolError(f"--inside {host.name} needs {module}: {install('bench')}")


def taking_part(
    host: Host, job: Job, against: Collection[str]
) -> tuple[list[Contender], dict[str, str]]:
    """Contenders of a job on the host's threads, and why there are none for a word of `against`."""
    taken, absent = chosen(job, against)
    return [each for each in taken if host.has(each)], absent
