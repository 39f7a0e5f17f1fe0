"""Who may look at whom in a packed row of trees."""

from __future__ import annotations

import torch
from torch import Tensor


def tree_mask(tree_ids_RT: Tensor, branch_ids_RT: Tensor, position_ids_RT: Tensor, window: int | None = None) -> Tensor:
    """Boolean attention mask (R, 1, T, T) of packed trees; True where a query (row) may attend to a key (column).

    A token attends to itself, to earlier tokens of its own branch and to its trunk, never to another branch or tree.
    `window` limits it to keys less than `window` *positions* back, as a sliding-window layer does: in a shared row
    the distance in the row is larger than the distance in the conversation. Padding (tree id -1) attends to itself
    alone: a row of the mask that is all False would turn into NaN and spread.
    """
    columns = tree_ids_RT.shape[1]
    same_tree = tree_ids_RT[:, :, None] == tree_ids_RT[:, None, :]
    branch_key = branch_ids_RT[:, None, :]
    visible = same_tree & ((branch_key == 0) | (branch_key == branch_ids_RT[:, :, None]))
    visible &= torch.ones(columns, columns, dtype=torch.bool, device=tree_ids_RT.device).tril()
    visible &= (tree_ids_RT >= 0)[:, :, None]
    if window is not None:
        visible &= (position_ids_RT[:, :, None] - position_ids_RT[:, None, :]) < window
    visible |= torch.eye(columns, dtype=torch.bool, device=tree_ids_RT.device)
    return visible[:, None]


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The same mask as numbers to add to attention scores: 0 where visible, the lowest finite value elsewhere."""
    hidden = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=mask.device)
    return torch.where(mask, torch.zeros((), dtype=dtype, device=mask.device), hidden)
