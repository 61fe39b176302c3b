"""What a rank computes of a batch that all ranks draw alike: some rows, and their summand of every mean."""

from torch import Tensor

from worldenv.launch.ranks import ALONE, Ranks


class Share:
    """A rank's rows of a batch. The gradients of what `mean` returns add up, over the ranks, to those of the batch.

    Alone, all rows are one's own, and a mean is a mean.
    """

    def __init__(self, size: int, ranks: Ranks = ALONE):
        self.size, self.ranks, self.rows = size, ranks, ranks.part(size)
        self.weight = (self.rows.stop - self.rows.start) / size

    def own(self, drawn: Tensor) -> Tensor:  # [size, ...] -> [B, ...]
        return drawn[self.rows]

    def mean(self, values: Tensor, use: Tensor | None = None) -> Tensor:  # [B, ...] -> []
        """What these rows add to the mean over the whole batch, in which `use` counts each value.

        It is 0 where no value of the batch counts. `use` has no gradient.
        """
        if use is None:
            return values.mean() * self.weight
        return (values * use).sum() / self.whole(use.sum()).clamp(min=1)

    def whole(self, summand: Tensor) -> Tensor:  # [] -> []
        """The sum over the ranks, without a gradient."""
        return self.ranks.add_gradients([], summand.detach())[0]


WHOLE = Share(1)  # a batch that one process has drawn, of whatever size
