"""A training can be made longer, finished or not;
and what does not shape the weights never keeps it from going on.
"""

import shutil
from typing import Any

import pytest

from tests.tiny import TinyRun
from vdiff.cli import estimates
from vdiff.config import Section, effect_of
from vdiff.errors import Stopped, UsageError
from vdiff.reporting import inspection
from vdiff.runs import savepoint

CONSTANT = ("train.decay=constant", "train.updates=12", "train.log_every=3")


def stop(tiny_run: TinyRun, after: int, *changes: str, distill: bool = False) -> None:
    chain = tiny_run.chain(*changes, stop_after=after)
    with pytest.raises(Stopped):
        chain.distill(count=1) if distill else chain.train()


@pytest.mark.parametrize("first", [4, 6, 20])
def test_another_length_with_a_constant_rate_gives_the_weights_of_an_unbroken_run(
    tiny_run: TinyRun, first: int
) -> None:
    stop(tiny_run, 4, f"train.updates={first}", *CONSTANT[::2]) if first > 4 else tiny_run.base(
        f"train.updates={first}", *CONSTANT[::2]
    )
    tiny_run.base(*CONSTANT)
    tiny_run.base(*CONSTANT, run="unbroken")
    assert tiny_run.hashes()["original"] == tiny_run.hashes("unbroken")["original"]
    assert any(
        "it goes on as if that had been asked for from the start" in line for line in tiny_run.said
    )
    assert any("going on at update 4" in line for line in tiny_run.said)


def test_a_finished_training_goes_on_and_its_folder_is_replaced_when_the_longer_one_is_whole(
    tiny_run: TinyRun,
) -> None:
    short = tiny_run.base("train.updates=4", *CONSTANT[::2])
    stop(tiny_run, 3, *CONSTANT)
    assert tiny_run.folder().unfinished() == ["original"]
    states = {row["state"] for row in inspection.run(tiny_run.folder().path)["models"]}
    assert states == {"whole", "unfinished"}
    assert tiny_run.base("train.updates=4", *CONSTANT[::2]) == short, (
        "the short recipe finds its model as it was"
    )
    longer = tiny_run.base(*CONSTANT)
    tiny_run.base(*CONSTANT, run="unbroken")
    assert (longer.updates, tiny_run.folder().unfinished()) == (12, [])
    assert tiny_run.hashes()["original"] == tiny_run.hashes("unbroken")["original"]
    again = len(tiny_run.said)
    assert tiny_run.base(*CONSTANT) == longer
    assert not any("update" in line for line in tiny_run.said[again:] if "skipped" not in line)


