"""Recognisers in folders of Hugging Face's: opened, mapped, evaluated and trained, and what cannot be run."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import memsim
from memsim.errors import InputError, Stopped
from memsim.listener import Listener

pytest.importorskip("transformers", reason="transformers is not installed (pip install memsim[hf])")

import transformers
from tokenizers import pre_tokenizers

from memsim.asr.audio import read_audio
from memsim.asr.corpora import load_corpus
from memsim.asr.data import FeatureSource, pad
from memsim.asr.input_rates import sample_utterance
from memsim.asr.tokens import tokens_from_json
from memsim.networks.open_checkpoint import open_checkpoint
from memsim.networks.opened_network import OpenedNetwork
from memsim.storage.checkpoint import load_checkpoint
from tests.asr.hugging_face_folders import FAMILIES, GENERATING, TEXTS, save_folder
from tests.cli.speech import few_utterances


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hugging_face")
    return {family: save_folder(root / family, family) for family in FAMILIES}


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """A manifest of three utterances."""
    few_utterances(tmp_path, 3)
    return tmp_path / "few.tsv"


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the Whisper folder, to be damaged."""
    return Path(shutil.copytree(folders["whisper"], tmp_path / "whisper"))


class Warned(Listener):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def features_of(recogniser: Any, count: int = 3) -> list[torch.Tensor]:
    source = FeatureSource(recogniser.features)
    return [source(utterance) for utterance in load_corpus("demo", limit=count).utterances]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_network_gives_what_transformers_gives(family: str, folders: dict[str, Path]) -> None:
    """Its outputs on the folder's own features, by transformers' own loading of the folder."""
    recogniser = OpenedNetwork(open_checkpoint(folders[family])[0]).recogniser
    (features,) = features_of(recogniser, 1)
    batch, lengths = pad([features])
    auto = transformers.AutoModelForSpeechSeq2Seq if family in GENERATING else transformers.AutoModelForCTC
    theirs = auto.from_pretrained(folders[family]).eval()
    extract = transformers.AutoFeatureExtractor.from_pretrained(folders[family])
    (utterance,) = load_corpus("demo", limit=1).utterances
    inputs = extract(read_audio(utterance, 16000).numpy(), sampling_rate=16000, return_tensors="pt")
    with torch.inference_mode():
        encoded, frames = recogniser.kind.encode(recogniser.model, batch, lengths)
        count = int(frames)
        if family in GENERATING:
            expected = theirs.get_encoder()(inputs[theirs.main_input_name]).last_hidden_state
        else:
            expected = theirs(**inputs).logits.log_softmax(dim=-1)
            blank = theirs.config.pad_token_id
            expected[..., [0, blank]] = expected[..., [blank, 0]]
    assert count <= expected.shape[1] <= encoded.shape[1] + 1  # an extractor may pad by a frame, which it masks
    torch.testing.assert_close(encoded[:, :count], expected[:, :count], rtol=1e-4, atol=1e-4)
    if family != "whisper":  # which hears 30 s whatever is said
        assert count >= expected.shape[1] - 1


