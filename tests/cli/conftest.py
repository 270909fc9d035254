"""Fixtures that run the command line inside the test process, as `memsim ARGUMENTS` in a folder of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import save_file

from memsim.cli import main


class Finished(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """Both streams, line breaks of narrow terminals undone."""
        return " ".join((self.out + self.err).split())


@pytest.fixture
def memsim(monkeypatch, capsys, tmp_path) -> Callable[..., Finished]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEMSIM_CHECKPOINT", raising=False)
    monkeypatch.delenv("MEMSIM_DATA", raising=False)

    def run(*arguments: str | Path) -> Finished:
        monkeypatch.setattr(sys, "argv", ["memsim", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main()
        captured = capsys.readouterr()
        return Finished(exit_.value.code or 0, captured.out, captured.err)

    return run


@pytest.fixture
def foreign(tmp_path) -> Path:
    """A transformer-like checkpoint of nobody we know."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    path = tmp_path / "foreign.safetensors"
    tensors = {
        "encoder.embed_tokens.weight": normal(50, 20),
        "encoder.layers.0.self_attn.q_proj.weight": normal(20, 20),
        "encoder.layers.0.self_attn.q_proj.bias": normal(20),
        "encoder.layers.1.self_attn.q_proj.weight": normal(20, 20),
        "encoder.layers.0.fc1.weight": normal(130, 20).half(),
        "encoder.layers.0.norm.weight": torch.ones(20),
        "frontend.conv.weight": normal(8, 4, 3),
        "decoder.lstm.weight_ih_l0": normal(80, 20),
        "output.weight": normal(7, 20),
    }
    save_file(tensors, path, {"made_by": "somebody"})
    return path
