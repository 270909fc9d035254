"""The plan by modules and by tensor names: layers on arrays, and reasons for the others."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from memsim import load_hardware
from memsim.errors import InputError
from memsim.nn.plan import DigitalLayer, Plan, Selection, chosen_bits, plan_modules, plan_tensors, usable_scale
from memsim.nn.rounding import TrainedScale
from memsim.nn.sources import WeightSource

PHYSICAL = load_hardware("physical")
ALL = Selection()


def mapped(plan: Plan) -> list[str]:
    return [layer.name for layer in plan.mapped]


def reasons(plan: Plan) -> dict[str, str]:
    return {layer.name: layer.reason for layer in plan.digital}


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("encoder.0.fc.weight", (4, 3), None),
        ("model.layers.0.self_attn.q_proj.weight", (4, 3), None),
        ("encoder.linear_pos.weight", (4, 3), None),
        ("layers.0.positionwise_feedforward.fc_1.weight", (4, 3), None),
        ("layers.0.position_wise.w_1.weight", (4, 3), None),
        ("membrane.weight", (4, 3), None),
        ("embed_tokens.weight", (4, 3), "embedding table"),
        ("bert.embeddings.word_embeddings.weight", (4, 3), "embedding table"),
        ("decoder.embed_positions.weight", (4, 3), "embedding table"),
        ("pos.position_table.weight", (4, 3), "embedding table"),
        ("transformer.wte.weight", (4, 3), "embedding table"),
        ("transformer.wpe.weight", (4, 3), "embedding table"),
        ("emb.weight", (4, 3), "embedding table"),
        ("conv.weight", (4, 3, 3), None),
        ("conv.weight", (4, 3, 3, 5), None),
        ("conv.weight", (4, 3, 3, 5, 2), None),
        ("conv.weight", (1, 1, 3), None),
        ("conv.weight", (4, 1, 3), "one channel a filter: depthwise, or with one input channel"),
        ("conv.weight", (4, 3, 1, 1, 1, 1), "6-dimensional: no convolution"),
        ("upsample.0.deconv.weight", (4, 4, 3), "a transposed convolution by its name"),
        ("rnn.weight_ih_l0", (4, 3, 2), "3-dimensional, but not named <layer>.weight"),
        ("conv.weight_v", (4, 3, 3), "part of a parametrised weight"),
        ("conv.parametrizations.weight.original1", (4, 3, 3), "part of a parametrised weight"),
        ("attn.in_proj_weight", (4, 3), "not named <layer>.weight"),
        ("weight", (4, 3), "not named <layer>.weight"),
        ("attn.pos_bias_u", (4, 3), "not named <layer>.weight"),
        ("norm.weight", (4,), "norm, bias or scalar"),
        ("norm.running_mean", (4,), "norm, bias or scalar"),
        ("norm.num_batches_tracked", (), "norm, bias or scalar"),
        ("gone.weight", (0, 3), "empty"),
        ("output.weight", (4, 3), r"digital: output* (hardware spec)"),
        ("frontend.conv.1.weight", (4, 3), r"digital: frontend.* (hardware spec)"),
    ],
)
def test_foreign_names(name: str, shape: tuple[int, ...], reason: str | None) -> None:
    plan = plan_tensors({name: shape}, PHYSICAL, ALL)
    if reason is None:
        assert mapped(plan) == [name.removesuffix(".weight")]
        assert not plan.digital
    else:
        assert not plan.mapped
        (digital,) = plan.digital
        assert (digital.name, digital.shape) == (name, shape)
        assert reason in digital.reason


def test_whole_numbers_have_no_scale() -> None:
    shapes = {"fc.weight": (4, 3), "other.weight": (4, 3)}
    plan = plan_tensors(shapes, PHYSICAL, ALL, integers={"other.weight"})
    assert mapped(plan) == ["fc"]
    assert reasons(plan) == {"other.weight": "whole numbers, whose scale is unknown"}


def test_a_layer_without_weights_stays_digital() -> None:
    plan = plan_modules(nn.Sequential(nn.Linear(0, 3), nn.Linear(3, 2)), PHYSICAL, ALL)
    assert mapped(plan) == ["1"]
    assert reasons(plan) == {"0": "empty"}


def test_biases_and_statistics_are_not_worth_a_line() -> None:
    shapes: Mapping[str, tuple[int, ...]] = {
        "fc.weight": (4, 3),
        "fc.bias": (4,),
        "statistics/fc/histogram": (256,),
        "statistics/fc/sample": (24, 3),
        "odd.bias": (4, 3),
    }
    plan = plan_tensors(shapes, PHYSICAL, ALL)
    assert mapped(plan) == ["fc"]
    assert list(reasons(plan)) == ["odd.bias"]


def sources(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, WeightSource]:
    return {layer.name: layer.source for layer in plan_tensors(shapes, PHYSICAL, ALL).mapped}


def test_recurrent_layers_by_name() -> None:
    shapes: Mapping[str, tuple[int, ...]] = {
        "asr.lstm.weight_ih_l0": (20, 3),
        "asr.lstm.weight_hh_l0": (20, 2),
        "asr.lstm.weight_hr_l0": (2, 5),
        "asr.lstm.bias_ih_l0": (20,),
        "asr.lstm.bias_hh_l0": (20,),
        "asr.lstm.weight_hh_l1_reverse": (20, 2),
        "weight_ih": (4, 3),
    }
    plan = plan_tensors(shapes, PHYSICAL, ALL)
    assert {layer.name: layer.source.shape for layer in plan.mapped} == {n: s for n, s in shapes.items() if len(s) > 1}
    assert not plan.digital
    plan = plan_tensors(shapes, PHYSICAL, Selection(exclude=["asr.lstm.weight_h[hr]_*"]))
    assert mapped(plan) == ["asr.lstm.weight_ih_l0", "weight_ih"]
    with pytest.raises(InputError, match=r"--exclude asr\.lstm: matches no layer .*like asr\.lstm\.weight_ih_l0"):
        plan_tensors(shapes, PHYSICAL, Selection(exclude=["asr.lstm"]))


def test_convolutions_by_shape() -> None:
    assert sources({"c.weight": (4, 3, 5, 2), "c.bias": (4,)})["c"] == WeightSource.of("c.weight", (4, 3, 5, 2))
    assert sources({"c.weight": (4, 3, 5, 2)})["c"].shape == (4, 30)
    # the bias has as many values as there are outputs: [in, out / groups, kernel]
    turned = sources({"c.weight": (4, 3, 5), "c.bias": (6,)})["c"]
    assert turned == WeightSource.transposed("c.weight", (4, 3, 5), groups=2)
    assert (turned.shape, turned.groups) == ((30, 2), 2)
    assert sources({"up.weight": (4, 4, 5), "up.bias": (4,)})["up"].is_transposed
    odd: Mapping[str, tuple[int, ...]] = {"c.weight": (4, 3, 5), "c.bias": (7,)}
    assert "fits no convolution" in reasons(plan_tensors(odd, PHYSICAL, ALL))["c.weight"]
    assert "fits no convolution" in reasons(plan_tensors({**odd, "c.bias": (0,)}, PHYSICAL, ALL))["c.weight"]
    for bias in ((), (4, 1)):
        odd = {"c.weight": (4, 3, 5), "c.bias": bias}
        said = f"its bias has {len(bias)} dimensions, which no layer that can be mapped has"
        assert reasons(plan_tensors(odd, PHYSICAL, ALL))["c.weight"] == said


def test_attention_by_name() -> None:
    whole = sources({"a.in_proj_weight": (12, 4), "a.in_proj_bias": (12,), "a.out_proj.weight": (4, 4)})
    assert list(whole) == ["a.q_proj", "a.k_proj", "a.v_proj", "a.out_proj"]
    assert [whole[f"a.{part}_proj"].rows for part in "qkv"] == [(0, 4), (4, 8), (8, 12)]
    parts = {
        "a.q_proj_weight": (4, 4),
        "a.k_proj_weight": (4, 3),
        "a.v_proj_weight": (4, 5),
        "a.out_proj.weight": (4, 4),
    }
    assert {name: source.shape for name, source in sources(parts).items()} == {
        "a.q_proj": (4, 4),
        "a.k_proj": (4, 3),
        "a.v_proj": (4, 5),
        "a.out_proj": (4, 4),
    }
    odd = plan_tensors({"a.in_proj_weight": (10, 4), "a.out_proj.weight": (4, 4)}, PHYSICAL, ALL)
    assert mapped(odd) == ["a.out_proj"]
    assert reasons(odd) == {"a.in_proj_weight": "2-dimensional, but not named <layer>.weight"}
    plan = plan_tensors({"a.in_proj_weight": (12, 4), "a.out_proj.weight": (4, 4)}, PHYSICAL, Selection(["*.q_proj"]))
    assert reasons(plan) == dict.fromkeys(["a.k_proj", "a.v_proj", "a.out_proj.weight"], "not in --include")


def test_gpt_2s_conv1d_is_told_by_its_biases() -> None:
    shapes: Mapping[str, tuple[int, ...]] = {
        "h.0.attn.c_attn.weight": (4, 12),
        "h.0.attn.c_attn.bias": (12,),
        "h.0.attn.c_proj.weight": (4, 4),  # square: as the other c_proj
        "h.0.attn.c_proj.bias": (4,),
        "h.0.mlp.c_proj.weight": (16, 4),
        "h.0.mlp.c_proj.bias": (4,),
        "h.0.square.weight": (4, 4),
        "h.0.square.bias": (4,),
    }
    assert {name: source.is_transposed for name, source in sources(shapes).items()} == {
        "h.0.attn.c_attn": True,
        "h.0.attn.c_proj": True,
        "h.0.mlp.c_proj": True,
        "h.0.square": False,
    }


SHAPES = {"a.fc1.weight": (300, 100), "a.fc2.weight": (100, 300), "b.fc1.weight": (10, 10), "b.norm.weight": (10,)}


def test_include_and_exclude() -> None:
    assert mapped(plan_tensors(SHAPES, PHYSICAL, ALL)) == ["a.fc1", "a.fc2", "b.fc1"]
    plan = plan_tensors(SHAPES, PHYSICAL, Selection(include=["a.*"], exclude=["*.fc2"]))
    assert mapped(plan) == ["a.fc1"]
    assert reasons(plan)["a.fc2.weight"] == "--exclude *.fc2"
    assert reasons(plan)["b.fc1.weight"] == "not in --include"
    spec = PHYSICAL.with_settings({"digital": ["b.*"]})
    assert mapped(plan_tensors(SHAPES, spec, Selection(include=["*"]))) == ["a.fc1", "a.fc2"]


@pytest.mark.parametrize(
    ("selection", "flag"),
    [(Selection(include=["a.*", "c.*"]), "--include c.*"), (Selection(exclude=["*.fc3"]), "--exclude *.fc3")],
)
def test_globs_that_match_nothing(selection: Selection, flag: str) -> None:
    with pytest.raises(InputError) as error:
        plan_tensors(SHAPES, PHYSICAL, selection)
    assert str(error.value) == f"{flag}: matches no layer (layers are named like a.fc1, a.fc2, b.fc1)"


def test_one_glob_as_text_is_refused() -> None:
    with pytest.raises(InputError, match=r"^include: expected a list of texts, got 'a\.\*'; write \['a\.\*'\]$"):
        Selection(include="a.*")


def test_layers_have_their_own_spec_bits_and_tiles() -> None:
    spec = load_hardware(
        {
            "base": "physical",
            "weights": {"bits": 4},
            "tile": {"rows": 64},
            "overrides": [{"match": "a.fc2", "weights": {"bits": 2}, "adc": {"bits": 5}}],
        }
    )
    plan = plan_tensors(SHAPES, spec, ALL)
    assert [layer.tiling.bits for layer in plan.mapped] == [4, 2, 4]
    assert [layer.spec.weights.bits for layer in plan.mapped] == [4, 2, 4]
    fc1, fc2, _ = plan.mapped
    assert fc2.spec.adc is not None
    assert fc2.spec.adc.bits == 5
    assert (fc1.tiling.in_features, fc1.tiling.out_features) == (100, 300)
    assert (fc1.tiling.row_tiles, fc1.tiling.col_tiles) == (2, 3)
    assert plan.cells == (2 * 3 * 3 * 2 + 5 * 1 * 1 * 2 + 1 * 1 * 3 * 2) * 64 * 128


def test_bits_default_to_8() -> None:
    (layer,) = plan_tensors({"fc.weight": (4, 3)}, PHYSICAL, ALL).mapped
    assert layer.tiling.bits == layer.spec.weights.bits == 8


class Mine(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        """Who knows what it computes."""
        return input


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(10, 6), nn.LayerNorm(6)
        self.fc, self.conv = nn.Linear(6, 8, bias=False), nn.Conv1d(6, 6, 3)
        self.attention = nn.MultiheadAttention(6, 2)
        self.rnn, self.output = nn.LSTM(6, 6), nn.Linear(6, 3)
        self.free = nn.Parameter(torch.zeros(2, 2))
        self.mine = Mine(6, 3)


def test_modules() -> None:
    plan = plan_modules(Net(), PHYSICAL, ALL)
    assert reasons(plan) == {
        "": "Net stays digital",
        "embedding": "Embedding stays digital",
        "norm": "LayerNorm stays digital",
        "mine": "Mine, derived from Linear with a forward of its own, stays digital",
        "output": "digital: output* (hardware spec)",
    }
    assert DigitalLayer("embedding", (10, 6), "Embedding stays digital") in plan.digital
    shapes = {layer.name: (layer.tiling.out_features, layer.tiling.in_features) for layer in plan.mapped}
    assert shapes == {
        "fc": (8, 6),
        "conv": (6, 18),
        "attention.q_proj": (6, 6),
        "attention.k_proj": (6, 6),
        "attention.v_proj": (6, 6),
        "attention.out_proj": (6, 6),
        "rnn.weight_ih_l0": (24, 6),
        "rnn.weight_hh_l0": (24, 6),
    }
    with pytest.raises(InputError, match="--include nothing"):
        plan_modules(Net(), PHYSICAL, Selection(include=["nothing*"]))


def test_bits_and_scales_of_a_training_are_for_the_matrices_that_they_fit() -> None:
    shapes = {"front.weight": (4, 6, 3), "front.bias": (6,), "a.weight": (5, 4), "b.weight": (5, 4), "c.weight": (5, 4)}
    beside = {"a.weight_quantiser.bits": (), "a.weight_quantiser.scale": (5,), "a.transfer.adc_range": (1, 1)}
    trained = {"front": 2, "a": 3, "b": 3}
    plan = plan_tensors(shapes | beside, load_hardware({"base": "physical", "digital": []}), ALL, trained_bits=trained)
    assert {layer.name: layer.tiling.bits for layer in plan.mapped} == {"front": 2, "a": 3, "b": 3, "c": 8}
    assert not plan.digital
    front, a, *_ = plan.mapped
    scale = torch.ones(1)
    assert front.source.is_transposed
    assert usable_scale(front, TrainedScale(2, scale)) == TrainedScale(2, scale)
    assert usable_scale(front, TrainedScale(2, torch.ones(18))) is not None  # 6 outputs of 3 taps
    assert usable_scale(front, TrainedScale(2, torch.ones(6))) is None
    assert usable_scale(a, TrainedScale(8, scale)) is None
    assert usable_scale(a, None) is None
    assert usable_scale(a, TrainedScale(3, scale)) == TrainedScale(3, scale)


def test_scales_of_tiles_are_for_tiles_of_the_same_rows() -> None:
    spec = load_hardware({"base": "physical", "digital": [], "weights": {"bits": 3}, "tile": {"rows": 4}})
    (layer,) = plan_tensors({"a.weight": (5, 7)}, spec, ALL).mapped
    scale = torch.ones(2, 5)
    kept = usable_scale(layer, TrainedScale(3, scale, 4))
    assert kept is not None
    assert kept.scale is scale
    assert usable_scale(layer, TrainedScale(3, scale, 5)) is None  # also two tiles, but of other inputs
    assert usable_scale(layer, TrainedScale(3, torch.ones(3, 5), 4)) is None
    whole = usable_scale(layer, TrainedScale(3, scale[:1], 128))  # a tile that held whole columns
    assert whole is not None
    assert whole.scale.shape == (5,)


def test_the_bits_of_a_chip_are_those_of_most_of_its_layers() -> None:
    shapes = {"a.weight": (5, 4), "b.weight": (5, 4), "c.weight": (5, 4)}
    plan = plan_tensors(shapes, PHYSICAL, ALL, trained_bits={"a": 3, "b": 3})
    assert chosen_bits(PHYSICAL, plan).weights.bits == 3
    assert chosen_bits(PHYSICAL.with_settings({"weights.bits": 5}), plan).weights.bits == 5
    assert chosen_bits(PHYSICAL, Plan((), ())).weights.bits == 8


def kinds(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[tuple[int, int], int]]:
    return {name: (source.shape, source.groups) for name, source in sources(shapes).items()}


def test_convolutions_of_one_channel_by_their_neighbours() -> None:
    assert kinds({"conv.depthwise_conv.weight": (4, 1, 3), "block.dw_conv.weight": (6, 1, 3, 3)}) == {
        "conv.depthwise_conv": ((4, 3), 4),
        "block.dw_conv": ((6, 9), 6),
    }
    # the second takes the channels of the first, by a kernel that is no pointwise one
    assert kinds({"convs.0.conv.weight": (4, 1, 5), "convs.1.conv.weight": (4, 4, 3)})["convs.0.conv"] == ((4, 5), 1)
    assert kinds({"conv1.weight": (4, 1, 5), "conv2.weight": (8, 4, 3)})["conv1"] == ((4, 5), 1)
    # after one that gives as many channels as it has, it is depthwise
    stack: Mapping[str, tuple[int, ...]] = {
        "sub.0.weight": (4, 1, 3, 3),
        "sub.2.weight": (4, 1, 3, 3),
        "sub.3.weight": (4, 4, 1, 1),
    }
    assert kinds(stack) == {"sub.2": ((4, 9), 4), "sub.3": ((4, 4), 1)}
    assert "one channel a filter" in reasons(plan_tensors(stack, PHYSICAL, ALL))["sub.0.weight"]
    for pair in (
        {"c.0.weight": (4, 1, 3), "c.1.weight": (8, 4, 1)},  # depthwise and pointwise, or a first and a second one
        {"c.0.weight": (4, 1, 3), "c.1.weight": (8, 5, 3)},
        {"c.0.weight": (4, 1, 3), "c.1.weight": (8, 4)},
        {"c.weight": (4, 1, 3)},
    ):
        plan = plan_tensors(pair, PHYSICAL, ALL)
        assert "one channel a filter" in next(reason for name, reason in reasons(plan).items() if len(pair[name]) > 2)


def test_tables_are_two_dimensional_and_have_no_bias() -> None:
    shapes: Mapping[str, tuple[int, ...]] = {
        "embeddings.patch_embeddings.projection.weight": (8, 3, 4, 4),
        "encoder.embedding_hidden_mapping_in.weight": (8, 4),
        "encoder.embedding_hidden_mapping_in.bias": (8,),
        "shared.weight": (9, 8),
        "embed_positions.weight": (7, 8),
    }
    plan = plan_tensors(shapes, PHYSICAL, ALL)
    assert mapped(plan) == ["embeddings.patch_embeddings.projection", "encoder.embedding_hidden_mapping_in"]
    assert plan.remarks == (
        "names and shapes do not tell whether an output layer shares shared.weight: --architecture, or the config.json "
        "of transformers beside the file, does",
    )
    assert plan_tensors({**shapes, "head.weight": (9, 8)}, PHYSICAL, ALL).remarks == ()


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_experts_by_shape(turned: bool, bias: bool, gated: bool) -> None:
    up, down = ((12 if gated else 6), 5), (5, 6)
    shapes: dict[str, tuple[int, ...]] = {
        "mlp.experts.gate_up_proj": (3, *(up[::-1] if turned else up)),
        "mlp.experts.down_proj": (3, *(down[::-1] if turned else down)),
        "mlp.gate.weight": (3, 5),
        "attention.gate.weight": (3, 5),
    }
    if bias:
        shapes |= {"mlp.experts.gate_up_proj_bias": (3, up[0]), "mlp.experts.down_proj_bias": (3, 5)}
    plan = plan_tensors(shapes, PHYSICAL, ALL)
    assert "router of experts" in reasons(plan)["mlp.gate.weight"]
    assert "attention.gate" in mapped(plan)
    if not gated and not bias:  # they fit together both ways
        assert mapped(plan) == ["attention.gate"]
        assert "do not tell [out, in] from [in, out]" in reasons(plan)["mlp.experts.down_proj"]
        return
    found = {layer.name: layer.source for layer in plan.mapped if "experts" in layer.name}
    assert {name: source.shape for name, source in found.items()} == {
        **{f"mlp.experts.gate_up_proj.{expert}": up for expert in range(3)},
        **{f"mlp.experts.down_proj.{expert}": down for expert in range(3)},
    }
    weight = torch.randn(shapes["mlp.experts.down_proj"])
    for expert in range(3):
        source = found[f"mlp.experts.down_proj.{expert}"]
        assert source.fits(tuple(weight.shape))
        assert torch.equal(source.matrix(weight), weight[expert].T if turned else weight[expert])
    assert plan.fraction_on_arrays == (3 * (up[0] * up[1] + 30) + 15) / plan.weights


@pytest.mark.parametrize(
    "other",
    [
        {"experts.gate_up_proj": (3, 12, 5), "experts.gate_up_proj_bias": (3, 7)},  # as many as neither dimension
        {"experts.gate_up_proj": (3, 13, 5)},  # neither of the inner size nor twice it
        {"experts.w2": (3, 5, 6)},  # two that lead back
    ],
)
def test_experts_that_do_not_fit_together(other: Mapping[str, tuple[int, ...]]) -> None:
    plan = plan_tensors({"experts.down_proj": (3, 5, 6), **other}, PHYSICAL, ALL)
    assert not mapped(plan)
    for name in ("experts.down_proj", next(iter(other))):
        assert reasons(plan)[name] == "experts' weights, whose shapes do not tell [out, in] from [in, out]"


def test_listed_experts_and_their_router() -> None:
    shapes: Mapping[str, tuple[int, ...]] = {
        "moe.gate.weight": (2, 4),
        "moe.experts.0.w1.weight": (6, 4),
        "moe.experts.1.w1.weight": (6, 4),
        "other.gate.weight": (2, 4),
    }
    plan = plan_tensors(shapes, PHYSICAL, ALL)
    assert mapped(plan) == ["moe.experts.0.w1", "moe.experts.1.w1", "other.gate"]
    assert "router of experts" in reasons(plan)["moe.gate.weight"]


def test_the_share_of_the_weights() -> None:
    shapes = {**SHAPES, "embed.weight": (7, 10), "pos_bias": (3, 4)}
    plan = plan_tensors(shapes, PHYSICAL, Selection(exclude=["a.fc2"]))
    assert (plan.weights_on_arrays, plan.weights) == (30_100, 60_170)
    assert plan.fraction_on_arrays == 30_100 / 60_170
    assert Plan((), ()).fraction_on_arrays == 0
