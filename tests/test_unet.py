"""The U-Net: the same function as diffusers' `UNet2DModel`, one image at a time,
and what it refuses.
"""

import copy
import json
import logging
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vdiff.diffusion.condition import Condition
from vdiff.errors import UsageError
from vdiff.networks.blocks import Attention, ResidualBlock
from vdiff.networks.cpu import layout
from vdiff.networks.cpu.fast import fast_on_cpu
from vdiff.networks.dropout import Dropout
from vdiff.networks.unet import UNet, UNetSection

DIGITS = {"width": 16, "multipliers": (1, 2), "attention_at": (4,)}
SECTIONS: dict[str, tuple[dict[str, Any], int, int]] = {
    "digits": (DIGITS, 8, 1),
    "time is added": (DIGITS | {"time_scale_shift": False}, 8, 1),
    "labels": (DIGITS | {"num_classes": 10}, 8, 3),
    "heads": (DIGITS | {"attention_at": (8, 4), "head_dim": 8}, 8, 3),
    "no middle attention": (
        DIGITS | {"mid_attention": False, "blocks": 1, "attention_at": ()},
        8,
        4,
    ),
    "groups": (DIGITS | {"norm_groups": 2, "blocks": 3, "attention_at": (12,)}, 12, 2),
    "celeba_u, narrow": (
        {"width": 8, "multipliers": (1, 2, 2, 4, 4), "attention_at": (4, 2), "head_dim": 8},
        32,
        3,
    ),
    "one level, odd width": ({"width": 9, "multipliers": (1,), "attention_at": (8,)}, 8, 1),
}
LEVELS = {"block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 8}
LEVELS |= {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
}
BY_BLOCKS = {
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "block_out_channels": (8, 16, 16),
    "downsample_type": "resnet",
    "upsample_type": "resnet",
}
FOREIGN: dict[str, dict[str, Any]] = {
    "residual blocks that halve and double": LEVELS | BY_BLOCKS,
    "those whose time scales and shifts": LEVELS
    | BY_BLOCKS
    | {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4},
    "residual blocks that halve, convolutions that double": LEVELS
    | {"down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D")},
    "one-sided padding": LEVELS
    | {"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1},
    "cosine first": LEVELS | {"flip_sin_to_cos": True, "norm_eps": 1e-3},
    "middle attention without a norm": LEVELS | {"resnet_time_scale_shift": "scale_shift"},
    "middle attention with its own groups": LEVELS | {"attn_norm_num_groups": 2},
    "no middle attention": LEVELS
    | {"add_attention": False, "time_embedding_dim": 24, "act_fn": "swish"},
    "labels": LEVELS
    | {"num_class_embeds": 3, "in_channels": 2, "out_channels": 4, "attention_head_dim": None},
}


def randomized(network: Any) -> Any:
    """The same network with every parameter drawn at random,
    at a scale that keeps the output near 1.
    """
    rng = torch.Generator().manual_seed(7)
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=rng)
        is_norm_weight = parameter.ndim == 1 and name.endswith("weight")
        scale = 0.2 if parameter.ndim == 1 else 1 / math.sqrt(parameter[0].numel())
        parameter.data.copy_(noise * scale + is_norm_weight)
    return network


def built(name: str = "digits", **changes: Any) -> UNet:
    settings, image_size, channels = SECTIONS[name]
    return randomized(UNetSection(**(settings | changes)).build(image_size, channels))


def batch(network: UNet, size: int = 4) -> tuple[Tensor, Tensor, Condition]:
    rng = torch.Generator().manual_seed(3)
    pixels = network.config["sample_size"] or 8
    z = torch.randn(size, network.config["in_channels"], pixels, pixels, generator=rng)
    classes = network.config["num_class_embeds"]
    label = torch.randint(classes, (size,), generator=rng) if classes else None
    return z, torch.rand(size, generator=rng) * 1023, Condition(label)


@pytest.fixture(scope="module")
def peer() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("diffusers")
        from diffusers import UNet2DModel
    return UNet2DModel


@pytest.fixture
def peer_log(peer: Any) -> Any:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logging.getLogger("diffusers").addHandler(handler)
    yield records
    logging.getLogger("diffusers").removeHandler(handler)


