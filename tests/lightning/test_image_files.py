"""Every mode that Pillow knows, held against samples by hand in float64: right to half a level, or refused by name."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from invconv import InputError, OutOfMemoryError, cli
from invconv.engine import memory
from invconv.lightning import command
from invconv.lightning.image_files import MOST_STRETCHED, cover, read_picture
from invconv.lightning.image_modes import picture_of

HALF = 0.5 + 1e-9
"""A level, rounded, is as near as this."""


def random(*shape: int, top: int = 255) -> np.ndarray:
    """Samples in which black and white are among them."""
    values = np.random.default_rng(0).integers(top + 1, size=shape, dtype=np.int64)
    values.reshape(-1, shape[-1] if len(shape) > 2 else 1)[:2] = [[0], [top]]
    return values


def over_white(colours: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Colours between 0 and 1 over white."""
    return colours * opacity + 1 - opacity


def check(picture: Any, expected: np.ndarray) -> None:
    """Levels are the nearest to values between 0 and 1."""
    levels = np.asarray(picture.image).astype(float)
    assert picture.image.mode == ("L" if expected.ndim == 2 else "RGB")
    assert levels.shape == expected.shape
    assert np.abs(levels - 255 * expected.clip(0, 1)).max() <= HALF


# -- modes ---------------------------------------------------------------------------------------------------------


def in_memory(mode: str, values: np.ndarray) -> Image.Image:
    """An image of any mode with these bytes."""
    return Image.frombytes(mode, (values.shape[1], values.shape[0]), values.tobytes())


def of_ycbcr(v: np.ndarray) -> np.ndarray:
    y, cb, cr = (v[..., k] / 255 for k in range(3))
    cb, cr = cb - 128 / 255, cr - 128 / 255
    return np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1)


PALETTE = np.random.default_rng(1).integers(256, size=(256, 3))
WAYS: dict[str, tuple[int, Callable[[np.ndarray], np.ndarray]]] = {
    "L": (1, lambda v: v / 255),
    "RGB": (3, lambda v: v / 255),
    "RGBX": (4, lambda v: v[..., :3] / 255),
    "CMYK": (4, lambda v: (1 - v[..., :3] / 255) * (1 - v[..., 3:] / 255)),
    "YCbCr": (3, of_ycbcr),
    "LA": (2, lambda v: over_white(v[..., 0] / 255, v[..., 1] / 255)),
    "La": (2, lambda v: v[..., 0] / 255 + 1 - v[..., 1] / 255),
    "RGBA": (4, lambda v: over_white(v[..., :3] / 255, v[..., 3:] / 255)),
    "RGBa": (4, lambda v: v[..., :3] / 255 + 1 - v[..., 3:] / 255),
    "P": (1, lambda v: PALETTE[v] / 255),
    "PA": (2, lambda v: over_white(PALETTE[v[..., 0]] / 255, v[..., 1:] / 255)),
}
"""Modes of 8 bits: samples in a pixel, and what they mean."""
OF_16_BITS = {"I;16": "<u2", "I;16L": "<u2", "I;16B": ">u2", "I;16N": "=u2"}
OTHERS = {"1", "F"}
REFUSED = {"HSV", "LAB", "I"}


def test_every_mode_of_pillow_is_here() -> None:
    assert set(Image.MODES) <= {*WAYS, *OF_16_BITS, *OTHERS, *REFUSED}


@pytest.mark.parametrize("mode", WAYS)
def test_modes_of_8_bits(mode: str) -> None:
    samples, meaning = WAYS[mode]
    values = random(61, 43, samples) if samples > 1 else random(61, 43)
    if mode in ("La", "RGBa"):
        values[..., :-1] = np.minimum(values[..., :-1], values[..., -1:])
    image = in_memory(mode, values.astype(np.uint8))
    if mode.startswith("P"):
        image.putpalette(PALETTE.astype(np.uint8).tobytes())
    picture = picture_of(image, "it")
    check(picture, meaning(values))
    assert bool(picture.remarks) == (mode[-1] in "Aa"), "transparency is spoken of"


