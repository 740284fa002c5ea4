"""The loss in a plane of random directions around the weights of a trained net.

The method is that of Li et al. 2018, "Visualizing the Loss Landscape of Neural Nets" (Sec. 4): the
random directions are filter-normalized, so that nets whose weights have different scales can be
compared. As in the authors' code, with its settings for random directions:

- Biases and the parameters of batch norm stay as they are: their directions are zero.
- Batch norm is evaluated with the running statistics of the trained net at every point. They are
  not computed again for the changed weights.
- Images are not augmented.
"""

import signal
from collections.abc import Generator, Sequence
from functools import cache
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.nn import functional as F

from src.data.in_memory import GPU_TEST_BATCH, TEST_BATCH, ImagesInMemory
from src.evaluation.evaluator import load_nets, run_config
from src.evaluation.landscape_points import Measurement, Point
from src.runs.environment import silence_lightning
from src.runs.run_dir import RunDir
from src.training.devices import threads_of_each
from src.training.precision import forbid_tf32


class PlaneConfig(NamedTuple):
    """Which loss around which run is measured; a process builds its `LossPlane` from it.

    Attributes:
        run: The run directory.
        split: The images, `train`, `val` or `test`.
        images: How many of them; 0 takes all.
        seed: Of the directions and of the choice of images.
        root: The directory of the data, if it is not that of the run's config.
        device: "cpu" or "cuda", which is the current GPU of the process.
    """

    run: Path
    split: str
    images: int
    seed: int
    root: str | None
    device: str


class LossPlane:
    """The loss of a net as a function of two steps away from its weights.

    Args:
        net: Gives scores [N, classes] of `images`.
        images: As the net takes them; on its device.
        labels: int64 [N].
        seed: Of the two directions.
    """

    def __init__(self, net: nn.Module, images: Tensor, labels: Tensor, seed: int) -> None:
        # In evaluation mode: running statistics, as in the authors' code.
        self.net, self.images, self.labels = net.eval(), images, labels
        self.weights = [parameter.detach().clone() for parameter in net.parameters()]
        generator = torch.Generator().manual_seed(seed)
        self.directions = [
            [random_direction(weight, generator) for weight in self.weights] for _ in range(2)
        ]

    @torch.no_grad()
    def measure(self, point: Point) -> Measurement:
        """Return loss and error at weights + alpha * first + beta * second direction.

        The weights of the net are afterwards what they were.
        """
        try:
            self._move(point)
            size = GPU_TEST_BATCH if self.images.is_cuda else TEST_BATCH
            # On the device, so that only the end waits for it; float64 sums many batches exactly.
            sums = torch.zeros(2, dtype=torch.float64, device=self.images.device)
            for images, labels in zip(
                self.images.split(size), self.labels.split(size), strict=True
            ):
                scores = self.net(images)
                loss = F.cross_entropy(scores, labels, reduction="sum")
                sums += torch.stack([loss, (scores.argmax(1) != labels).sum()])
        finally:
            self._move((0, 0))
        loss_sum, errors = sums.tolist()
        return Measurement(loss_sum / len(self.labels), 100 * errors / len(self.labels))

    def _move(self, point: Point) -> None:
        alpha, beta = point
        for parameter, weight, first, second in zip(
            self.net.parameters(), self.weights, *self.directions, strict=True
        ):
            parameter.copy_(weight + alpha * first + beta * second)


