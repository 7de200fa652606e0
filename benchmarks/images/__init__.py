"""Sources of images; importing this package registers all of them."""

from benchmarks.images import arrays, folder, lists, omniglot, torchvision_sets  # noqa: F401