@pytest.mark.parametrize("mode", OF_16_BITS)
def test_modes_of_16_bits(mode: str) -> None:
    values = random(61, 43, top=65535)
    check(picture_of(in_memory(mode, values.astype(OF_16_BITS[mode])), "it"), values / 65535)


def test_bits_and_floats() -> None:
    values = random(16, 24, top=1)
    check(picture_of(Image.fromarray(values.astype(bool)), "it"), values / 1.0)
    floats = np.random.default_rng(2).random((30, 20), np.float32)
    check(picture_of(Image.fromarray(floats), "it"), floats.astype(float))


@pytest.mark.parametrize("mode", sorted(REFUSED))
def test_modes_without_a_known_black_and_white_are_refused(mode: str) -> None:
    with pytest.raises(InputError, match=rf"photo\.tif has .*mode {mode}.*save it as"):
        picture_of(Image.new(mode, (4, 4)), "photo.tif")


@pytest.mark.parametrize(
    ("values", "found"),
    [([0, 200.5], "0 to 200.5"), ([-0.1, 1], "-0.1 to 1"), ([0, np.nan], "nan"), ([0, np.inf], "inf")],
)
def test_floats_beyond_black_and_white_are_refused(tmp_path: Path, values: list[float], found: str) -> None:
    tifffile.imwrite(tmp_path / "float.tif", np.tile(np.array(values, np.float32), (4, 2)))
    with pytest.raises(InputError, match=rf"float\.tif has floats from .*{found}.*0 \(black\) to 1 \(white\)"):
        read_picture(tmp_path / "float.tif")


def test_a_grey_palette_is_grey() -> None:
    image = in_memory("P", random(8, 8).astype(np.uint8))
    image.putpalette(np.repeat(np.arange(256), 3).astype(np.uint8)[::-1].tobytes())
    check(picture_of(image, "it"), 1 - random(8, 8) / 255)


# -- files ---------------------------------------------------------------------------------------------------------


