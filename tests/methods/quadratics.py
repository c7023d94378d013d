r"""What is known in closed form about the methods on a quadratic :math:`f(w) = h (w - w^*)^2 / 2`.

Everything is for one curvature :math:`h`, from a distance :math:`w_0 - w^* = 1`, and without noise; a
diagonal quadratic is one of these for each weight. ``step`` stands for the product :math:`\eta h`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def delayed(step: float, delay: int, steps: int) -> float:
    r"""Distance after gradient descent of constant delay, with the weights at rest before.

    :math:`w_{t+1} = w_t - \eta h w_{t-\tau}` is solved by the delayed exponential
    :math:`w_t = \sum_k \binom{t - (k-1) \tau}{k} (-\eta h)^k`.
    """
    terms = [1.0]
    for k in range(1, steps + 1):
        top = steps - (k - 1) * delay
        if top < k:
            break
        terms.append(math.comb(top, k) * (-step) ** k)
    return math.fsum(terms)


def delayed_roots(step: float, delay: int, momentum: float = 0.0) -> NDArray[np.complex128]:
    r"""Roots of the characteristic polynomial of delayed descent with heavy-ball momentum.

    Without momentum, :math:`z^{\tau+1} - z^\tau + \eta h = 0`; with it,
    :math:`z^{\tau+2} - (1 + \mu) z^{\tau+1} + \mu z^\tau + \eta h z = 0`.
    """
    if momentum == 0.0:
        coefficients = np.zeros(delay + 2)
        coefficients[0], coefficients[1] = 1.0, -1.0
        coefficients[-1] += step
    else:
        coefficients = np.zeros(delay + 3)
        coefficients[:3] = 1.0, -(1 + momentum), momentum
        coefficients[-2] += step
    return np.roots(coefficients).astype(np.complex128)


def convergence_factor(step: float, delay: int, momentum: float = 0.0) -> float:
    """By how much a step shrinks the distance in the long run: the largest root."""
    return float(np.abs(delayed_roots(step, delay, momentum)).max())


def stability_limit(delay: int) -> float:
    r"""Delayed descent converges for :math:`\eta h < 2 \sin(\pi / (2 (2 \tau + 1)))`."""
    return 2 * math.sin(math.pi / (2 * (2 * delay + 1)))


def best_step(delay: int) -> float:
    r"""The fastest :math:`\eta h`, where two roots meet: :math:`\tau^\tau / (\tau + 1)^{\tau + 1}`."""
    return float(delay**delay / (delay + 1) ** (delay + 1))


def best_factor(delay: int) -> float:
    r"""The double root at the best step, :math:`\tau / (\tau + 1)`."""
    return delay / (delay + 1)


def steps_to(tolerance: float, step: float, delay: int, momentum: float = 0.0) -> int:
    """Steps after which the distance stays below the tolerance, counted by iterating."""
    if convergence_factor(step, delay, momentum) >= 1:
        raise ValueError(f"a step of {step} does not converge with a delay of {delay}")
    past, velocity = [1.0] * (delay + 1), 0.0
    last, t = 0, 0
    while max(map(abs, past)) >= tolerance / 100:  # an oscillation may come back from just below
        velocity = momentum * velocity + step * past[0]
        past = [*past[1:], past[-1] - velocity]
        t += 1
        if abs(past[-1]) >= tolerance:
            last = t
    return last + 1


def penalty_slope(tolerance: float) -> float:
    r"""Further steps to the tolerance for each further step of delay, at the best step, for long delays.

    In units of the delay, descent becomes :math:`w'(s) = -w(s - 1) / e`; its double characteristic root -1
    gives :math:`w(s) \to \frac{2}{e} (s + \frac{4}{3}) e^{-s}`. The slope is the s where that is the
    tolerance. Steps grow linearly with the staleness, as the stable rates fall like
    :math:`1 / (2 \tau + 1)`.
    """
    s = -math.log(tolerance)
    for _ in range(100):
        s = math.log(2 / math.e * (s + 4 / 3) / tolerance)
    return s


def local_factor(step: float, steps: int) -> float:
    r"""H local steps are one step of rate :math:`1 - (1 - \eta h)^H`, so the distance keeps this factor."""
    return (1 - step) ** steps


def local_mean(w: float, targets: Matrix, step: float) -> float:
    r"""Mean of independent descents, each through its own row of (T,) minima, from the same start.

    :math:`w_i = (1 - \eta h)^T w + \eta h \sum_k (1 - \eta h)^{T-1-k} b_{i,k}`.
    """
    total = targets.shape[1]
    weights = step * (1 - step) ** np.arange(total - 1, -1, -1)
    return float((1 - step) ** total * w + (targets @ weights).mean())


def elastic_matrix(
    step: float, alpha: float, workers: int, exchange: bool = True, momentum: float = 0.0
) -> Matrix:
    r"""One turn of each worker of EASGD or EAMSGD, over (centre, local weights, velocities).

    A product of the maps of single workers (Zhang et al. 2015, section 3.2, the round-robin scheme).
    """
    size = 1 + 2 * workers
    total: Matrix = np.eye(size)
    elastic = alpha if exchange else 0.0
    for worker in range(workers):
        turn = np.eye(size)
        x, v = 1 + worker, 1 + workers + worker
        turn[0, [0, x]] = 1 - elastic, elastic
        turn[v, [x, v]] = -step, momentum - step * momentum
        turn[x] = turn[v]
        turn[x, [0, x]] += elastic, 1 - elastic
        total = turn @ total
    return total


def nesterov_matrix(step: float, rate: float, momentum: float, steps: int = 1) -> Matrix:
    r"""One round of DiLoCo with plain inner descent, over (weights, momentum).

    The outer gradient is :math:`(1 - (1 - \eta h)^H) w`; the outer step is Nesterov's.
    """
    pull = 1 - local_factor(step, steps)
    return np.array([[1 - rate * pull * (1 + momentum), -rate * momentum**2], [pull, momentum]])


def delayed_nesterov_matrix(
    step: float, rate: float, momentum: float, period: int, c: float, steps: int = 1
) -> Matrix:
    """N outer steps of one worker with delayed Nesterov, over (weights, momentum, buffer)."""
    pull = 1 - local_factor(step, steps)
    between = np.array(
        [[1 - rate * pull / period, -rate * c * momentum, 0.0], [0.0, 1.0, 0.0], [pull, 0.0, 1.0]]
    )
    renew: Matrix = np.array([[1.0, 0.0, 0.0], [pull / period, momentum, 1 / period], [0.0, 0.0, 0.0]])
    share = rate * (1 - c * period + c) * momentum
    renew[0] = np.array([1 - rate * pull / period, 0.0, 0.0]) - share * renew[1]
    result: Matrix = renew @ np.linalg.matrix_power(between, period - 1)
    return result
