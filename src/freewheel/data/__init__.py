"""Data sets with recorded sums: two inside the package, two that are downloaded.

    fashion_mnist_small(split)     embedded: 10,000 training, 2,000 test images
    tiny_shakespeare()             embedded: 1.1 million characters
    fashion_mnist(split)           60,000 and 10,000 images, downloaded
    cifar10(split)                 50,000 and 10,000 images, downloaded
    catalogue()                    what there is, where it comes from, whether it is here

``FREEWHEEL_DATA`` names a folder that already holds sets; ``FREEWHEEL_CACHE`` names the one that downloads
and decoded copies go to (``~/.cache/freewheel`` by default). Nothing that is read is ever unpickled.
"""

from __future__ import annotations

from freewheel.data.catalogue import DataSet as DataSet
from freewheel.data.catalogue import catalogue as catalogue
from freewheel.data.cifar import cifar10 as cifar10
from freewheel.data.fashion import fashion_mnist as fashion_mnist
from freewheel.data.images import Images as Images
from freewheel.data.shakespeare import Text as Text
from freewheel.data.shakespeare import text_of as text_of
from freewheel.data.shakespeare import tiny_shakespeare as tiny_shakespeare
from freewheel.data.small import fashion_mnist_small as fashion_mnist_small

__all__ = [
    "DataSet",
    "Images",
    "Text",
    "catalogue",
    "cifar10",
    "fashion_mnist",
    "fashion_mnist_small",
    "text_of",
    "tiny_shakespeare",
]
