"""SCHEDULE_VERSION is raised with every change of the code that kernels have."""

from __future__ import annotations

import json

import pytest
import schedule_code


@pytest.mark.parametrize("kind", schedule_code.DIGESTS)
def test_code_of_one_version_is_the_same(kind):
    known = json.loads(schedule_code.PATH.read_text())[kind]
    found = schedule_code.DIGESTS[kind]()
    assert known.keys() == found.keys(), "python tests/schedule_code.py notes new rows"
    changed = sorted(name for name in {*known, *found} if known.get(name) != found.get(name))
    assert not changed, (
        f"the code for {', '.join(changed)} has changed; raise the schedules' version in "
        "versions.py, and run python tests/schedule_code.py"
    )


def test_a_row_of_other_fields_needs_no_other_version():
    assert schedule_code.changed("row code", "row other")
    assert not schedule_code.changed("row code", "row code")
    assert not schedule_code.changed("row code", "other other")
    assert not schedule_code.changed(None, "row code")
    assert schedule_code.changed("code", "other")
