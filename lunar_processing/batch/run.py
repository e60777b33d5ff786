"""A batch from its inputs to its summary: find the products, do those that are not done, merge, report.

A folder belongs to one order: `batch.json` keeps what it was begun with, `journal.jsonl` what came of each product,
`products/NAME/` what was made of it. However a batch was stopped, it is begun again with --resume, and what is then in
the folder is what would be there had nothing happened.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lunar_processing.batch.crew import Crew, Task, entries
from lunar_processing.batch.journal import NAME, STATUSES, Journal, intact, read_journals, sealed
from lunar_processing.batch.merge import Merged, merge
from lunar_processing.batch.products import Product, find_products, sort_out, with_table
from lunar_processing.batch.report import Told, write_report
from lunar_processing.batch.where import Where, parse_where
from lunar_processing.batch.work import Order, module_of, now, told_of, unchanged
from lunar_processing.draft import Draft
from lunar_processing.errors import LunarError, OutputError, ParameterError
from lunar_processing.modelpack import sha256_of
from lunar_processing.tools import size_frequency
from lunar_processing.tools.rocks import COMPLETE_PX, POINTS

BEGUN = "batch.json"
PRODUCTS = "products"
WRITTEN = ".merged.json"  # checksums of the merged files as they were written
REPORT_EVERY = 0.1  # seconds between words on progress


@dataclass(frozen=True)
class Wishes:
    """What to do to which products, where to, and with how many hands."""

    inputs: tuple[str, ...]
    out: Path
    order: Order
    crew: Crew = field(default_factory=Crew)
    resume: bool = False
    where: str | None = None
    table: Path | None = None
    part: tuple[int, int] | None = None  # K of N: one of the jobs of an array
    merge: bool = True

    def __post_init__(self) -> None:
        if self.part is not None and not 1 <= self.part[0] <= self.part[1]:
            raise ParameterError(f"There is no part {self.part[0]} of {self.part[1]}.", "give --part 1/8 up to 8/8.")


@dataclass(frozen=True)
class Progress:
    """How far a batch is."""

    done: int
    total: int
    failed: int
    megapixels: float
    seconds: float

    @property
    def rate(self) -> float:
        """Megapixels a second."""
        return self.megapixels / max(self.seconds, 1e-9)

    @property
    def left_s(self) -> float | None:
        """Seconds left, if the rest takes as long as what is done."""
        return None if not self.done else self.seconds / self.done * (self.total - self.done)

    def in_words(self) -> str:
        """One line."""
        left = "" if self.left_s is None else f", {_duration(self.left_s)} left"
        return f"{self.done} of {self.total} products, {self.rate:.2f} Mpx/s, {self.failed} failed{left}"


@dataclass
class Talk:
    """How a batch talks: progress, messages, and whether the user wants it to stop."""

    progress: Callable[[Progress], None] = lambda progress: None
    log: Callable[[str, str], None] = lambda level, message: None
    cancelled: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Summary:
    """What came of a batch; `entries` by product, of those that belong to it."""

    counts: Mapping[str, int]
    entries: Mapping[str, Mapping[str, Any]]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether nothing failed and nothing is left to do."""
        return not self.counts["failed"] and not self.counts["to do"]


def run_batch(wishes: Wishes, talk: Talk | None = None) -> Summary:
    """Do all products that are wanted and not done yet."""
    talk, started = talk or Talk(), time.perf_counter()
    where = parse_where(wishes.where) if wishes.where else None
    identity = wishes.order.identity()
    products, columns = _products(wishes)
    begun = _begin(wishes, identity)
    with Journal(wishes.out / _journal_name(wishes.part)) as journal:
        known, damaged = read_journals(wishes.out)
        if damaged:
            talk.log("warning", f"{damaged} lines of the journal are damaged; their products are looked at again.")
        wanted, skipped = _sort_out(products, where, columns, talk)
        mine = wanted if wishes.part is None else wanted[wishes.part[0] - 1 :: wishes.part[1]]
        journal.write(*_skips(skipped, known, products))
        tasks = list(_tasks(mine, known, wishes, identity, begun["epoch"]))
        talk.log("info", f"{len(mine)} products, {len(mine) - len(tasks)} of them done before.")
        pace = _work(tasks, wishes, journal, talk)
        summary = _summary(products, wanted, skipped, mine, wishes.out)
        facts = {"seconds": round(time.perf_counter() - started, 1), **pace, "outputs": _outputs(wishes)}
        if wishes.part is None and wishes.merge:
            facts["outputs"] |= _sum_up(wishes, identity, summary, skipped, facts, talk)
    return Summary(summary.counts, summary.entries, facts)


# ---- what is to be done ------------------------------------------------------------------------------------------


def _products(wishes: Wishes) -> tuple[list[Product], tuple[str, ...]]:
    products = find_products(wishes.inputs, wishes.out)
    return with_table(products, wishes.table) if wishes.table else (products, ())


