"""Print what only a GPU can tell about the training step, in about two minutes and without data.

Run it in the repository's root: `PYTHONPATH=. python experiments/gpu/probe.py`. On a machine
without a GPU it goes through the parts that a CPU has, with few iterations.
"""

import collections
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn import functional as F

from src.data.in_memory import ImagesInMemory
from src.models.resnet import resnet
from src.tasks.classification import ErrorMeter
from src.training.cuda_graph import CUDAGraphStep

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
CALLS = 300 if ON_GPU else 2


def report(name: str, value: object) -> None:
    print(f"{name:60s} {value}", flush=True)


def synchronize() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def time_calls(function: Callable[[], object], calls: int = CALLS) -> str:
    """Return the microseconds of a call: until the CPU is free, and until the device is done."""
    for _ in range(6):
        function()
    synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        function()
    cpu_time = time.perf_counter() - start
    synchronize()
    total = time.perf_counter() - start
    return f"CPU {1e6 * cpu_time / calls:8.1f} us   total {1e6 * total / calls:8.1f} us"


def machine() -> None:
    cuda, cudnn = torch.version.cuda, torch.backends.cudnn.version()
    report("torch, CUDA, cuDNN", f"{torch.__version__} {cuda} {cudnn}")
    report(
        "device, CPU cores", f"{torch.cuda.get_device_name() if ON_GPU else 'cpu'} {os.cpu_count()}"
    )
    # Lightning would ask this if the Trainer were not told who started the process.
    question = "from mpi4py import MPI; print(MPI.COMM_WORLD.Get_size())"
    try:
        done = subprocess.run(
            [sys.executable, "-c", question], capture_output=True, text=True, timeout=30
        )
        answer = (done.stdout + done.stderr).strip().splitlines()[-1][:100]
    except subprocess.TimeoutExpired:
        answer = "hangs"
    report("mpi4py: world size, or why not", answer)


