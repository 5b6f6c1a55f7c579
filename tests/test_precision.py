"""Precision: what `auto` comes to, what is refused, and that a run is told when it
would go on in another one.
"""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.test_training import flat, learner, pictures, rng_of, taught
from tests.tiny import StopAfter, TinyRun
from vdiff.chain.stage_run import Surroundings
from vdiff.cli.progress import FitLines
from vdiff.diffusion.condition import NOTHING
from vdiff.errors import MachineError, Stopped, UsageError
from vdiff.machine import device
from vdiff.machine import precision as machines
from vdiff.machine.machine import Machine
from vdiff.machine.precision import SMALLEST_BF16_PICTURE, resolve
from vdiff.networks.cpu.attention import attend
from vdiff.training.learner import Learner

needs_bf16 = pytest.mark.skipif(
    not machines.cpu_multiplies_bf16(), reason="this CPU does not multiply bf16"
)


def lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without instructions for bf16, as far as torch can tell."""
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)


def test_auto_is_float32_where_the_cpu_does_not_multiply_bf16_and_bf16_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lacking(monkeypatch)
    assert resolve("auto", cpu=True, image_size=256)[0] == "fp32"
    with pytest.raises(MachineError, match="does not multiply bf16") as found:
        Machine("bf16", "cpu")
    assert "precision: fp32" in found.value.fix


@needs_bf16
def test_auto_is_bf16_where_the_cpu_multiplies_it_but_not_for_tiny_pictures() -> None:
    assert resolve("auto", cpu=True, image_size=SMALLEST_BF16_PICTURE)[0] == "bf16"
    found, why = resolve("auto", cpu=True, image_size=SMALLEST_BF16_PICTURE - 1)
    assert (found, "15 pixels" in why) == ("fp32", True)
    assert resolve("fp32", cpu=True, image_size=256)[0] == "fp32"


@needs_bf16
def test_in_bf16_the_weights_stay_float32_and_the_loss_is_close() -> None:
    made, exact = (learner(Machine(precision, "cpu")) for precision in ("bf16", ("fp32")))  # type: ignore[arg-type]
    losses = [float(each.step(pictures(), NOTHING, rng_of())[0]) for each in (made, exact)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert {
        tensor.dtype for part in ("weights", "optimizer") for tensor in made.state()[part].values()
    } == {torch.float32}


@needs_bf16
def test_a_frozen_network_is_cast_once_and_predicts_in_float32() -> None:
    made = learner(Machine("bf16", "cpu")).result()
    Machine("bf16", "cpu").freeze(made.network)
    assert {weight.dtype for weight in made.network.parameters()} == {torch.bfloat16}
    assert made(pictures(), torch.full((6,), 0.5)).x.dtype == torch.float32


def test_fp16_is_refused_where_the_cpu_does_not_multiply_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_fp16_supported", lambda: False, raising=False)
    with pytest.raises(MachineError, match="does not multiply fp16") as found:
        Machine("fp16", "cpu")
    assert found.value.exit_code == 6
    assert f"precision: {'bf16' if machines.cpu_multiplies_bf16() else 'fp32'}" in found.value.fix
    lacking(monkeypatch)
    with pytest.raises(MachineError) as found:
        resolve("fp16", cpu=True)
    assert "precision: fp32" in found.value.fix
    assert len(str(found.value).splitlines()) == 3


def half(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """fp16 on this CPU, whatever it multiplies: torch can do it slowly."""
    monkeypatch.setattr(machines, "cpu_multiplies_fp16", lambda: True)
    return Machine("fp16", "cpu")


def scale_of(made: Learner) -> float:
    return float(made.state()["course"]["loss_scale"])


def test_in_fp16_the_loss_is_scaled_and_the_update_is_close_to_that_of_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, exact = learner(half(monkeypatch)), learner(Machine("fp32", "cpu"))
    found, wanted = (each.step(pictures(), NOTHING, rng_of()).tolist() for each in (made, exact))
    assert found != wanted
    assert found == pytest.approx(wanted, rel=0.02)
    assert scale_of(made) == 2**16
    assert "loss_scale" not in exact.state()["course"]
    assert {tensor.dtype for tensor in made.state()["weights"].values()} == {torch.float32}
    assert {
        weight.dtype for weight in half(monkeypatch).freeze(made.result().network).parameters()
    } == {torch.float16}


def test_in_fp16_an_update_that_overflows_is_skipped_and_the_scale_halved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = learner(half(monkeypatch), ema=0.9)
    taught(made, 2)
    before = flat(made.state())
    measured = made.step(pictures() * 1e30, NOTHING, rng_of(2))
    assert not measured.isfinite().all()
    after = flat(made.state())
    assert [name for name in before if not torch.equal(before[name], after[name])] == [
        "course/loss_scale",
        "course/sound_updates",
    ]
    assert (scale_of(made), made.update) == (2**15, 3)


def test_in_fp16_a_save_is_gone_on_from_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = half(monkeypatch)
    unbroken, resumed = learner(machine), learner(machine)
    unbroken.step(pictures() * 1e30, NOTHING, rng_of())
    taught(unbroken, 2)
    saved = {
        part: {name: tensor.clone() for name, tensor in named.items()}
        for part, named in unbroken.state().items()
    }
    resumed.load(saved, 3)
    for each in (unbroken, resumed):
        taught(each, 2)
    wanted, found = flat(unbroken.state()), flat(resumed.state())
    assert (float(found["course/loss_scale"]), int(found["course/sound_updates"])) == (2**15, 4)
    assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []


def chain(run: TinyRun, precision: Any, stop_after: int) -> Any:
    from vdiff.chain.chain import Chain

    progress = FitLines(run.said.append)
    machine = Machine(precision, "cpu")
    return Chain(
        Surroundings(run.recipe(), run.text, run.folder(), machine, progress, StopAfter(stop_after))
    )


@needs_bf16
def test_a_run_that_auto_began_in_bf16_does_not_go_on_in_float32_unasked(tiny_run: TinyRun) -> None:
    with pytest.raises(Stopped):
        chain(tiny_run, "bf16", 2).train()
    with pytest.raises(UsageError, match="another precision") as found:
        chain(tiny_run, "fp32", 99).train()
    assert "--set precision=bf16" in found.value.fix
    assert found.value.where == "precision: bf16 -> fp32"


def test_a_save_from_before_the_precision_was_recorded_is_gone_on_from(tiny_run: TinyRun) -> None:
    from vdiff.runs.savepoint import changes

    assert changes({"precision": "auto"}, {"precision": "fp32"}) == []
    assert changes({"precision": "fp32"}, {"precision": "bf16"}) != []
    assert json.loads(json.dumps(changes({"seed": 0}, {"seed": 1}))) == ["seed: 0 -> 1"]


@pytest.mark.parametrize("pixels", [1, 64])
def test_plain_attention_in_bf16_is_the_fused_one(pixels: int) -> None:
    rng = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 3, pixels, 8, generator=rng, requires_grad=True) for _ in range(3))
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    found = attend(*(part.bfloat16() for part in (q, k, v)))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), wanted, atol=0.03, rtol=0.03)
    gradients: list[tuple[Tensor, ...]] = [
        torch.autograd.grad(out.sum(), (q, k, v)) for out in (wanted, found)
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("has_it", [True, False])
@pytest.mark.parametrize("cpu", [True, False])
def test_auto_asks_the_device_that_computes_and_no_other(
    monkeypatch: pytest.MonkeyPatch, cpu: bool, has_it: bool
) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: has_it == cpu, raising=False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_it != cpu)
    assert machines.cpu_multiplies_bf16() is (has_it == cpu)
    assert resolve("auto", cpu, image_size=256)[0] == ("bf16" if has_it else "fp32")


def test_instructions_that_torch_does_not_use_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_fp16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: True, raising=False)
    for uses_it in (True, False):
        monkeypatch.setattr(torch.backends, "mkldnn", SimpleNamespace(enabled=uses_it))
        assert machines.cpu_multiplies_bf16() is uses_it
        assert machines.cpu_multiplies_fp16() is uses_it


def test_a_network_goes_to_the_device_at_once_but_for_one_that_is_to_lie_in_shares() -> None:
    machine = Machine("fp32", "cpu")
    machine.device = torch.device("meta")
    assert machine.place(torch.nn.Linear(2, 2)).weight.is_meta
    machine.shards = True
    assert not machine.place(torch.nn.Linear(2, 2)).weight.is_meta


def test_a_processor_is_called_what_it_calls_itself_or_what_the_system_calls_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = "processor: 0\nmodel name\t: Fast   Chip 9\n"
    monkeypatch.setattr(device.Path, "read_text", lambda *given, **more: told)
    assert device._processor() == "Fast Chip 9"
    told = "processor: 0\n"
    monkeypatch.setattr(device.platform, "processor", lambda: "chip")
    monkeypatch.setattr(device.platform, "machine", lambda: "arch")
    assert device._processor() == "chip"
    monkeypatch.setattr(device.platform, "processor", lambda: "")
    assert device._processor() == "arch"
