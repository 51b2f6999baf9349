"""Draws of cases: which patients train and which test, by seed.

A case's place in the draw depends on the seed and on its own name alone, so a draw is the same for
any order of the cases, Python version and machine, and a case more or less in the data set moves
few others.
"""

import hashlib
from collections.abc import Sequence

from hvae_hpc.config.stages import QualityConfig
from hvae_hpc.errors import UserError
from hvae_hpc.frozen import frozen


@frozen
class Split:
    """Case ids of one draw, in the order in which they were drawn; no case is in both.

    A smaller draw with the same seed is the beginning of a larger one where it has the same
    ``train``. ``spare`` are the cases that were not drawn.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    spare: tuple[str, ...] = ()

    def training_cases(self, n: int) -> tuple[str, ...]:
        """Return n cases that nobody tests on: those of ``train``, then spare ones.

        Args:
            n: how many; 0 for ``train`` alone.

        Raises:
            UserError: there are not so many, or fewer than ``train`` are asked for.
        """
        cases = (*self.train, *self.spare)
        if n and not len(self.train) <= n <= len(cases):
            raise UserError(
                f"{n} real cases asked for, expected {len(self.train)} (the split's) "
                f"to {len(cases)} (all that nobody tests)"
            )
        return cases[: n or len(self.train)]


def draw_split(case_ids: Sequence[str], train: int, test: int, seed: int) -> Split:
    """Sort cases by the SHA-256 of "seed:case"; take the first ``train``, then the next ``test``.

    Args:
        case_ids: all cases of the data set, in any order.
        train: number of training cases, at least 1.
        test: number of test cases, at least 1.
        seed: which draw.

    Raises:
        UserError: fewer cases than asked for.
    """
    if train < 1 or test < 1:
        raise ValueError(f"train = {train}, test = {test}, expected at least 1 of each")
    if len(set(case_ids)) != len(case_ids):
        raise ValueError("a case id is there twice; every patient may be drawn once only")
    wanted = train + test
    if len(case_ids) < wanted:
        least = QualityConfig.nearest + 2  # to judge the quality of pairs
        n = max(len(case_ids), 2 * least)
        fits = min(max(n * train // wanted, least), n - least)
        more = "or" if n == len(case_ids) else f"{n} at least, and"
        raise UserError(
            f"the data set has {len(case_ids)} cases, the split asks for {wanted} "
            f"({train} to train, {test} to test); pack more cases, {more} give "
            f"split = {{train = {fits}, test = {n - fits}}} in the sweep file"
        )
    drawn = sorted(
        case_ids, key=lambda case_id: hashlib.sha256(f"{seed}:{case_id}".encode()).hexdigest()
    )
    return Split(
        train=tuple(drawn[:train]), test=tuple(drawn[train:wanted]), spare=tuple(drawn[wanted:])
    )
