"""One loop for every family: it learns, stops on time, goes on exactly where it was, and keeps the best."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from lunar_processing.devices import choose_device
from lunar_processing.errors import DeviceError, OutputError, ParameterError, TrainingError
from lunar_processing.training.data import dice
from lunar_processing.training.loop import BEST, CHECKPOINT, LOG, SCHEDULES, Plan, State, Task, train

pytestmark = pytest.mark.usefixtures("one_thread")

PLAN = Plan(steps=40, seed=3, device="cpu", validations=4)


def line(step: int) -> dict[str, torch.Tensor]:
    x = torch.randn(16, 2, generator=dice(1, step))
    return {"x": x, "y": x @ torch.tensor([[2.0], [-1.0]]) + 0.5}


def regression(rate: float = 0.05, dropout: float = 0.2, **about: object) -> Task:
    """A line to be found; with batch norm, dropout and Adam, all of which remember or roll dice."""
    torch.manual_seed(7)
    net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(dropout), nn.Linear(8, 1))
    test = line(10_000)

    def step(batch: dict[str, torch.Tensor], state: State) -> dict[str, torch.Tensor]:
        with state.precision():
            guess = net(batch["x"])
        loss = ((guess.float() - batch["y"]) ** 2).mean()
        state.descend("net", loss)
        return {"loss": loss}

    def validate(networks: Mapping[str, nn.Module]) -> dict[str, float]:
        device = next(networks["net"].parameters()).device
        return {"error": ((networks["net"](test["x"].to(device)) - test["y"].to(device)) ** 2).mean().item()}

    return Task({"net": net}, {"net": torch.optim.Adam(net.parameters(), rate)}, line, step, validate,
                ("error", "low"), about)  # fmt: skip


def duel() -> Task:
    """Two networks against each other, an optimiser each, and a buffer that is remembered."""
    torch.manual_seed(8)
    maker, critic = nn.Linear(4, 2), nn.Sequential(nn.Linear(2, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
    memory = nn.Module()
    memory.register_buffer("last", torch.zeros(16, 2))

    def step(batch: dict[str, torch.Tensor], state: State) -> dict[str, torch.Tensor]:
        made = maker(torch.randn(16, 4))
        told = nn.functional.softplus(critic(made.detach())) + nn.functional.softplus(critic(memory.last))
        critic_loss = (told + nn.functional.softplus(-critic(batch["x"]))).mean()
        state.descend("critic", critic_loss)
        maker_loss = nn.functional.softplus(-critic(made)).mean()
        state.descend("maker", maker_loss)
        memory.last.copy_(made.detach())
        return {"critic": critic_loss, "maker": maker_loss}

    optimisers = {
        "maker": torch.optim.RMSprop(maker.parameters(), 1e-2),
        "critic": torch.optim.SGD(critic.parameters(), 1e-2, momentum=0.9),
    }
    networks = {"maker": maker, "critic": critic, "memory": memory}
    return Task(networks, optimisers, line, step, lambda n: {"size": n["maker"].weight.norm().item()}, ("size", "low"))


def weights(task: Task) -> dict[str, torch.Tensor]:
    return {f"{n}/{k}": v.clone() for n, net in task.networks.items() for k, v in net.state_dict().items()}


def log(folder: Path) -> list[dict]:
    return [json.loads(text) for text in (folder / LOG).read_text().splitlines()]


class Stop:
    """Cancels after a number of steps."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0


