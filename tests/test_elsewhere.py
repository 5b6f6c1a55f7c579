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
def gone_through(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each system, with what was made as it would be there."""
    folder = tmp_path_factory.mktemp("systems")
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "tests.elsewhere", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return folder


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_a_model_is_made_and_drawn_with_where_the_system_lacks_what_linux_has(
    system: str, gone_through: Path
) -> None:
    assert sha256(gone_through / system / WEIGHTS) == sha256(gone_through / "linux" / WEIGHTS)
