"""Write the reference of the hardware spec: every key with its values, default and meaning.

    python tests/tools/hardware_reference.py        # writes it into configs/hardware/README.md

Keys, types, bounds and defaults are those of the schema (memsim/hardware); what a key means is the comment beside it in
the shipped spec that explains it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, get_type_hints

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from memsim.config.resources import configs_root
from memsim.config.schema import Schema, models_in
from memsim.config.yaml_file import shown
from memsim.hardware import HardwareSpec

BEGIN = "<!-- made by tests/tools/hardware_reference.py -->"
END = "<!-- made up to here -->"
EXPLAINED_IN = {
    "WriteVerify": "write-verify",
    "IncrementalReset": "incremental-reset",
    "Multilevel": "multilevel",
    "FixedAdc": "paper",
    "Cycling": "paper",
    "Verify": "write-verify",
    "Noise": "write-verify",
}
"""The shipped spec whose comments explain a section's keys; others are explained in `physical`."""

Path = tuple[str, ...]
_LINE = re.compile(r"^(?P<indent> *)(?:(?<= )# )?(?P<key>[a-z_]+):(?: [^#]*)?(?:# ?(?P<comment>.*))?$")
_MORE = re.compile(r"^ {20,}# ?(?P<comment>.*)$")


def comments(spec: str) -> dict[Path, str]:
    """By key: the comment beside it in a shipped spec, over all its lines."""
    found: dict[Path, str] = {}
    path: Path = ()
    for line in (configs_root() / "hardware" / f"{spec}.yaml").read_text().splitlines():
        if (more := _MORE.match(line)) and path:
            found[path] = f"{found[path]} {more['comment'].strip()}".strip()
        elif (key := _LINE.match(line)) is not None:
            depth = len(key["indent"]) // 2
            path = (*path[:depth], key["key"])
            found[path] = (key["comment"] or "").strip()
        elif line.startswith("#"):
            path = ()  # a paragraph
    return found


class Reference:
    """Writes the sections of the reference."""

    def __init__(self) -> None:
        self.schema = Schema(HardwareSpec)
        self.comments = {spec: comments(spec) for spec in dict.fromkeys(["physical", *EXPLAINED_IN.values()])}

    def lines(self) -> Iterator[str]:
        """Of the whole spec."""
        hints = get_type_hints(HardwareSpec, include_extras=True)
        whole = [key for key in HardwareSpec.model_fields if not models_in(hints[key])]
        yield "### The whole chip"
        yield ""
        yield from self._table(HardwareSpec, (), whole)
        for key in HardwareSpec.model_fields:
            if key not in whole:
                yield from self._section((key,), models_in(hints[key]))

    def _section(self, path: Path, kinds: list[type[BaseModel]]) -> Iterator[str]:
        yield from ("", f"### `{'.'.join(path)}`", "")
        if about := next((about for spec in self.comments if (about := self.comments[spec].get(path))), None):
            yield from (_sentence(about), "")
        shared = [key for key in kinds[0].model_fields if all(key in kind.model_fields for kind in kinds)]
        switch = next((key for key in shared if (*path, key) in self.schema.kinds), None)
        yield from self._table(kinds[0], path, shared)
        for kind in kinds if switch else ():
            own = [key for key in kind.model_fields if key not in shared]
            value = next(
                name for name, keys in self.schema.kinds[(*path, switch)].items() if keys == {*kind.model_fields}
            )
            if own:
                yield from ("", f"`{switch}: {value}` has besides:", "")
                yield from self._table(kind, path, own)
        nested: dict[Path, list[type[BaseModel]]] = {}
        for kind in kinds:
            for key, hint in get_type_hints(kind, include_extras=True).items():
                if key in kind.model_fields and models_in(hint):
                    nested[(*path, key)] = models_in(hint)
        for below, models in nested.items():
            yield from self._section(below, models)

    def _table(self, model: type[BaseModel], path: Path, keys: Iterable[str]) -> Iterator[str]:
        yield "| key | takes | default | |"
        yield "|---|---|---|---|"
        for key in keys:
            where = (*path, key)
            default = _shown_default(model.model_fields[key].get_default(call_default_factory=True))
            yield f"| `{key}` | {self.schema.expected(where)} | {default} | {self._meaning(model, where)} |"

    def _meaning(self, model: type[BaseModel], path: Path) -> str:
        for spec in (EXPLAINED_IN.get(model.__name__, "physical"), "physical", "paper"):
            if text := self.comments[spec].get(path):
                return text.replace("|", "\\|")
        return "see above"


def _sentence(comment: str) -> str:
    return f"{comment[0].upper()}{comment[1:].rstrip('.')}."


def _shown_default(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return "its keys' defaults"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value if isinstance(value, str) else shown(value)}`"


def reference() -> str:
    """The reference as Markdown."""
    return "\n".join(Reference().lines()) + "\n"


def main() -> None:
    """Put the reference into the guide."""
    guide = configs_root() / "hardware" / "README.md"
    before, _, rest = guide.read_text().partition(BEGIN)
    guide.write_text(f"{before}{BEGIN}\n\n{reference()}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
