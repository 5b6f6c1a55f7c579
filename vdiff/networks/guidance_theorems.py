"""What an input for guidance changes in a network, and what it leaves:
`vdiff.conformance` looks whether it holds.
"""

import json
from collections.abc import Iterator

import torch
from torch import Tensor

from vdiff.diffusion.condition import Condition
from vdiff.errors import UsageError
from vdiff.networks.network import Network, NetworkSection

_TOLERANCE = 1e-4


def theorems(
    section: type[NetworkSection], network: Network, z: Tensor, time: Tensor, condition: Condition
) -> Iterator[tuple[bool, str]]:
    """Whether each holds, and what is wrong otherwise;
    one only for a network that cannot take guidance.

    network: one that takes none.   z: [B, C, H, W], B >= 2.   To be asked without gradients.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            made = network.with_guidance_input()
    except UsageError:
        yield not section.may_take_guidance, "its section says that it may take guidance"
        return
    yield section.may_take_guidance, "its section does not say that it may take guidance"
    before = network(z, time, condition)
    strengths = torch.linspace(1, 4, len(z))
    told = condition._replace(guidance=strengths)
    yield made.takes_guidance, "`with_guidance_input` gives a network that takes none"
    is_same = torch.equal(made(z, time, told), before)
    yield is_same, "with the input for guidance it gives other bits, before it has learned"
    is_refused = _refuses(made, z, time, condition)
    yield is_refused, "it asks for no guidance where it takes it"
    is_refused = _refuses(network, z, time, told)
    yield is_refused, "it takes guidance where it has no input for it"
    for weight in made.parameters():  # as if it had learned
        wave = torch.arange(weight.numel(), dtype=weight.dtype).cos()
        weight.add_(0.05 * wave.reshape(weight.shape))
    out = made(z, time, told)
    other = made(z, time, told._replace(guidance=torch.full_like(strengths, 2.0)))
    changes = (other - out).abs().amax((1, 2, 3))
    yield bool(changes.min() > 0), "guidance changes nothing in a picture"
    again = section.restore(json.loads(json.dumps(made.config))).eval()
    again.load_state_dict(made.state_dict())
    is_same = torch.equal(again(z, time, told), out)
    yield is_same, "restored with its input for guidance it gives other bits"
    fixed = made.with_fixed_guidance(2.0)
    yield not fixed.takes_guidance, "`with_fixed_guidance` gives a network that takes guidance"
    yield fixed.config == network.config, "with a fixed guidance it has another config"
    is_near = torch.allclose(fixed(z, time, condition), other, atol=_TOLERANCE, rtol=_TOLERANCE)
    yield is_near, "with a fixed guidance it gives another output than for this guidance"
    is_kept = torch.equal(made(z, time, told), out)
    yield is_kept, "`with_fixed_guidance` changes the network that it is asked of"


def _refuses(network: Network, z: Tensor, time: Tensor, condition: Condition) -> bool:
    try:
        network(z, time, condition)
    except ValueError:
        return True
    return False