@pytest.mark.parametrize("family", GENERATING)
def test_the_loss_is_that_of_transformers(family: str, folders: dict[str, Path]) -> None:
    """For each utterance of a batch, whose shorter ones are padded."""
    recogniser = OpenedNetwork(open_checkpoint(folders[family])[0]).recogniser
    theirs = transformers.AutoModelForSpeechSeq2Seq.from_pretrained(folders[family]).eval()
    extract = transformers.AutoFeatureExtractor.from_pretrained(folders[family])
    utterances = load_corpus("demo", limit=3).utterances
    targets = [torch.tensor(recogniser.tokens.encode(utterance.text)) for utterance in utterances]
    encoded = recogniser.kind.encode(recogniser.model, *pad(features_of(recogniser)))
    losses = recogniser.losses(*encoded, targets)
    for utterance, target, loss in zip(utterances, targets, losses, strict=True):
        inputs = extract(read_audio(utterance, 16000).numpy(), sampling_rate=16000, return_tensors="pt")
        with torch.inference_mode():
            expected = theirs(**inputs, labels=target[None]).loss
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_in_a_batch_changes_nothing(family: str, folders: dict[str, Path]) -> None:
    recogniser = OpenedNetwork(open_checkpoint(folders[family])[0]).recogniser
    features = features_of(recogniser)
    with torch.inference_mode():
        together, frames = recogniser.kind.encode(recogniser.model, *pad(features))
        for i, own in enumerate(features):
            alone, count = recogniser.kind.encode(recogniser.model, *pad([own]))
            assert int(count) == int(frames[i])
            torch.testing.assert_close(together[i, : int(count)], alone[0, : int(count)], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_utterance_of_ten_milliseconds_has_a_text(family: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Networks that fill a window or a kernel of their own would fail; a cut in the wrong place is enough."""
    recogniser = OpenedNetwork(open_checkpoint(folders[family])[0]).recogniser
    soundfile.write(tmp_path / "short.wav", np.full(160, 0.1), 16000)
    (tmp_path / "short.tsv").write_text("audio\ttext\nshort.wav\tyes\n")
    (utterance,) = load_corpus(str(tmp_path / "short.tsv")).utterances
    with torch.inference_mode():
        batch = pad([FeatureSource(recogniser.features)(utterance)])
        assert len(recogniser.transcribe(*recogniser.kind.encode(recogniser.model, *batch))) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_network_calls_each_of_its_layers(family: str, folders: dict[str, Path]) -> None:
    """A layer that is not called would not be on arrays, whatever attention transformers chooses."""
    recogniser = OpenedNetwork(open_checkpoint(folders[family])[0]).recogniser
    rates = sample_utterance(recogniser).vectors()
    assert len(rates) > 12
    assert [name for name, rate in rates.items() if not rate] == []


def test_rounding_to_few_bits_is_warned_of(folders: dict[str, Path], few: Path) -> None:
    def warned(call: Any, *arguments: Any, **how: Any) -> bool:
        listener = Warned()
        call(folders["wav2vec2"], *arguments, hardware="ideal", listener=listener, **how)
        return any("with --calibrate DATA they are fitted" in warning for warning in listener.warnings)

    assert warned(memsim.map_checkpoint, bits=4)
    assert warned(memsim.evaluate, few, bits=4)
    assert not warned(memsim.map_checkpoint, bits=6)
    assert not warned(memsim.map_checkpoint, bits=4, mapping="nearest")
    assert not warned(memsim.map_checkpoint, bits=4, calibrate=few)


@pytest.mark.parametrize("family", FAMILIES)
def test_folders_are_mapped_and_evaluated(family: str, folders: dict[str, Path], few: Path, tmp_path: Path) -> None:
    """On ideal cells with 16 bits, chips write what full precision writes."""
    out = tmp_path / "mapped.safetensors"
    result = memsim.map_checkpoint(folders[family], "ideal", bits=16, calibrate=few, out=out)
    reasons = {layer.reason for layer in result.plan.digital if layer.weights and layer.source is not None}
    assert {"digital: output* (hardware spec)", "digital: frontend.* (hardware spec)"} <= reasons
    from_folder = memsim.evaluate(
        folders[family],
        few,
        hardware="ideal",
        bits=16,
        calibrate=few,
        findings=memsim.Findings(loss=True),
    )
    from_file = memsim.evaluate(out, few, findings=memsim.Findings(loss=True))
    assert from_folder.full_precision is not None
    loss = from_folder.full_precision.loss
    for score in (from_folder.digital, from_folder.trials[0].score, from_file.digital, from_file.trials[0].score):
        assert score.loss == pytest.approx(loss, rel=1e-3)
    assert from_file.trials[0].score.hypotheses == from_folder.trials[0].score.hypotheses


SHORT = {"base": "robust", "epochs": 1, "batch_seconds": 30, "average_decay": 0, "augment": {"speeds": [1.0]}}


@pytest.mark.parametrize("family", ["wav2vec2", "whisper"])
def test_folders_are_trained_for_few_bits(family: str, folders: dict[str, Path], few: Path, tmp_path: Path) -> None:
    """The checkpoint that a training writes is mapped and evaluated without the folder."""
    recipe = {**SHORT, "accumulate": 2, "gradient_checkpointing": True}
    out = tmp_path / "trained.safetensors"
    memsim.train(data=few, dev=few, init=folders[family], bits=4, config=recipe, out=out)
    mapped = tmp_path / "mapped.safetensors"
    memsim.map_checkpoint(out, "ideal", out=mapped)
    result = memsim.evaluate(mapped, few)
    assert result.digital.loss is None
    assert len(result.trials) == 1


@pytest.mark.parametrize("family", ["wav2vec2", "whisper"])
def test_a_stopped_training_of_a_folder_resumes_exactly(
    family: str, folders: dict[str, Path], few: Path, tmp_path: Path
) -> None:
    asked = itertools.count()

    def train(name: str, **how: Any) -> Path:
        recipe = {**SHORT, "epochs": 2, "batch_seconds": 1, "gradient_checkpointing": True}
        out = tmp_path / f"{name}.safetensors"
        memsim.train(data=few, dev=few, init=folders[family], bits=4, config=recipe, out=out, **how)
        return out

    whole = train("whole")
    with pytest.raises(Stopped, match="stopped in epoch 1, after 2 of its batches"):
        train("stopped", stop_request=lambda: signal.SIGTERM if next(asked) == 2 else None)
    resumed = train("stopped", resume=True)
    first, second = (load_checkpoint(path).tensors() for path in (whole, resumed))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_generated_texts_are_limited_by_the_audio(folders: dict[str, Path]) -> None:
    """A decoder that always writes one letter never stops by itself; each utterance has a limit of its own."""
    recogniser = OpenedNetwork(open_checkpoint(folders["whisper"])[0]).recogniser
    model: Any = recogniser.model
    (letter,) = (i for i in recogniser.tokens.encode("a") if recogniser.tokens.decode([i]) == "a")
    decoder = model.get_decoder()
    with torch.no_grad():
        decoder.embed_tokens.weight[letter] = 1.0
        decoder.layer_norm.weight.zero_()
        decoder.layer_norm.bias.fill_(1.0)
    lengths = torch.tensor([100, 300])  # of 10 ms
    texts = recogniser.transcribe(*recogniser.kind.encode(model, torch.zeros(2, 300, 80), lengths))
    assert texts == ["a" * (7 + 12), "a" * (20 + 12)]


def test_speech_beyond_what_whisper_hears_is_said(folders: dict[str, Path], tmp_path: Path) -> None:
    """The network hears 10 s: the end of an utterance of 12 s counts as errors, and is not trained on."""
    (first, second) = load_corpus("demo", limit=2).utterances
    samples = np.concatenate([read_audio(first, 16000).numpy()] * 12)[: 12 * 16000]
    soundfile.write(tmp_path / "long.wav", samples, 16000)
    texts = f"{second.audio}\t{second.text}\nlong.wav\t{first.text}\n"
    (tmp_path / "long.tsv").write_text("audio\ttext\n" + texts)
    listener = Warned()
    results = memsim.Sharing(results=tmp_path / "results.jsonl")
    result = memsim.evaluate(
        folders["whisper"],
        tmp_path / "long.tsv",
        hardware="ideal",
        bits=8,
        findings=memsim.Findings(loss=True),
        sharing=results,
        listener=listener,
    )
    said = (
        "the recogniser hears the first 10 s of an utterance: 2.0 s at the end of 1 utterance are not heard, and their "
        "words count as errors (long 2.0 s)"
    )
    assert [said in warning for warning in listener.warnings] == [True]
    for one in (result, memsim.merge_results(tmp_path / "results.jsonl")):
        assert said in one.to_dict()["warnings"][0]
        assert one.to_dict()["data"]["unheard"] == {"longest_seconds": 10.0, "seconds": {"long": 2.0}}
        assert "cross-entropy is that of the transcripts as they are scored, without the case" in str(one)

    def train(name: str) -> Any:
        return memsim.train(
            init=folders["whisper"],
            data=tmp_path / name,
            dev=tmp_path / "long.tsv",
            bits="float",
            config={"base": "float", "epochs": 1},
            out=tmp_path / "trained.safetensors",
            listener=listener,
            force=True,
        )

    train("long.tsv")
    assert said in listener.warnings[-2]
    assert "1 of 2 utterances are longer than 9 s, so that" in listener.warnings[-1]  # at 0.9 times their speed, 10 s
    (tmp_path / "longer.tsv").write_text(f"audio\ttext\nlong.wav\t{first.text}\n")
    with pytest.raises(InputError, match="all utterances are longer than 9 s, so the recogniser hears none to its"):
        train("longer.tsv")


def test_the_first_word_has_a_space_where_each_has_one(folders: dict[str, Path]) -> None:
    """As in Whisper's training, where a token of a word holds the space before it."""
    tokens = OpenedNetwork(open_checkpoint(folders["whisper"])[0]).recogniser.tokens
    ids = tokens.encode("the cat")
    assert ids == tokens.tokenizer(" the cat").input_ids != tokens.tokenizer("the cat").input_ids
    assert tokens.decode(ids) == " the cat"
    assert tokens.encode("") == tokens.tokenizer("").input_ids


@pytest.fixture
def multilingual(folder: Path) -> Path:
    """The Whisper folder with a tokenizer of many languages, as transformers saves one."""
    special = ["<|startoftranscript|>", "<|en|>", "<|zh|>", "<|translate|>", "<|transcribe|>", "<|notimestamps|>"]
    letters = ["<|endoftext|>", *special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = transformers.WhisperTokenizer(vocab={token: i for i, token in enumerate(letters)}, merges=[])
    tokenizer.add_special_tokens({"extra_special_tokens": special})
    tokenizer.save_pretrained(folder)
    return folder


def opened_tokens(folder: Path, **generation: object) -> Any:
    """The tokens of a folder whose `generation_config.json` holds `generation`."""
    (folder / "generation_config.json").write_text(json.dumps({"decoder_start_token_id": 1} | generation))
    return tokens_from_json(open_checkpoint(folder)[0].metadata["tokens"])


LANGUAGES = {"lang_to_id": {"<|en|>": 2, "<|zh|>": 3}, "forced_decoder_ids": [[1, None], [2, 5]]}


@pytest.mark.parametrize(
    ("generation", "config", "prompt"),
    [
        (LANGUAGES, {}, [1, 2, 5, 6]),
        (LANGUAGES | {"language": "<|zh|>"}, {}, [1, 3, 5, 6]),
        (LANGUAGES | {"language": "zh", "task": "translate"}, {}, [1, 3, 4, 6]),
        (LANGUAGES | {"forced_decoder_ids": [[1, 3], [2, 4], [3, 6]]}, {}, [1, 3, 4, 6]),
        (LANGUAGES | {"forced_decoder_ids": [[1, 3], [2, 4]], "language": "en"}, {}, [1, 2, 5, 6]),
        ({"is_multilingual": True}, {}, [1, 2, 5, 6]),
        ({}, {"forced_decoder_ids": [[1, 3], [2, 5], [3, 6]]}, [1, 3, 5, 6]),  # as folders were before 2023
        ({}, {"vocab_size": 51865}, [1, 2, 5, 6]),
        ({}, {"vocab_size": 51864, "forced_decoder_ids": [[1, 6]]}, [1, 6]),  # for English alone
        ({"is_multilingual": False}, {"vocab_size": 51865}, [1, 6]),
        ({}, {"forced_decoder_ids": [[1, "zh"], 3]}, [1, 6]),
    ],
)
def test_a_multilingual_whisper_writes_the_language_of_its_files(
    generation: dict[str, Any], config: dict[str, Any], prompt: list[int], multilingual: Path
) -> None:
    """It begins with the tokens that transformers begins with, but that it detects no language."""
    _edit(multilingual, **config)
    assert opened_tokens(multilingual, **generation).encode("")[:-1] == prompt


def test_other_languages_are_scored_without_the_words_of_english(multilingual: Path) -> None:
    """And may have as many tokens as Whisper writes, since a letter of theirs may take several."""
    styles = {
        (language, task): opened_tokens(multilingual, language=language, task=task, lang_to_id={"<|zh|>": 3})
        and open_checkpoint(multilingual)[0].metadata["text_style"]
        for language, task in (("en", "transcribe"), ("zh", "transcribe"), ("zh", "translate"))
    }
    assert list(styles.values()) == ["whisper", "whisper-basic", "whisper"]

    def longest(**generation: Any) -> int:
        opened_tokens(multilingual, lang_to_id={"<|zh|>": 3}, suppress_tokens=[0], eos_token_id=0, **generation)
        recogniser = OpenedNetwork(open_checkpoint(multilingual)[0]).recogniser
        encoded = recogniser.kind.encode(recogniser.model, torch.zeros(1, 200, 80), torch.tensor([200]))
        (ids,) = recogniser.kind.hypotheses(recogniser.model, *encoded, recogniser.tokens)
        return len(ids) - 4

    assert longest(language="en") == 13 + 12  # in 2 s
    assert longest(language="zh") == 30 + 12


def test_beam_search_of_generated_texts(folders: dict[str, Path]) -> None:
    def evaluated(**decoding: Any) -> memsim.EvaluationResult:
        options = memsim.Decoding(**decoding)
        return memsim.evaluate(folders["whisper"], "demo", hardware="ideal", bits=8, limit=2, decoding=options)

    one = evaluated(decoder="beam", beam_size=1)
    assert one.digital.hypotheses == evaluated().digital.hypotheses
    assert evaluated(decoder="beam").to_dict()["decoding"]["options"] == {"beam_size": 5}
    with pytest.raises(InputError, match="--lm: only for CTC; the beam search of a recogniser that generates text"):
        evaluated(decoder="beam", lm="words.arpa")


@pytest.mark.parametrize("family", ["wav2vec2-masked", "parakeet"])
def test_texts_become_tokens_and_texts_again(family: str, folders: dict[str, Path]) -> None:
    """Repeated letters stay, and no token of a text is the blank."""
    tokens = OpenedNetwork(open_checkpoint(folders[family])[0]).recogniser.tokens
    assert 0 not in tokens.encode("all bees sleep")
    assert tokens.decode([0, *tokens.encode("all bees sleep"), 0]) == "all bees sleep"
    assert tokens_from_json(tokens.to_json()).encode("bee") == tokens.encode("bee")


def test_files_that_name_no_classes(folders: dict[str, Path], tmp_path: Path) -> None:
    """As in folders of wav2vec 2.0's time: the model type tells which classes they are of."""
    folder = Path(shutil.copytree(folders["wav2vec2-masked"], tmp_path / "folder"))
    before = OpenedNetwork(open_checkpoint(folder)[0]).recogniser
    for name in ("preprocessor_config.json", "tokenizer_config.json"):
        settings = json.loads((folder / name).read_text())
        for key in ("feature_extractor_type", "tokenizer_class", "processor_class"):
            settings.pop(key, None)
        (folder / name).write_text(json.dumps(settings))
    after = OpenedNetwork(open_checkpoint(folder)[0]).recogniser
    torch.testing.assert_close(features_of(before), features_of(after))
    tokens = tokens_from_json(after.tokens.to_json())
    assert tokens.encode("bee") == before.tokens.encode("bee")


def test_a_processor_in_one_file(folder: Path) -> None:
    """As transformers 5 saves a processor, with the settings of the feature extractor in it."""
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"feature_extractor": settings}))
    assert features_of(OpenedNetwork(open_checkpoint(folder)[0]).recogniser, 1)[0].shape[1] == 80
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "WhisperProcessor"}))
    assert open_checkpoint(folder)[0].cannot_run is not None


