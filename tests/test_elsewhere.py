"""macOS and Windows: with what they lack hidden, pictures are prepared,
and a model is trained, stopped and drawn with.

None of them is here, so this shows that nothing is asked for that is not there, and not that all
works there.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import sha256

ROOT = Path(__file__).parent.parent
WEIGHTS = "run/base_0/unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same on the system that is there."""
    return gone_through("linux", tmp_path_factory.mktemp("linux"))


def gone_through(system: str, folder: Path) -> Path:
    command = [
        sys.executable,
        "-W",
        "error::RuntimeWarning",
        "-m",
        "tests.elsewhere",
        system,
        str(folder),
    ]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return folder


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_a_model_is_made_and_drawn_with_where_the_system_lacks_what_linux_has(
    system: str, here: Path, tmp_path: Path
) -> None:
    there = gone_through(system, tmp_path)
    assert sha256(there / WEIGHTS) == sha256(here / WEIGHTS)
