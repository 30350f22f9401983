"""Windows of a grid of tokens, within which attention is computed (Swin Transformer, arXiv 2103.14030, section 3.2).

Notable:
- windows are folded into the axis of heads: queries, keys and values are (B, windows · heads, n, d), so window w of an
  image and window w of its distractor have the same place, and attention needs to know nothing of windows;
- a grid that is no multiple of the window is padded with zeros at the bottom and at the right, after the shift. The
  padding has keys and values (the biases of their projection), but it is no token.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Windows(NamedTuple):
    """How the tokens of a grid lie in windows.

    Args:
        grid: (rows, columns) of tokens; token r · columns + c is in row r and column c.
        window: (rows, columns) of tokens in a window.
        shift: (rows, columns) by which the grid is rolled up and left before it is divided.
    """

    grid: tuple[int, int]
    window: tuple[int, int]
    shift: tuple[int, int] = (0, 0)

    @property
    def divided(self) -> tuple[int, int]:
        """(rows, columns) of windows; rounded up, where the grid is padded."""
        rows, columns = (-(-side // size) for side, size in zip(self.grid, self.window, strict=True))
        return rows, columns

    @property
    def number(self) -> int:
        """Number of windows."""
        return self.divided[0] * self.divided[1]

    @property
    def area(self) -> int:
        """Number of tokens in a window."""
        return self.window[0] * self.window[1]

    def split(self, tokens: Tensor) -> Tensor:
        """(B, N, D) → (B, windows, n, D); zeros where the grid is padded."""
        on_grid = tokens.unflatten(1, self.grid)
        if any(self.shift):
            on_grid = torch.roll(on_grid, (-self.shift[0], -self.shift[1]), (1, 2))
        (rows, columns), (height, width) = self.divided, self.window
        more = rows * height - self.grid[0], columns * width - self.grid[1]
        if any(more):
            on_grid = F.pad(on_grid, (0, 0, 0, more[1], 0, more[0]))
        divided = on_grid.unflatten(2, (columns, width)).unflatten(1, (rows, height))  # (B, rows, h, columns, w, D)
        return divided.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def join(self, windows: Tensor) -> Tensor:
        """The inverse of `split`, without the padding: (B, windows, n, D) → (B, N, D)."""
        divided = windows.unflatten(2, self.window).unflatten(1, self.divided)  # (B, rows, columns, h, w, D)
        on_grid = divided.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        on_grid = on_grid[:, : self.grid[0], : self.grid[1]]
        if any(self.shift):
            on_grid = torch.roll(on_grid, self.shift, (1, 2))
        return on_grid.flatten(1, 2)

    def scatter(self, weights: Tensor) -> Tensor:
        """Attention within windows as attention between all tokens: (B, windows, n, n) → (B, N, N); 0 between windows.

        Columns of the padding are left out, so rows of its windows sum to less than 1.
        """
        windows = self.number
        full = weights.new_zeros(len(weights), windows, self.area, windows, self.area)
        place = torch.arange(windows, device=weights.device)
        full[:, place, :, place] = weights.transpose(0, 1)
        rows = self.join(full.flatten(3, 4))  # (B, N, slots)
        return self.join(rows.transpose(1, 2).reshape(len(weights), windows, self.area, -1)).transpose(1, 2)