def assert_same_function(ours: UNet, theirs: nn.Module) -> None:
    z, time, condition = batch(ours)
    with torch.no_grad():
        expected = theirs(z, time, class_labels=condition.label).sample
        assert expected.std() > 0.1
        torch.testing.assert_close(ours(z, time, condition), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SECTIONS)
def test_diffusers_computes_the_same_function_from_our_config_and_weights(
    name: str, peer: Any, peer_log: Any
) -> None:
    ours = built(name)
    theirs = peer.from_config(json.loads(json.dumps(ours.config)))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert_same_function(ours, theirs)
    assert not [record.getMessage() for record in peer_log]


@pytest.mark.parametrize("name", FOREIGN)
def test_we_compute_the_same_function_from_the_config_and_weights_of_diffusers(
    name: str, peer: Any
) -> None:
    theirs = randomized(peer(**FOREIGN[name]))
    ours = UNet.from_config(json.loads(theirs.to_json_string()))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert_same_function(ours, theirs)


def test_counted_heads_are_those_of_diffusers_set_layer_by_layer(peer: Any) -> None:
    settings = LEVELS | {
        "down_block_types": ("AttnDownBlock2D",) * 2,
        "up_block_types": ("AttnUpBlock2D",) * 2,
        "block_out_channels": (16, 32),
    }
    theirs = randomized(peer(**(settings | {"attention_head_dim": 16})))
    heads = {"down_blocks": 2, "mid_block": 2, "up_blocks": 4}
    for name, part in theirs.named_modules():
        if name.rpartition(".")[0].endswith("attentions"):
            part.heads = heads[name.partition(".")[0]]
            part.scale = (part.inner_dim // part.heads) ** -0.5
    own = {"attention_head_dim": None, "num_attention_heads": 2, "num_attention_heads_up": 4}
    ours = UNet.from_config(settings | own)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert_same_function(ours, theirs)


def test_the_time_may_be_wider_than_the_first_level(peer: Any) -> None:
    ours = randomized(UNet.from_config(LEVELS | {"time_width": 32, "time_embedding_dim": 32}))
    theirs = peer(**(LEVELS | {"time_embedding_dim": 32}))
    theirs.time_proj.num_channels = 32
    theirs.time_embedding.linear_1 = nn.Linear(32, 32)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert_same_function(ours, theirs)


@pytest.mark.parametrize(
    "own",
    [
        {"num_attention_heads": 2, "attention_head_dim": None},
        {"num_attention_heads": 2, "num_attention_heads_up": 4, "attention_head_dim": None},
        {"time_width": 32},
    ],
)
def test_what_diffusers_has_no_words_for_is_not_called_its_class(own: dict[str, Any]) -> None:
    network = UNet.from_config(LEVELS | own)
    assert network.diffusers() is None
    assert network.config["_class_name"] == "VdiffUNet"
    again = UNet.from_config(json.loads(json.dumps(network.config)))
    assert again.config == network.config


@pytest.mark.parametrize("name", SECTIONS)
def test_a_config_read_back_from_json_is_the_same_config(name: str) -> None:
    config = built(name).config
    assert UNet.from_config(json.loads(json.dumps(config))).config == config


@pytest.mark.parametrize(
    ("changes", "image_size", "words"),
    [
        ({"multipliers": (1, 2, 2, 4)}, 100, ["3 times", "96 or 104", "at most 3"]),
        (
            {"multipliers": (1, 2, 2, 4, 4), "attention_at": ()},
            8,
            ["4 times", "16 pixels", "at most 4"],
        ),
        ({"attention_at": (4, 5)}, 8, ["5", "8, 4"]),
        ({"head_dim": 24}, 8, ["24", "32"]),
        ({"attention_at": (8,), "head_dim": 32}, 8, ["32", "16"]),
        ({"attention_at": (), "head_dim": 5}, 8, ["5", "[32]"]),
        ({"norm_groups": 5}, 8, ["5", "16"]),
        ({"multipliers": (1, 1, 1, 1)}, 8, ["1 x 1", "fewer"]),
    ],
)
def test_a_section_that_does_not_fit_the_pictures_says_what_would(
    changes: dict[str, Any], image_size: int, words: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        UNetSection(**(DIGITS | changes)).build(image_size, 1)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_norm_groups_default_to_the_most_that_divide_every_level() -> None:
    assert UNetSection(width=112, multipliers=(1, 2, 4)).configure(256, 3).norm_num_groups == 28
    assert UNetSection(width=64, multipliers=(1, 2)).configure(8, 3).norm_num_groups == 32


@pytest.mark.parametrize(
    ("image_size", "channels", "levels"), [(8, 1, 4), (10, 2, 2), (31, 5, 1), (1024, 3, 8)]
)
def test_any_size_and_any_number_of_channels_come_back_as_they_went_in(
    image_size: int, channels: int, levels: int
) -> None:
    network = UNetSection(width=4, multipliers=(1,) * levels, blocks=1, norm_groups=1).build(
        image_size, channels
    )
    z = torch.randn(1, channels, image_size, image_size)
    with torch.no_grad():
        assert network(z, torch.tensor([3.5])).shape == z.shape


def test_a_new_network_predicts_zero() -> None:
    network = UNetSection(**DIGITS).build(8, 1)
    z, time, _ = batch(network)
    assert not network(z, time).any()


def test_the_class_of_a_new_network_is_told_more_quietly_than_the_time() -> None:
    """Numbers of N(0, 0.02^2): with torch's own deviation of 1 they would
    drown the time at first.
    """
    torch.manual_seed(0)
    network = UNetSection(**DIGITS, num_classes=500).build(8, 1)
    weights = network.class_embedding.weight.detach().double()
    num = weights.numel()
    assert abs(float(weights.mean())) < 4 * 0.02 / math.sqrt(num)
    assert abs(float(weights.std()) / 0.02 - 1) < 4 / math.sqrt(2 * num)
    normal = 0.5 * (1 + torch.special.erf(weights.flatten().sort().values / 0.02 / math.sqrt(2)))
    assert (normal - torch.arange(num) / num).abs().max() < 1.95 / math.sqrt(num)
    time = network.time_embedding(torch.linspace(0, 1023, 50))
    assert weights.norm(dim=1).max() < time.norm(dim=1).min()


def test_new_blocks_pass_their_input_on() -> None:
    network = UNetSection(**DIGITS).build(8, 1)
    h, embedding = torch.randn(2, 16, 8, 8), torch.randn(2, 64)
    assert torch.equal(network.down_blocks[0].resnets[1](h, embedding, None), h)
    h = torch.randn(2, 32, 4, 4)
    assert torch.equal(network.mid_block(h, embedding, None), h)


@pytest.mark.parametrize("name", SECTIONS)
def test_every_parameter_receives_a_gradient(name: str) -> None:
    network = built(name)
    network(*batch(network)).square().sum().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


def test_a_row_of_a_batch_is_what_the_image_gives_alone() -> None:
    network = built("labels", dropout=0.3)
    z, time, condition = batch(network)
    keys = torch.arange(4)
    together = network(z, time, condition, keys)
    rows = [slice(i, i + 1) for i in range(4)]
    alone = torch.cat([network(z[row], time[row], condition.of(row), keys[row]) for row in rows])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_permuting_the_batch_permutes_the_output() -> None:
    network = built("labels", dropout=0.3)
    (z, time, condition), keys = batch(network), torch.arange(4)
    assert condition.label is not None
    order = torch.tensor([2, 0, 3, 1])
    permuted = network(z[order], time[order], Condition(condition.label[order]), keys[order])
    torch.testing.assert_close(
        permuted, network(z, time, condition, keys)[order], atol=1e-5, rtol=1e-5
    )


def test_the_time_and_the_label_change_the_output() -> None:
    network = built("labels")
    z, time, condition = batch(network)
    assert condition.label is not None
    other = Condition((condition.label + 1) % 10)
    before = network(z, time, condition)
    assert (network(z, time + 0.5, condition) - before).abs().amax(dim=(1, 2, 3)).min() > 1e-3
    assert (network(z, time, other) - before).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_channels_last_gives_the_same_output_and_stays_channels_last() -> None:
    network = built("heads")
    z, time, _ = batch(network)
    expected = network(z, time)
    network = network.to(memory_format=torch.channels_last)
    formats = []
    for module in network.modules():
        if isinstance(module, ResidualBlock | Attention):
            module.register_forward_hook(
                lambda _m, _i, out: formats.append(
                    out.is_contiguous(memory_format=torch.channels_last)
                )
            )
    torch.testing.assert_close(
        network(z.to(memory_format=torch.channels_last), time), expected, atol=1e-5, rtol=1e-5
    )
    assert formats
    assert all(formats)


def test_contiguous_activations_stay_contiguous() -> None:
    network = built("heads")
    formats = []
    for module in network.modules():
        if isinstance(module, ResidualBlock | Attention):
            module.register_forward_hook(lambda _m, _i, out: formats.append(out.is_contiguous()))
    network(*batch(network))
    assert formats
    assert all(formats)


@pytest.mark.parametrize("name", ["heads", "time is added"])
def test_the_channels_of_large_levels_lie_side_by_side_and_the_function_and_its_gradients_stay(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SECTIONS[name][0] | {"multipliers": (1, 2, 2), "attention_at": (16, 8)}
    network = fast_on_cpu(randomized(UNetSection(**settings).build(32, 3)).double())
    z, time, _ = batch(network)
    z = z.double()
    with monkeypatch.context() as patch:
        patch.setattr(layout, "LEAST_LARGE_PIXELS", 10**9)
        expected = network(z, time)
        expected_gradients = torch.autograd.grad(
            expected.square().sum(), list(network.parameters())
        )
    formats: dict[int, set[bool]] = {}
    for module in network.modules():
        if isinstance(module, ResidualBlock | Attention):
            module.register_forward_hook(
                lambda _m, _i, out: formats.setdefault(out.shape[-1], set()).add(
                    out.is_contiguous()
                )
            )
    out = network(z, time)
    torch.testing.assert_close(out, expected, atol=1e-10, rtol=1e-10)
    gradients = torch.autograd.grad(out.square().sum(), list(network.parameters()))
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-9)
    assert formats == {32: {False}, 16: {True}, 8: {True}}


def test_under_bfloat16_autocast_the_output_is_float32_and_close() -> None:
    network = built("heads", dropout=0.1)
    z, time, _ = batch(network)
    keys = torch.arange(4)
    expected = network(z, time, dropout_keys=keys)
    with torch.autocast("cpu", torch.bfloat16):
        out = network(z, time, dropout_keys=keys)
    out.sum().backward()
    assert out.dtype == torch.float32
    assert 0 < (out - expected).abs().mean() < 0.05 * expected.std()


def test_a_bfloat16_network_takes_and_gives_float32() -> None:
    network = built().bfloat16()
    z, time, _ = batch(network)
    assert network(z, time).dtype == torch.float32


def test_the_whole_network_compiles_into_one_graph() -> None:
    network = built("labels", dropout=0.3, blocks=1, multipliers=(1,), attention_at=(8,))
    inputs = [*batch(network), torch.arange(4)]
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), network(*inputs))


