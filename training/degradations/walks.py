"""Random walks of values from frame to frame: the stochastic degradation scheme (paper, 3.3). Knows only numbers."""

import numpy as np


def walk(
    generator: np.random.Generator, *, start: float, step: float, bounds: tuple[float, float], num_frames: int
) -> tuple[float, ...]:
    """A value for each frame: p(0) = start, p(i+1) = p(i) + r(i+1), r uniform in [-step, step], clipped to the bounds.

    Draws the same number of random values whatever `step` is, so that a constant walk (step = 0) and a moving one from
    equal generators leave them in equal states.

    Raises ValueError if there is no frame, if the step is negative, or if the start lies outside of the bounds.
    """
    low, high = bounds
    if num_frames < 1 or step < 0 or not low <= start <= high:
        raise ValueError(
            "walk: needs num_frames > 0, step >= 0 and a start within the bounds,"
            f" got num_frames={num_frames}, step={step}, start={start}, bounds={bounds}."
        )
    values = [float(start)]
    for move in generator.uniform(-1, 1, size=num_frames - 1):
        values.append(min(max(values[-1] + step * float(move), low), high))
    return tuple(values)
