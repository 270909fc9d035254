"""The two kinds of Hugging Face recognisers: CTC, and encoder-decoders that generate text.

Results are `encoded` [batch, frames', ...] and `frames` [batch], as of memsim's own recognisers: log-probabilities with
the blank first for CTC, the encoder's hidden states for encoder-decoders, whose decoder then runs token by token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from memsim.asr.hugging_face.features import padded_to
from memsim.asr.hugging_face.files import quiet
from memsim.asr.hugging_face.tokens import HuggingFaceTokens
from memsim.asr.kinds import CTC, Kind, Outputs
from memsim.asr.models.frontend import frame_mask
from memsim.asr.tokens import Tokens

BEAM_WIDTH = 5
"""The number of hypotheses that beam search keeps by default, as in OpenAI's Whisper."""
TOKENS_PER_SECOND = 6.5
"""The fastest English speech that is written down, in tokens a second of audio; fast speech takes about 5."""
MOST_TOKENS_PER_SECOND = 15
"""The same for other languages, of whose letters Whisper writes some in two tokens and more: its 448 tokens in 30 s."""
SECONDS_PER_FRAME = {"whisper": 0.02, "speech_to_text": 0.04, "moonshine": 0.024}
"""The time between two of an encoder's frames, by model type."""
DEFAULT_SECONDS_PER_FRAME = 0.04
LEAST_TOKENS = 12
"""The number of tokens that any utterance may have beside those of its length."""


