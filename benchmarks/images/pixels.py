"""Any picture that Pillow reads as red, green and blue of 8 bits each, and a word for what was done to it.

A rule depends on the format alone, never on the values of one picture: pictures of one data set stay comparable.
"""

from __future__ import annotations

from typing import Any

import numpy
from PIL import Image, ImageOps

PLAIN = ("RGB", "L", "1", "P")
ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")
WHITE = "white"


class UnknownRangeError(ValueError):
    """Pixels whose format does not say which value is white."""


def upright(image: Image.Image) -> tuple[Image.Image, str]:
    """``image`` in RGB, turned as its EXIF says, and what else was done; "" for a picture of 8 bits without alpha.

    Of several frames or pages the first counts. ValueError for pixels without a known range.
    """
    several = getattr(image, "n_frames", 1) > 1
    found, done = in_rgb(ImageOps.exif_transpose(image))
    return found, done or several * "images of several frames or pages, of which the first is used"


def in_rgb(image: Image.Image) -> tuple[Image.Image, str]:
    mode = image.mode
    if mode.startswith("I;16"):
        return scaled(image, 65535), "images of 16 bits scaled to 8"
    if mode == "I":
        return whole_numbers(image)
    if mode == "F":
        return floats(image)
    if mode in ALPHA or "transparency" in image.info:
        return over_white(image)
    return image.convert("RGB"), "" if mode in PLAIN else f"images in {mode} converted to RGB"


def scaled(image: Image.Image, white: float) -> Image.Image:
    """Grey pixels from 0 to ``white``, rounded to 8 bits."""
    values = numpy.asarray(image).astype(numpy.float64) * (255 / white)
    return Image.fromarray(values.round().astype(numpy.uint8)).convert("RGB")


def whole_numbers(image: Image.Image) -> tuple[Image.Image, str]:
    """Pillow's 32 bits are how it holds 16 of some formats."""
    low, high = extrema(image)
    if low < 0 or high > 65535:
        raise UnknownRangeError(f"its values from {low} to {high} have no known range; convert it to 8 or 16 bits")
    return scaled(image, 65535), "images of 16 bits scaled to 8"


def floats(image: Image.Image) -> tuple[Image.Image, str]:
    low, high = extrema(image)
    if not (low >= 0 and high <= 1):  # also where they are NaN
        raise UnknownRangeError(f"its values from {low:g} to {high:g} have no known range; scale them to 0 to 1")
    return scaled(image, 1), "images of floats from 0 to 1 scaled to 8 bits"


def extrema(channel: Image.Image) -> Any:
    """Smallest and largest value."""
    return channel.getextrema()


def over_white(image: Image.Image) -> tuple[Image.Image, str]:
    """Transparent pixels have a colour too, which nobody was meant to see."""
    whole = image.convert("RGBA")
    if extrema(whole.getchannel("A"))[0] == 255:
        return whole.convert("RGB"), ""
    return Image.alpha_composite(Image.new("RGBA", whole.size, WHITE), whole).convert("RGB"), (
        "transparent images laid over white"
    )
