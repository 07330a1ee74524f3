"""The scripted expert of the card scene and the noise that its demonstrations are shaken with."""

from __future__ import annotations

import dataclasses

import numpy as np

GAIN = 12.0  # action units (cm) per metre of error, before clipping
HEIGHT = 0.05  # m, of the fingertip over the table when it touches
REACHED_RADIUS, REACHED_HEIGHT = 0.02, 0.065  # m
STAY = 5  # steps that the expert stays once it has reached

NOISE_UNTIL = 70  # steps: noise to the end would lose 11% of the episodes
NOISE_MEMORY, NOISE_SIGMA = 0.8, 0.35  # AR(1), action units
SHOVE_RATE, SHOVE_SIZE = 0.04, 1.5  # per step; action units
SHOVE_STEPS = (3, 8)


def expert_action(hand: np.ndarray, card: np.ndarray) -> np.ndarray:
    """Towards the card along a cone over its centre: float32 [3] within ±1.

    `hand` is the fingertip [3] and `card` the centre [2], in m. Far away the aim is 10 cm higher,
    so that the hand does not sweep over the other cards.
    """
    radius = np.linalg.norm(card - hand[:2])
    height = HEIGHT + np.clip(1.5 * (radius - 0.02), 0.0, 0.10)
    goal = np.array([card[0], card[1], height])
    return np.clip(GAIN * (goal - hand), -1.0, 1.0).astype(np.float32)


def reached(hand: np.ndarray, card: np.ndarray) -> bool:
    """Whether the fingertip [3] is where the expert wants it over the card's centre [2]."""
    return bool(np.linalg.norm(card - hand[:2]) < REACHED_RADIUS and hand[2] < REACHED_HEIGHT)


@dataclasses.dataclass
class Disturbance:
    """AR(1) noise and shoves of a few steps, added to the executed action until NOISE_UNTIL."""

    rng: np.random.Generator
    noise: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(3))
    shove: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(3))
    left: int = 0  # steps of the running shove
    steps: int = 0

    def next(self) -> np.ndarray:
        """The disturbance of the next step, action units: float64 [3]."""
        self.steps += 1
        if self.steps > NOISE_UNTIL:
            return np.zeros(3)
        fresh = np.sqrt(1.0 - NOISE_MEMORY**2) * NOISE_SIGMA
        self.noise = NOISE_MEMORY * self.noise + fresh * self.rng.standard_normal(3)
        if self.left > 0:
            self.left -= 1
        elif self.rng.random() < SHOVE_RATE:
            direction = self.rng.standard_normal(3)
            self.shove = SHOVE_SIZE * direction / np.linalg.norm(direction)
            self.left = int(self.rng.integers(SHOVE_STEPS[0], SHOVE_STEPS[1] + 1)) - 1
        else:
            self.shove = np.zeros(3)
        return self.noise + self.shove
