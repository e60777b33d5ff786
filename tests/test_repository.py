"""What a stranger reads is true: commands exist, links lead somewhere, examples are understood, a small tree."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import rasterio
from moon import digitise, scene

from lunar_processing.modelpack import CARD, Card, read_pack

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [
    REPOSITORY / name
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "docs/models.md",
        "docs/batch.md",
        "docs/rocks.md",
        "docs/training.md",
    )
]
LIMIT_BYTES = 60 * 2**20


def text_of(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def targets() -> set[str]:
    """What `make` can be asked for."""
    return set(re.findall(r"^([a-z][a-z0-9-]*):", text_of("Makefile"), re.MULTILINE))


def blocks(page: Path, language: str) -> str:
    """All code of one language on a page."""
    return "\n".join(
        re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_commands_on_a_page_exist(page):
    asked = {
        word for line in re.findall(r"\bmake ((?:[a-z0-9-]+ ?)+)", blocks(page, "sh")) for word in line.split()
    } | set(re.findall(r"`make ([a-z0-9-]+)", page.read_text(encoding="utf-8")))
    assert asked <= targets()


def test_every_make_target_is_documented():
    documented = set(re.findall(r"^make ([a-z0-9-]+)", blocks(REPOSITORY / "CONTRIBUTING.md", "sh"), re.MULTILINE))
    assert targets() == documented
    listed = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^  make ([a-z0-9-]+)  +\w", listed, re.MULTILINE)) == targets()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_of_a_page_are_there(page):
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_tour_of_the_readme_can_be_walked(tmp_path):
    moon = scene(300, 400, seed=3, sun_azimuth=118)
    place = rasterio.Affine(1, 0, -5000, 0, -1, 90_000)
    profile = {"driver": "GTiff", "dtype": "uint16", "count": 1, "crs": "IAU_2015:30135", "transform": place}
    with rasterio.open(tmp_path / "image.tif", "w", height=300, width=400, **profile) as file:
        file.write(digitise(moon.image, bits=16), 1)
    tour = re.findall(r"^lunar (.+?)(?:  +#.*)?$", blocks(REPOSITORY / "README.md", "sh"), re.MULTILINE)
    assert len(tour) == 9
    for line in tour:
        command = [sys.executable, "-m", "lunar_processing", *shlex.split(line)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"lunar {line}\n{done.stderr}"
    made = {path.name for path in tmp_path.iterdir()}
    assert {"enhanced.tif", "strange.gpkg", "scores.tif", "rocks.gpkg", "rocks.tif", "sizes"} <= made


@pytest.mark.parametrize("folder", sorted((REPOSITORY / "models").glob("*/")), ids=lambda folder: folder.name)
def test_a_card_says_how_the_model_came_to_be_and_what_it_is_worth(folder):
    card = read_pack(folder).card
    for name in ("recipe", "command", "data", "commit"):
        assert card.training[name], name
    assert "lunar train" in card.training["command"]
    assert isinstance(card.training["seed"], int)
    assert any(isinstance(value, (int, float)) for value in _leaves(card.measured)), "numbers that were measured"
    assert len(card.limits) > 60, "where it must not be trusted"
    assert len(card.description) > 60
    assert card.license
    assert (folder / "training.jsonl").stat().st_size < 200_000
    assert f"`{card.id}`" in text_of("docs/trust.md")


def _leaves(value):
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [leaf for part in parts for leaf in _leaves(part)] if parts else [value]


def test_every_field_of_a_card_is_explained():
    explained = set(
        re.findall(r"`([a-z0-9_]+)`", "".join(re.findall(r"^\| (`.*?) \|", text_of("docs/models.md"), re.M)))
    )
    assert {field.name for field in dataclasses.fields(Card)} | {"format"} <= explained


def test_the_card_of_the_manual_is_a_card(tmp_path):
    example = json.loads(blocks(REPOSITORY / "docs" / "models.md", "json"))
    (tmp_path / CARD).write_text(json.dumps(example), encoding="utf-8")
    assert set(example) == {field.name for field in dataclasses.fields(Card)} | {"format"}
    assert read_pack(tmp_path).card.pixel_size_m == (0.5, 2.0)


def test_the_model_of_the_manual_can_be_written_and_read(tmp_path):
    code = blocks(REPOSITORY / "docs" / "models.md", "python").replace("models/my-denoiser", str(tmp_path))
    exec(compile(code, "docs/models.md", "exec"), {})
    read_pack(tmp_path).network()


def test_the_version_is_one_and_dated():
    from lunar_processing import __version__

    assert f"\nversion={__version__}\n" in text_of("metadata.txt")
    assert f"\nversion: {__version__}\n" in text_of("CITATION.cff")
    released = re.findall(r"^## \[([^\]]+)\] - (\d{4}-\d{2}-\d{2})$", text_of("CHANGELOG.md"), re.MULTILINE)
    assert released[0][0] == __version__
    assert f"date-released: {released[0][1]}" in text_of("CITATION.cff")


def test_pictures_are_small():
    pictures = [path.stat().st_size for path in (REPOSITORY / "docs" / "images").iterdir()]
    assert pictures
    assert max(pictures) <= 300_000
    assert sum(pictures) <= 4_500_000


def test_the_tree_stays_small():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True)
    if listed.returncode:
        pytest.skip("this is no git checkout")
    files = [REPOSITORY / name for name in listed.stdout.decode().split("\0") if name]
    assert sum(path.stat().st_size for path in files if path.is_file()) < LIMIT_BYTES


def test_the_versions_that_are_pinned_satisfy_what_the_engine_asks_for():
    from packaging.requirements import Requirement

    pinned = dict(re.findall(r"^([a-z0-9_-]+)==(\S+)", text_of(".ci/constraints.txt"), re.MULTILINE))
    asked = [Requirement(line) for line in re.findall(r'^  "([^"]+)",$', text_of("pyproject.toml"), re.MULTILINE)]
    assert len(asked) > 8
    for requirement in asked:
        assert requirement.specifier.contains(pinned[requirement.name]), requirement
