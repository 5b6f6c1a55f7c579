"""Whether everything public has complete types, as a second type checker sees it:
what docs/api.md lists, all of it.

    python -m tests.public_types      (part of `make types`)

`basedpyright --verifytypes` judges a whole package. vdiff's public names are those of docs/api.md,
wherever they stand, so of its answer only they count. A name is complete when everything is that it
is made of: a parameter whose class has an attribute without a type makes the function incomplete.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs" / "api.md"


def listed(text: str) -> list[str]:
    """The public names in the text of docs/api.md, with their modules:
    `vdiff.load`, `vdiff.config.free_to_change`.
    """
    names = [f"vdiff.{name}" for name in re.findall(r"(?m)^### `vdiff\.(\w+)", text)]
    for module, row in re.findall(r"(?m)^\| `(vdiff\.[\w.]+)` \| (.+) \|$", text):
        names += [f"{module}.{name}" for name in re.findall(r"`(\w+)`", row)]
    return names


def incomplete(names: Sequence[str], symbols: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with the types of these names and of what is in them, a line each;
    also a name that is not there.

    symbols: those of `typeCompleteness` in the answer of `--verifytypes --outputjson`.
    """
    canonical = {symbol["name"]: symbol["name"] for symbol in symbols}
    for symbol in symbols:
        # a class that is imported elsewhere has its members under the name where it stands
        canonical |= dict.fromkeys(symbol.get("alternateNames", []), symbol["name"])
    told = [f"{name}: there is no such name" for name in names if name not in canonical]
    public = {canonical[name] for name in names if name in canonical}
    for symbol in symbols:
        name = symbol["name"]
        is_public = name in public or name.rpartition(".")[0] in public
        is_private = name.rpartition(".")[2].startswith("_")
        if not is_public or is_private or symbol["isTypeKnown"]:
            continue
        reasons = [each["message"].replace("\xa0", " ") for each in symbol["diagnostics"]]
        reason = "; ".join(" ".join(each.split()) for each in reasons)
        told.append(f"{name}: {reason or 'something in it has no complete type'}")
    return told


def symbols_of(package: str) -> list[dict[str, Any]]:
    """What basedpyright knows of a package that is installed beside it.

    Errors: RuntimeError with its own words.
    """
    folder = str(Path(sys.executable).parent)  # it asks the first `python` where packages are
    environment = os.environ | {"PATH": os.pathsep.join([folder, os.environ.get("PATH", "")])}
    command = [sys.executable, "-m", "basedpyright", "--ignoreexternal", "--outputjson"]
    # elsewhere: the folder that it starts in would not count as a place where packages are
    # installed
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run(
            [*command, "--verifytypes", package],
            cwd=elsewhere,
            env=environment,
            capture_output=True,
            text=True,
            check=False,  # 1 where the whole package is not complete
        )
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise RuntimeError(f"basedpyright did not answer: {done.stdout}{done.stderr}") from None
    symbols: list[dict[str, Any]] = answer["typeCompleteness"]["symbols"]
    if not symbols:
        raise RuntimeError(f"basedpyright found no `{package}`: {answer['generalDiagnostics']}")
    return symbols


def main() -> int:
    """Exit code 1 with a line for each name whose types are not complete."""
    names = listed(DOCS.read_text("utf-8"))
    told = incomplete(names, symbols_of("vdiff"))
    lines = told or [f"all {len(names)} public names have complete types"]
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main())