class HuggingFaceCTC(CTC):
    """A CTC network of transformers: Wav2Vec2, HuBERT, WavLM, Wav2Vec2-BERT, Parakeet and others."""

    def encode(self, model: nn.Module, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities [batch, frames, tokens], the blank first, and the frames [batch]."""
        network = cast(Any, model)
        logits, frames = _by_utterances(network, network, "logits", features, lengths)
        log_probs = logits.float().log_softmax(dim=-1)
        blank = network.config.pad_token_id
        order = torch.arange(log_probs.shape[-1], device=log_probs.device)
        order[0], order[blank] = blank, 0
        return log_probs[..., order], frames


def _by_utterances(network: Any, part: Any, result: str, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return the `result` [batch, frames, ...] of a part of `network` and the frames [batch] of each utterance.

    Utterances of different lengths are heard one by one where padding changes what transformers gives.
    """
    if _hears_padding(network) and len(features) > 1:
        alone = [part(x[None, :n])[result][0] for x, n in zip(features, lengths.tolist(), strict=True)]
        frames = torch.tensor([len(one) for one in alone], device=features.device)
        return pad_sequence(alone, batch_first=True), frames
    if _hears_padding(network):
        found: Tensor = part(features)[result]
        return found, lengths.new_full((1,), found.shape[1])
    found = part(features, attention_mask=frame_mask(lengths, features.shape[1]).long())[result]
    return found, _output_lengths(network, lengths).clamp(max=found.shape[1])


def _hears_padding(network: Any) -> bool:
    """Return whether padding changes the results of `network` in transformers in spite of masks.

    Moonshine and wav2vec 2.0 base normalise over time before there is a mask, and Speech2Text's second convolution
    reads what the first one makes of the padding.
    """
    config = network.config
    return config.model_type in ("moonshine", "speech_to_text") or getattr(config, "feat_extract_norm", "") == "group"


def _output_lengths(network: Any, lengths: Tensor) -> Tensor:
    """Return the numbers of frames [batch] that a CTC network gives for inputs of `lengths` [batch]."""
    for name in ("_get_feat_extract_output_lengths", "_get_subsampling_output_length"):
        for holder in (network, getattr(network, "encoder", None), getattr(network, network.base_model_prefix, None)):
            if (count := getattr(holder, name, None)) is not None:
                found: Tensor = count(lengths)
                return found.to(lengths)
    return lengths


class HuggingFaceSeq2Seq(Kind):
    """An encoder-decoder of transformers that generates text: Whisper, Moonshine, Speech2Text and others."""

    loss_name = "cross-entropy"

    def encode(self, model: nn.Module, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the encoder's hidden states [batch, frames, width] and the frames [batch] of each utterance.

        Whisper hears 30 s, of which an utterance's frames are the first.
        """
        return self._encoded(cast(Any, model), features, lengths, _fixed_frames(model))

    def encode_for_training(self, model: nn.Module, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `encode` does; of Whisper's 30 s only those of the longest utterance of the batch are heard."""
        most = _fixed_frames(model)
        if most is None:
            return self.encode(model, features, lengths)
        network = cast(Any, model)
        stride = most // network.config.max_source_positions
        frames = min(most, -(-features.shape[1] // stride) * stride)
        with _shortened(network, frames // stride):
            return self._encoded(network, features, lengths, frames)

    @staticmethod
    def _encoded(network: Any, features: Tensor, lengths: Tensor, whole: int | None) -> tuple[Tensor, Tensor]:
        """Return the encoder's result, where it hears `whole` frames; None for as many as the batch has."""
        encoder = network.get_encoder()
        if whole is not None:
            features = padded_to(features, lengths, whole)
            hidden = encoder(features.transpose(1, 2)).last_hidden_state
            return hidden, -(-lengths.clamp(max=whole) * hidden.shape[1] // whole)
        return _by_utterances(network, encoder, "last_hidden_state", features, lengths)

    def outputs(self, model: nn.Module, encoded: Tensor, frames: Tensor, targets: Sequence[Tensor]) -> Outputs:
        """Return the log-probabilities [batch, tokens, vocabulary] of each target token, given those before it."""
        network = cast(Any, model)
        start = network.generation_config.decoder_start_token_id
        labels = [target[1:] if len(target) and int(target[0]) == start else target for target in targets]
        padded = pad_sequence(list(labels), batch_first=True, padding_value=0).to(encoded.device)
        begun = torch.cat([padded.new_full((len(padded), 1), start), padded[:, :-1]], dim=1)
        counts = torch.tensor([len(label) for label in labels], device=encoded.device)
        result = network(
            decoder_input_ids=begun,
            use_cache=False,
            **_encoder_result(network, encoded, frames),
        )
        valid = frame_mask(counts, padded.shape[1])
        return Outputs(result.logits.float().log_softmax(dim=-1), valid, frames)

    def losses(self, outputs: Outputs, targets: Sequence[Tensor]) -> Tensor:
        """Return the mean cross-entropy of each utterance's target tokens [batch], by teacher forcing."""
        log_probs, valid, _ = outputs
        counts = valid.sum(dim=1).tolist()
        labels = [target[len(target) - count :] for target, count in zip(targets, counts, strict=True)]
        padded = pad_sequence(labels, batch_first=True).to(log_probs.device)
        chosen = log_probs.gather(2, padded[:, :, None]).squeeze(2)
        return -(chosen * valid).sum(dim=1) / valid.sum(dim=1).clamp_min(1)

    def too_short(self, frames: Tensor, targets: Sequence[Tensor]) -> int:
        """Return 0: a decoder may write any text for any audio."""
        return 0

    def hypotheses(self, model: nn.Module, encoded: Tensor, frames: Tensor, tokens: Tokens) -> list[list[int]]:
        """Return the tokens that the network generates greedily, with those that decoding begins with."""
        assert isinstance(tokens, HuggingFaceTokens)
        begun = prompt_of(cast(Any, model), tokens)
        return [[*begun, *ids] for ids in _generated(model, encoded, frames, tokens)]

    def transcribe(self, model: nn.Module, encoded: Tensor, frames: Tensor, tokens: Tokens) -> list[str]:
        """Return the texts that the network generates greedily."""
        return generated(model, encoded, frames, tokens)


@dataclass(frozen=True)
class GenerationBeam:
    """The decoder of a generating network by the beam search of transformers."""

    tokens: Tokens
    width: int = BEAM_WIDTH

    def __call__(self, model: nn.Module, encoded: Tensor, frames: Tensor) -> list[str]:
        """Return the best text of each utterance, from the encoder's result for a batch."""
        with torch.inference_mode():
            return generated(model, encoded, frames, self.tokens, self.width)


def generated(model: nn.Module, encoded: Tensor, frames: Tensor, tokens: Tokens, beams: int = 1) -> list[str]:
    """Return the texts that a network generates for its encoder's result, with a beam of `beams` hypotheses.

    Decoding begins with the tokens that the tokenizer puts before any text (for Whisper language, task and no
    timestamps). The number of tokens is limited by the length of the audio, so that a broken network does not write for
    minutes.
    """
    found = _generated(model, encoded, frames, tokens, beams)
    return [" ".join(tokens.decode(ids).split()) for ids in found]


def _generated(model: nn.Module, encoded: Tensor, frames: Tensor, tokens: Tokens, beams: int = 1) -> list[list[int]]:
    """Return the tokens of the texts of `generated`, the end of text included where the network has found it."""
    from transformers import GenerationMixin

    network = cast(Any, model)
    assert isinstance(tokens, HuggingFaceTokens)
    prompt = torch.tensor([prompt_of(network, tokens)], device=encoded.device).expand(len(encoded), -1)
    most = _most_tokens(network, frames, TOKENS_PER_SECOND if tokens.writes_english else MOST_TOKENS_PER_SECOND)
    if (room := _most_positions(network)) is not None:
        most = most.clamp(max=room - prompt.shape[1])
    with quiet():
        # the generic loop: Whisper's own one cuts recordings of more than 30 s into segments, which utterances are not
        ids = GenerationMixin.generate(
            network,
            decoder_input_ids=prompt,
            max_new_tokens=int(most.max()),
            num_beams=beams,
            do_sample=False,
            **_encoder_result(network, encoded, frames),
        )
    ends = network.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    rows = zip(ids[:, prompt.shape[1] :].tolist(), most.tolist(), strict=True)
    return [_until(row[:own], ends) for row, own in rows]


def _until(row: list[int], ends: Sequence[int]) -> list[int]:
    """Return `row` up to and with the first of the tokens `ends`; what follows it is padding."""
    return row[: next((place + 1 for place, token in enumerate(row) if token in ends), len(row))]


def _most_tokens(network: Any, frames: Tensor, per_second: float) -> Tensor:
    """Return the most tokens [batch] that utterances of so many encoder frames [batch] may have."""
    seconds = SECONDS_PER_FRAME.get(network.config.model_type, DEFAULT_SECONDS_PER_FRAME)
    return (frames * seconds * per_second).ceil().long() + LEAST_TOKENS


def prompt_of(network: Any, tokens: HuggingFaceTokens) -> list[int]:
    """Return the tokens that decoding begins with: the start, and what the tokenizer puts before any text."""
    start = network.generation_config.decoder_start_token_id
    before = list(getattr(tokens.tokenizer, "prefix_tokens", ()))
    return before if before[:1] == [start] else [start, *before]


def _most_positions(network: Any) -> int | None:
    """Return the largest number of tokens that the decoder has positions for; None where any number will do."""
    for key in ("max_target_positions", "max_position_embeddings"):
        if (most := getattr(network.config, key, None)) is not None:
            return int(most)
    return None


@contextmanager
def _shortened(network: Any, positions: int) -> Iterator[None]:
    """Let Whisper's encoder hear the first `positions` of its positions alone, inside the block."""
    config, table = network.config, network.get_encoder().embed_positions
    kept = config.max_source_positions, table.num_embeddings
    config.max_source_positions, table.num_embeddings = positions, positions
    try:
        yield
    finally:
        config.max_source_positions, table.num_embeddings = kept


def _fixed_frames(network: Any) -> int | None:
    """Return the number of input frames that an encoder always hears, as Whisper's does; None for any other."""
    encoder = network.get_encoder()
    if network.config.model_type != "whisper":
        return None
    return int(network.config.max_source_positions * encoder.conv1.stride[0] * encoder.conv2.stride[0])


def _encoder_result(network: Any, encoded: Tensor, frames: Tensor) -> dict[str, Any]:
    """Return the arguments that give the decoder the encoder's result and the mask of its frames.

    Whisper's decoder hears all frames. Moonshine's takes the mask from the result; Speech2Text computes it from a mask
    of the inputs, of which a frame is made of four.
    """
    from transformers.modeling_outputs import BaseModelOutput
    from transformers.models.moonshine.modeling_moonshine import MoonshineEncoderModelOutput

    mask = frame_mask(frames, encoded.shape[1]).long()
    if network.config.model_type == "moonshine":
        return {"encoder_outputs": MoonshineEncoderModelOutput(encoded, attention_mask=mask)}
    result: dict[str, Any] = {"encoder_outputs": BaseModelOutput(encoded)}
    if network.config.model_type == "speech_to_text":
        result["attention_mask"] = mask.repeat_interleave(4, dim=1)
    return result
