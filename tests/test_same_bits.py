"""Commands give the same results as they did, bit by bit (same_bits.py says how to renew and extend what is pinned)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.same_bits import GROUPS, PINNED, results_of

SLOW = {"whole"}


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in GROUPS]
)
def group(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def found(group: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return results_of(group, tmp_path_factory.mktemp("same_bits") / group)


@pytest.fixture(scope="module")
def pinned() -> dict[str, Any]:
    return json.loads(Path(PINNED).read_text())


def differences(found: dict[str, Any], pinned: dict[str, Any]) -> list[str]:
    """Each part of a case that is not as it was pinned."""
    return [
        f"{name}: {part}"
        for name in found
        for part in sorted(found[name].keys() | pinned[name].keys())
        if found[name].get(part) != pinned[name].get(part)
    ]


def test_what_holds_on_every_machine(group: str, found: dict[str, Any], pinned: dict[str, Any]) -> None:
    names = {name for name in pinned["everywhere"] if name.startswith(f"{group} ")}
    assert names == set(found["cases"]), "cases came or went: python tests/same_bits.py"
    everywhere = {name: results["everywhere"] for name, results in found["cases"].items()}
    assert differences(everywhere, pinned["everywhere"]) == []


def test_bits(group: str, found: dict[str, Any], pinned: dict[str, Any]) -> None:
    here = pinned["machines"].get(found["machine"], {})
    exact = {name: results["exact"] for name, results in found["cases"].items()}
    known = {name: parts for name, parts in exact.items() if name in here}
    assert differences(known, here) == []
    if missing := sorted(set(exact) - set(known)):
        pytest.skip(
            f"no hashes for {', '.join(missing)} on {found['machine']}; to add them, run "
            f"`python tests/same_bits.py {group}` at a commit whose results are right, and commit same_bits.json"
        )
