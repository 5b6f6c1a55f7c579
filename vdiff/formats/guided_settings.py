"""What guided-diffusion's files do not tell:
options of the import, presets of released files, and what may be tried.

The presets are from the README files of openai/guided-diffusion, openai/improved-diffusion and
openai/consistency_models.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vdiff.errors import ModelFileError, UsageError
from vdiff.formats.guided_keys import Layout

OPTIONS = {
    "preset": "which released file it is, as guided_64; its name tells, if it was not changed",
    "size": "pixels of its pictures",
    "heads": "attention heads at every level (`num_heads`)",
    "heads_up": "attention heads on the way up, where they are others (`num_heads_upsample`)",
    "head_dim": "channels per attention head (`num_head_channels`)",
    "qkv_order": "legacy or new (`use_new_attention_order`): how the heads lie in the weights",
    "schedule": "linear or cosine (`noise_schedule`), or edm: an EDM teacher of consistency_models",
    "steps": "base steps of the noise process (`diffusion_steps`) [1000]",
    "rescale": "yes if times are told as of 1000 steps (`rescale_timesteps`), or no",
    "predicts": "eps, or x (`predict_xstart`)",
    "sigma_min": "with `schedule=edm`, the least noise that its sampler visits [0.002]",
    "sigma_max": "with `schedule=edm`, the most noise that its sampler visits [80]",
}
EDM = "edm"
"""The schedule of networks that stand in EDM's frame. No network is tried with it unasked."""

CHOICES = {
    "qkv_order": ("legacy", "new"),
    "schedule": ("linear", "cosine", EDM),
    "rescale": ("no", "yes"),
    "predicts": ("eps", "x"),
}
COUNTS = ("size", "heads", "heads_up", "head_dim", "steps")
LARGEST_COUNT = 1 << 16
HEADS = (4, 1, 2, 8)
"""The numbers that are tried; 4 is the default of both programs."""
HEAD_DIMS = (64, 32, 16, 8, 128)


@dataclass(frozen=True)
class Preset:
    """A released network and what it was trained with.

    files: beginnings of the names of its files.
    """

    files: tuple[str, ...]
    width: int
    multipliers: tuple[float, ...]
    blocks: int
    told: Mapping[str, str]

    def is_of(self, layout: Layout) -> bool:
        """Whether a network may be this one."""
        widths = tuple(int(self.width * each) for each in self.multipliers)
        return (self.width, widths, self.blocks) == (layout.width, layout.widths, layout.blocks)


def _told(size: int, schedule: str, steps: int, rescale: str, **heads: str) -> dict[str, str]:
    common = {"size": str(size), "schedule": schedule, "steps": str(steps), "rescale": rescale}
    return common | {"predicts": "eps", "qkv_order": "legacy"} | heads


def _told_edm(size: int) -> dict[str, str]:
    return {"size": str(size), "schedule": EDM, "head_dim": "64", "qkv_order": "new"}


_WIDE = (1, 1, 2, 2, 4, 4)
PRESETS = {
    "guided_64": Preset(
        ("64x64_diffusion",),
        192,
        (1, 2, 3, 4),
        3,
        _told(64, "cosine", 1000, "no", head_dim="64", qkv_order="new"),
    ),
    "guided_128": Preset(
        ("128x128_diffusion",), 256, (1, 1, 2, 3, 4), 2, _told(128, "linear", 1000, "no", heads="4")
    ),
    "guided_256": Preset(
        ("256x256_diffusion", "lsun_bedroom", "lsun_cat", "lsun_horse"),
        256,
        _WIDE,
        2,
        _told(256, "linear", 1000, "no", head_dim="64"),
    ),
    "guided_512": Preset(
        ("512x512_diffusion",),
        256,
        (0.5, *_WIDE),
        2,
        _told(512, "linear", 1000, "no", head_dim="64"),
    ),
    "improved_cifar10": Preset(
        ("cifar10_uncond",), 128, (1, 2, 2, 2), 3, _told(32, "cosine", 4000, "yes", heads="4")
    ),
    "improved_imagenet64": Preset(
        ("imagenet64_uncond",), 128, (1, 2, 3, 4), 3, _told(64, "cosine", 4000, "yes", heads="4")
    ),
    "improved_imagenet64_cond": Preset(
        ("imagenet64_cond",), 192, (1, 2, 3, 4), 3, _told(64, "cosine", 4000, "no", heads="4")
    ),
    "improved_lsun": Preset(
        ("lsun_uncond_100M",), 128, _WIDE, 2, _told(256, "linear", 1000, "no", heads="1")
    ),
    "edm_imagenet64": Preset(("edm_imagenet64",), 192, (1, 2, 3, 4), 3, _told_edm(64)),
    "edm_bedroom256": Preset(("edm_bedroom256",), 256, _WIDE, 2, _told_edm(256)),
    "edm_cat256": Preset(("edm_cat256",), 256, _WIDE, 2, _told_edm(256)),
}


def completed(path: Path, layout: Layout, asked: Mapping[str, str]) -> dict[str, str]:
    """What the user says, and what a preset says beside it:
    the one he names, or that of the file's name.

    Errors: UsageError for values that no option has; ModelFileError for a preset of another
    network.
    """
    _check(asked)
    name = asked.get("preset")
    if name is None:
        name = _by_file_name(path, layout)
    if name is None:
        return dict(asked)
    preset = PRESETS[name]
    if not preset.is_of(layout):
        problem = (
            f"`{path.name}` is not the network of the preset `{name}`: it has {layout.facts()}"
        )
        raise ModelFileError(problem, "leave out the preset", "--preset")
    told = dict(preset.told)
    if "head_dim" in asked or "heads" in asked:
        told = {key: value for key, value in told.items() if key not in ("heads", "head_dim")}
    return told | dict(asked) | {"preset": name}