def png(values: np.ndarray, colours: int, depth: int = 16, key: bytes = b"") -> bytes:
    """A PNG file by hand, with samples of 8 or 16 bits, and a colour that means transparency."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    lines = b"".join(b"\0" + row.astype(f">u{depth // 8}").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, colours, 0, 0, 0)
    parts = chunk(b"IHDR", head) + (chunk(b"tRNS", key) if key else b"")
    return b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("colours", "samples"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_png_of_16_bits(tmp_path: Path, colours: int, samples: int) -> None:
    values = random(33, 21, samples, top=65535)
    (tmp_path / "deep.png").write_bytes(png(values, colours))
    s = values / 65535
    expected = s if samples in (1, 3) else over_white(s[..., :-1], s[..., -1:])
    check(read_picture(tmp_path / "deep.png"), expected[..., 0] if samples < 3 else expected)


@pytest.mark.parametrize(("colours", "samples"), [(0, 1), (2, 3)])
@pytest.mark.parametrize("depth", [8, 16])
def test_png_with_a_colour_for_transparency(tmp_path: Path, colours: int, samples: int, depth: int) -> None:
    values = random(20, 20, samples, top=2**depth - 1)
    values[3:9, 4:7] = key = values[10, 10].copy()
    values[15, 15] = key ^ 1  # as good as the same colour, but not it
    (tmp_path / "key.png").write_bytes(png(values, colours, depth, key.astype(">u2").tobytes()))
    opacity = (values != key).any(-1, keepdims=True)
    expected = over_white(values / (2**depth - 1), opacity)
    picture = read_picture(tmp_path / "key.png")
    check(picture, expected[..., 0] if samples == 1 else expected)
    assert any("laid over white" in remark for remark in picture.remarks)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_png_of_few_bits_with_a_grey_for_transparency(tmp_path: Path, bits: int) -> None:
    values = random(9, 16, top=2**bits - 1)
    packed = np.packbits(np.unpackbits(values.astype(np.uint8)[..., None], -1)[..., -bits:].reshape(9, -1), -1)
    file = bytearray(png(packed, 0, 8, struct.pack(">H", 1)))
    file[16:20], file[24:25] = struct.pack(">I", 16), bytes([bits])  # the width, and the depth
    file[29:33] = struct.pack(">I", zlib.crc32(file[12:29]))
    (tmp_path / "few.png").write_bytes(file)
    check(read_picture(tmp_path / "few.png"), over_white(values / (2**bits - 1), values != 1))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize(
    ("samples", "options", "meaning"),
    [
        (1, {"photometric": "minisblack"}, lambda s: s),
        (1, {"photometric": "miniswhite"}, lambda s: 1 - s),
        (3, {"photometric": "rgb"}, lambda s: s),
        (3, {"photometric": "rgb", "planarconfig": "separate"}, lambda s: s),
        (4, {"photometric": "rgb", "extrasamples": ["unassalpha"]}, lambda s: over_white(s[..., :3], s[..., 3:])),
        (4, {"photometric": "rgb", "extrasamples": ["assocalpha"]}, lambda s: s[..., :3] + 1 - s[..., 3:]),
        (4, {"photometric": "rgb", "extrasamples": ["unspecified"]}, lambda s: s[..., :3]),
        (
            4,
            {"photometric": "rgb", "planarconfig": "separate", "extrasamples": ["assocalpha"]},
            lambda s: s[..., :3] + 1 - s[..., 3:],
        ),
        (
            4,
            {"photometric": "rgb", "planarconfig": "separate", "extrasamples": ["unassalpha"]},
            lambda s: over_white(s[..., :3], s[..., 3:]),
        ),
        (
            5,
            {"photometric": "rgb", "extrasamples": ["assocalpha", "unspecified"]},
            lambda s: s[..., :3] + 1 - s[..., 3:4],
        ),
        (4, {"photometric": "separated"}, lambda s: (1 - s[..., :3]) * (1 - s[..., 3:])),
        (2, {"photometric": "minisblack", "extrasamples": ["unassalpha"]}, lambda s: over_white(s[..., 0], s[..., 1])),
    ],
    ids=[
        "grey",
        "inverted",
        "rgb",
        "planes",
        "alpha",
        "premultiplied",
        "padded",
        "premultiplied planes",
        "alpha plane",
        "padded premultiplied",
        "cmyk",
        "grey-alpha",
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_tiff_is_right_or_refused(
    tmp_path: Path, order: Any, compression: Any, samples: int, options: dict[str, Any], meaning: Any, dtype: Any
) -> None:
    top = 1 if dtype is np.float32 else np.iinfo(dtype).max
    values = random(17, 23, samples, top=65535) / 65535 * top
    values = values.astype(np.float32) if top == 1 else np.rint(values).astype(dtype)
    if "assocalpha" in options.get("extrasamples", ()):
        values[..., :3] = np.minimum(values[..., :3], values[..., 3:4])
    stored = values.transpose(2, 0, 1) if "planarconfig" in options else values
    file = tmp_path / "picture.tif"
    tifffile.imwrite(
        file, stored[..., 0] if samples == 1 else stored, byteorder=order, compression=compression, **options
    )
    try:
        picture = read_picture(file)
    except InputError as error:
        refusal = str(error)
    else:
        expected = meaning(values.astype(float) / top)
        check(picture, expected[..., 0] if samples == 1 else expected)
        return
    assert "picture.tif" in refusal, "by name"
    planes, deep = "planarconfig" in options, dtype is not np.uint8
    common = samples == 1 and (order == "<" or "white" not in options["photometric"])
    common |= samples in (3, 4) and not deep and not (planes and "assocalpha" in options.get("extrasamples", ()))
    common |= samples == 3 and dtype is np.uint16 and not planes
    assert not common, "read by all"


def tiff(words: bytes, tags: dict[int, int]) -> bytes:
    """A little-endian TIFF file by hand, in one strip; tags of one short number each."""
    tags = {273: 8, 278: tags[257], 279: len(words), 277: 1, 259: 1, **tags}
    body = struct.pack("<2sHI", b"II", 42, 8 + len(words)) + words + struct.pack("<H", len(tags))
    return body + b"".join(struct.pack("<HHIHH", tag, 3, 1, tags[tag], 0) for tag in sorted(tags)) + bytes(4)


def test_tiff_of_12_bits(tmp_path: Path) -> None:
    values = random(8, 12, top=4095)
    pairs = values.reshape(-1, 2)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], -1)
    (tmp_path / "12.tif").write_bytes(tiff(packed.astype(np.uint8).tobytes(), {256: 12, 257: 8, 258: 12, 262: 1}))
    picture = read_picture(tmp_path / "12.tif")
    check(picture, values / 4095)
    assert not picture.remarks


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.uint32, np.float16, np.float64, np.int64])
def test_tiff_of_other_kinds_is_refused(tmp_path: Path, dtype: Any) -> None:
    tifffile.imwrite(tmp_path / "other.tif", np.ones((4, 4), dtype))
    with pytest.raises(InputError, match=r"other\.tif"):
        read_picture(tmp_path / "other.tif")


def test_pgm_has_its_white_in_its_head(tmp_path: Path) -> None:
    for top in (200, 255, 4095, 65535):
        values = random(5, 7, top=top)
        body = values.astype(">u2" if top > 255 else np.uint8).tobytes()
        (tmp_path / "grey.pgm").write_bytes(b"P5 7 5 %d\n" % top + body)
        levels = np.asarray(read_picture(tmp_path / "grey.pgm").image)
        # Pillow itself scales to 8 or 16 bits, and rounds.
        assert np.abs(levels - 255 * values / top).max() <= 0.5 + 1 / 256


def test_twelve_bits_in_sixteen_are_spoken_of(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "dark.tif", random(8, 8, top=4095).astype(np.uint16))
    picture = read_picture(tmp_path / "dark.tif")
    check(picture, random(8, 8, top=4095) / 65535)
    assert "no value above 4095" in picture.remarks[0]
    tifffile.imwrite(tmp_path / "bright.tif", random(8, 8, top=4096).astype(np.uint16))
    assert not read_picture(tmp_path / "bright.tif").remarks


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(tmp_path: Path, ending: str, orientation: int) -> None:
    # Four quarters in colours that survive compression: red, green; blue, white.
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :24], upright[:16, 24:], upright[16:, :24], upright[16:][:, 24:] = (
        (250, 0, 0),
        (0, 250, 0),
        (0, 0, 250),
        (250, 250, 250),
    )
    lain = {  # how a file holds it, by the definition of the tag
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.ascontiguousarray(lain)).save(tmp_path / f"turned.{ending}", exif=exif)
    seen = np.asarray(read_picture(tmp_path / f"turned.{ending}").image).astype(int)
    assert seen.shape == upright.shape
    assert np.abs(seen - upright)[4:-4:8, 4:-4:8].max() < 60


@pytest.mark.parametrize("kind", ["level", "grey", "rgb", "premultiplied", "float"])
def test_other_kinds_of_tiff_are_turned_as_well(tmp_path: Path, kind: str) -> None:
    # Each of them is read in a way of its own.
    options: dict[str, Any] = {"extratags": [(274, 3, 1, 6, True)], "photometric": "minisblack"}
    if kind in ("grey", "rgb"):
        values = random(6, 9, 3, top=65535).astype(np.uint16)
        values = values[..., 0] if kind == "grey" else values
        options["photometric"], expected = "rgb" if kind == "rgb" else "minisblack", values / 65535
    elif kind == "level":
        values = random(6, 9).astype(np.uint8)
        expected = values / 255
    elif kind == "premultiplied":
        values = np.full((6, 9, 4), 255, np.uint8)
        values[..., :3] = random(6, 9, 3)
        options |= {"photometric": "rgb", "extrasamples": ["assocalpha"]}
        expected = values[..., :3] / 255
    else:
        values = (random(6, 9) / 255).astype(np.float32)
        options |= {"byteorder": ">", "compression": "zlib"}
        expected = values.astype(float)
    tifffile.imwrite(tmp_path / "turned.tif", values, **options)
    check(read_picture(tmp_path / "turned.tif"), np.rot90(expected, -1))


def test_of_several_frames_the_first_is_taken_and_said(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    for ending in ("gif", "tif", "png", "webp"):
        frames[0].save(tmp_path / f"many.{ending}", save_all=True, append_images=frames[1:])
        picture = read_picture(tmp_path / f"many.{ending}")
        assert np.asarray(picture.image)[4, 4].tolist()[0] > 230 and "first of several frames" in picture.remarks[-1]


# -- sizes, damage -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 500_000), (500_000, 1), (3, 100_000), (5, 5 * MOST_STRETCHED + 1)])
def test_a_line_is_no_picture(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("L", size).save(tmp_path / "line.png")
    with pytest.raises(InputError, match=rf"line\.png has {size[0]} x {size[1]} pixels; expected .* factor of 100"):
        read_picture(tmp_path / "line.png")


def test_covering_takes_no_more_than_the_picture() -> None:
    values = random(40, 60, 3).astype(np.uint8)
    image = Image.fromarray(values)
    assert np.array_equal(np.asarray(cover(image, 40, 40)), values[:, 10:50])
    assert np.array_equal(np.asarray(cover(image, 20, 60)), values[10:30])
    assert cover(Image.new("L", (1, MOST_STRETCHED)), 64, 64).size == (64, 64)
    ramp = Image.fromarray(np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1)))
    assert np.abs(np.asarray(cover(ramp, 16, 16)).astype(int)[3] - np.arange(6, 256, 16)).max() <= 4


def test_heads_are_judged_before_memory_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = bytearray(png(np.zeros((4, 4, 3), np.uint8), 2, 8))
    bomb[16:24] = struct.pack(">II", 60_000, 60_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(InputError, match=r"bomb\.png.*3600000000 pixels.*MAX_IMAGE_PIXELS"):
        read_picture(tmp_path / "bomb.png")
    Image.new("RGB", (300, 300)).save(tmp_path / "large.png")
    monkeypatch.setattr(memory, "available_memory", lambda device: 10**6)
    with pytest.raises(OutOfMemoryError, match=r"large\.png has 300 x 300 pixels"):
        read_picture(tmp_path / "large.png")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "webp", "gif", "bmp", "ppm"])
def test_damaged_files_end_in_our_error_or_a_picture(tmp_path: Path, ending: str) -> None:
    rng, file = np.random.default_rng(3), tmp_path / f"damaged.{ending}"
    Image.fromarray(random(24, 31, 3).astype(np.uint8)).save(file)
    intact, refusals = file.read_bytes(), list[str]()
    for trial in range(60):
        damaged = bytearray(intact)
        for place in rng.integers(min(len(intact), 60 if trial % 2 else len(intact)), size=3):
            damaged[place] = int(rng.integers(256))
        if trial % 3 == 0:
            damaged = damaged[: int(rng.integers(len(intact)))]
        file.write_bytes(damaged)
        try:
            assert read_picture(file).image.mode in ("L", "RGB")
        except InputError as error:
            refusals.append(str(error))
    assert len(refusals) >= 10 and all(file.name in text for text in refusals)


@pytest.mark.parametrize("content", [b"", b"no image"])
def test_the_command_ends_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        cli.main(["invert", "--image", str(tmp_path / "broken.png")])
    assert str(ended.value.code).startswith("error: ") and "broken.png is no readable image" in str(ended.value.code)
    assert "\n" not in str(ended.value.code)


def test_the_command_says_how_a_file_was_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = random(8, 8, 4)
    Image.fromarray(values.astype(np.uint8)).save(tmp_path / "clear.png")
    seen = np.asarray(command._open(tmp_path / "clear.png")).astype(float)
    assert np.abs(seen - 255 * over_white(values[..., :3] / 255, values[..., 3:] / 255)).max() <= HALF
    assert "laid over white" in capsys.readouterr().out
    tifffile.imwrite(tmp_path / "deep.tif", random(8, 8, top=65535).astype(np.uint16))
    deep = np.asarray(command._open(tmp_path / "deep.tif"))[..., 0]
    assert np.abs(deep - random(8, 8, top=65535) / 257).max() <= HALF, "neither white nor black"
