"""CIFAR-100: 50,000 training and 10,000 test pictures of 32 x 32 pixels in colour, 100 classes.

Read from the binary version: rows of a byte for the superclass, which is not used, one for the
class, and 3,072 pixel bytes, red, green, blue.

Source: A. Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images",
https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

from pathlib import Path

from nestling.data.cifar import Version, read_version
from nestling.data.download import Remote
from nestling.data.memory import MemoryDataset

CLASSES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
    cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
    lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
VERSION = Version(
    name="cifar100",
    archive=Remote(
        address="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
    ),
    folder="cifar-100-binary",
    train_files=("train.bin",),
    test_file="test.bin",
    label_bytes=2,
    classes=tuple(CLASSES.split()),
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)


def read(folder: Path, *, download: bool) -> MemoryDataset:
    """Read CIFAR-100 from `folder/cifar-100-binary`, fetching that folder if it is absent.

    Shorter files than the canonical ones are fine as long as they are whole rows.

    Raises:
        DataError: files are absent and cannot be fetched, or are damaged.
    """
    return read_version(VERSION, folder, download=download)
