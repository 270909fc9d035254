"""Every config of models and training that ships can be loaded, and bad ones are explained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from memsim.asr.architectures import ARCHITECTURES
from memsim.asr.recogniser import build, load_model_config
from memsim.asr.tokens import CharacterTokens
from memsim.config.resources import configs_root
from memsim.errors import InputError
from memsim.nn.quantisation import QuantisationConfig
from memsim.training.recipe import load_train_config

MODELS = sorted(path.stem for path in (configs_root() / "models").glob("*.yaml"))
RECIPES = sorted(path.stem for path in (configs_root() / "qat").glob("*.yaml"))


def saved(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", MODELS)
def test_shipped_models(name: str) -> None:
    architecture, config = load_model_config(name)
    assert (architecture, config) == load_model_config(configs_root() / "models" / f"{name}.yaml")
    assert isinstance(config, ARCHITECTURES[architecture].config)
    with torch.device("meta"):
        recogniser = build(architecture, config, CharacterTokens(tuple("abc")), "kaldi")
    assert recogniser.config.tokens == 4


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipes(name: str) -> None:
    config = load_train_config(name)
    assert config == load_train_config(configs_root() / "qat" / f"{name}.yaml")
    assert config.name == name
    load_model_config(config.model)
    assert config.learning_rate_at(0) == config.learning_rate[0][1]


MODEL = """\
architecture: conformer_ctc
frontend: [{channels: 4}]
width: 8
blocks: 1
heads: 2
feed_forward_width: 16
"""


def model_problems(path: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        load_model_config(path)
    return [line.removeprefix(f"{path}").lstrip(":") for line in str(caught.value).splitlines()]


def test_a_model_of_one_s_own(tmp_path: Path) -> None:
    architecture, config = load_model_config(saved(tmp_path / "m.yaml", MODEL))
    assert (architecture, config.width, config.features.mel_bins) == ("conformer_ctc", 8, 80)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (MODEL.replace("conformer_ctc", "lstm"), "1: architecture: unknown architecture 'lstm' (known: KNOWN)"),
        (MODEL.replace("conformer_ctc", "[a]"), "1: architecture: unknown architecture a list (known: KNOWN)"),
        (MODEL.removeprefix("architecture: conformer_ctc\n"), " architecture: missing (known: KNOWN)"),
        (MODEL.replace("heads: 2", "heads: 3"), "5: heads: heads (3) must divide width (8)"),
        (MODEL + "kernel_frames: 4", "7: kernel_frames: 4 is even; a centred kernel is odd"),
        (MODEL + "features: {max_hz: 9000}", "7: features.max_hz: 9000.0 is above half of sample_rate_hz (16000)"),
        (MODEL + "width: 9", "7: width: is given twice (first: FILE:3)"),
    ],
)
def test_bad_models(tmp_path: Path, text: str, found: str) -> None:
    path = saved(tmp_path / "m.yaml", text)
    assert model_problems(path) == [found.replace("FILE", str(path)).replace("KNOWN", ", ".join(sorted(ARCHITECTURES)))]


def test_every_problem_of_a_model_is_told_at_once(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.yaml", MODEL.replace("8", "0").replace("heads: 2", "heads: many") + "colour: red")
    assert [problem.split(":")[0] for problem in model_problems(path)] == ["3", "5", "7"]


def test_unknown_names() -> None:
    with pytest.raises(InputError, match="conformer-paper, conformer-small"):
        load_model_config("conformer")
    with pytest.raises(InputError, match="no shipped qat config of that name"):
        load_train_config("flaot")


RECIPE = "epochs: 2\nbatch_seconds: 10\nlearning_rate: [[0, 1.0e-3], [1, 0]]\n"


def test_a_recipe_of_one_s_own_is_named_after_its_file(tmp_path: Path) -> None:
    config = load_train_config(saved(tmp_path / "mine.yaml", RECIPE))
    assert (config.name, config.model, config.epochs) == ("mine", "conformer-small", 2)
    assert load_train_config(saved(tmp_path / "mine.yaml", RECIPE + "name: other")).name == "other"


def test_a_recipe_s_model_is_seen_from_its_folder(tmp_path: Path) -> None:
    saved(tmp_path / "m.yaml", MODEL)
    config = load_train_config(saved(tmp_path / "mine.yaml", RECIPE + "model: m.yaml"))
    assert load_model_config(config.model)[1].width == 8


def test_a_recipe_says_what_it_changes_of_its_base(tmp_path: Path) -> None:
    robust = load_train_config("robust")
    mine = load_train_config(saved(tmp_path / "mine.yaml", "base: robust\nquantisation: {teacher: none}\nepochs: 3\n"))
    assert robust.quantisation is not None
    expected = robust.quantisation.model_copy(update={"teacher": None})
    assert mine == robust.model_copy(update={"name": "mine", "epochs": 3, "quantisation": expected})

    (tmp_path / "below").mkdir()
    saved(tmp_path / "below" / "m.yaml", MODEL)
    saved(tmp_path / "below" / "base.yaml", RECIPE + "model: m.yaml")
    mine = load_train_config(saved(tmp_path / "mine.yaml", "base: below/base.yaml\n"))
    assert (mine.name, mine.model) == ("mine", str(tmp_path / "below" / "m.yaml"))


def test_what_a_recipe_names_says_nothing_of_where_it_lay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes are kept in checkpoints, which are the same bits wherever they were trained."""
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "m.yaml", MODEL)
    saved(tmp_path / "base.yaml", RECIPE + "model: m.yaml")
    saved(tmp_path / "mine.yaml", "base: base.yaml\n")
    assert load_train_config("base.yaml").model == load_train_config("mine.yaml").model == "m.yaml"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("base: robst\n", "1: base: robst: no such file, and no shipped qat config of that name"),
        ("base: robust\nepoch: 3\n", "2: epoch: unknown key (nearest: epochs)"),
        ("base: mine.yaml\n", "the bases go round in a circle: mine.yaml -> mine.yaml"),
    ],
)
def test_bad_bases_of_recipes(tmp_path: Path, text: str, found: str) -> None:
    with pytest.raises(InputError) as caught:
        load_train_config(saved(tmp_path / "mine.yaml", text))
    assert found in str(caught.value)


