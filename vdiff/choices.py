"""The words that a recipe may choose among where what they choose needs torch:
a recipe is checked without it.
"""

from typing import Literal, get_args

Predicts = Literal["v", "x", "eps"]
"""See `diffusion.prediction`."""
Weighting = Literal["constant", "snr", "truncated_snr", "snr_plus_one", "min_snr"]
"""See `objectives.weighting`."""
Precision = Literal["auto", "fp32", "bf16", "fp16"]
"""See `machine.machine`."""
Compile = Literal["auto", "on", "off"]
"""See `machine.compiling`."""
Shard = Literal["auto", "on", "off"]
"""See `networks.sharded`."""
CudaGraphs = Literal["auto", "on", "off"]
"""See `machine.graphed`."""
TrackerKind = Literal[
    "tensorboard", "wandb", "aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "trackio"
]
"""Those that accelerate has a class for; see `machine.trackers`."""
Encoding = Literal["png", "webp", "jpeg"]
Resampling = Literal["lanczos", "bicubic", "box"]
"""See `images.images`."""
Labels = Literal["auto", "folders", "none"]
"""Where classes come from. auto: `dataset.json`, WebDataset's .cls files, or class folders if all
pictures lie in such.
folders: the topmost folders, as torchvision's ImageFolder has it, and pictures outside of them are
left out.
Or a labels file, see `data.sources.labels_file`.
"""
LABELS: tuple[Labels, ...] = get_args(Labels)
