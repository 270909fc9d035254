"""The facts about a hardware spec that results carry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memsim.hardware import AdcImperfections, HardwareSpec


def unfitted(spec: HardwareSpec) -> list[str]:
    """Return the keys of `spec` that switch on laws whose numbers were not measured on its devices."""
    keys = [key for key in ("retention", "faults", "wires") if getattr(spec, key) is not None]
    imperfections = tuple(AdcImperfections.model_fields)
    changed: list[dict[str, dict[str, Any] | None]] = [
        {"programming": spec.programming.model_dump(), "adc": spec.adc.model_dump() if spec.adc else {}}
    ]
    changed += [{"programming": override.programming, "adc": override.adc} for override in spec.overrides]
    for section, names in (("programming", ("relaxation",)), ("adc", imperfections)):
        keys += [f"{section}.{name}" for name in names if any(_is_given(part[section], name) for part in changed)]
    return keys


def _is_given(section: dict[str, Any] | None, name: str) -> bool:
    """Whether a section gives a number other than 0; the name of a device means a law that was fitted to it."""
    value = (section or {}).get(name)
    return bool(value) and not isinstance(value, str)


def unfitted_note(keys: Sequence[str]) -> str:
    """Return the sentence that a result with such `unfitted` keys is shown with."""
    laws = "a law whose numbers" if len(keys) == 1 else "laws whose numbers"
    return (
        f"{', '.join(keys)}: {laws} come from the spec and were not fitted to measurements; the loss is an assumption"
    )


def hardware_dict(spec: HardwareSpec) -> dict[str, Any]:
    """Return the hardware of a result as plain values for JSON."""
    return {
        "name": spec.name,
        "sha256": spec.sha256(),
        **spec.changes.to_dict(),
        "title": spec.title,
        "unfitted": unfitted(spec),
        "spec": spec.to_dict(),
    }
