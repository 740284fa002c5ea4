"""Speed of training, next to what people usually write."""

from argparse import Namespace
from functools import partial

from torch import Tensor, nn

from src.benchmark import baselines
from src.benchmark.baselines import NATIVE, PAPER_SGD, PRECISIONS, time_run, train_step
from src.benchmark.clock import DEVICE, Clock
from src.benchmark.pipelines import src_train_batches
from src.benchmark.runner import Case, Task, make_rows, run_rounds, scaled_iterations
from src.tables import Row
from src.tasks.classification import ErrorMeter

SPEEDS = {
    "bare step": baselines.bare_step_speed,
    "src.train": baselines.src_train_speed,
    "plain loop": baselines.plain_loop_speed,
    "Lightning module": baselines.lightning_module_speed,
}
# Measured next to the default, which is one of them, on a GPU alone: a CPU has no CUDA graphs.
COMPILE_MODES = ("none", "inductor", "cudagraph", "inductor+cudagraph")


def measure_step(options: Namespace) -> list[Row]:
    """Measure training: the bare step (the limit), src.train, and what people usually write."""
    values: dict[Case, list[float]] = {}
    for net in options.nets:
        values |= run_rounds(step_tasks(net, options.iterations), options.repeats)

    at_default = {}
    for case, speeds in values.items():
        default = NATIVE if case[1] in ("bare step", "src.train") else "32-true"
        if case[2] == default:
            at_default[case] = speeds
    return [
        *make_rows("step, at equal precision", values, "images/s"),
        *make_rows("step, each at its default", at_default, "images/s", NATIVE),
    ]


def step_tasks(net: str, iterations: int) -> dict[Case, Task]:
    """Return the tasks of `measure_step` for one net."""
    iterations = scaled_iterations(iterations, net)
    tasks: dict[Case, Task] = {}
    for precision in PRECISIONS:
        for subject, speed in SPEEDS.items():
            tasks[net, subject, precision] = partial(speed, net, precision, iterations)
    if DEVICE.type == "cuda":
        for mode in COMPILE_MODES:
            task = partial(baselines.src_train_speed, net, NATIVE, iterations, mode)
            tasks[net, f"src.train compile={mode}", NATIVE] = task
    return tasks


class TinyNet(nn.Module):
    """A net so small that an iteration takes no longer than the code around it."""

    depth, activation_checkpointing = 1, False

    def __init__(self, num_classes: int, **_: object) -> None:
        super().__init__()
        self.fc = nn.Linear(3, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return scores [N, classes] of images [N, 3, H, W]."""
        return self.fc(images.mean((2, 3)))


TINY_RUN = (
    "data=digits",
    f"model._target_={__name__}.TinyNet",
    "trainer.precision=32-true",
    "recipe.log_every=100",
)


def measure_overhead(options: Namespace) -> list[Row]:
    """Measure what an iteration of src.train costs above a plain loop that does the same step."""
    iterations = 40 * options.iterations
    tasks: dict[str, Task] = {
        "plain loop": partial(tiny_loop, iterations),
        "src.train": partial(tiny_run, iterations),
    }
    values = run_rounds(tasks, options.repeats)
    pairs = zip(values["src.train"], values["plain loop"], strict=True)
    values["src.train above the plain loop"] = [ours - plain for ours, plain in pairs]
    cases = {("tiny", subject, "32-true"): us for subject, us in values.items()}
    return make_rows("overhead", cases, "us/iteration")


def tiny_loop(iterations: int) -> float:
    """Return the microseconds per iteration of a plain loop.

    Its step is that of `src.train`: the same batches, fused update and counting of errors.
    """
    clock, meter = Clock(iterations), ErrorMeter().to(DEVICE)
    net = TinyNet(10).to(DEVICE)
    optimizer = PAPER_SGD(net.parameters(), fused=True)
    for images, labels in clock.timed(src_train_batches(*TINY_RUN)):
        loss, scores = train_step(net, optimizer, images, labels)
        meter.update(scores.detach(), labels, loss.detach())
    return clock.microseconds


def tiny_run(iterations: int) -> float:
    """Return the microseconds per iteration of `src.train`."""
    return time_run(iterations, *TINY_RUN).microseconds