class Clock:
    """A clock that goes on by so many seconds each time it is looked at."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


# ---- it learns ---------------------------------------------------------------------------------------------------


def test_it_learns_validates_and_keeps_the_best(tmp_path):
    task = regression(dropout=0.0)
    ended = train(task, Plan(steps=300, device="cpu", average=0.9), tmp_path)
    assert (ended.step, ended.ended) == (300, "complete")
    assert ended.measured["error"] < 0.05 < ended.first["error"]
    measured = [entry for entry in log(tmp_path) if "validation" in entry]
    assert [entry["step"] for entry in measured] == list(range(0, 301, 30))
    best = min(measured, key=lambda entry: entry["validation"]["error"])
    assert (ended.best_step, ended.measured) == (best["step"], best["validation"])
    assert task.validate(ended.best) == best["validation"]


def test_it_never_ends_with_less_than_it_began_with(tmp_path):
    """A fine-tuning that only does harm gives back what it was given."""
    task = regression(rate=3.0)
    given = weights(task)

    def uphill(batch: dict[str, torch.Tensor], state: State) -> dict[str, torch.Tensor]:
        state.descend("net", -((task.networks["net"](batch["x"]) - batch["y"]) ** 2).mean())
        return {}

    ended = train(Task(task.networks, task.optimisers, line, uphill, task.validate, task.aim), PLAN, tmp_path)
    assert ended.best_step == 0
    assert ended.measured == ended.first
    for name, value in ended.best["net"].state_dict().items():
        assert torch.equal(value, given[f"net/{name}"])


def test_the_average_is_what_is_validated_and_kept(tmp_path):
    task = regression(rate=0.3)
    ended = train(task, Plan(steps=60, device="cpu", average=0.99, schedule="constant"), tmp_path)
    assert not torch.equal(ended.best["net"][0].weight, task.networks["net"][0].weight)
    assert task.validate(ended.best) == ended.measured
    assert not ended.best["net"].training


def test_a_gradient_is_clipped_and_the_rate_scheduled(tmp_path):
    """Plain SGD moves by no more than rate × clip; nothing at the end of the cosine."""
    net = nn.Linear(2, 1, bias=False)
    moved = []

    def step(batch: dict[str, torch.Tensor], state: State) -> dict[str, torch.Tensor]:
        before = net.weight.detach().clone()
        state.descend("net", 1e6 * net(batch["x"]).sum())
        moved.append((net.weight - before).norm().item())
        return {}

    task = Task({"net": net}, {"net": torch.optim.SGD(net.parameters(), 0.5)}, line, step, lambda n: {"w": 0.0},
                ("w", "low"))  # fmt: skip
    train(task, Plan(steps=20, device="cpu", clip=0.1, warmup=5), tmp_path)
    expected = [0.05 * SCHEDULES["cosine"](k / 20) * min(1, (k + 1) / 5) for k in range(20)]
    assert moved == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "begin", "middle", "end"), [("constant", 1, 1, 1), ("cosine", 1, 0.5, 0), ("second-half", 1, 1, 0)]
)
def test_schedules(name, begin, middle, end):
    assert [SCHEDULES[name](done) for done in (0.0, 0.5, 1.0)] == pytest.approx([begin, middle, end])


def test_bfloat16_where_it_is_wanted_with_losses_in_float32(tmp_path):
    kinds = []

    def step(batch: dict[str, torch.Tensor], state: State) -> dict[str, torch.Tensor]:
        with state.precision():
            guess = net(batch["x"])
            kinds.append(guess.dtype)
        loss = ((guess.float() - batch["y"]) ** 2).mean()
        kinds.append(loss.dtype)
        state.descend("net", loss)
        return {"loss": loss}

    net = nn.Linear(2, 1)
    adam = torch.optim.Adam(net.parameters())
    task = Task({"net": net}, {"net": adam}, line, step, lambda n: {"e": 0.0}, ("e", "low"))
    train(task, Plan(steps=1, device="cpu", precision="bfloat16"), tmp_path / "half")
    train(task, Plan(steps=1, device="cpu"), tmp_path / "whole")
    assert kinds == [torch.bfloat16, torch.float32, torch.float32, torch.float32]
    assert net.weight.dtype == torch.float32


# ---- it goes on exactly where it was -----------------------------------------------------------------------------


@pytest.mark.parametrize("make", [regression, duel])
@pytest.mark.parametrize("cuts", [(1,), (13,), (9, 10, 20), (10, 10)])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, make, cuts):
    straight = make()
    whole = train(straight, PLAN, tmp_path / "whole")
    for after in cuts:
        assert train(make(), PLAN, tmp_path / "cut", resume=True, cancelled=Stop(after)).ended == "cancelled"
    pieces = make()
    ended = train(pieces, PLAN, tmp_path / "cut", resume=True)
    for name, value in weights(straight).items():
        assert torch.equal(value, weights(pieces)[name]), name
    assert (ended.step, ended.best_step, ended.measured) == (whole.step, whole.best_step, whole.measured)
    assert (tmp_path / "cut" / BEST).read_bytes() == (tmp_path / "whole" / BEST).read_bytes()


def test_the_random_numbers_of_the_caller_do_not_matter_and_are_left_alone(tmp_path):
    results = []
    for seed in (1, 2):
        task = regression()
        torch.manual_seed(seed)
        train(task, PLAN, tmp_path / str(seed))
        expected = torch.Generator().manual_seed(seed)
        assert torch.equal(torch.rand(3), torch.rand(3, generator=expected))
        results.append(weights(task))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_another_seed_is_another_training(tmp_path):
    tasks = [regression(), regression()]
    for seed, task in enumerate(tasks):
        train(task, Plan(steps=5, seed=seed, device="cpu"), tmp_path / str(seed))
    assert not torch.equal(weights(tasks[0])["net/0.weight"], weights(tasks[1])["net/0.weight"])


def test_the_log_goes_on_without_gaps_or_repeats(tmp_path):
    train(regression(), PLAN, tmp_path, cancelled=Stop(17))
    with (tmp_path / LOG).open("a") as file:
        file.write('{"step": 19, "losses": {"loss": 1.0}}\n{"step": 21, "los')  # a run that was killed later
    train(regression(), PLAN, tmp_path, resume=True)
    assert [e["step"] for e in log(tmp_path) if "validation" in e] == [0, 10, 20, 30, 40]
    steps = [e["step"] for e in log(tmp_path)]
    assert steps == sorted(steps)
    assert 19 not in steps


def test_the_validation_before_the_first_step_is_logged_once_and_kept(tmp_path):
    plan = Plan(steps=40, minutes=0, seed=3, device="cpu")
    for _ in range(2):
        assert train(regression(), plan, tmp_path, resume=True).step == 0
    assert [e["step"] for e in log(tmp_path) if "validation" in e] == [0]


def test_a_finished_training_is_only_read_again(tmp_path):
    first = train(regression(), PLAN, tmp_path)
    before = (tmp_path / LOG).read_text()
    again = train(regression(), PLAN, tmp_path, resume=True)
    assert (again.step, again.measured, again.ended) == (40, first.measured, "complete")
    assert (tmp_path / LOG).read_text() == before


# ---- it ends on time ---------------------------------------------------------------------------------------------


def test_minutes_end_it_with_the_best_so_far(tmp_path):
    ended = train(regression(), Plan(minutes=1.0, device="cpu"), tmp_path, clock=Clock(0.05))
    assert ended.ended == "complete"
    assert 50 < ended.seconds < 61
    assert ended.step > 20
    assert len([e for e in log(tmp_path) if "validation" in e]) >= 10
    assert ended.measured["error"] < ended.first["error"]


def test_with_minutes_alone_the_rate_falls_to_nothing_as_the_time_ends(tmp_path):
    task = regression()
    train(task, Plan(minutes=1.0, device="cpu"), tmp_path, clock=Clock(0.05))
    assert task.optimisers["net"].param_groups[0]["lr"] < 0.05 * 0.01


def test_steps_in_slices_of_minutes(tmp_path):
    sittings, whole = [], regression()
    plan = Plan(steps=100, minutes=0.1, seed=3, device="cpu", validations=4)
    for _ in range(20):
        pieces = regression()
        sittings.append(train(pieces, plan, tmp_path / "slices", resume=True, clock=Clock(0.05)))
        if sittings[-1].ended == "complete":
            break
    assert [s.ended for s in sittings[:-1]] == ["time"] * (len(sittings) - 1)
    assert len(sittings) > 2
    train(whole, Plan(steps=100, seed=3, device="cpu", validations=4), tmp_path / "whole")
    assert all(torch.equal(value, weights(pieces)[name]) for name, value in weights(whole).items())
    assert sittings[-1].seconds == pytest.approx(sum(0.1 * 60 for _ in sittings), rel=0.3)


def test_no_minutes_at_all_give_what_is_there(tmp_path):
    first = train(regression(), PLAN, tmp_path, cancelled=Stop(25))
    again = train(regression(), Plan(steps=40, minutes=0, seed=3, device="cpu"), tmp_path, resume=True)
    assert (again.step, again.ended, again.measured) == (25, "time", first.measured)


def test_progress_is_told_and_grows(tmp_path):
    told = []
    train(regression(), PLAN, tmp_path, progress=lambda done, total: told.append(done / total))
    assert told == sorted(told)
    assert (told[0], told[1], told[-1]) == (0.0, 0.025, 1.0)


def test_batches_are_made_ahead_in_order_and_nothing_is_left_running(tmp_path):
    asked, task = [], regression()

    def batch(step: int) -> dict[str, torch.Tensor]:
        asked.append(step)
        return line(step)

    before = threading.active_count()
    train(Task(task.networks, task.optimisers, batch, task.step, task.validate, task.aim), PLAN, tmp_path)
    assert asked[:40] == list(range(40))
    assert threading.active_count() == before


# ---- it refuses --------------------------------------------------------------------------------------------------


def test_a_diverged_training_says_so_and_keeps_a_sound_checkpoint(tmp_path):
    train(regression(), PLAN, tmp_path, cancelled=Stop(10))
    sound = (tmp_path / CHECKPOINT).read_bytes()
    task = regression()

    def step(batch: dict[str, torch.Tensor], state: State) -> dict[str, torch.Tensor]:
        losses = task.step(batch, state)
        return {"loss": losses["loss"] * float("nan")} if state.step == 15 else losses

    broken = Task(task.networks, task.optimisers, task.batch, step, task.validate, task.aim)
    with pytest.raises(TrainingError, match="diverged near step") as refused:
        train(broken, PLAN, tmp_path, resume=True)
    assert "learning rate" in refused.value.cure
    assert (tmp_path / CHECKPOINT).read_bytes() == sound


def test_a_folder_with_a_training_is_not_begun_anew(tmp_path):
    train(regression(), PLAN, tmp_path, cancelled=Stop(2))
    with pytest.raises(OutputError, match="holds a training already") as refused:
        train(regression(), PLAN, tmp_path)
    assert "--resume" in refused.value.cure


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    train(regression(recipe="rocks", size=64), PLAN, tmp_path, cancelled=Stop(2))
    with pytest.raises(TrainingError, match="another size"):
        train(regression(recipe="rocks", size=96), PLAN, tmp_path, resume=True)
    with pytest.raises(TrainingError, match="another seed"):
        train(regression(recipe="rocks", size=64), Plan(steps=40, seed=4, device="cpu"), tmp_path, resume=True)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    train(regression(), PLAN, tmp_path, cancelled=Stop(2))
    with pytest.raises(TrainingError, match="another network"):
        train(duel(), PLAN, tmp_path, resume=True)


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_damaged_checkpoint_is_refused(tmp_path, damage):
    train(regression(), PLAN, tmp_path, cancelled=Stop(2))
    path = tmp_path / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)
    with pytest.raises(TrainingError, match="cannot be read"):
        train(regression(), PLAN, tmp_path, resume=True)


@pytest.mark.parametrize(
    "wrong",
    [{}, {"steps": 0}, {"minutes": -1.0}, {"minutes": float("nan")}, {"steps": 5, "schedule": "sine"},
     {"steps": 5, "precision": "float8"}],
)  # fmt: skip
def test_a_plan_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ParameterError) as refused:
        Plan(**wrong)
    assert refused.value.cure


def test_a_device_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DeviceError, match="no device 'tpu'"):
        train(regression(), Plan(steps=1, device="tpu"), tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="not on this machine"):
            train(regression(), Plan(steps=1, device="cuda"), tmp_path)
    assert choose_device("cpu") == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU on this machine")
def test_a_training_moves_from_one_device_to_another(tmp_path):
    train(regression(), Plan(steps=40, seed=3, device="cuda"), tmp_path, cancelled=Stop(20))
    ended = train(regression(), PLAN, tmp_path, resume=True)
    assert ended.step == 40
    assert ended.measured["error"] < ended.first["error"]
