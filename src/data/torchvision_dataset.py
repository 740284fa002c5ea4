"""Datasets held in memory that torchvision reads and downloads."""

from abc import abstractmethod
from pathlib import Path
from typing import Any

from torchvision.datasets import VisionDataset
from torchvision.datasets.utils import check_integrity

from src.data.in_memory import ImagesInMemory
from src.runs.lock import wait_for_lock


class TorchvisionDataset(ImagesInMemory):
    """Official files below `root`, checked before they are read.

    Args:
        root: Directory that holds `folder`.
        download: Download the files if they are missing or damaged.
        **common: Arguments of `ImagesInMemory`.

    Attributes:
        title: Its name in messages.
        dataset: torchvision's class.
        folder: The directory below `root` that torchvision expects the files in.
    """

    title: str
    dataset: type[VisionDataset]
    folder: str

    def __init__(self, root: str, download: bool, **common: Any) -> None:
        super().__init__(**common)
        self.root, self.download = root, download

    @abstractmethod
    def files(self) -> list[tuple[str, str | None]]:
        """Return the names of the files in `folder`, each with its MD5 if that is known."""

    def prepare_data(self) -> None:
        """Check the files and download them if necessary.

        Raises:
            FileNotFoundError: If files are missing or damaged and cannot be downloaded.
        """
        folder = Path(self.root) / self.folder
        wrong = self._wrong_files(folder)
        if not wrong:
            return

        problem = (
            f"{self.title} is incomplete in {folder.absolute()} "
            f"({', '.join(wrong)} missing or damaged)"
        )
        remedy = f"put the official files there or set data.root= to what holds {self.folder}"
        if not self.download:
            raise FileNotFoundError(f"{problem}: {remedy}, or set data.download=true")
        try:
            Path(self.root).mkdir(parents=True, exist_ok=True)
            # Several processes may start at once, and would write into the same files.
            with wait_for_lock(Path(self.root) / "download.lock"):
                if self._wrong_files(folder):
                    self.dataset(self.root, download=True)
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"{problem} and could not be downloaded ({error}): {remedy}"
            ) from error

    def _wrong_files(self, folder: Path) -> list[str]:
        # torchvision's own check says only that something is wrong, not which file.
        return [name for name, md5 in self.files() if not check_integrity(folder / name, md5)]
