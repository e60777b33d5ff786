"""One loop for every family. It knows no loss: a `Task` says what a step is, the loop says when and where.

    task = Task(networks={"net": net}, optimisers={"net": adam}, batch=sampler, step=step, validate=validate,
                aim=("iou", "high"))
    outcome = train(task, Plan(steps=2000, minutes=10, seed=1), folder, resume=True)
    use(outcome.best)

What is in `folder`: `checkpoint.safetensors` (all that is needed to go on), `best.safetensors` (the networks that
validated best), `log.jsonl`. Nothing is pickled.

Randomness: before each step the generators of torch are seeded with (seed, step), and a batch is a function of its
step. So there is no state of chance to be saved, and a training that was stopped and resumed, on the CPU, ends with
the same bits as one that ran through, as long as its length is given in steps. A task must keep all it has to
remember from step to step in its networks (as buffers) and optimisers.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lunar_processing.devices import choose_device, keep_memory
from lunar_processing.draft import Draft
from lunar_processing.errors import OutputError, ParameterError, TrainingError
from lunar_processing.strict import strict
from lunar_processing.training.data import Batch, Sampler, mix

CHECKPOINT, BEST, LOG = "checkpoint.safetensors", "best.safetensors", "log.jsonl"
LOG_S = 5.0  # seconds between lines of the log

# The learning rate as a share of its first value, by the share of the training that is done.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "second-half": lambda done: min(1.0, 2 * (1 - done)),
}
PRECISIONS = ("auto", "float32", "bfloat16")

Networks = Mapping[str, nn.Module]


@dataclass(frozen=True)
class Plan:
    """How long, how fast, where.

    With `steps` the schedule follows the steps, and `minutes` only ends this sitting; with `minutes` alone the
    schedule follows the clock and is over when the time is. `average` is the decay of the moving average of the
    weights, which is what is validated and kept. `clip` bounds the norm of each optimiser's gradient.
    """

    steps: int | None = None
    minutes: float | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    clip: float = 1.0
    schedule: str = "cosine"
    warmup: int = 50
    average: float = 0.995
    validations: int = 10
    checkpoint_s: float = 60.0

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise ParameterError("The training has no end.", "give --minutes or --steps.")
        if (self.steps is not None and self.steps < 1) or (self.minutes is not None and not self.minutes >= 0):
            raise ParameterError(
                f"A training of {self.steps} steps, {self.minutes} minutes is not possible.", "give numbers above 0."
            )
        for what, name, known in (
            ("schedule", self.schedule, tuple(SCHEDULES)),
            ("precision", self.precision, PRECISIONS),
        ):
            if name not in known:
                raise ParameterError(f"There is no {what} {name!r}.", f"choose {', '.join(known)}.")


@dataclass(frozen=True)
class Task:
    """What is trained.

    `batch(k)` gives the tensors of step k on the CPU or the device, by k alone. `step(batch, state)` computes losses,
    calls `state.descend` for each optimiser in turn, and returns the losses to be logged. `validate(networks)` gets
    the averaged networks in evaluation mode and returns numbers; `aim` names the one that tells the best, and whether
    "high" or "low" is good. `about` is what a checkpoint must agree with to be resumed (recipe, settings, data).
    """

    networks: Networks
    optimisers: Mapping[str, torch.optim.Optimizer]
    batch: Sampler
    step: Callable[[Batch, State], Mapping[str, torch.Tensor]]
    validate: Callable[[Networks], Mapping[str, float]]
    aim: tuple[str, str]
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class State:
    """What a step may lean on: where the training is, and how to go down a loss."""

    task: Task
    plan: Plan
    device: torch.device
    step: int = 0
    done: float = 0.0  # share of the training that is over

    def precision(self) -> AbstractContextManager[Any]:
        """Around the forward pass: bfloat16 where that is wanted and fast. Losses belong outside, in float32."""
        name = self.plan.precision
        modern = self.device.type == "cuda" and torch.cuda.get_device_capability(self.device)[0] >= 8
        if name == "bfloat16" or (name == "auto" and modern):
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def descend(self, optimiser: str, loss: torch.Tensor) -> None:
        """One step of an optimiser down a loss, with its gradient clipped and its rate as scheduled."""
        chosen = self.task.optimisers[optimiser]
        chosen.zero_grad(set_to_none=True)
        loss.backward()
        weights = [w for group in chosen.param_groups for w in group["params"]]
        nn.utils.clip_grad_norm_(weights, self.plan.clip)
        share = SCHEDULES[self.plan.schedule](self.done) * min(1.0, (self.step + 1) / max(1, self.plan.warmup))
        for group in chosen.param_groups:
            group["lr"] = group["initial_lr"] * share
        chosen.step()


@dataclass
class Outcome:
    """How a sitting ended: `complete`, `time` or `cancelled`; the best networks and their validation."""

    step: int
    seconds: float  # of all sittings
    ended: str
    best_step: int
    measured: dict[str, float]
    first: dict[str, float]  # the validation before the first step
    best: Networks


def train(
    task: Task,
    plan: Plan,
    folder: Path,
    resume: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    tell: Callable[[dict[str, Any]], None] = lambda line: None,
    cancelled: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.perf_counter,
) -> Outcome:
    """Train until the plan or the time is over, or someone cancels; whatever the end, the best so far is kept.

    `progress` hears (done, total) in thousandths, `tell` each line of the log.
    """
    keep_memory()
    where = torch.device(choose_device(plan.device))
    with _seeded_only_here():
        course = _Course(task, plan, folder, where, clock)
        course.begin(resume)
        with closing(_Log(folder / LOG, course.step if course.best_step >= 0 else -1, tell)) as log:
            return _sit(course, log, progress, cancelled)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """A batch on the device."""
    return {name: values.to(device, non_blocking=True) for name, values in batch.items()}


# ---- a sitting ---------------------------------------------------------------------------------------------------


def _sit(course: _Course, log: _Log, progress: Callable[[int, int], None], cancelled: Callable[[], bool]) -> Outcome:
    progress(round(1000 * course.done), 1000)
    if course.best_step < 0:
        course.validate(log)  # what it starts from; fine-tuning never ends with less than that
    ended = course.over()
    with closing(_ahead(course.task.batch, course.step)) as batches:
        while not ended:
            losses = course.advance(next(batches))
            progress(round(1000 * course.done), 1000)
            log.add(course, losses)
            ended = "cancelled" if cancelled() else course.over()
            if course.validation_is_due() or ended == "complete":
                log.flush(course)
                course.validate(log)
                course.save()
            elif course.clock() - course.saved_at > course.plan.checkpoint_s:
                log.flush(course)  # refuses what diverged, before it takes the place of what did not
                course.save()
    log.flush(course)
    course.save()
    return course.outcome(ended)


def _ahead(batch: Sampler, first: int) -> Generator[Batch, None, None]:
    """Batches in order; the next one is made while this one is learnt from."""
    with ThreadPoolExecutor(1) as pool:
        step, waiting = first, pool.submit(batch, first)
        while True:
            ready = waiting.result()
            step += 1
            waiting = pool.submit(batch, step)
            yield ready


class _Course:
    """Where a training is: networks, their averages, optimisers, the clock, the best."""

    def __init__(self, task: Task, plan: Plan, folder: Path, device: torch.device, clock: Callable[[], float]) -> None:
        for network in task.networks.values():
            network.to(device)
        self.task, self.plan, self.folder, self.device, self.clock = task, plan, folder, device, clock
        self.averages = {name: deepcopy(network).eval() for name, network in task.networks.items()}
        self.state = State(task, plan, device)
        self.best_step, self.measured, self.first = -1, {}, {}  # type: tuple[int, dict[str, float], dict[str, float]]
        self.spent = 0.0  # seconds of earlier sittings
        self.validation_s = 0.0
        self.began = self.saved_at = clock()
        for optimiser in task.optimisers.values():
            for group in optimiser.param_groups:
                group.setdefault("initial_lr", group["lr"])

    @property
    def step(self) -> int:
        return self.state.step

    @property
    def seconds(self) -> float:
        return self.spent + self.clock() - self.began

    @property
    def done(self) -> float:
        """Share of the training that is over, 0…1."""
        if self.plan.steps is not None:
            return min(1.0, self.step / self.plan.steps)
        budget = 60 * (self.plan.minutes or 0.0) - self.validation_s  # the last validation needs its time too
        return min(1.0, self.seconds / max(self.spent + budget, 1e-9))

    def begin(self, resume: bool) -> None:
        """Make the folder, or take up what is in it."""
        path = self.folder / CHECKPOINT
        if path.exists() and not resume:
            raise OutputError(
                f"{self.folder} holds a training already.", "go on with --resume, or choose another folder."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            self._load(path)
        self._validated = self._validations_so_far()

    def over(self) -> str:
        """Why the sitting is over, or an empty text."""
        if self.plan.steps is not None and self.step >= self.plan.steps:
            return "complete"
        left = 60 * self.plan.minutes - (self.clock() - self.began) if self.plan.minutes is not None else math.inf
        if left <= (self.validation_s if self.plan.steps is None else 0.0):
            return "complete" if self.plan.steps is None and self.plan.minutes else "time"
        return ""

    def advance(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        """One step of all optimisers and of the average."""
        self.state.done = self.done
        torch.manual_seed(mix(mix(self.plan.seed, 0), self.step))  # never the numbers that chose the batch
        for network in self.task.networks.values():
            network.train()
        losses = self.task.step(to_device(batch, self.device), self.state)
        self._average()
        self.state.step += 1
        return losses

    def validation_is_due(self) -> bool:
        """After each share of the training."""
        return self._validations_so_far() > self._validated

    def validate(self, log: _Log) -> None:
        """Measure the averaged networks, and keep them if they are the best so far."""
        began = self.clock()
        with torch.no_grad():
            measured = {k: float(v) for k, v in self.task.validate(self.averages).items()}
        name, good = self.task.aim
        better = not self.measured or _better(measured[name], self.measured[name], good)
        if better:
            self.best_step, self.measured = self.step, measured
            _write(self.folder / BEST, _tensors(self.averages, "average"), {"step": self.step, "measured": measured})
        self.first = self.first or measured
        self._validated = self._validations_so_far()
        self.validation_s = self.clock() - began
        log.write({"step": self.step, "seconds": round(self.seconds, 1), "validation": measured, "best": better})

    def save(self) -> None:
        """Write all that is needed to go on."""
        tensors = {**_tensors(self.task.networks, "network"), **_tensors(self.averages, "average")}
        scalars: dict[str, Any] = {}
        for name, optimiser in self.task.optimisers.items():
            for number, memory in optimiser.state_dict()["state"].items():
                for key, value in memory.items():
                    place = f"optimiser/{name}/{number}/{key}"
                    if isinstance(value, torch.Tensor):
                        tensors[place] = value
                    else:
                        scalars[place] = value
        facts = {
            "format": 1,
            "step": self.step,
            "seed": self.plan.seed,
            "seconds": self.seconds,
            "best_step": self.best_step,
            "measured": self.measured,
            "first": self.first,
            "validation_s": self.validation_s,
            "about": dict(self.task.about),
            "scalars": scalars,
        }
        _write(self.folder / CHECKPOINT, tensors, facts)
        self.saved_at = self.clock()

    def outcome(self, ended: str) -> Outcome:
        """The end of this sitting, with the best networks."""
        best = {name: deepcopy(network) for name, network in self.averages.items()}
        _fill(best, _read(self.folder / BEST)[0], "average", self.folder / BEST)
        return Outcome(self.step, self.seconds, ended, self.best_step, self.measured, self.first, best)

    def _load(self, path: Path) -> None:
        tensors, facts = _read(path)
        mine = json.loads(json.dumps({"seed": self.plan.seed, **self.task.about}))
        theirs = {"seed": facts["seed"], **facts["about"]}
        if mine != theirs:
            other = ", ".join(sorted(k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k)))
            raise TrainingError(
                f"The training in {path.parent} was begun with another {other}.",
                "resume it with what it was begun with, or choose another folder.",
            )
        _fill(self.task.networks, tensors, "network", path)
        _fill(self.averages, tensors, "average", path)
        for name, optimiser in self.task.optimisers.items():
            memory: dict[int, dict[str, Any]] = {}
            for place, value in (*tensors.items(), *facts["scalars"].items()):
                kind, owner, *rest = place.split("/")
                if kind == "optimiser" and owner == name:
                    memory.setdefault(int(rest[0]), {})[rest[1]] = value
            optimiser.load_state_dict({"state": memory, "param_groups": optimiser.state_dict()["param_groups"]})
        self.state.step, self.spent, self.best_step = facts["step"], facts["seconds"], facts["best_step"]
        self.measured, self.first, self.validation_s = facts["measured"], facts["first"], facts["validation_s"]

    def _validations_so_far(self) -> int:
        if self.plan.steps is not None:
            return self.step * self.plan.validations // self.plan.steps
        return int(self.done * self.plan.validations)

    @torch.no_grad()
    def _average(self) -> None:
        # Young averages forget fast: the first steps are far from where the training goes.
        decay = min(self.plan.average, (1 + self.step) / (10 + self.step))
        for name, network in self.task.networks.items():
            for mean, now in zip(self.averages[name].state_dict().values(), network.state_dict().values()):
                if mean.is_floating_point():
                    mean.lerp_(now, 1 - decay)
                else:
                    mean.copy_(now)


def _better(new: float, old: float, good: str) -> bool:
    if math.isnan(old):
        return not math.isnan(new)
    return new > old if good == "high" else new < old


@contextmanager
def _seeded_only_here() -> Iterator[None]:
    """Leave the caller's random numbers as they were."""
    before = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(before)


