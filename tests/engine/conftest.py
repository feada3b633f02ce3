"""One thread: small models gain nothing from more, and cores shared with other work make barriers slow."""

import torch

torch.set_num_threads(1)
