"""CITATION.cff and CHANGELOG.md have the current version."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

import yaml

from memsim import __version__

REPOSITORY = Path(__file__).resolve().parents[1]


def test_the_citation_has_what_the_format_asks_for():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "version", "date-released", "license"} <= citation.keys()
    assert citation["version"] == __version__
    date.fromisoformat(citation["date-released"])
    for work in (citation, *citation["references"]):
        assert work["title"]
        assert all("name" in author or "family-names" in author for author in work["authors"])
    for work in citation["references"]:
        assert work["type"] in ("article", "conference-paper")


def test_the_changelog_ends_a_release_with_its_date():
    text = (REPOSITORY / "CHANGELOG.md").read_text()
    releases = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", text, re.MULTILINE)
    assert releases[0] == ("Unreleased", "")
    assert releases[1][0] == __version__
    days = [date.fromisoformat(day) for _, day in releases[1:]]
    assert days == sorted(days, reverse=True)
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["date-released"] == releases[1][1]
    kinds = {"Breaking", "Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", text, re.MULTILINE)) <= kinds