# ---- the log -----------------------------------------------------------------------------------------------------


class _Log:
    """JSON lines: losses as means since the last line, validations, and whether they were the best."""

    def __init__(self, path: Path, step: int, tell: Callable[[dict[str, Any]], None]) -> None:
        kept = _lines_until(path, step)
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self._file, self._tell = path.open("a", encoding="utf-8"), tell
        self._sums: dict[str, torch.Tensor] = {}
        self._count, self._since = 0, -math.inf

    def add(self, course: _Course, losses: Mapping[str, torch.Tensor]) -> None:
        """Take the losses of one step; they stay on the device until they are written."""
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach().float()
        self._count += 1
        now = course.clock()
        if now - self._since > LOG_S:
            self.flush(course)
            self._since = now

    def flush(self, course: _Course) -> None:
        """Write a line; a loss that is no number ends the training."""
        if not self._count:
            return
        means = {name: float(total) / self._count for name, total in self._sums.items()}
        self._sums, self._count = {}, 0
        if not all(map(math.isfinite, means.values())):
            raise TrainingError(
                f"The training diverged near step {course.step}: {', '.join(f'{k} {v}' for k, v in means.items())}.",
                "use a smaller learning rate; `--resume` goes on from the last checkpoint, which is sound.",
            )
        self.write({"step": course.step, "seconds": round(course.seconds, 1), "losses": means})

    def write(self, line: dict[str, Any]) -> None:
        """One line to the file, and to whoever listens."""
        safe = strict(line)
        self._file.write(json.dumps(safe) + "\n")
        self._file.flush()
        self._tell(line)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _lines_until(path: Path, step: int) -> list[str]:
    """What an earlier sitting logged up to the step that the checkpoint is of."""
    if step < 0 or not path.exists():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):  # the last line of a run that was killed
            if json.loads(line)["step"] <= step:
                kept.append(line)
    return kept


# ---- files -------------------------------------------------------------------------------------------------------


def _tensors(networks: Networks, kind: str) -> dict[str, torch.Tensor]:
    return {f"{kind}/{name}/{k}": v for name, net in networks.items() for k, v in net.state_dict().items()}


def _fill(networks: Networks, tensors: Mapping[str, torch.Tensor], kind: str, path: Path) -> None:
    for name, network in networks.items():
        start = f"{kind}/{name}/"
        try:
            network.load_state_dict({k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)})
        except RuntimeError as error:
            raise TrainingError(
                f"{path} is of another network: {error}.", "resume with the same recipe and settings."
            ) from error


def _write(path: Path, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file

    with Draft(path, overwrite=True) as draft:
        plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        save_file(plain, draft.path, {"facts": json.dumps(facts)})
        draft.publish()


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["facts"])
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(
            f"{path} cannot be read ({error}).", "copy it again, or begin anew in another folder."
        ) from error
