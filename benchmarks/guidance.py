"""Does a guided model draw what it is asked for, and how far are its pictures from real ones?

    python -m benchmarks.guidance runs/digits_classes [--n 2000] [--guidance 1,1.5,2,3]

For every model of a run of digits with classes and every g that it can be given: the share of its
pictures that a small classifier reads as the class that was asked for, the Frechet distance of
their pixels (on 48 components) to the 1,797 real digits, and network calls and seconds per
picture. The base is drawn with in its own number of steps by DDIM, students in theirs. The
classifier learns from three quarters of the real digits; its accuracy on the others is printed.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import vdiff
from vdiff import digits
from vdiff.drawing import guidance as guidance_of
from vdiff.drawing.guidance import Guidance
from vdiff.images.images import to_float
from vdiff.metrics.frechet import PixelFrechet
from vdiff.runs.folder import RunFolder

COMPONENTS = 48
HELD_BACK = 4
"""Every fourth digit is for testing the classifier."""


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--n", type=int, default=2000, help="pictures, the classes in turn")
    parser.add_argument("--guidance", default="1,1.5,2,3")
    parser.add_argument("--epochs", type=int, default=60, help="of the classifier")
    given = parser.parse_args(arguments)
    classifier, accuracy = classifier_of_digits(given.epochs)
    print(f"The classifier reads {accuracy:.1%} of the digits that it did not learn from.")
    pictures, labels = digits.load()
    reference = torch.from_numpy(pictures)
    read = float((said(classifier, reference) == torch.from_numpy(labels)).float().mean())
    distance = PixelFrechet(to_float(reference), COMPONENTS)
    print(f"Of all real ones it reads {read:.1%}.\n")
    print("| model | steps | g | calls | read as asked | Frechet distance | ms per picture |")
    print("|---" * 7 + "|")
    run = RunFolder(given.run)
    for name in run.models():
        model = vdiff.load(run.model(name), device="cpu")
        for g in (float(each) for each in given.guidance.split(",")):
            try:
                calls = model.card.num_steps * guidance_of.calls(model.card, Guidance(g))
            except vdiff.UsageError:
                continue  # a student without guidance, or outside what one has learned
            begun = time.perf_counter()
            batch = model.sample(range(given.n), guidance=g)
            spent = 1000 * (time.perf_counter() - begun) / given.n
            assert batch.labels is not None
            share = float((said(classifier, batch.uint8) == batch.labels).float().mean())
            value = distance.value(batch.uint8).value
            cells = [name, f"{model.card.num_steps}", f"{g:g}", f"{calls}", f"{share:.1%}"]
            print("| " + " | ".join([*cells, f"{value:.3f}", f"{spent:.1f}"]) + " |", flush=True)


def classifier_of_digits(epochs: int) -> tuple[nn.Module, float]:
    """A small convolutional network, and the share of held-back digits that it reads."""
    pictures, labels = digits.load()
    x = to_float(torch.from_numpy(pictures))
    y = torch.from_numpy(labels)
    is_test = torch.arange(len(x)) % HELD_BACK == 0
    rng = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(64 * 16, 10),
    )
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    x_train, y_train = x[~is_test], y[~is_test]
    for _ in range(epochs):
        order = torch.randperm(len(x_train), generator=rng)
        for start in range(0, len(order), 64):
            part = order[start : start + 64]
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(x_train[part]), y_train[part])
            torch.autograd.backward(loss)
            optimizer.step()
    network.eval()
    with torch.no_grad():
        right = network(x[is_test]).argmax(1) == y[is_test]
    return network, float(right.float().mean())


@torch.no_grad()
def said(classifier: nn.Module, pictures: Tensor) -> Tensor:
    """The digit that it reads in each of uint8 [N, 1, 8, 8]."""
    found: Tensor = classifier(to_float(pictures)).argmax(1)
    return found


if __name__ == "__main__":
    main()