def test_a_missing_or_unexpected_label_is_an_error() -> None:
    network = built()
    z, time, _ = batch(network)
    with pytest.raises(ValueError, match="takes no `label`"):
        network(z, time, Condition(torch.zeros(4, dtype=torch.int64)))
    labelled = built("labels")
    with pytest.raises(ValueError, match="needs a `label`"):
        labelled(*batch(labelled)[:2])


def test_training_with_dropout_needs_keys_and_evaluation_does_not() -> None:
    network = built(dropout=0.3)
    z, time, _ = batch(network)
    with pytest.raises(ValueError, match="dropout_keys"):
        network(z, time)
    assert torch.equal(network.eval()(z, time), built()(z, time))
    assert torch.equal(network(z, time), network(z, time, dropout_keys=torch.arange(4)))


def test_dropout_gives_every_layer_its_own_number_and_a_copy_keeps_it() -> None:
    network = copy.deepcopy(built(dropout=0.3))
    layers = [module.layer for module in network.modules() if isinstance(module, Dropout)]
    assert layers == list(range(12))
    z, time, _ = batch(network)
    one, other = (network(z, time, dropout_keys=torch.arange(4) + shift) for shift in (0, 9))
    assert (one - other).abs().amax(dim=(1, 2, 3)).min() > 1e-3