def _by_file_name(path: Path, layout: Layout) -> str | None:
    stem = path.stem.lower()
    for name, preset in PRESETS.items():
        if stem.startswith(preset.files) and preset.is_of(layout):
            return name
    return None


def readings(layout: Layout, given: Mapping[str, str]) -> Sequence[Mapping[str, str]]:
    """Everything that the file may be, as far as its outputs would differ;
    what these programs do by default is first.

    given: what is known, which is in all of them. With as many base steps told as with 1000, no
    network notices that there are 4000: so that is for the user to say.
    """
    if "size" not in given:
        problem = "the file does not tell how many pixels its pictures have"
        raise UsageError(problem, "say it, as --size 64", "--size")
    if given.get("schedule") == EDM:
        # its program reads the heads in the new order, whatever else it is told
        told = {"qkv_order": "new", **given}
        return [{**told, **heads} for heads in _heads(layout, told)]
    processes = []
    for schedule, predicts in itertools.product(_open(given, "schedule"), _open(given, "predicts")):
        for steps, rescale in _times(given):
            told = {"schedule": schedule, "steps": steps, "rescale": rescale, "predicts": predicts}
            processes.append(told)
    # first the schedules, as they are what is wrong by most
    return [
        {**given, **process, **heads}
        for heads, process in itertools.product(_heads(layout, given), processes)
    ]


def _open(given: Mapping[str, str], option: str) -> tuple[str, ...]:
    if option in given:
        return (given[option],)
    return tuple(value for value in CHOICES[option] if value != EDM)


def _times(given: Mapping[str, str]) -> list[tuple[str, str]]:
    """(steps, rescale): what decides the range of the times that the network is told."""
    if "steps" in given:
        return [(given["steps"], rescale) for rescale in _rescales(given, int(given["steps"]))]
    if given.get("rescale") == "yes":
        return [("1000", "yes")]
    return [("1000", "no"), ("4000", "no")]


def _rescales(given: Mapping[str, str], steps: int) -> tuple[str, ...]:
    if steps == 1000 and "rescale" not in given:
        return ("no",)  # a factor of 1
    return _open(given, "rescale")


def _heads(layout: Layout, given: Mapping[str, str]) -> list[dict[str, str]]:
    """The ways in which the channels may be divided into heads, with the order of each,
    where one shows.
    """
    widths = layout.attended_widths
    if "heads" in given or "head_dim" in given:
        divided = [{key: given[key] for key in ("heads", "head_dim") if key in given}]
    else:
        divided = _divided(widths)
    found = []
    for each in divided:
        orders = _open(given, "qkv_order")
        if _numbers(widths, each) == [1] * len(widths) and given.get("heads_up", "1") == "1":
            orders = orders[:1]  # with one head there is one order
        found += [{**each, "qkv_order": order} for order in orders]
    return found


def _divided(widths: Sequence[int]) -> list[dict[str, str]]:
    tried = [{"heads": str(heads)} for heads in HEADS]
    tried += [{"head_dim": str(head_dim)} for head_dim in HEAD_DIMS]
    found: dict[tuple[int, ...], dict[str, str]] = {}
    for each in tried:
        key, value = next(iter(each.items()))
        if all(width % int(value) == 0 for width in widths):
            numbers = _numbers(widths, each)
            if max(numbers) <= min(widths) // 4:
                found.setdefault(tuple(numbers), {key: value})
    return list(found.values())


def _numbers(widths: Sequence[int], divided: Mapping[str, str]) -> list[int]:
    """Heads at each width."""
    if "head_dim" in divided:
        return [width // int(divided["head_dim"]) for width in widths]
    return [int(divided["heads"])] * len(widths)


def _check(asked: Mapping[str, str]) -> None:
    for option in COUNTS:
        value = asked.get(option, "1")
        if not value.isascii() or not value.isdigit() or not 1 <= int(value[:6]) <= LARGEST_COUNT:
            raise UsageError(f"`{option}` is {value!r}, no count", f"say it as {option}=64", option)
    for option, values in CHOICES.items():
        if asked.get(option, values[0]) not in values:
            problem = f"`{option}` is {asked[option]!r}"
            raise UsageError(problem, f"choose from: {', '.join(values)}", option)
    for option in ("steps", "rescale", "predicts") if asked.get("schedule") == EDM else ():
        if option in asked:
            problem = f"`{option}` is told of a network in EDM's frame, which has none"
            raise UsageError(problem, f"leave out `{option}`, or `schedule=edm`", "--assume")
    for option in ("sigma_min", "sigma_max"):
        if option in asked and asked.get("schedule", EDM) != EDM:
            problem = f"`{option}` is told of a network that is not in EDM's frame"
            raise UsageError(problem, "tell `schedule=edm` too, or leave it out", "--assume")
    if "heads" in asked and "head_dim" in asked:
        raise UsageError("`heads` and `head_dim` are both told", "tell one of them", "--heads")
    if "heads_up" in asked and "heads" not in asked:
        raise UsageError("`heads_up` is told without `heads`", "tell both", "--assume")
    if asked.get("preset", "guided_64") not in PRESETS:
        problem = f"there is no preset `{asked['preset']}`"
        raise UsageError(problem, f"choose from: {', '.join(PRESETS)}", "--preset")
