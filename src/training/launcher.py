"""The Hydra launcher `devices`: one process per run of a sweep, each with GPUs of its own.

This module is imported at every start and must not import torch.
"""

import sys
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from src.runs.run_dir import RunDir
from src.training.devices import find_slots
from src.training.mps import mps_daemon
from src.training.sweep import Sweep, SweepError
from src.training.sweep_job import Job

# Hydra accepts launchers from its `hydra_plugins` package alone, so a launcher takes a name in it.
PLUGIN_MODULE = "hydra_plugins.deep_residual"
ConfigStore.instance().store(
    "devices", {"_target_": f"{PLUGIN_MODULE}.DevicesLauncher"}, "hydra/launcher"
)


class SweepLauncher(Launcher):
    """Compose the configs of all runs, then run them: a wrong value ends a sweep before it starts.

    The entry point subclasses this as `DevicesLauncher`.
    """

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what Hydra hands over for `launch`."""
        self.load_config = hydra_context.config_loader.load_sweep_config
        self.config = config

    @abstractmethod
    def find_run_dir(self, config: DictConfig) -> RunDir:
        """Return the run directory that belongs to a composed config."""

    @staticmethod
    @abstractmethod
    def run(run_dir: RunDir) -> None:
        """Execute a run, in a process of its own."""

    @abstractmethod
    def on_sweep_end(self, run_dirs: Sequence[RunDir]) -> None:
        """Do what follows when no run is left, also if some failed."""

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run the jobs, and return one result for each, in order.

        Hydra's sweeper raises the error of the first failed job only, so the error raised here
        is that of the whole sweep.
        """
        configs = [self.load_config(self.config, list(overrides)) for overrides in job_overrides]
        jobs = []
        for config in configs:
            HydraConfig.instance().set_config(config)
            arguments = [*search_path(config), *config.hydra.overrides.task]
            jobs.append(Job(self.find_run_dir(config), arguments))

        trainer, sweep = jobs[0].run_dir.config["trainer"], jobs[0].run_dir.config["sweep"]
        slots, threads = find_slots(trainer["accelerator"], sweep["jobs_per_device"])
        mps: AbstractContextManager[dict[str, str]] = (
            mps_daemon(slots) if sweep["mps"] else nullcontext({})
        )
        run_dirs = [job.run_dir for job in jobs]
        try:
            with mps as environment:
                Sweep(jobs, slots, threads, self.run, environment).run()
        except SweepError:
            self.on_sweep_end(run_dirs)
            raise
        self.on_sweep_end(run_dirs)
        return [
            JobReturn(overrides, config, config.hydra, status=JobStatus.COMPLETED)
            for overrides, config in zip(job_overrides, configs, strict=True)
        ]


def search_path(config: DictConfig) -> list[str]:
    """Return the arguments that told Hydra where else to look for config files."""
    sources = config.hydra.runtime.config_sources
    given = [source.path for source in sources if source.provider == "command-line"]
    own = [text for text in config.hydra.overrides.hydra if "searchpath" in text]
    return [*(f"--config-dir={path}" for path in given), *own]


def register_launcher(launcher: type[SweepLauncher]) -> None:
    """Make `hydra/launcher=devices` use a subclass of `SweepLauncher`, named `DevicesLauncher`."""
    launcher.__module__ = PLUGIN_MODULE
    module = ModuleType(PLUGIN_MODULE)
    vars(module)[launcher.__name__] = launcher
    sys.modules[PLUGIN_MODULE] = module
    Plugins.instance().register(launcher)
