"""Speed of training, input pipelines and evaluation, next to what people usually write."""

import math
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from hydra.utils import instantiate
from PIL import Image
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from torchvision.io import ImageReadMode, decode_jpeg, read_file

from src.benchmark import baselines
from src.benchmark.baselines import DEVICE, NATIVE, PRECISIONS, Clock, make_net
from src.benchmark.runner import Case, Settings, Task, make_rows, run_rounds, scaled_iterations
from src.config import compose_config
from src.data.imagenet import MEAN, STD
from src.data.transforms import CROP_SIZE, EIGENVALUES, EIGENVECTORS
from src.runs.environment import keep_freed_memory
from src.tables import Row
from src.tasks.classification import Classifier

TEST_IMAGES = 10_000  # of CIFAR-10
IMAGENET_TRAIN = Path("data/imagenet/train")  # one directory of JPEG files per class
IMAGENET_BATCH = 64
IMAGENET_EPOCHS = 3  # timed, after one that warms up


def measure_step(settings: Settings) -> list[Row]:
    """Measure training: the bare step (the limit), src.train, and what people usually write."""
    subjects = {
        "bare step": baselines.bare_step_speed,
        "src.train": baselines.src_train_speed,
        "plain loop": baselines.plain_loop_speed,
        "Lightning module": baselines.lightning_module_speed,
    }
    values: dict[Case, list[float]] = {}
    for net in settings.nets:
        iterations = scaled_iterations(settings.iterations, net)
        tasks: dict[Case, Task] = {
            (net, subject, precision): (function, (net, precision, iterations))
            for precision in PRECISIONS
            for subject, function in subjects.items()
        }
        if DEVICE.type == "cuda":
            for mode in ("none", "inductor"):
                case = net, f"src.train compile={mode}", NATIVE
                tasks[case] = baselines.src_train_speed, (net, NATIVE, iterations, mode)
        values |= run_rounds(tasks, settings.repeats)

    at_default = {}
    for case, speeds in values.items():
        default = NATIVE if case[1] in ("bare step", "src.train") else "32-true"
        if case[2] == default:
            at_default[case] = speeds
    return [
        *make_rows("step, at equal precision", values, "images/s", _src_train()),
        *make_rows("step, each at its default", at_default, "images/s", _src_train(NATIVE)),
    ]


def _src_train(precision: str | None = None) -> Callable[[Case], Case]:
    """Return the reference for `make_rows`: `src.train` at `precision`, or at the case's own."""
    return lambda case: (case[0], "src.train", precision or case[2])


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


def measure_overhead(settings: Settings) -> list[Row]:
    """Measure what an iteration of src.train costs above a plain loop on the same batches."""
    iterations = 40 * settings.iterations
    tasks = {"plain loop": (tiny_loop, (iterations,)), "src.train": (tiny_run, (iterations,))}
    values = run_rounds(tasks, settings.repeats)
    pairs = zip(values["src.train"], values["plain loop"], strict=True)
    values["src.train above the plain loop"] = [ours - plain for ours, plain in pairs]
    cases = {("tiny", subject, "32-true"): us for subject, us in values.items()}
    return make_rows("overhead", cases, "us/iteration")


def tiny_loop(iterations: int) -> float:
    """Return the microseconds per iteration of a plain loop."""
    clock = Clock(iterations)
    batches = _training_batches(clock, *TINY_RUN)
    net = TinyNet(10).to(DEVICE)
    optimizer = baselines.PAPER_SGD(net.parameters(), fused=True)
    for images, labels in batches:
        loss = F.cross_entropy(net(images.to(DEVICE)), labels.to(DEVICE))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clock.tick()
    return 1e6 * clock.seconds / iterations


def tiny_run(iterations: int) -> float:
    """Return the microseconds per iteration of `src.train`."""
    return 1e6 * baselines.time_run(iterations, *TINY_RUN).seconds / iterations


def _training_batches(clock: Clock, *overrides: str) -> Iterable[tuple[Tensor, Tensor]]:
    """Return as many batches of the training stream as the clock counts."""
    config = compose_config(*overrides)
    stream = {"seed": 0, "batch_size": baselines.BATCH_SIZE, "iterations": clock.total}
    data = instantiate(config.data, **stream, _convert_="all")
    data.setup()
    return data.train_dataloader()


def measure_data(settings: Settings) -> list[Row]:
    """Measure input pipelines: CIFAR-10, and ImageNet in one process if it is in data/imagenet."""
    iterations = 4 * settings.iterations
    tasks: dict[Case, Task] = {
        ("cifar10", "src.train", ""): (cifar10_pipeline_speed, (iterations,)),
        ("cifar10", "plain loop", ""): (conventional_pipeline_speed, (iterations,)),
    }
    values = run_rounds(tasks, settings.repeats)
    if IMAGENET_TRAIN.is_dir():
        for crop in ("scale", "area"):
            images = f"imagenet, crop={crop}"
            tasks = {
                (images, "src.train", ""): (imagenet_pipeline_speed, (IMAGENET_TRAIN, crop)),
                (images, "torchvision's transforms", ""): (pil_speed, (IMAGENET_TRAIN, crop)),
                (images, "decoding alone", ""): (decoding_speed, (IMAGENET_TRAIN,)),
            }
            values |= run_rounds(tasks, settings.repeats)
    return make_rows("data", values, "images/s", _src_train())


def cifar10_pipeline_speed(iterations: int) -> float:
    """Time the training batches of `data=cifar10`."""
    clock = Clock(iterations)
    for _ in _training_batches(clock, "data=cifar10", f"data.root={baselines.DATA_ROOT}"):
        clock.tick()
    return clock.images_per_second


