"""The README and the guides agree with the code: examples, options, files and reference."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from memsim import __version__, load_hardware
from memsim.chip.architecture import load_chip
from memsim.cli import app
from memsim.evaluation import results_file
from memsim.nn.plan import Selection, plan_modules
from memsim.post_training.recipe import load_mapping
from memsim.storage.checkpoint import FORMAT
from memsim.training.recipe import load_train_config
from tests.asr.networks import tiny
from tests.benchmarks.__main__ import TABLES
from tests.cli.speech import tedlium_of_demo
from tests.documents import CONFIG_GUIDES, DOCUMENTS, REPOSITORY, commands, mentioned, name_of, prose
from tests.tools.example_measurements import feature_table, write
from tests.tools.hardware_reference import BEGIN, END, comments, reference

README = REPOSITORY / "README.md"
GROUP = typer.main.get_command(app)
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)


def test_there_is_a_guide_for_each_kind_of_config():
    assert {document.parent for document in CONFIG_GUIDES} == {
        p for p in (REPOSITORY / "configs").iterdir() if p.is_dir()
    }


def test_the_guide_of_speed_names_every_table():
    guide = prose(REPOSITORY / "tests" / "benchmarks" / "README.md")
    assert all(f"`{name}`" in guide for name in TABLES if not name.startswith("cuda_"))
    assert "`cuda_*`" in guide


@each_document
def test_the_python_examples_run(document, device, tmp_path, monkeypatch):
    tedlium_of_demo(tmp_path / "tedlium2")
    monkeypatch.setenv("MEMSIM_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("memsim.fit.goodness.LEAST_GENERATED", 60_000)
    write([feature_table(device, 40, 60, 1)], tmp_path / "example.csv")
    for block in blocks(document, "python"):
        exec(compile(block, name_of(document), "exec"), {"__name__": "example"})


def test_the_hardware_example_loads(tmp_path):
    (text,) = blocks(REPOSITORY / "configs" / "hardware" / "README.md", "yaml")
    (tmp_path / "mine.yaml").write_text(text)
    spec = load_hardware(tmp_path / "mine.yaml")
    assert spec.for_layer("blocks.0.x").adc.bits > spec.adc.bits


def test_the_recipe_example_loads(tmp_path):
    text, _ = blocks(REPOSITORY / "configs" / "qat" / "README.md", "yaml")
    (tmp_path / "mine.yaml").write_text(text)
    recipe = load_train_config(tmp_path / "mine.yaml")
    assert recipe.quantisation.teacher is None
    assert load_train_config("robust").quantisation.teacher is not None


def test_the_chip_example_loads(tmp_path):
    (text,) = blocks(REPOSITORY / "configs" / "chips" / "README.md", "yaml")
    (tmp_path / "mine.yaml").write_text(text)
    chip = load_chip(tmp_path / "mine.yaml")
    assert (chip.name, chip.powered, chip.core.adc_joules_per_step.nominal) == ("mine", "always", 2e-15)


def test_the_mapping_example_loads(tmp_path):
    text, _ = blocks(REPOSITORY / "configs" / "mapping" / "README.md", "yaml")
    (tmp_path / "mine.yaml").write_text(text)
    recipe = load_mapping(tmp_path / "mine.yaml")
    assert (recipe.scale, recipe.feedback.damping, recipe.feedback.order) == ("per_channel", 0.05, "importance")


def test_the_converters_of_a_transducer_reach_two_of_its_layers(tmp_path):
    _, text = blocks(REPOSITORY / "configs" / "qat" / "README.md", "yaml")
    (tmp_path / "wide-range.yaml").write_text(text)
    spec = load_hardware(tmp_path / "wide-range.yaml")
    plan = plan_modules(tiny("conformer-transducer-small").model, spec, Selection())
    adcs = {layer.name: (layer.spec.adc.precision_bits, layer.spec.adc.range_bits) for layer in plan.mapped}
    wide = {"prediction.lstm.weight_hh_l0", "joiner.prediction"}
    assert {name for name, bits in adcs.items() if bits == (2, 6)} == wide
    assert {bits for name, bits in adcs.items() if name not in wide} == {(4, 4)}


@each_document
def test_the_commands_name_real_options(document):
    for line in (*commands(document), *mentioned(document)):
        calls = re.findall(r"(?:^|[ (])memsim (?!qat \.\.\.|eval \.\.\.)([a-z-]+)( [^|)]*)?", line)
        for name, arguments in calls:
            known = {option for parameter in GROUP.commands[name].params for option in parameter.opts}
            used = {word for word in shlex.split(arguments) if re.match(r"--?[a-z]", word)}
            assert used <= known, (line, used - known)


def test_commands_are_found():
    found = {name_of(document): len(commands(document)) for document in DOCUMENTS}
    assert found.pop("README.md") >= 20
    assert found.pop("tests/benchmarks/README.md") == 0  # it quotes them in sentences
    assert all(count >= 2 for count in found.values()), found


@each_document
def test_linked_files_and_headings_exist(document):
    for target, _, heading in re.findall(r"\]\(([^)#:]*)(#([^)]+))?\)", document.read_text(encoding="utf-8")):
        file = document.parent / target if target else document
        assert file.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.+)$", prose(file), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in anchors, (target, heading)


@each_document
def test_scripts_and_folders_that_are_named_exist(document):
    for name in re.findall(r"\b(?:tests|configs|memsim)/[a-z_][\w./-]*\w", prose(document)):
        assert (REPOSITORY / name).exists(), name


def test_every_dependency_is_named_with_its_purpose():
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    for requirement in project["dependencies"]:
        name = re.split(r"[<>=]", requirement)[0]
        assert re.search(rf"^\|[^|]*\b{name}\b[^|]*\|", README.read_text(), re.MULTILINE), name


def test_the_formats_are_those_of_the_code():
    for text in (README.read_text(), (REPOSITORY / "CHANGELOG.md").read_text()):
        assert f"`{FORMAT}`" in text
        assert f"`{results_file.FORMAT}`" in text
    assert (REPOSITORY / "tests" / "published" / __version__).is_dir()


@pytest.mark.parametrize("kind", ["chips", "devices", "hardware", "mapping", "models"])
def test_a_guide_names_every_file_of_its_folder(kind):
    guide = (REPOSITORY / "configs" / kind / "README.md").read_text(encoding="utf-8")
    for file in (REPOSITORY / "configs" / kind).glob("*.yaml"):
        assert re.search(rf"`{file.stem}[`.]", guide), file.name
    assert kind != "devices" or "`synaptogen.safetensors`" in guide


def test_the_hardware_reference_is_current():
    guide = (REPOSITORY / "configs" / "hardware" / "README.md").read_text(encoding="utf-8")
    assert guide.partition(BEGIN)[2].partition(END)[0].strip() == reference().strip()


def test_the_hardware_reference_explains_every_key():
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    assert len(rows) > 90
    for row in rows:
        _, key, takes, default, meaning, _ = re.split(r"(?<!\\)\|", row)
        assert takes.strip(), key
        assert default.strip(), key
        assert meaning.strip(), key
    above = [re.split(r"`", row)[1] for row in rows if row.endswith("| see above |")]
    assert set(above) <= {  # the sections' own comments explain these
        *("bits", "full_scale"),  # programming.verify.adc
        *("ohms", "solve"),
        *("stuck_lrs", "stuck_hrs", "dead_rows", "dead_cols"),
        *("age_seconds", "exponent", "exponent_std", "reference_seconds"),
        "encoding",  # of analog
        *("match", "weights", "dac", "adc", "gain_per_ampere", "programming", "read_noise"),  # overrides
        *("bandwidth_hz", "cell"),
    }


def test_comments_of_specs_are_read_over_several_lines():
    found = comments("physical")
    assert found[("dac", "bits")] == "2 to 12, including the sign; none: voltages in full precision"
    assert found[("weights", "bits")].startswith("2 to 16, including the sign; default (or none)")
    assert found[("tile", "packing")].endswith("best 4.0 and 3.9 %")
    document = yaml.safe_load((REPOSITORY / "configs" / "hardware" / "physical.yaml").read_text())
    assert {path[0] for path in found} == set(document)