def random_direction(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random direction for one parameter, with the norm of the weight in each filter.

    Args:
        weight: [filters, ...]; a row of a fully connected layer counts as a filter. Parameters of
            one dimension (biases and those of norms) get zeros.
        generator: A generator on the CPU, so that the directions are the same on every device.
    """
    if weight.dim() <= 1:
        return torch.zeros_like(weight)
    direction = torch.randn(weight.shape, generator=generator).to(weight.device)
    rest = tuple(range(1, weight.dim()))
    # A Gaussian filter is never zero, so there is no division by zero.
    norms = [vector_norm(tensor, dim=rest, keepdim=True) for tensor in (weight, direction)]
    return direction * (norms[0] / norms[1])


@cache  # a process measures many points around few runs
def load_plane(config: PlaneConfig) -> LossPlane:
    """Load the final weights of a run, and put the images on the device.

    Raises:
        ValueError: If the dataset is not in memory, or there are no such images.
    """
    silence_lightning()
    forbid_tf32("32-true")  # whatever precision the run was trained in
    run_dir = RunDir.open_finished(config.run)
    if config.root:
        run_dir.config["data"]["root"] = config.root
    (net,), data = load_nets([run_config(run_dir)])
    name, split = run_dir.config["choices"]["data"], config.split
    if not isinstance(data, ImagesInMemory):
        raise ValueError(
            f"{config.run}: data={name} is read from the disk; a landscape needs a dataset "
            "that is held in memory"
        )
    if split not in data.splits:
        raise ValueError(f"{config.run} has held out no images: set split=train or test")
    pixels, labels = data.splits[split]
    generator = torch.Generator().manual_seed(config.seed)
    chosen = torch.randperm(len(labels), generator=generator)[: config.images or None]
    device = torch.device(config.device)
    # As in training and evaluation: cuDNN and oneDNN are faster in this order.
    net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return LossPlane(net, pixels[chosen].to(device), labels[chosen].to(device), config.seed)


Item = tuple[PlaneConfig, Point]


def measure(items: Sequence[Item], processes: int) -> Generator[Measurement]:
    """Measure points one after the other, or share them among processes.

    Args:
        items: The points, each with the run around which it lies.
        processes: How many; on GPUs each has its own.

    Yields:
        The measurements in the order of the points.

    Raises:
        ValueError: If a process ends without a result.
    """
    if processes == 1:
        for config, point in items:
            yield load_plane(config).measure(point)
        return

    # Not forked: CUDA cannot be used in a forked process.
    context = get_context("spawn")
    workers, receivers = [], []
    try:
        # Inherited by the processes: Ctrl-C is for the parent, which then terminates them.
        interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        for rank in range(processes):
            receiver, sender = context.Pipe(duplex=False)
            arguments = (sender, items[rank::processes], rank, processes)
            worker = context.Process(target=_work, args=arguments)
            worker.start()
            sender.close()  # only the worker has it now: if it dies, `recv` raises EOFError
            workers.append(worker)
            receivers.append(receiver)
        signal.signal(signal.SIGINT, interrupt)
        for index in range(len(items)):
            result = receivers[index % processes].recv()
            if isinstance(result, Exception):
                raise result
            yield result
    except EOFError:
        raise ValueError(
            "a process that measures points has died, perhaps for lack of memory: the same command "
            "resumes; set fewer devices"
        ) from None
    finally:
        # Also if the caller stops early, as on Ctrl-C: a point may take long.
        for worker in workers:
            worker.terminate()


def _work(sender: Connection, items: Sequence[Item], rank: int, processes: int) -> None:
    """Measure points in a process of its own."""
    try:
        if items and items[0][0].device == "cuda":
            torch.cuda.set_device(rank)
        else:
            torch.set_num_threads(threads_of_each(processes))
        for measurement in measure(items, processes=1):
            sender.send(measurement)
    except BrokenPipeError:
        pass  # the parent was killed: nobody waits for more
    except Exception as error:
        sender.send(error)  # raised by the parent


def find_device(accelerator: str, devices: int) -> str:
    """Return "cuda" or "cpu".

    Raises:
        ValueError: If there are not as many GPUs.
    """
    gpus = torch.cuda.device_count()
    if accelerator == "cpu" or (accelerator == "auto" and not gpus):
        return "cpu"
    if devices > gpus:
        raise ValueError(f"devices={devices}, but there are {gpus} GPUs: set accelerator=cpu")
    return "cuda"
