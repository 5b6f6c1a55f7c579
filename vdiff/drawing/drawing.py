"""Drawing pictures with a model folder, each process its share,
with what they say of their origin.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vdiff import __version__
from vdiff.data.codec import Codec
from vdiff.diffusion.condition import Condition
from vdiff.drawing import guidance as guidance_of
from vdiff.drawing.guidance import UNASKED, Guidance
from vdiff.drawing.kept import KeptBatches
from vdiff.drawing.onnx_graph import OnnxSampler
from vdiff.drawing.pictures import draw_with
from vdiff.errors import DivergedError, UsageError
from vdiff.images.images import UNSOUND, check_finite
from vdiff.machine.machine import Machine
from vdiff.model_folder.checkpoint import Checkpoint, ModelCard
from vdiff.randomness import Randomness
from vdiff.samplers.sampler import Sampler

_MAX_WAY_IMAGES = 256


@dataclass(frozen=True)
class Drawing:
    """What is to be drawn.

    seeds: one per picture.   num_steps: of the sampler.
    condition: what the model is told of each picture.
    batch_size: pictures at once, in each process.   machine: whose processes share the work.
    graph: draws in the place of the sampler; a graph shows no steps.
    rows: names of the classes, where a grid has rows for each of them: the pictures of one class
    come after those of the one before.
    """

    checkpoint: Checkpoint
    sampler: Sampler
    seeds: Sequence[int]
    num_steps: int
    condition: Condition
    batch_size: int
    machine: Machine
    graph: OnnxSampler | None = None
    guidance: Guidance = UNASKED
    rows: Sequence[str] = ()

    def pictures(
        self, on_batch: Callable[[Tensor, Sequence[int]], None], kept: KeptBatches | None = None
    ) -> None:
        """Draw all pictures; `on_batch` takes uint8 [b, C, H, W] and their seeds,
        batch after batch.

        Every process must come here. The first one sees all pictures, the others those that are
        drawn now; of those that were drawn before they see none.
        kept: what an earlier command has drawn, and what this one adds to; in the first process.
        """
        size = self.size_of_batches
        for start in range(0, len(self.seeds), size):
            part = range(start, min(start + size, len(self.seeds)))
            on_batch(self._made(part, kept), self.seeds[part.start : part.stop])

    @property
    def size_of_batches(self) -> int:
        """Pictures that all processes draw at once, together."""
        return self.batch_size * self.machine.world_size

    def _made(self, part: range, kept: KeptBatches | None) -> Tensor:
        shape = self.checkpoint.card.shape
        found = None
        if kept is not None:
            found = kept.read(part.start, (len(part), *shape))
        if self.machine.processes.told(lambda: found is not None):
            return torch.zeros(0, *shape, dtype=torch.uint8) if found is None else found
        drawn = self._shared(part)
        if kept is not None:
            kept.write(part.start, drawn)
        return drawn

    def _shared(self, part: range) -> Tensor:
        def work(places: slice) -> Tensor:
            mine = part[places]
            drawn, model = self._draw(slice(mine.start, mine.stop)), self.checkpoint
            return decoded_share(drawn, model.codec, model.card.name, self.machine)

        return self.machine.share_out(work, len(part))

    def way(self, num_frames: int) -> Tensor:
        """From noise to picture: uint8 [F, n, C, H, W], F <= num_frames, the first is noise,
        the last the picture.

        Errors: UsageError for more pictures than fit into one strip or film.
        """
        if len(self.seeds) > _MAX_WAY_IMAGES:
            raise UsageError(
                f"a strip or gif of {len(self.seeds)} pictures is too large",
                "ask for fewer with -n or --per-class",
            )
        kept = set(
            torch.linspace(0, self.num_steps, min(num_frames, self.num_steps + 1))
            .round()
            .int()
            .tolist()
        )
        frames: dict[int, list[Tensor]] = {step: [] for step in sorted(kept)}
        for start in range(0, len(self.seeds), self.batch_size):
            self._follow(slice(start, start + self.batch_size), frames)
        return torch.stack([torch.cat(parts) for parts in frames.values()])

    def facts(self) -> dict[str, str]:
        """What a picture says about its origin, for the text of a PNG."""
        card = self.checkpoint.card
        facts = facts_of(card, self.num_steps, self.sampler, self.seeds, self.guidance)
        if self.rows:
            facts["vdiff.per_class"] = str(len(self.seeds) // len(self.rows))
        if self.graph is not None:
            facts["vdiff.backend"] = self.graph.by
        return facts

    def _follow(self, part: slice, frames: Mapping[int, list[Tensor]]) -> None:
        codec, card = self.checkpoint.codec, self.checkpoint.card
        noise = Randomness.for_images(torch.tensor(self.seeds[part])).normal(
            *codec.shape(card.shape)
        )
        states = [codec.decode(noise)]
        self._draw(part, lambda z, x: states.append(codec.decode(z.cpu(), card.name)))
        for step, parts in frames.items():
            parts.append(states[step])

    def _draw(self, part: slice, watch: Callable[[Tensor, Tensor], None] | None = None) -> Tensor:
        if self.graph is not None:
            assert watch is None
            return self.graph(self.seeds[part], self.condition.of(part))
        return draw_with(
            self.checkpoint,
            self.seeds[part],
            self.num_steps,
            sampler=self.sampler,
            condition=self.condition.of(part),
            guidance=self.guidance,
            batch_size=self.batch_size,
            device=self.machine.device,
            graphs=self.machine.graphs,
            watch=watch,
        )


def decoded_share(drawn: Tensor, codec: Codec, made_by: str, machine: Machine) -> Tensor:
    """The pictures of this process's share, uint8 [n, C, H, W]; every process must come here.

    Errors: DivergedError in all of them when the pictures of one hold NaN or Inf, so that none
    waits for it.
    """
    if machine.any(not bool(drawn.isfinite().all())):
        check_finite(drawn, made_by)
        raise DivergedError(
            f"pictures of `{made_by}`, drawn by another process, hold NaN or Inf", UNSOUND
        )
    return codec.decode(drawn, made_by)


def facts_of(
    card: ModelCard,
    num_steps: int,
    sampler: Sampler,
    seeds: Sequence[int],
    guidance: Guidance = UNASKED,
) -> dict[str, str]:
    """What pictures say about their origin; of guidance only where there is some."""
    found = {
        "Software": f"vdiff {__version__}",
        "vdiff.model": card.hash,
        "vdiff.stage": card.name,
        "vdiff.steps": str(num_steps),
        "vdiff.sampler": str(sampler),
        "vdiff.seeds": ranges(seeds),
    }
    for name, value in guidance_of.facts(card, guidance).items():
        found[f"vdiff.{name}"] = value
    if guidance_of.calls(card, guidance) > 1:
        calls = sampler.calls(num_steps) * guidance_of.calls(card, guidance)
        found["vdiff.calls"] = str(calls)
    return found


def ranges(seeds: Sequence[int]) -> str:
    """Seeds as people write them: `0-63`, `3`, `1,5,7`."""
    if len(seeds) > 1 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]}-{seeds[-1]}"
    return ",".join(map(str, seeds))
