"""Random walks of values from frame to frame: the stochastic degradation scheme (paper, 3.3)."""

import numpy as np


def walk(
    generator: np.random.Generator, *, start: float, step: float, bounds: tuple[float, float], num_frames: int
) -> tuple[float, ...]:
    """Return a value for each frame: p(0) = start, p(i+1) = p(i) + r(i+1), r uniform in [-step, step], clipped.

    The number of random values drawn does not depend on `step`: a constant walk (step = 0) and a moving one leave equal
    generators in equal states.

    Args:
        generator: Source of random numbers.
        start: First value.
        step: Maximum change from one frame to the next.
        bounds: Smallest and largest value.
        num_frames: Number of values.

    Raises:
        ValueError: There is no frame, the step is negative, or the start is outside the bounds.
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