def small_copies() -> None:
    """Does a copy from unpinned memory wait for the kernels before it?"""
    for size in (4096, 65536, 262144):
        for pinned in (False, True):
            source = torch.zeros(size // 8, dtype=torch.int64, pin_memory=pinned)
            source.to(DEVICE, non_blocking=True)
            synchronize()
            torch.cuda._sleep(200_000_000)  # about 0.1 s of work
            start = time.perf_counter()
            source.to(DEVICE, non_blocking=True)
            waited = 1e6 * (time.perf_counter() - start)
            report(
                f"copy of {size} bytes, pinned={pinned}, behind 0.1 s of work", f"{waited:.0f} us"
            )
            synchronize()


def lr_in_a_graph() -> None:
    """Does a graph read a changed learning rate, and are its weights those of an eager step?"""

    def train(lr: float, captured: bool) -> torch.Tensor:
        torch.manual_seed(0)
        weights = torch.nn.Parameter(torch.randn(10_000, device=DEVICE))
        gradients = torch.randn(8, 10_000, device=DEVICE)
        value = torch.tensor(lr, device=DEVICE) if captured else lr
        optimizer = torch.optim.SGD(
            [weights], lr=value, momentum=0.9, weight_decay=1e-4, fused=True
        )
        weights.grad = torch.zeros_like(weights)

        def step(gradient: torch.Tensor) -> None:
            weights.grad.copy_(gradient)
            optimizer.step()

        run = CUDAGraphStep(step) if captured else step
        for i, gradient in enumerate(gradients):
            if i == 6:
                reduced = float(np.float32(lr / 10))
                value.fill_(reduced) if captured else optimizer.param_groups[0].update(lr=reduced)
            run(gradient)
        return weights.detach()

    for lr in (0.1, float(np.float32(0.1))):
        eager, captured = train(lr, False), train(lr, True)
        different = int((eager != captured).sum())
        report(f"graph and eager step, lr={lr!r}", f"{different} of 10000 weights differ")


def capture_while_pinning() -> None:
    """Why a capture must allow CUDA calls in other threads."""
    for mode in ("thread_local", "global"):
        stop, errors = threading.Event(), []

        def pin_memory(stop: threading.Event = stop, errors: list[str] = errors) -> None:
            kept = []
            try:
                while not stop.is_set() and len(kept) < 2000:
                    kept.append(torch.empty(2**20, dtype=torch.uint8).pin_memory())
            except RuntimeError as error:
                errors.append(str(error).splitlines()[0][:90])

        x, graph = torch.randn(512, 512, device=DEVICE), torch.cuda.CUDAGraph()
        x @ x
        thread = threading.Thread(target=pin_memory)
        thread.start()
        try:
            with torch.cuda.graph(graph, capture_error_mode=mode):
                for _ in range(3000):
                    x @ x
            result = "captured"
        except RuntimeError as error:
            result = f"failed: {str(error).splitlines()[0][:80]}"
        stop.set()
        thread.join()
        report(f"capture next to a pinning thread, {mode}", f"{result}; thread: {errors or 'fine'}")


class RandomImages(ImagesInMemory):
    """As many random images as CIFAR-10 has; fewer on a CPU."""

    def read(self) -> tuple[np.ndarray, ...]:
        rng, count = np.random.default_rng(0), 50_000 if ON_GPU else 600
        images = rng.integers(0, 256, (count + count // 5, 32, 32, 3), dtype=np.uint8)
        labels = rng.integers(0, 10, len(images))
        return images[:count], labels[:count], images[count:], labels[count:]


def random_images() -> RandomImages:
    data = RandomImages(0, "pixel", 4, True, seed=0, batch_size=128, iterations=100_000)
    strategy = SimpleNamespace(root_device=DEVICE)
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, strategy=strategy)
    data.setup()
    return data


def batches() -> None:
    data = random_images()
    stream = data.train_dataloader()
    numbers = iter(range(10**6))
    report("choices of a batch", time_calls(lambda: stream.batch(next(numbers))))
    batch = stream.batch(0)
    report("its augmentation, eager", time_calls(lambda: data.augment(*batch)))


def steps() -> None:
    torch.backends.cudnn.benchmark = True
    data = random_images()
    batch = data.train_dataloader().batch(0)
    modes = ("none", "cudagraph", "inductor", "inductor+cudagraph") if ON_GPU else ("none",)
    for n in (3, 9) if ON_GPU else (1,):
        for mode in modes:
            time_steps(data, batch, n, mode)


def time_steps(data: RandomImages, batch: tuple[torch.Tensor], n: int, mode: str) -> None:
    """Time the training step of a residual net, with augmentation and counting."""
    torch.manual_seed(0)
    net = resnet(n, "A", 10, "fan_in").to(DEVICE).to(memory_format=torch.channels_last)
    meter = ErrorMeter().to(DEVICE)
    if "inductor" in mode:
        net.compile()
    lr = torch.tensor(0.1, device=DEVICE)
    optimizer = torch.optim.SGD(
        net.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4, fused=True
    )

    def step(choices: torch.Tensor) -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, cache_enabled=False):
            images, labels = data.augment(choices)
            logits = net(images)
            loss = F.cross_entropy(logits, labels)
            meter.update(logits.detach(), labels, loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    run = CUDAGraphStep(step) if "cudagraph" in mode else step
    start = time.perf_counter()
    for _ in range(5):
        run(*batch)
    synchronize()
    first = time.perf_counter() - start
    name = f"resnet{6 * n + 2} {mode}"
    report(f"{name}: the first five steps {first:.1f} s", time_calls(lambda: run(*batch)))
    if ON_GPU:
        report_kernels(lambda: run(*batch))
        report("    peak memory", f"{torch.cuda.max_memory_allocated() / 2**20:.0f} MiB")


def report_kernels(step: Callable[[], object]) -> None:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        step()
        synchronize()
    kernels = [e for e in profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    total = sum(event.time_range.elapsed_us() for event in kernels)
    report("    kernels, and their time", f"{len(kernels)}, {total:.0f} us")
    names = collections.Counter(event.name[:70] for event in kernels)
    for name, count in names.most_common(6):
        report(f"        {count} x", name)


def evaluation() -> None:
    data = random_images()
    net = resnet(3, "A", 10, "fan_in").to(DEVICE).to(memory_format=torch.channels_last).eval()
    loader = data.test_dataloader()

    def evaluate() -> None:
        with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16, cache_enabled=False):
            for images, _ in loader:
                net(images)

    count = len(data.test_labels)
    report(f"evaluating {count} images", time_calls(evaluate, 20 if ON_GPU else 1))
    tensors = list(net.state_dict().values())
    separate = time_calls(lambda: all(t.isfinite().all() for t in tensors), 20)
    together = time_calls(
        lambda: bool(torch.stack([t.isfinite().all() for t in tensors]).all()), 20
    )
    report("are all weights finite, one by one", separate)
    report("are all weights finite, at once", together)


def main() -> None:
    on_any_device = [machine, batches, steps, evaluation]
    on_gpu = [small_copies, lr_in_a_graph, capture_while_pinning]
    for part in on_any_device + (on_gpu if ON_GPU else []):
        try:
            part()
        except Exception as error:  # the other parts still tell something
            report(f"FAILED {part.__name__}", f"{type(error).__name__}: {str(error)[:150]}")
            traceback.print_exc(limit=4)


if __name__ == "__main__":
    main()
