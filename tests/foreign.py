"""Arrays of other libraries."""

from __future__ import annotations


class Foreign:
    """An array of some other library that speaks DLPack."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **keywords):
        return self.array.__dlpack__(**keywords)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()
