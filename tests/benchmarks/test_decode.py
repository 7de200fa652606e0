"""Decoding once: which pixels come out, what the cache keeps, and what happens to files that are no images."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image, ImageOps

from benchmarks.dataset import BenchmarkError
from benchmarks.formats import Prepared
from benchmarks.images.decode import FILES_PER_WORKER, decode, prepare_images

pytestmark = pytest.mark.usefixtures("cache")


def noise(height: int, width: int, seed: int = 0) -> numpy.ndarray:
    return numpy.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=numpy.uint8)


def written(folder: Path, count: int, pixels: int = 8) -> list[Path]:
    """So many different images; the first is ``0.png``."""
    folder.mkdir(exist_ok=True)
    files = [folder / f"{index:05}.png" for index in range(count)]
    for index, file in enumerate(files):
        Image.fromarray(noise(pixels, pixels, index)).save(file)
    return files


def channels_first(pixels: numpy.ndarray) -> torch.Tensor:
    return torch.from_numpy(numpy.ascontiguousarray(pixels.transpose(2, 0, 1)))


def contents(cache: Path) -> dict[str, int]:
    """Every file of the cache but the locks, and when it was written."""
    files = [f for f in cache.rglob("*") if f.is_file() and f.suffix != ".lock"]
    return {str(file): file.stat().st_mtime_ns for file in files}


def test_an_image_of_the_right_size_keeps_every_pixel(tmp_path: Path) -> None:
    files = written(tmp_path / "images", 3)
    prepared = prepare_images(files, 8, skip_bad=False)
    assert prepared.inputs.dtype == torch.uint8 and prepared.inputs.shape == (3, 3, 8, 8)
    for index, image in enumerate(prepared.inputs):
        assert torch.equal(image, channels_first(noise(8, 8, index)))
    assert prepared.kept.tolist() == [True] * 3 and prepared.fresh == 3 and prepared.bad == []


@pytest.mark.parametrize(("height", "width", "box"), [(4, 10, (3, 0, 7, 4)), (10, 4, (0, 3, 4, 7))])
def test_the_centre_is_cut_out(tmp_path: Path, height: int, width: int, box: tuple[int, int, int, int]) -> None:
    file = tmp_path / "wide.png"
    Image.fromarray(noise(height, width)).save(file)
    left, top, right, bottom = box
    expected = channels_first(noise(height, width)[top:bottom, left:right])
    assert torch.equal(prepare_images([file], 4, False).inputs[0], expected)


@pytest.mark.parametrize("size", [16, 64])
def test_the_short_side_is_resized_by_antialiased_bicubic_interpolation(tmp_path: Path, size: int) -> None:
    file = tmp_path / "large.png"
    whole = Image.fromarray(noise(32, 48))
    whole.save(file)
    resized = whole.resize((size * 3 // 2, size), Image.Resampling.BICUBIC)
    expected = resized.crop((size // 4, 0, size // 4 + size, size))
    assert torch.equal(prepare_images([file], size, False).inputs[0], channels_first(numpy.asarray(expected)))


def test_grey_palette_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    pixels = noise(6, 6)
    grey = Image.fromarray(pixels[..., 0])
    palette = Image.fromarray(pixels[..., 1] % 4)
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    transparent = Image.fromarray(numpy.dstack([pixels, pixels[..., :1]]))
    files = [tmp_path / f"{name}.png" for name in ("1_grey", "2_palette", "3_transparent")]
    for image, file in zip((grey, palette, transparent), files, strict=True):
        image.save(file)
    first, second, third = prepare_images(files, 6, False).inputs
    assert all(torch.equal(channel, torch.from_numpy(pixels[..., 0])) for channel in first)
    colours = numpy.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [100, 110, 120]], numpy.uint8)
    assert torch.equal(second, channels_first(colours[pixels[..., 1] % 4]))
    # Over white, by the alpha in the fourth channel.
    alpha = pixels[..., :1].astype(float) / 255
    assert third.float().numpy() == pytest.approx((pixels * alpha + 255 * (1 - alpha)).transpose(2, 0, 1), abs=1)


STRIPES = numpy.arange(0, 256, 4, dtype=numpy.uint8).reshape(8, 8)


def stored(image: Image.Image, file: Path, **options: Any) -> Path:
    image.save(file, **options)
    return file


def sixteen_bits(folder: Path, ending: str) -> Path:
    return stored(Image.fromarray(STRIPES.astype(numpy.uint16) * 257), folder / f"a{ending}")


FORMATS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "16 bits, png": (lambda folder: sixteen_bits(folder, ".png"), "images of 16 bits scaled to 8"),
    "16 bits, tiff": (lambda folder: sixteen_bits(folder, ".tif"), "images of 16 bits scaled to 8"),
    "32 bits, tiff": (
        lambda folder: stored(Image.fromarray(STRIPES.astype(numpy.int32) * 257), folder / "a.tif"),
        "images of 16 bits scaled to 8",
    ),
    "floats": (
        lambda folder: stored(Image.fromarray(STRIPES.astype(numpy.float32) / 255), folder / "a.tif"),
        "images of floats from 0 to 1 scaled to 8 bits",
    ),
    "two pages": (
        lambda folder: stored(
            Image.fromarray(STRIPES), folder / "a.tif", save_all=True, append_images=[Image.fromarray(255 - STRIPES)]
        ),
        "images of several frames or pages, of which the first is used",
    ),
    "CMYK": (
        lambda folder: stored(Image.fromarray(STRIPES).convert("RGB").convert("CMYK"), folder / "a.tif"),
        "images in CMYK converted to RGB",
    ),
    "opaque alpha": (lambda folder: stored(Image.fromarray(STRIPES).convert("LA"), folder / "a.png"), ""),
    "8 bits": (lambda folder: stored(Image.fromarray(STRIPES), folder / "a.png"), ""),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_picture_has_the_same_pixels_in_every_format_and_what_was_done_is_told(tmp_path: Path, name: str) -> None:
    """Told from the cache as well."""
    make, done = FORMATS[name]
    file = make(tmp_path)
    for fresh in (1, 0):
        prepared = prepare_images([file], 8, skip_bad=False)
        assert prepared.fresh == fresh
        assert prepared.inputs[0].float().numpy() == pytest.approx(numpy.stack([STRIPES] * 3).astype(float), abs=1)
        assert prepared.account.lines() == ([f"1 {done} (first: {file})"] if done else [])


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (numpy.full((4, 4), 70000, numpy.int32), "its values from 70000 to 70000 have no known range; convert it to"),
        (numpy.full((4, 4), -1, numpy.int32), "its values from -1 to -1 have no known range"),
        (numpy.full((4, 4), 254.5, numpy.float32), "its values from 254.5 to 254.5 have no known range; scale them"),
        (numpy.full((4, 4), numpy.nan, numpy.float32), "its values from nan to nan have no known range"),
    ],
)
def test_pixels_without_a_known_range_are_refused(tmp_path: Path, pixels: numpy.ndarray, reason: str) -> None:
    file = stored(Image.fromarray(pixels), tmp_path / "a.tif")
    with pytest.raises(BenchmarkError) as refused:
        prepare_images([file], 4, skip_bad=False)
    assert f"{file}: not a readable image ({reason}" in str(refused.value)


def test_a_photograph_taken_sideways_is_turned_upright(tmp_path: Path) -> None:
    file, exif = tmp_path / "sideways.png", Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    Image.fromarray(noise(8, 8)).save(file, exif=exif)
    expected = channels_first(numpy.rot90(noise(8, 8), -1))
    assert torch.equal(prepare_images([file], 8, False).inputs[0], expected)


def test_rows_come_in_the_order_asked_for_and_may_repeat(tmp_path: Path) -> None:
    files = written(tmp_path / "images", 4)
    whole = prepare_images(files, 8, False)
    asked = [3, 0, 2, 0, 1]
    other = prepare_images([files[i] for i in asked], 8, False)
    assert torch.equal(other.inputs, whole.inputs[torch.tensor(asked)])
    assert other.fresh == 0, "the same files in another order are the same entry"


def test_a_second_call_decodes_and_writes_nothing(tmp_path: Path, cache: Path) -> None:
    files = written(tmp_path / "images", 5)
    first = prepare_images(files, 8, False)
    before = contents(cache)
    second = prepare_images(files, 8, False)
    assert (first.fresh, second.fresh) == (5, 0)
    assert contents(cache) == before and len(before) == 4
    assert torch.equal(first.inputs, second.inputs)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what is mapped")
def test_the_cache_is_a_numpy_file_that_is_mapped_and_cannot_be_changed_by_a_reader(
    tmp_path: Path, cache: Path
) -> None:
    files = written(tmp_path / "images", 3)
    inputs = prepare_images(files, 8, False).inputs
    [array] = cache.rglob("images.npy")
    assert str(array) in Path("/proc/self/maps").read_text()
    inputs.zero_()
    assert torch.equal(torch.from_numpy(numpy.load(array))[2], channels_first(noise(8, 8, 2)))


def test_a_changed_file_and_another_size_make_another_entry(tmp_path: Path, cache: Path) -> None:
    files = written(tmp_path / "images", 3)
    prepare_images(files, 8, False)
    Image.fromarray(noise(8, 8, seed=9)).save(files[1])
    changed = prepare_images(files, 8, False)
    assert changed.fresh == 3
    assert torch.equal(changed.inputs[1], channels_first(noise(8, 8, 9)))
    os.utime(files[0], ns=(1, 1))
    assert prepare_images(files, 8, False).fresh == 3
    assert prepare_images(files, 4, False).fresh == 3
    assert len(list(cache.rglob("images.npy"))) == 4


@pytest.mark.parametrize("count", [FILES_PER_WORKER + 10, 10])
def test_many_files_are_decoded_by_workers_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    files = written(tmp_path / "images", count, pixels=2)
    processes = tmp_path / "processes"
    processes.mkdir()

    def noted(file: str, size: int) -> numpy.ndarray:
        (processes / str(os.getpid())).touch()
        return decode(file, size)

    monkeypatch.setattr("benchmarks.images.decode.decode", noted)
    prepared = prepare_images(files, 2, False)
    expected = torch.stack([channels_first(noise(2, 2, index)) for index in range(count)])
    assert torch.equal(prepared.inputs, expected) and prepared.fresh == count
    assert (str(os.getpid()) in os.listdir(processes)) == (count < FILES_PER_WORKER)


def test_decoding_leaves_the_runs_random_numbers_alone(tmp_path: Path) -> None:
    files = written(tmp_path / "images", 3)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    prepare_images(files, 8, False)
    assert torch.equal(torch.get_rng_state(), before)


def count_fresh(files: list[Path], start: object, answers: object) -> None:
    start.wait()  # type: ignore[attr-defined]
    answers.put(prepare_images(files, 8, False).fresh)  # type: ignore[attr-defined]


def test_two_processes_that_ask_at_once_decode_once(tmp_path: Path) -> None:
    files = written(tmp_path / "images", 200)
    context = multiprocessing.get_context("fork")
    start, answers = context.Barrier(2), context.Queue()
    both = [context.Process(target=count_fresh, args=(files, start, answers)) for _ in range(2)]
    for process in both:
        process.start()
    assert sorted(answers.get() for _ in both) == [0, 200]
    for process in both:
        process.join()


# --- files that are no images ---


def damaged(folder: Path) -> list[Path]:
    """Six files, of which the second is text, the fourth is cut off and the fifth is not there."""
    files = written(folder, 6)
    files[1].write_text("not an image")
    files[3].write_bytes(files[3].read_bytes()[:60])
    files[4].unlink()
    return files


def check_skipped(prepared: Prepared, files: list[Path]) -> None:
    assert prepared.kept.tolist() == [True, False, True, False, False, True]
    assert len(prepared.inputs) == 3
    for row, index in enumerate((0, 2, 5)):
        assert torch.equal(prepared.inputs[row], channels_first(noise(8, 8, index)))
    assert [line.partition(": ")[0] for line in prepared.bad] == [str(files[i]) for i in (1, 3, 4)]
    assert "cannot identify image file" in prepared.bad[0] and "No such file" in prepared.bad[2]


def test_bad_images_are_an_error_that_leaves_nothing_in_the_cache(tmp_path: Path, cache: Path) -> None:
    files = damaged(tmp_path / "images")
    with pytest.raises(BenchmarkError) as caught:
        prepare_images(files, 8, skip_bad=False)
    assert str(caught.value).startswith(f"{files[1]}: not a readable image (cannot identify image file")
    assert str(caught.value).endswith(
        "); 3 of 6 files are bad: repair or remove them, or leave them out with --skip-bad"
    )
    assert "\n" not in str(caught.value)
    assert [f for f in cache.iterdir() if f.suffix != ".lock"] == []


def test_bad_images_are_left_out_and_named_also_from_the_cache(tmp_path: Path) -> None:
    files = damaged(tmp_path / "images")
    first, second = (prepare_images(files, 8, skip_bad=True) for _ in range(2))
    assert (first.fresh, second.fresh) == (3, 0)
    check_skipped(first, files)
    check_skipped(second, files)
    backwards = prepare_images(files[::-1], 8, skip_bad=True)
    assert backwards.kept.tolist() == first.kept.tolist()[::-1]
    assert torch.equal(backwards.inputs, first.inputs.flip(0))


def test_what_was_left_out_once_is_an_error_again_for_who_did_not_allow_it(tmp_path: Path) -> None:
    files = damaged(tmp_path / "images")
    prepare_images(files, 8, skip_bad=True)
    with pytest.raises(BenchmarkError, match="3 of 6 files are bad"):
        prepare_images(files, 8, skip_bad=False)


def test_nothing_but_bad_images_gives_no_rows(tmp_path: Path) -> None:
    file = tmp_path / "text.png"
    file.write_text("no")
    prepared = prepare_images([file], 8, skip_bad=True)
    assert prepared.inputs.shape == (0, 3, 8, 8) and prepared.kept.tolist() == [False] and prepared.fresh == 0


def test_the_cut_is_the_one_of_pillow(tmp_path: Path) -> None:
    file = tmp_path / "odd.png"
    Image.fromarray(noise(37, 53)).save(file)
    expected = ImageOps.fit(Image.fromarray(noise(37, 53)), (16, 16), Image.Resampling.BICUBIC)
    assert torch.equal(prepare_images([file], 16, False).inputs[0], channels_first(numpy.asarray(expected)))