def _begin(wishes: Wishes, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Take the folder, or find it begun with the same order."""
    path = wishes.out / BEGUN
    try:
        (wishes.out / PRODUCTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{wishes.out} cannot be made ({error.strerror}).", "choose another --out.") from error
    if path.exists():
        return _begun_before(path, wishes, identity)
    if wishes.part is None and any(wishes.out.glob("journal*")):
        raise OutputError(f"{wishes.out} has a journal but no {BEGUN}.", "choose another --out.")
    # A date that stays the same however often the batch is begun again, unless the user gives one for all batches.
    epoch = os.environ.get("SOURCE_DATE_EPOCH") or str(int(time.time()))
    begun = sealed({"order": identity, "epoch": epoch, "begun": now()})
    return begun if _first(path, json.dumps(begun, indent=2) + "\n") else _begun_before(path, wishes, identity)


def _first(path: Path, text: str) -> bool:
    """Write a file that must not be there yet; False where another part of the batch was quicker."""
    draft = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        os.link(draft, path)
    except FileExistsError:
        return False
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}).", "choose another --out.") from error
    finally:
        draft.unlink(missing_ok=True)
    return True


def _begun_before(path: Path, wishes: Wishes, identity: Mapping[str, Any]) -> dict[str, Any]:
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
        order = dict(begun["order"])
        if not intact(begun):
            raise ValueError("its checksum is another")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise OutputError(f"{path} is damaged ({error}).", "choose another --out.") from error
    if not wishes.resume and wishes.part is None:
        raise OutputError(f"{wishes.out} holds a batch already.", "go on with --resume, or choose another --out.")
    if order != identity:
        names = [name for name in {**order, **identity} if order.get(name) != identity.get(name)]
        said = "; ".join(f"{name} {order.get(name)!r}, now {identity.get(name)!r}" for name in names)
        raise ParameterError(
            f"The batch in {wishes.out} was begun otherwise: {said}.",
            "results of two kinds must not lie side by side: choose another --out, or ask for the same again.",
        )
    return dict(begun)


def _journal_name(part: tuple[int, int] | None) -> str:
    return NAME if part is None else f"journal-{part[0]}-of-{part[1]}.jsonl"


def _sort_out(
    products: list[Product], where: Where | None, columns: Sequence[str], talk: Talk
) -> tuple[list[Product], dict[str, str]]:
    if where is None:
        return products, {}
    wanted, skipped = sort_out(products, where, columns)
    talk.log("info", f"{len(skipped)} of {len(products)} products are left out by --where.")
    unknown = Counter(why for why in skipped.values() if why.startswith("not known"))
    for why, count in unknown.most_common(3):
        talk.log(
            "warning",
            f"{count} products are left out because a fact is {why}. Their labels do not tell; a --table can.",
        )
    return wanted, skipped


def _skips(skipped: Mapping[str, str], known: Mapping[str, Any], products: list[Product]) -> Iterator[dict[str, Any]]:
    """An entry of each product that is left out, unless that was said before, or it was done before."""
    paths = {product.name: str(product.path) for product in products}
    for name, why in skipped.items():
        before = known.get(name, {})
        if before.get("status") != "ok" and (before.get("status"), before.get("message")) != ("skipped", why):
            yield {"product": name, "path": paths[name], "status": "skipped", "message": why, "when": now()}


def _tasks(
    products: list[Product], known: Mapping[str, Any], wishes: Wishes, identity: Mapping[str, Any], epoch: str
) -> Iterator[Task]:
    folder = (wishes.out / PRODUCTS).absolute()
    order = {**asdict(wishes.order), "model_folders": [str(Path(p).absolute()) for p in wishes.order.model_folders]}
    for product in products:
        before = known.get(product.name)
        done = before if before and before["status"] == "ok" else None
        if done and _told_the_same(done, product) and unchanged(done, product.path, folder):
            continue
        yield {
            "name": product.name,
            "path": str(product.path),
            "folder": str(folder),
            "order": order,
            "said": dict(product.said),
            "identity": identity,
            "epoch": epoch,
            "known": done,
        }


def _told_the_same(entry: Mapping[str, Any], product: Product) -> bool:
    return bool(entry.get("told") == told_of(product.said))


# ---- the work ----------------------------------------------------------------------------------------------------


def _work(tasks: list[Task], wishes: Wishes, journal: Journal, talk: Talk) -> dict[str, Any]:
    """Do them all; how quickly it went."""
    started, failures, pixels, last = time.perf_counter(), 0, 0.0, 0.0
    for done, (_task, entry) in enumerate(entries(tasks, _crew(wishes), talk.cancelled), 1):
        journal.write(entry)
        failures += entry["status"] == "failed"
        pixels += entry.get("counts", {}).get("valid_px", 0) / 1e6
        if entry["status"] == "failed":
            talk.log("warning", f"{entry['product']}: {entry['message']} Cure: {entry['cure']}")
        seconds = time.perf_counter() - started
        if seconds - last >= REPORT_EVERY or done == len(tasks):
            last = seconds
            talk.progress(Progress(done, len(tasks), failures, pixels, seconds))
    seconds = time.perf_counter() - started
    return {"run": len(tasks), "megapixels": round(pixels, 3), "rate_mpx_s": round(pixels / max(seconds, 1e-9), 3)}


def _crew(wishes: Wishes) -> Crew:
    """GPUs count for networks only."""
    module = module_of(wishes.order.tool)
    classical = (wishes.order.model or module.DEFAULT) in module.classical.METHODS
    crew = wishes.crew
    return Crew(crew.workers, crew.memory, crew.address, "cpu" if classical else wishes.order.device)


# ---- what came of it ---------------------------------------------------------------------------------------------


def _summary(
    products: list[Product], wanted: list[Product], skipped: Mapping[str, str], mine: list[Product], out: Path
) -> Summary:
    """Of the products that belong to this batch, whoever did them."""
    journal, _ = read_journals(out)
    counts = dict.fromkeys((*STATUSES, "to do"), 0)
    counts["skipped"] = len(skipped)
    found = {}
    for product in mine:
        entry = journal.get(product.name)
        status = entry["status"] if entry else "to do"
        counts[status if status != "skipped" else "to do"] += 1
        if entry:
            found[product.name] = entry
    return Summary(counts, found)


def _sum_up(
    wishes: Wishes,
    identity: Mapping[str, Any],
    summary: Summary,
    skipped: Mapping[str, str],
    facts: Mapping[str, Any],
    talk: Talk,
) -> dict[str, str]:
    """All products as one file, the sizes of all rocks, and the page about it; what was written."""
    tool, out = wishes.order.tool, wishes.out
    done = [entry for entry in summary.entries.values() if entry["status"] == "ok"]
    warnings = _set_aside_what_was_edited(out)
    merged, doubts = merge(done, out / PRODUCTS, tool, out) if done else ([], [])
    _remember(out, [one.path for one in merged])
    sizes = _sizes(merged, tool, out, warnings)
    for warning in [*warnings, *doubts]:
        talk.log("warning", warning)
    outputs = {one.path.stem: str(one.path) for one in merged}
    if sizes:
        outputs["sizes"] = str(out / "sizes")
    told = Told(
        tool=tool,
        order=identity,
        counts=summary.counts,
        entries=summary.entries,
        skipped=skipped,
        facts={**facts, "outputs": {**facts["outputs"], **outputs}},
        merged=[one.path for one in merged],
        sizes=sizes,
        warnings=[*warnings, *doubts],
    )
    return {**outputs, "report": str(write_report(told, out / "report.html"))}


def _set_aside_what_was_edited(out: Path) -> list[str]:
    """A merged file that somebody has worked on since is not replaced: it gets another name."""
    try:
        known = dict(json.loads((out / WRITTEN).read_text(encoding="utf-8")))
    except FileNotFoundError:  # none was finished before
        return []
    except (OSError, ValueError, TypeError, RecursionError):
        known = {}  # then nobody knows whether it was edited, and it is kept
    said = []
    for path in sorted(out.glob("merged*.gpkg")):
        if known.get(path.name) != sha256_of(path):
            number = 1 + sum(1 for _ in out.glob(f"edited_*_{path.stem}.gpkg"))
            kept = path.with_name(f"edited_{number}_{path.stem}.gpkg")
            path.rename(kept)
            said.append(f"{path.name} was edited since it was written; it is kept as {kept.name}.")
    return said


def _remember(out: Path, paths: list[Path]) -> None:
    text = json.dumps({path.name: sha256_of(path) for path in paths})
    with Draft(out / WRITTEN, overwrite=True) as draft:
        draft.path.write_text(text + "\n", encoding="utf-8")
        draft.publish()


def _sizes(merged: list[Merged], tool: str, out: Path, warnings: list[str]) -> dict[str, Any] | None:
    """Size-frequency of all rocks that have a place, each once, from the size on that is complete in the coarsest."""
    if tool != "rocks" or not merged or not merged[0].body or not merged[0].counts["things"]:
        return None
    first = merged[0]
    least = None if first.pixel_size is None else COMPLETE_PX * first.pixel_size
    asked = size_frequency.Wishes(
        rocks=f"{first.path}|layername={POINTS}",
        folder=out / "sizes",
        min_diameter=least,
        overwrite=True,
    )
    try:
        return dict(size_frequency.size_frequency(asked).facts)
    except LunarError as error:
        warnings.append(f"No sizes: {error}")
        return None


def _outputs(wishes: Wishes) -> dict[str, str]:
    return {"products": str(wishes.out / PRODUCTS), "journal": str(wishes.out / _journal_name(wishes.part))}


def in_words(summary: Summary) -> str:
    """The summary for a person."""
    counts, facts = summary.counts, summary.facts
    lines = [f"  {name}: {path}" for name, path in facts["outputs"].items()]
    lines.append("  " + ", ".join(f"{number} {name}" for name, number in counts.items() if number or name == "ok"))
    lines.append(f"  {facts['run']} done now in {_duration(facts['seconds'])}, {facts['rate_mpx_s']:.2f} Mpx/s")
    failures = [entry for entry in summary.entries.values() if entry["status"] == "failed"]
    lines += [f"  failed: {e['product']}: {e['message']} Cure: {e['cure']}" for e in failures[:10]]
    lines += [f"  … and {len(failures) - 10} more in the journal"] if len(failures) > 10 else []
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
