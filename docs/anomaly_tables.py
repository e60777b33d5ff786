"""The tables of docs/anomalies.md, from reports of `lunar evaluate anomalies`.

python docs/anomaly_tables.py REPORT.json …        each report may hold planted or simulated strips, or both
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lunar_processing.tools.evaluate_anomalies import AROUND, TRIVIAL

PAGE = Path(__file__).parent / "anomalies.md"
NEW, OLD = "anomaly-multiscale", ("vae-2020", "vae-2024")
CLASSICAL = ("pca", "mahalanobis")
ALL, MEAN = "all", "mean of kinds"


def main() -> None:
    """Put each table between the two comments that name its place."""
    strips: dict[str, dict] = {}
    for path in sys.argv[1:]:
        strips.update(json.loads(Path(path).read_text(encoding="utf-8"))["strips"])
    page = PAGE.read_text(encoding="utf-8")
    for name, part in strips.items():
        numbers = {scorer: _with_mean(found) for scorer, found in part["scorers"].items()}
        for what, lines in (("duel", duel(numbers)), ("all", everything(numbers)), ("words", [in_words(part)])):
            page = filled(page, f"{name} {what}", "\n".join(lines))
    PAGE.write_text(page, encoding="utf-8")


def filled(text: str, name: str, table: str) -> str:
    """The text with the table between the marks of this name."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    head, rest = text.split(begin)
    return f"{head}{begin}\n{table}\n\n{end}{rest.split(end)[1]}"


def duel(numbers: dict) -> list[str]:
    """Kinds down; the best trivial scorer of each, the autoencoders, the network, and by how much it is ahead."""
    trivial = [name for name in numbers if name.removesuffix(AROUND) in (*TRIVIAL, *CLASSICAL) and name != "random"]
    ours, old = numbers[NEW], [name for name in OLD if name in numbers]
    head = ["AP", "best trivial scorer", *old, NEW, "× best trivial", *(f"× {name}" for name in old)]
    rows = []
    for kind in [*(k for k in ours if k not in (ALL, MEAN)), MEAN, ALL]:
        best = max(trivial, key=lambda name: numbers[name][kind]["ap"])
        top, mine = numbers[best][kind]["ap"], ours[kind]["ap"]
        theirs = [numbers[name][kind]["ap"] for name in old]
        ratios = [f"{mine / other:.3g}" for other in (top, *theirs)]
        found = f"{ours[kind]['found_in_top_100']:.0%}"
        rows.append([kind, f"{_short(top)} ({best})", *map(_short, theirs), f"**{_short(mine)}**", *ratios])
        rows[-1] += [f"{ours[kind]['improvement']:.0f}", found]
    return _markdown([*head, "improvement", "found in top 100"], rows)


def everything(numbers: dict) -> list[str]:
    """Scorers down, kinds across; the last column is the other protocol."""
    kinds = [*(k for k in numbers["random"] if k not in (ALL, MEAN)), ALL, MEAN]
    rows = [
        [name, *(_short(found[kind]["ap"]) for kind in kinds), _short(found[ALL]["ap_as_published"])]
        for name, found in numbers.items()
    ]
    return _markdown(["AP", *kinds, "all, as published"], rows)


def in_words(part: dict) -> str:
    """What was measured on."""
    random = part["scorers"]["random"]
    kind = next(iter(random.values()))
    counts = [found["things"] for name, found in random.items() if name != ALL]
    things = "–".join(str(count) for count in sorted({min(counts), max(counts)}))
    return (
        f"{part['strips']} strips, {things} things of each kind, {kind['background']:,} patches of background "
        f"({part['distinct_background']:,} of them distinct and apart). "
        f"Base rate {kind['base_rate']:.2g} of a kind, {random[ALL]['base_rate']:.2g} of all."
    )


def _with_mean(found: dict) -> dict:
    """The numbers of each kind, of all, and the mean over kinds."""
    kinds = [kind for kind in found if kind != ALL]
    lanes = [lane for lane, value in found[kinds[0]].items() if value is not None]
    return {**found, MEAN: {lane: sum(found[kind][lane] or 0 for kind in kinds) / len(kinds) for lane in lanes}}


def _short(value: float) -> str:
    return f"{value:.2g}"


def _markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(row)} |" for row in (head, rule, *rows)]


if __name__ == "__main__":
    main()
