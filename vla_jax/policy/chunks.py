"""Executing action chunks: query once, act `execute_steps` times, query again.

tick        0      1      2      3      4    …
query       ■                           ■         execute_steps = 4
observe     ■     (■      ■      ■)     ■         in between only if the window remembers ticks
action    c0[0]  c0[1]  c0[2]  c0[3]  c1[0]  …
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from vla_jax import plugin
from vla_jax.policy import policy as policy_lib


class ChunkExecutor:
    """Turns a policy's chunks [rows, C, A] into one action per control tick and row.

    All rows query together, every `execute_steps` ticks: one network call serves them all. So an
    episode may begin only when a query is `due`. UserError unless 1 ≤ execute_steps ≤ C.
    """

    def __init__(
        self, policy: policy_lib.Policy, execute_steps: int, masked_views: Sequence[str] = ()
    ):
        horizon = policy.stream.action_horizon
        _check_steps(execute_steps, horizon)
        self.policy, self.execute_steps, self.masked_views = policy, execute_steps, masked_views
        self._tick = 0
        self.chunks = np.zeros((0, 0, 0))  # the chunks being executed, [rows, C, A]
        self.answers: dict = {}  # the heads' answers they came with

    @property
    def due(self) -> bool:
        """Whether the next `act` queries the network."""
        return self._tick % self.execute_steps == 0

    def reset(self, row: int | None = None) -> None:
        """Forgets the history of a row (only when a query is due: UserError), or begins anew."""
        if row is None:
            self._tick = 0
        elif not self.due:
            left = self.execute_steps - self._tick % self.execute_steps
            raise plugin.UserError(
                f"row {row}: its episode may begin when a query is due, in {left} ticks"
            )
        self.policy.reset(row)

    def act(self, observe: Callable[[int], dict], instructions: Sequence[str]) -> np.ndarray:
        """Actions [rows, A] for this tick; `observe(row)` is called only when it is needed."""
        if self.due or self.policy.stream.window > 1:
            for row in range(self.policy.rows):
                self.policy.observe(row, observe(row))
        if self.due:
            self.chunks, self.answers = self.policy.act(
                instructions, masked_views=self.masked_views
            )
            _check_steps(self.execute_steps, self.chunks.shape[1])  # a head's may be shorter
        actions = self.chunks[:, self._tick % self.execute_steps]
        self._tick += 1
        return actions


def _check_steps(execute_steps: int, horizon: int) -> None:
    if not 1 <= execute_steps <= horizon:
        raise plugin.UserError(
            f"execute_steps: got {execute_steps}, expected 1 to {horizon} (the action horizon)."
        )
