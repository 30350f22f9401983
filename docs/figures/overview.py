"""Draws `overview.png`: the three branches on images of the toy dataset, with the attention of a trained model.

make demo                                                  # trains the toy task
.venv/bin/python docs/figures/overview.py runs/fgvc-toy-vit_tiny_patch16_224-full-seed0
"""

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file

from dual_cross_attention import create_model
from dual_cross_attention.data.synthetic.birds import draw_bird

SIZE, PATCH = 64, 8
TARGET, DISTRACTOR = (5, "test 5"), (7, "test 17")  # species, and the text that seeds the image
INK, GRAY, LIGHT = (30, 34, 42), (110, 116, 128), (226, 230, 238)
SA, GLCA, PWCA = (52, 101, 200), (200, 86, 30), (24, 130, 90)
SCALE = 2  # drawn this many times larger than the coordinates below


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a trained run of the toy task")
    run = parser.parse_args().run
    target, distractor = draw_bird(*TARGET), draw_bird(*DISTRACTOR)
    rollout, local = attention(run, target)
    out = Path(__file__).with_name("overview.png")
    page = draw(target, distractor, rollout, local)
    page.quantize(256, dither=Image.Dither.NONE).save(out, optimize=True)
    print(f"{out}: {out.stat().st_size / 1e3:.0f} kB")


def attention(run: Path, image: Image.Image) -> tuple[torch.Tensor, list[int]]:
    """Rollout over the patches, (8, 8), and the indices of the local patches, by the run's best model."""
    sizes = {"patch_size": PATCH, "embed_dim": 96, "depth": 4, "num_heads": 3}
    model = create_model("vit_tiny_patch16_224", num_classes=10, img_size=SIZE, **sizes).eval()
    model.load_state_dict(load_file(run / "best.safetensors"))
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(SIZE, SIZE, 3)
    with torch.no_grad():
        out = model((pixels.permute(2, 0, 1)[None] / 255 - 0.5) / 0.5)
    return out.rollout[0].view(SIZE // PATCH, SIZE // PATCH), out.local[0].tolist()


def heat_map(image: Image.Image, rollout: torch.Tensor, local: list[int], side: int) -> Image.Image:
    """The image under its rollout, with the local patches outlined."""
    share = ((rollout - rollout.min()) / (rollout.max() - rollout.min())).mul(255).byte()
    mask = Image.frombytes("L", (SIZE // PATCH,) * 2, bytes(share.flatten().tolist()))
    mask = mask.resize((side, side), Image.Resampling.BICUBIC)
    gray = image.resize((side, side), Image.Resampling.LANCZOS)
    hot = Image.composite(Image.new("RGB", gray.size, (255, 96, 0)), gray, mask.point(lambda v: v * 0.7))
    pen, patch = ImageDraw.Draw(hot), side * PATCH // SIZE
    for index in local:
        top, left = index // (SIZE // PATCH) * patch, index % (SIZE // PATCH) * patch
        pen.rectangle((left, top, left + patch - 1, top + patch - 1), outline=(255, 255, 255), width=4)
    return hot


class Page:
    """A white page, in units of 1 / SCALE pixels."""

    def __init__(self, width: int, height: int):
        self.image = Image.new("RGB", (width * SCALE, height * SCALE), "white")
        self.pen = ImageDraw.Draw(self.image)

    def paste(self, image: Image.Image, left: int, top: int, side: int, color: tuple[int, int, int]) -> None:
        self.image.paste(image.resize((side * SCALE,) * 2, Image.Resampling.LANCZOS), (left * SCALE, top * SCALE))
        box = [v * SCALE for v in (left, top, left + side, top + side)]
        self.pen.rectangle(box, outline=color, width=2 * SCALE)

    def text(self, at: tuple[int, int], text: str, size: int = 13, color=INK, anchor: str = "mm") -> None:
        font = ImageFont.load_default(size * SCALE)
        self.pen.multiline_text(
            (at[0] * SCALE, at[1] * SCALE), text, color, font, anchor=anchor, align="center", spacing=4 * SCALE
        )

    def box(self, left: int, top: int, right: int, bottom: int, text: str, color, fill=None) -> None:
        shape = [v * SCALE for v in (left, top, right, bottom)]
        self.pen.rounded_rectangle(shape, 8 * SCALE, fill=fill or "white", outline=color, width=2 * SCALE)
        self.text(((left + right) // 2, (top + bottom) // 2), text)

    def arrow(self, *points: tuple[int, int], color=GRAY) -> None:
        self.pen.line([(x * SCALE, y * SCALE) for x, y in points], color, 2 * SCALE, joint="curve")
        (x0, y0), (x, y) = points[-2:]
        dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
        tip = [(x, y), (x - 8 * dx + 4 * dy, y - 8 * dy + 4 * dx), (x - 8 * dx - 4 * dy, y - 8 * dy - 4 * dx)]
        self.pen.polygon([(a * SCALE, b * SCALE) for a, b in tip], color)


def draw(target: Image.Image, distractor: Image.Image, rollout: torch.Tensor, local: list[int]) -> Image.Image:
    """The whole figure."""
    page = Page(1040, 400)
    page.text((85, 22), "target image", 14)
    page.paste(target, 20, 38, 130, SA)
    page.text((85, 222), "distractor image", 14)
    page.paste(distractor, 20, 238, 130, PWCA)
    page.text((85, 384), "training only", 12, GRAY)

    page.pen.rounded_rectangle(
        [v * SCALE for v in (200, 38, 480, 368)], 10 * SCALE, fill=(246, 248, 252), outline=LIGHT
    )
    page.text((340, 22), "ViT, L blocks, shared weights", 14)
    page.box(220, 66, 460, 140, "SA: self-attention\nQ of the target\nK, V of the target", SA)
    page.box(
        220, 266, 460, 340, "PWCA: pair-wise cross-attention\nQ of the target\nK, V of target and distractor", PWCA
    )
    page.arrow((150, 103), (220, 103), color=SA)
    page.arrow((185, 103), (185, 285), (220, 285), color=SA)
    page.arrow((150, 320), (220, 320), color=PWCA)

    page.text((615, 136), "attention rollout", 14)
    page.paste(heat_map(target, rollout, local, 130 * SCALE), 550, 150, 130, GLCA)
    page.text((615, 306), "white: local patches, the R %\nwith the largest rollout", 12, GRAY)
    page.arrow((340, 140), (340, 203), (550, 203), color=GLCA)
    page.text((418, 190), "Q, K of all layers", 12, GRAY)
    page.box(720, 178, 890, 252, "GLCA block\nQ of class and local tokens\nK, V of all tokens", GLCA)
    page.arrow((680, 215), (720, 215), color=GLCA)
    page.arrow((460, 88), (1000 - 80, 88), color=SA)
    page.arrow((805, 88), (805, 178), color=GLCA)
    page.text((815, 132), "SA tokens of the\nlast block", 12, GRAY, anchor="lm")
    page.arrow((890, 215), (920, 215), color=GLCA)
    page.arrow((460, 320), (500, 320), (500, 368), (920, 368), color=PWCA)
    page.text((972, 88), "class scores\n(SA)", 13, SA)
    page.text((972, 215), "class scores\n(GLCA)", 13, GLCA)
    page.text((972, 368), "class scores\n(PWCA)", 13, PWCA)
    page.text((972, 152), "mean at\ninference", 12, GRAY)
    return page.image


if __name__ == "__main__":
    main()