@pytest.mark.parametrize("keeps", [True, False])
def test_a_dry_run_says_what_the_run_would_do(
    tiny_run: TinyRun, keeps: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = f"train.keep_state={str(keeps).lower()}"
    tiny_run.base("train.updates=4", kept, *CONSTANT[::2])
    for updates, is_done in ((4, True), (12, not keeps)):
        recipe = tiny_run.recipe(f"train.updates={updates}", kept, *CONSTANT[::2])
        estimates.show(recipe, None, tiny_run.folder(), "cpu", force=False)
        assert (" done" in capsys.readouterr().out) == is_done, updates
        tiny_run.base(f"train.updates={updates}", kept, *CONSTANT[::2])
        assert tiny_run.folder().unfinished() == []


STUDENT = ("distill.decay=constant", "distill.keep_state=true")


def test_a_student_that_kept_its_state_can_be_made_longer(tiny_run: TinyRun) -> None:
    tiny_run.base()
    tiny_run.chain(*STUDENT, "distill.updates=3").distill(count=1)
    assert [point.name for point in tiny_run.folder().points("base_0")] == ["000000003"]
    [card] = tiny_run.chain(*STUDENT, "distill.updates=5").distill("original", count=1)
    tiny_run.base(run="unbroken")
    tiny_run.chain(*STUDENT, "distill.updates=5", run="unbroken").distill(count=1)
    assert card.updates == 5
    assert tiny_run.hashes()["base_0"] == tiny_run.hashes("unbroken")["base_0"]


def test_a_student_without_its_state_says_what_would_have_kept_it(
    tiny_run: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_run.base()
    tiny_run.chain("distill.updates=3").distill(count=1)
    assert not tiny_run.folder().points("base_0")
    recipe = tiny_run.recipe("distill.updates=5")
    estimates.show(recipe, ("original", 1, None), tiny_run.folder(), "cpu", force=False)
    row = next(line.split() for line in capsys.readouterr().out.splitlines() if "base_0" in line)
    assert (row[row.index("base_0") + 4], row[-1]) == ("3", "done")
    [card] = tiny_run.chain("distill.updates=5").distill("original", count=1)
    assert card.updates == 3
    [told] = [line for line in tiny_run.said if "kept as it was made" in line]
    assert "distill.updates: 3 -> 5; its last save is gone" in told
    assert "`distill.keep_state: true` keeps it" in told


def test_students_of_a_shorter_base_are_not_mixed_with_a_longer_one(tiny_run: TinyRun) -> None:
    tiny_run.base(*CONSTANT)
    tiny_run.chain(*CONSTANT).distill(count=2)
    assert not any("that was there before" in line for line in tiny_run.said)
    tiny_run.base(*CONSTANT, "train.updates=14")
    [told] = [line for line in tiny_run.said if "that was there before" in line]
    assert told.startswith(
        "`base_0`, `base_1`: distilled from the `original` that was there before"
    )
    assert "`vdiff distill --from original --force`" in told
    before = len(tiny_run.said)
    with pytest.raises(UsageError, match="distilled from another `original`") as caught:
        tiny_run.chain(*CONSTANT, "train.updates=14").distill()
    assert (
        "`vdiff distill --from original --force` makes it and what follows anew" in caught.value.fix
    )
    assert tiny_run.said[before:] == [], "that something is skipped would only confuse"
    with pytest.raises(UsageError, match="distilled from another `original`"):
        tiny_run.chain(*CONSTANT, "train.updates=14").distill(source="original", count=1)


def test_a_student_with_a_damaged_card_does_not_end_the_training_of_its_base(
    tiny_run: TinyRun,
) -> None:
    tiny_run.base(*CONSTANT)
    tiny_run.chain(*CONSTANT).distill(count=1)
    (tiny_run.folder().model("base_0") / "vdiff.json").write_text("{")
    assert tiny_run.base(*CONSTANT, "train.updates=14").updates == 14


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_a_falling_rate_goes_on_as_the_recipe_says_now_which_is_told(
    tiny_run: TinyRun, decay: str
) -> None:
    changes = (f"train.decay={decay}", "train.warmup_updates=0")
    tiny_run.base("train.updates=4", *changes)
    card = tiny_run.base("train.updates=8", *changes)
    assert card.updates == 8
    [told] = [line for line in tiny_run.said if "is to have 8 now" in line]
    assert "`original` was to have 4 updates" in told
    assert "the learning rate was 0.00" in told
    assert told.endswith("goes on at 0.005")


def test_a_stage_that_was_stopped_can_be_made_longer(tiny_run: TinyRun) -> None:
    base = ("distill.decay=constant", "distill.updates=5")
    tiny_run.base()
    stop(tiny_run, 1, "distill.decay=constant", distill=True)
    tiny_run.chain(*base).distill(count=1)
    tiny_run.base(run="unbroken")
    tiny_run.chain(*base, run="unbroken").distill(count=1)
    assert tiny_run.hashes()["base_0"] == tiny_run.hashes("unbroken")["base_0"]


def test_fewer_updates_than_are_done_are_refused(tiny_run: TinyRun) -> None:
    stop(tiny_run, 4)
    with pytest.raises(
        UsageError, match="4 updates of this stage are done, and the recipe asks for 3 now"
    ):
        tiny_run.base("train.updates=3")


def test_a_finished_training_without_its_state_says_what_it_can(tiny_run: TinyRun) -> None:
    tiny_run.base("train.keep_state=false", "train.updates=4")
    assert tiny_run.base("train.updates=6").updates == 4
    assert any(
        "kept as it was made" in line and "train.updates: 4 -> 6" in line for line in tiny_run.said
    )


def test_a_longer_training_with_another_rate_keeps_the_finished_one(tiny_run: TinyRun) -> None:
    tiny_run.base("train.updates=4")
    assert tiny_run.base("train.updates=6", "train.learning_rate=0.1").updates == 4
    assert any(
        "kept as it was made" in line and "`vdiff train --force` makes it anew" in line
        for line in tiny_run.said
    )


def test_saves_of_earlier_versions_that_recorded_what_is_harmless_go_on(tiny_run: TinyRun) -> None:
    now = {"train.updates": 8, "seed": 3}
    assert savepoint.changes({**now, "train.log_every": 50, "distill.log_every": 1}, now) == []
    assert savepoint.changes({**now, "seed": 4}, now) == ["seed: 4 -> 3"]


def harmless_fields(section: type[Section] | Section, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> field of everything in a recipe that is marked as
    harmless and holds no section.
    """
    found = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            found |= harmless_fields(value, f"{prefix}{name}.")
        elif effect_of(type(section), name) == "harmless":
            found[prefix + name] = value
    return found


OTHER = {
    "name": "another",
    "compile": "off",
    "shard": "off",
    "deterministic": "true",
    "data.source": "elsewhere",
    "data.encoding": "webp",
    "data.quality": "90",
    "data.resampling": "box",
    "data.workers": "1",
    "data.depth": "12",
    "data.labels": "none",
    "train.checkpoint_activations": "true",
    "train.rollbacks": "1",
    "train.log_every": "3",
    "train.save_every": "3",
    "train.preview_every": "2",
    "train.keep_state": "false",
    "sample.num_images": "3",
    "sample.batch_size": "2",
    "sample.cuda_graphs": "off",
    "evaluate.every": "2",
    "evaluate.num_images": "5",
    "evaluate.metrics": "[swd]",
    "trackers": "[]",
}
"""Another value for each harmless field that a base training meets."""

NOT_MET = {"train.micro_batch", "data.path"}
"""Another micro-batch rounds differently, which the save tells;
another place of the store must hold the same.
"""


def test_every_harmless_field_is_tried(tiny_run: TinyRun) -> None:
    known = {
        name
        for name in harmless_fields(tiny_run.recipe())
        if not name.startswith(("distill.", "sample.sampler"))
    }
    assert known == set(OTHER) | NOT_MET


def test_a_harmless_field_never_keeps_a_run_from_going_on(tiny_run: TinyRun) -> None:
    tiny_run.base(run="unbroken")
    wanted = tiny_run.hashes("unbroken")["original"]
    stop(tiny_run, 3)
    for name, value in OTHER.items():
        shutil.copytree(tiny_run.folder().path, tiny_run.folder(name).path)
        # the reference has too few pictures for the default metrics
        tiny_run.chain(
            f"{name}={value}", *["evaluate.metrics=[swd]"] * (name == "evaluate.every"), run=name
        ).train()
        assert tiny_run.hashes(name)["original"] == wanted, name
