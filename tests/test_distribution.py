"""What vdiff is called where packages are, and what happens when its
namesake is installed over it.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import vdiff
from vdiff.errors import MachineError
from vdiff.system import distribution

PACKAGE = Path(vdiff.__file__).parent
ROOT = PACKAGE.parent


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    """`vdiff recipes ls` with the package that lies in `folder`."""
    code = "import sys; from vdiff.cli import main; sys.exit(main(['recipes', 'ls']))"
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(PACKAGE, tmp_path / "vdiff", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    return tmp_path


def test_the_distribution_has_a_name_of_its_own() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["name"] == distribution.NAME == "vdiff-distill"
    assert project["scripts"] == {"vdiff": "vdiff.cli:main"}


def test_nobody_is_told_to_install_the_namesake() -> None:
    texts = [
        *PACKAGE.rglob("*.py"),
        ROOT / "README.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "recipes").glob("*"),
    ]
    for path in texts:
        for line in path.read_text("utf-8").splitlines():
            assert not re.search(r"(pip|pipx|uv|uvx)\b.* install .*\bvdiff(?!-distill)\b", line), (
                f"{path}: {line}"
            )


def test_an_installation_of_its_own_says_nothing(copy: Path) -> None:
    done = run(copy)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_namesake_that_was_there_before_is_warned_of(copy: Path) -> None:
    for name in ("main.py", "vdiff.py"):
        (copy / "vdiff" / name).write_text("import nothing_of_ours\n")
    done = run(copy)
    assert done.returncode == 0
    assert "warning: another program called `vdiff`" in done.stderr
    assert "vdiff-distill" in done.stderr


def test_a_namesake_that_replaced_a_part_of_vdiff_is_an_error(copy: Path) -> None:
    (copy / "vdiff" / "__init__.py").write_text('__version__ = "2.6.0"\n')
    done = run(copy)
    assert done.returncode == 6
    assert done.stderr.startswith("error: another package called `vdiff`")
    assert f"--force-reinstall --no-deps {distribution.NAME}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_namesake_that_took_a_part_of_vdiff_along_is_an_error(copy: Path) -> None:
    (copy / "vdiff" / "__init__.py").unlink()
    with pytest.raises(MachineError, match="removed together with a part of it"):
        distribution.check(copy / "vdiff")
