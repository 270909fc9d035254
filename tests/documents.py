"""The README, the guides, and the commands in them."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIG_GUIDES = sorted((REPOSITORY / "configs").glob("*/README.md"))
DOCUMENTS = (
    *(REPOSITORY / folder / "README.md" for folder in ("", "configs", "tests", "tests/benchmarks")),
    *CONFIG_GUIDES,
)
_COMMAND = re.compile(r" {4}((?:memsim|python|torchrun|sbatch|make|pip|head) .*|\(.*\) \| .*)")


def name_of(document: Path) -> str:
    """Its path in the repository."""
    return str(document.relative_to(REPOSITORY))


def prose(document: Path) -> str:
    """Its text without blocks of code."""
    return re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)


def commands(document: Path) -> list[str]:
    """The command lines of a document in its order, without the remarks behind them."""
    found = [match[1] for line in prose(document).splitlines() if (match := _COMMAND.fullmatch(line))]
    return [re.split(r"\s+#", command)[0].rstrip() for command in found]


def mentioned(document: Path) -> list[str]:
    """The command lines of memsim within sentences."""
    quoted = re.findall(r"`(memsim\s+[a-z-]+\s[^`]*)`", prose(document))
    return [re.sub(r"\s+", " ", command) for command in quoted]