def test_a_recipe_s_lexicon_is_seen_from_its_folder(tmp_path: Path) -> None:
    saved(tmp_path / "x.dic", "a AH\n")
    recipe = RECIPE + "targets: {kind: phonemes, lexicon: LEXICON}\n"
    for name, found in (("x.dic", str(tmp_path / "x.dic")), ("cmudict", "cmudict"), ("corpus", "corpus")):
        config = load_train_config(saved(tmp_path / "mine.yaml", recipe.replace("LEXICON", name)))
        assert config.targets.lexicon == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (RECIPE.replace("epochs: 2", "epochs: 0"), "1: epochs: 0 is out of range (at least 1)"),
        (RECIPE.replace("10", "-1"), "2: batch_seconds: -1.0 is out of range (above 0)"),
        (RECIPE.replace("[1, 0]", "[1, -1]"), "3: learning_rate[1][1]: -1.0 is out of range (at least 0)"),
        (RECIPE + "optimizer: adamw", "4: optimizer: unknown key (nearest: optimiser)"),
        (RECIPE + "optimiser: sgd", "4: optimiser: expected adamw or radam, got 'sgd'"),
        (RECIPE + "targets: {kind: words}", "4: targets.kind: expected characters or phonemes or pieces, got 'words'"),
        (RECIPE + "targets: {pieces: 1}", "4: targets.pieces: 1 is out of range (at least 2)"),
        (RECIPE + "average_decay: 1.0", "4: average_decay: 1.0 is out of range (at least 0 and below 1)"),
    ],
)
def test_bad_recipes(tmp_path: Path, text: str, found: str) -> None:
    path = saved(tmp_path / "t.yaml", text)
    with pytest.raises(InputError) as caught:
        load_train_config(path)
    assert str(caught.value) == f"{path}:{found}"


@pytest.mark.parametrize(
    "points", ["[[0, 1]]", "[[0.1, 1], [1, 1]]", "[[0, 1], [0.9, 1]]", "[[0, 1], [0.5, 1], [0.5, 2], [1, 1]]"]
)
def test_learning_rates_that_are_no_curve(tmp_path: Path, points: str) -> None:
    path = saved(tmp_path / "t.yaml", f"epochs: 1\nbatch_seconds: 1\nlearning_rate: {points}")
    with pytest.raises(InputError, match=r"t\.yaml:3: learning_rate: expected .* fractions rise from 0 to 1"):
        load_train_config(path)


@pytest.mark.parametrize("name", ["tedlium2", "tedlium2-qat"])
def test_recipes_of_the_published_system(name: str) -> None:
    config = load_train_config(name)
    assert (config.model, config.targets.kind, config.targets.lexicon) == ("conformer-paper", "phonemes", "corpus")
    assert (config.epochs, config.optimiser, config.weight_decay, config.clip_norm) == (50, "radam", 0.01, 1.0)
    assert [config.learning_rate_at(f) for f in (0, 0.22, 0.44, 0.88, 1)] == pytest.approx(
        [7e-6, (7e-6 + 5e-4) / 2, 5e-4, 5e-5, 1e-7]
    )
    assert 180 <= config.batch_seconds <= 300
    assert config.augment.frequency_warp == config.average_decay == 0
    assert load_train_config("tedlium2-qat").quantisation == load_train_config("paper").quantisation


@pytest.mark.parametrize("name", ["paper", "robust", "tedlium2-qat"])
def test_recipes_of_few_bits_write_out_every_key_with_a_comment(name: str) -> None:
    text = (configs_root() / "qat" / f"{name}.yaml").read_text()
    section = load_train_config(name).quantisation
    assert section is not None
    assert set(QuantisationConfig.model_fields) == section.model_fields_set
    for inner in (
        section.weights,
        section.inputs,
        section.outputs,
        section.attention,
        section.hardware,
        section.teacher,
    ):
        assert inner is None or set(type(inner).model_fields) == inner.model_fields_set
    if name == "robust":
        section_text = text[text.index("\nquantisation:") :].strip()
        lines = [line for line in section_text.splitlines() if not line.endswith(":")]
        assert all("#" in line for line in lines)


@pytest.mark.parametrize(
    ("section", "found"),
    [
        ("{weights: {method: lsqq}}", "quantisation.weights.method: expected lsq or minmax, got 'lsqq'"),
        ("{weightz: {}}", "quantisation.weightz: unknown key (nearest: quantisation.weights)"),
        ("{inputs: {bits: 17}}", "out of range (2 to 16)"),
        ("{inputs: none, hardware: {}}", "the hardware's converters need input ranges; it must not be none"),
        ("{hardware: {transfer: false}}", "comes from the hardware's cells: set transfer: true, or 0 here"),
        ("{overrides: [{weight_bits: 3}]}", "quantisation.overrides[0].match: missing"),
    ],
)
def test_bad_quantisation(tmp_path: Path, section: str, found: str) -> None:
    recipe = "epochs: 1\nbatch_seconds: 10\nlearning_rate: [[0, 0.1], [1, 0.1]]\n"
    path = saved(tmp_path / "r.yaml", f"{recipe}quantisation: {section}\n")
    with pytest.raises(InputError) as caught:
        load_train_config(path)
    assert found in str(caught.value)