def test_the_blank_is_the_pad_token_of_the_tokenizer(folders: dict[str, Path], tmp_path: Path) -> None:
    """In transformers' pipeline, too; where the config leaves it out or names another one, that counts for nothing."""
    folder = Path(shutil.copytree(folders["wav2vec2"], tmp_path / "folder"))
    letters = [*"ABCDEFGHIJKLMNOPQRSTUVWXYZ'", "|", "[UNK]", "[PAD]"]
    (folder / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}))
    for name in ("tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    made = transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), unk_token="[UNK]", pad_token="[PAD]")
    made.save_pretrained(folder)
    found = {}
    for blank in (29, 0, None):
        _edit(folder, pad_token_id=blank)
        recogniser = OpenedNetwork(open_checkpoint(folder)[0]).recogniser
        with torch.inference_mode():
            encoded = recogniser.kind.encode(recogniser.model, *pad(features_of(recogniser)))
            found[blank] = recogniser.transcribe(*encoded)
    pipeline = transformers.pipeline("automatic-speech-recognition", model=str(folder))
    utterances = load_corpus("demo", limit=3).utterances
    theirs = [pipeline({"raw": read_audio(u, 16000).numpy(), "sampling_rate": 16000})["text"] for u in utterances]
    special = r"\[UNK\]|\[PAD\]|</?s>"
    (folder / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(["[PAD]", *letters, "-"])}))
    made = transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), unk_token="[UNK]", pad_token="<blank>")
    made.save_pretrained(folder)
    assert "the blank of CTC, has the id " in str(open_checkpoint(folder)[0].cannot_run)
    expected = [" ".join(re.sub(special, "", text).lower().split()) for text in theirs]
    assert found[29] == found[0] == found[None] == expected


