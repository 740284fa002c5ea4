"""CIFAR-100 (Krizhevsky 2009): as many images as CIFAR-10 and of its size, but 100 classes."""

from torchvision import datasets

from src.data.cifar10 import CIFAR10


class CIFAR100(CIFAR10):
    """The official Python files in `root`/cifar-100-python, with their 100 fine labels."""

    title = "CIFAR-100"
    dataset = datasets.CIFAR100
    folder = datasets.CIFAR100.base_folder