def conventional_pipeline_speed(iterations: int) -> float:
    """Time the batches of `conventional_loader`, moved to the device."""
    clock = Clock(iterations)
    for images, labels in baselines.endless(baselines.conventional_loader()):
        images.to(DEVICE, non_blocking=True)
        labels.to(DEVICE, non_blocking=True)
        if clock.tick():
            break
    return clock.images_per_second


def imagenet_pipeline_speed(directory: Path, crop: str) -> float:
    """Time the training batches of `data=imagenet`, made and normalized by this process.

    Args:
        directory: holds one directory of images per class.
        crop: `scale` with the mean image and color noise, as in the paper, or `area` with the mean
            and standard deviation of each channel, as in torchvision.
    """
    keep_freed_memory()
    iterations = math.ceil(len(list(directory.glob("*/*"))) / IMAGENET_BATCH)
    stream = {"seed": 0, "batch_size": IMAGENET_BATCH, "iterations": iterations}
    normalization, color_noise = ("pixel", 0.1) if crop == "scale" else ("channel", 0.0)
    overrides = (f"data.crop={crop}", f"data.normalization={normalization}")
    more_overrides = (f"data.color_noise={color_noise}", "data.num_workers=0")

    with tempfile.TemporaryDirectory() as root:
        for split in ("train", "val"):
            (Path(root) / split).symlink_to(directory.absolute())
        config = compose_config("data=imagenet", f"data.root={root}", *overrides, *more_overrides)
        data = instantiate(config.data, **stream, _convert_="all")
        data.prepare_data()
        data.setup()

        def epoch() -> None:
            for batch in data.train_dataloader():
                data.on_after_batch_transfer(batch, 0)

        seconds = _seconds(epoch, IMAGENET_EPOCHS)
    return iterations * IMAGENET_BATCH * IMAGENET_EPOCHS / seconds


def pil_speed(directory: Path, crop: str) -> float:
    """Time torchvision's transforms of PIL images; see `imagenet_pipeline_speed`."""
    mean_image = torch.tensor(MEAN)[:, None, None].repeat(1, CROP_SIZE, CROP_SIZE)

    def random_resize(image: Image.Image) -> Image.Image:
        return transforms.functional.resize(image, int(torch.randint(256, 481, ())))

    def color_noise(image: Tensor) -> Tensor:
        color = torch.tensor(EIGENVECTORS) @ (torch.randn(3) * 0.1 * torch.tensor(EIGENVALUES))
        return image + color[:, None, None]

    steps = [transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    if crop == "scale":
        steps = [random_resize, transforms.RandomCrop(CROP_SIZE), *steps, color_noise]
        steps.append(lambda image: image - mean_image)
    else:
        steps = [transforms.RandomResizedCrop(CROP_SIZE), *steps, transforms.Normalize(MEAN, STD)]
    images = datasets.ImageFolder(str(directory), transforms.Compose(steps))
    loader = DataLoader(images, IMAGENET_BATCH, shuffle=True)

    def epoch() -> None:
        for _ in loader:
            pass

    return len(images) * IMAGENET_EPOCHS / _seconds(epoch, IMAGENET_EPOCHS)


def decoding_speed(directory: Path) -> float:
    """Time torchvision's JPEG decoder alone, which is the limit. All files must be JPEG."""
    paths = [str(path) for path in directory.glob("*/*")]

    def epoch() -> None:
        for path in paths:
            decode_jpeg(read_file(path), ImageReadMode.RGB)

    return len(paths) * IMAGENET_EPOCHS / _seconds(epoch, IMAGENET_EPOCHS)


def _seconds(function: Callable[[], object], calls: int = 1) -> float:
    """Return the seconds that so many calls take, after one that warms up."""
    function()
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return time.perf_counter() - start


def measure_eval(settings: Settings) -> list[Row]:
    """Measure the evaluation on CIFAR-10's 10,000 test images, each at its default precision."""
    net = settings.nets[0]
    tasks: dict[Case, Task] = {
        (net, "src.train", NATIVE): (src_train_eval_speed, (net, NATIVE)),
        (net, "plain loop", "32-true"): (plain_eval_speed, (net, "32-true")),
    }
    values = run_rounds(tasks, settings.repeats)
    return make_rows("eval", values, "images/s", _src_train(NATIVE))


def src_train_eval_speed(net: str, precision: str) -> float:
    """Time the evaluation that `src.train` ends with."""
    data_config = compose_config("data=cifar10", f"data.root={baselines.DATA_ROOT}").data
    data = instantiate(data_config, seed=0, _convert_="all")
    data.setup()
    trainer = Trainer(
        precision=precision,  # type: ignore[arg-type]
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
    )
    classifier = Classifier(make_net(net))

    def evaluate() -> None:
        trainer.test(classifier, datamodule=data, verbose=False)
        classifier.pop_eval_metrics()  # waits for the device

    return TEST_IMAGES / _seconds(evaluate)


def plain_eval_speed(net: str, precision: str) -> float:
    """Time the usual evaluation loop, with `.item()` at each step."""
    model, loader = make_net(net).eval(), baselines.conventional_loader(training=False)

    def evaluate() -> None:
        correct = 0
        with torch.no_grad(), baselines.autocast(precision):
            for images, labels in loader:
                predictions = model(images.to(DEVICE)).argmax(1)
                correct += (predictions == labels.to(DEVICE)).sum().item()

    return TEST_IMAGES / _seconds(evaluate)