def test_a_tokenizer_of_word_pieces(folders: dict[str, Path], tmp_path: Path) -> None:
    """Speech2Text's has a file that is no text."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="the extra lm is not installed")
    folder = Path(shutil.copytree(folders["speech_to_text"], tmp_path / "folder"))
    (folder / "tokenizer.json").unlink()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 9),
        model_prefix=str(tmp_path / "pieces"),
        vocab_size=40,
        model_type="bpe",
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "pieces.model"))
    names = ["<s>", "<pad>", "</s>", "<unk>", *(pieces.id_to_piece(i) for i in range(3, 40))]
    (tmp_path / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    made = transformers.Speech2TextTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "pieces.model"))
    made.save_pretrained(folder)
    tokens = tokens_from_json(open_checkpoint(folder)[0].metadata["tokens"])
    assert tokens.encode("the cat") == made("the cat").input_ids
    assert tokens.decode(tokens.encode("the cat")) == "the cat"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: (f / "tokenizer.json").unlink(),
            "so its outputs cannot be read; copy it from the model that the network was trained from",
        ),
        (lambda f: (f / "preprocessor_config.json").unlink(), "has no preprocessor_config.json"),
        (lambda f: _edit(f, auto_map={"AutoModel": "x.Y"}), "needs code that comes with the folder"),
        (lambda f: _edit(f, quantization_config={"quant_method": "gptq"}), "its weights were quantised (gptq)"),
        (
            lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
            "convert it: transformers.WhisperForConditionalGeneration.from_pretrained(",
        ),
        (lambda f: (f / "model.safetensors").unlink(), "a folder without model.safetensors; name a .safetensors file"),
        (lambda f: _without_weights(f, "adapter_config.json"), "it holds an adapter (LoRA) of a network"),
        (lambda f: _without_weights(f, "snapshots/0a1b/config.json"), "name one of the folders in its snapshots/"),
        (lambda f: _without_weights(f, "model.bin"), "its model.bin is CTranslate2's (faster-whisper)"),
        (lambda f: _without_weights(f, "onnx/encoder_model.onnx"), "its weights are ONNX's"),
        (lambda f: (f / "config.json").unlink(), "names no architecture"),
        (lambda f: _edit(f, model_type="murmur"), "speech_to_text; memsim map takes it, and any network in Python"),
        (lambda f: _edit(f, model_type="murmur", architectures=["MurmurForCTC"]), "knows no model type murmur"),
        (lambda f: _edit(f, d_model=64), "does not hold the network of its config.json"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(change: Any, message: str, folder: Path) -> None:
    change(folder)
    with pytest.raises(InputError) as caught:
        memsim.evaluate(folder, "demo", hardware="ideal", limit=1)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def _without_weights(folder: Path, beside: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / beside).parent.mkdir(parents=True, exist_ok=True)
    (folder / beside).write_text("{}")


def _edit(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_a_file_of_a_folder_is_answered_with_the_folder(folder: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json: JSON, not safetensors; name the folder that it is in, or"):
        memsim.evaluate(folder / "config.json", "demo", hardware="ideal", limit=1)


def test_a_folder_without_a_tokenizer_can_still_be_mapped(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert len(memsim.map_checkpoint(folder, "ideal", bits=4).plan.mapped) > 20
