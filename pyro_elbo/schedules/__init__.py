r"""When the KL counts how much: the weight :math:`\beta` as a pure function of the step.

A schedule is any callable from a step (an integer >= 0) to a weight (a number >= 0, without unit).
The ones here are exactly ``start`` at step 0, move one way, and are exactly ``stop`` from step
``num_steps`` on. Three uses, each ending at :math:`\beta = 1`, where the objective is the ELBO:

* from high to 1, ``Linear(4, 1, num_steps=1000)``: limit the capacity of the latent channel first,
  so that the units that pay most are found first, then give it back;
* from 0 to 1, ``Linear(0, 1, num_steps=1000)``: KL warm-up, so that the decoder learns to use the
  latents before the prior pulls on them, against posterior collapse;
* cyclical, ``Cyclical(0, 1, period=500, num_cycles=4)``: warm up again and again, each time from
  latents that already inform the decoder.

Schedules hold no state: the loss counts the steps, and the same step has the same weight.

References:
    *beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework*
    (Higgins et al., 2017).
    *Generating Sentences from a Continuous Space* (Bowman et al., 2016), arXiv 1511.06349.
    *Cyclical Annealing Schedule: A Simple Approach to Mitigating KL Vanishing* (Fu et al., 2019),
    arXiv 1903.10145.
"""

from .cyclical import Cyclical
from .piecewise import Constant, Piecewise
from .ramps import Cosine, Exponential, Linear, Ramp, Sigmoid
from .schedule import Schedule, ends_at

__all__ = [
    "Constant",
    "Cosine",
    "Cyclical",
    "Exponential",
    "Linear",
    "Piecewise",
    "Ramp",
    "Schedule",
    "Sigmoid",
    "ends_at",
]
