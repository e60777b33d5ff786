"""What computes a network: torch, the reference, or OpenVINO, which is quicker on the processor.

    answer = predictor(pack.network(torch_device(device)), device)
    answer(tiles)                       # tensors in, one tensor out, as of the network itself

`openvino` is a device beside `cpu`, `cuda` and `mps`, chosen by name, never by `auto`: its numbers are torch's but for
rounding, not bit for bit. A network is converted in memory when its first tile comes, which takes a few seconds;
nothing is left on the disk.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lunar_processing.devices import choose_device
from lunar_processing.errors import DeviceError

if TYPE_CHECKING:
    from torch import Size, Tensor, nn

OPENVINO = "openvino"


def choose_backend(name: str = "auto") -> str:
    """The device to predict on; `auto` takes the fastest that torch has."""
    if name != OPENVINO:
        return choose_device(name)
    if find_spec("openvino") is None:
        raise DeviceError(
            "OpenVINO is not installed.", 'pip install "lunar-processing[openvino]", or choose --device cpu.'
        )
    return name


def torch_device(device: str) -> str:
    """Where tensors for this device lie."""
    return "cpu" if device == OPENVINO else device


def predictor(network: nn.Module, device: str, ask: str = "forward") -> Callable[..., Tensor]:
    """A network that lies on `torch_device(device)`, ready to predict; `ask` names the method that answers."""
    answer: Callable[..., Tensor] = getattr(network, ask)
    return _openvino(network, ask) if device == OPENVINO else answer


# ---- OpenVINO ----------------------------------------------------------------------------------------------------


def _openvino(network: nn.Module, ask: str) -> Callable[..., Tensor]:
    from lunar_processing.networks.fold import Asked, folded

    light = Asked(folded(network), ask).eval()
    queues: dict[tuple[Size, ...], Any] = {}  # by the shapes of a sample: one for all tiles of an image

    def answer(*given: Tensor) -> Tensor:
        shapes = tuple(one.shape[1:] for one in given)
        if shapes not in queues:
            queues[shapes] = _queue(light, given)
        return _ask_each(queues[shapes], given)

    return answer


def _queue(network: nn.Module, given: tuple[Tensor, ...]) -> Any:
    """Takes one sample at a time on each core: quicker than a batch on all of them, which would leave their caches."""
    import torch

    openvino, cores = _openvino_itself(), torch.get_num_threads()
    samples = tuple(one[:1].contiguous() for one in given)
    model = openvino.convert_model(network, example_input=samples, input=[list(one.shape) for one in samples])
    settings = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "NUM_STREAMS": str(cores),
        "INFERENCE_NUM_THREADS": str(cores),
        "INFERENCE_PRECISION_HINT": "f32",  # left to itself it would round to bfloat16 where the processor can
    }
    return openvino.AsyncInferQueue(openvino.Core().compile_model(model, "CPU", settings), cores)


def _openvino_itself() -> Any:
    # Left to itself it tells its makers over the net that it was imported, and of each conversion.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def _ask_each(queue: Any, given: tuple[Tensor, ...]) -> Tensor:
    import torch

    made: dict[int, Tensor] = {}

    def keep(request: Any, number: int) -> None:
        made[number] = torch.from_numpy(request.get_output_tensor(0).data.copy())

    queue.set_callback(keep)
    for number in range(len(given[0])):
        queue.start_async([one[number : number + 1].contiguous().numpy() for one in given], number)
    queue.wait_all()
    return torch.cat([made[number] for number in range(len(made))])
