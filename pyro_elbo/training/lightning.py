r"""Training by PyTorch Lightning: its Trainer, checkpoints, precisions, and many processes.

This module needs the extra ``pyro_elbo[lightning]``; nothing else imports it.

**Many processes.** Under ``DistributedDataParallel`` each of W ranks evaluates its shard of the
data, and gradients are averaged over ranks:

.. math::
    \nabla = \frac1W \sum_{r=1}^W \nabla L_r, \qquad
    L_r = -\Big(\text{terms outside of the data's plate}
          + \frac{N}{n_r} \sum_{i \in \text{shard } r} \ell_i\Big).

So each :math:`L_r` is to estimate the loss of all N data: write the data's plate at full size,
``pyro.plate("data", N, subsample_size=len(x))`` (or ``subsample=indices`` where data have
parameters of their own), with shards of equal size, and Pyro's scale :math:`N / n_r` is the right
one. A plate of size ``len(x)`` makes each rank take its shard for all the data; where a latent lies
outside of it, a warning names both. A plate that draws its own subsample draws other indices on
each rank. All ranks see the same guide noise where they were seeded alike, which is right in mean;
``pyro.set_rng_seed(seed + rank)`` makes it independent.

Without Lightning, in a script for ``torchrun``::

    torch.distributed.init_process_group("gloo")
    module = elbo(model, guide)
    with torch.no_grad():
        module(x)  # AutoGuides make their parameters; before DDP looks for them
    ddp = DistributedDataParallel(module)
    optimizer = torch.optim.Adam(ddp.parameters(), lr=1e-3)
    for x in loader:  # with a DistributedSampler, or x the same and a plate that subsamples
        optimizer.zero_grad()
        ddp(x).backward()
        if module.check_gradients():  # a nan is named before it moves a parameter
            optimizer.step()

Parameters that a step does not use (those of the prior alone, while the weight is 0) need
``find_unused_parameters=True``, in Lightning ``strategy="ddp_find_unused_parameters_true"``.
``module.state_dict()`` holds the schedule's step. ``on_nonfinite="skip"`` would leave the other
ranks waiting, so under DDP it raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import CombinedLoader, rank_zero_warn
from torch import Tensor

from ..elbo.base import ViewELBO
from ..elbo.baselines import averages
from ..errors import StopTraining
from ..evidence.modes import in_eval_mode
from .feed import spread
from .lightning_parts import first_batch, leave_random_numbers, logged, size_of
from .loaders import ResumableLoader
from .ranks import of_all_ranks, of_this_rank
from .rng import RNG

__all__ = ["LightningELBO"]

RANDOM_STATES, BASELINES = "pyro_elbo_random_states", "pyro_elbo_baselines"


class LightningELBO(LightningModule):
    r"""Trains a model and guide with one of the losses, under a Lightning ``Trainer``.

    It logs, in nats, ``train_objective``, ``train_elbo`` (always at weight 1),
    ``train_reconstruction``, ``train_kl``, ``train_weighted_kl`` and ``train_beta``, and the same
    with ``val_`` and ``test_``, averaged over ranks. The schedule advances once per optimiser step,
    whatever ``accumulate_grad_batches``, and never in evaluation. Checkpoints hold its step, and
    the random state of each rank.

    Args:
        model: A module, or a function without parameters.
        guide: A module. AutoGuides need no first call: one batch initialises them at setup.
        elbo: One of the losses of this package.
        optim: From the parameters to what Lightning's ``configure_optimizers`` may return: a
            torch optimiser, or a dict that also has an ``lr_scheduler``.
        example: A batch to initialise with at once; by default the first of the training data
            (of the evaluated data, in evaluation), at setup. ``load_from_checkpoint`` needs it
            where the guide is an AutoGuide.

    A batch that is a tuple or list is spread over the arguments of model and guide, one that is a
    mapping becomes keywords, and anything else is one argument.

    Raises:
        TypeError: The guide is a plain function, the loss is not of this package, or ``optim`` is
            no callable.
        ValueError: At setup: a parameter belongs to no module (``pyro.param`` in a function); the
            strategy is neither one device nor DDP; or, on several ranks, ``on_nonfinite="skip"``.
        NonFiniteError: In training, a term or a gradient is not finite; no parameter has moved.

    FSDP (and whatever else shards parameters) is not supported: it replaces each parameter by
    shards, which are whole only inside the forward of the module that owns them, and Pyro reads
    parameters by name from its param store, which has the tensors from before.

    Law:
        With a guide without noise, W ranks with equal shards and one process with all of them end
        at the same parameters, to rounding. A run that was killed, and resumed from a checkpoint at
        the end of an epoch, or at any step with
        :class:`~pyro_elbo.training.loaders.ResumableLoader`, ends as the uninterrupted one, bit for
        bit.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from lightning.pytorch import Trainer
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from pyro_elbo import TraceKL_ELBO, schedules
        >>> from pyro_elbo.training.lightning import LightningELBO
        >>> def model(x):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", 6, subsample_size=len(x)):
        ...         pyro.sample("x", dist.Normal(mu, 1.0), obs=x)
        >>> elbo = TraceKL_ELBO(beta=schedules.Linear(4.0, 1.0, num_steps=5))
        >>> module = LightningELBO(
        ...     model, AutoNormal(model), elbo, optim=lambda p: torch.optim.Adam(p, lr=0.1)
        ... )
        >>> loader = torch.utils.data.DataLoader(torch.arange(6.0), batch_size=2)
        >>> trainer = Trainer(
        ...     max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        ...     enable_progress_bar=False, enable_model_summary=False,
        ... )
        >>> trainer.fit(module, loader, loader)
        >>> elbo.step_count, sorted(trainer.callback_metrics)[::6]
        (6, ['train_beta', 'val_beta'])
    """

    def __init__(
        self,
        model: Any,
        guide: Any,
        elbo: Any,
        optim: Callable[[Iterator[Tensor]], Any],
        *,
        example: Any = None,
    ) -> None:
        if not isinstance(elbo, ViewELBO):
            name = type(elbo).__name__
            raise TypeError(f"LightningELBO needs one of the losses of pyro_elbo, not {name}")
        if not callable(optim):
            raise TypeError(
                "optim must be a callable from the parameters to a torch optimiser, such as "
                f"lambda p: torch.optim.Adam(p, lr=1e-3), not {optim!r}"
            )
        super().__init__()
        self.loss = elbo(model, guide)
        self._optim = optim
        self._initialised = False
        self._resumed: tuple[Any, Any] = None, None
        self._after_batch: RNG | None = None
        self._kept: RNG | None = None
        if example is not None:
            self._initialise(example)

    @property
    def elbo(self) -> ViewELBO:
        """The loss."""
        elbo: ViewELBO = self.loss.elbo
        return elbo

    def forward(self, batch: Any) -> Tensor:
        """The loss of a batch in nats, a 0-dim tensor."""
        args, kwargs = spread(batch)
        loss: Tensor = self.loss(*args, **kwargs)
        return loss

    def setup(self, stage: str) -> None:
        """Refuse what would be wrong; make the parameters, before a strategy looks for them."""
        trainer = self.trainer
        shards = isinstance(trainer.strategy, DeepSpeedStrategy)
        if shards or not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
            raise ValueError(
                f"{type(trainer.strategy).__name__} is not supported: it may replace parameters by "
                "shards, and Pyro's param store has those from before; use strategy='ddp', or one "
                "device"
            )
        if trainer.world_size > 1 and self.elbo._nonfinite.name == "skip":
            raise ValueError(
                "on_nonfinite='skip' would skip a step on one rank while the others wait for its "
                "gradients; use 'raise' or 'stop'"
            )
        if not self._initialised:
            self._initialise(first_batch(trainer, stage))

    def configure_optimizers(self) -> Any:
        """What ``optim`` makes of the parameters."""
        return self._optim(self.parameters())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """The loss of a batch; ``None`` where the step is skipped."""
        skipped = self.elbo.num_skipped
        try:
            with self.elbo.hold():
                loss: Tensor = self(batch)
        except StopTraining as reason:
            self._stop(reason)
            return None
        self._log_terms("train", batch)
        return loss if self.elbo.num_skipped == skipped else None

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the terms of a batch."""
        self(batch)
        self._log_terms("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log the terms of a batch."""
        self(batch)
        self._log_terms("test", batch)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Let no gradient through that is not finite; a scaler of 16-bit gradients has its own way.

        Raises:
            NonFiniteError: A gradient is not finite; no parameter has moved.
        """
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            return
        try:
            self.loss.check_gradients()
        except StopTraining as reason:
            self._stop(reason)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take a step, and count it."""
        super().optimizer_step(*args, **kwargs)
        self.elbo.advance()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the random state and the decaying baselines of each rank."""
        now = self._kept or RNG.now()
        checkpoint[RANDOM_STATES] = of_all_ranks(now.state)
        checkpoint[BASELINES] = of_all_ranks(averages())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep these until training goes on."""
        self._resumed = checkpoint.get(RANDOM_STATES), checkpoint.get(BASELINES)

    def on_fit_start(self) -> None:
        """Go back to the random state and the baselines that this rank had at the checkpoint."""
        (states, baselines), self._resumed = self._resumed, (None, None)
        if not self.trainer.ckpt_path or not states:
            return
        store = pyro.get_param_store()
        for name, value in (of_this_rank(baselines or []) or {}).items():
            store[name] = value
        leave_random_numbers(self.trainer.fit_loop.epoch_loop.val_loop)
        state = of_this_rank(states)
        if state is not None:
            RNG(state).restore()
        else:
            rank_zero_warn(
                f"the checkpoint has the random state of {len(states)} processes, and there are "
                f"{self.trainer.world_size}: the run goes on with other random numbers"
            )

    def on_train_start(self) -> None:
        """Start an epoch at its beginning, where the checkpoint was of an epoch's end."""
        for loader in CombinedLoader(self.trainer.train_dataloader, "sequential").flattened:
            if isinstance(loader, ResumableLoader):
                loader.end_at(self.trainer.num_training_batches)

    def on_train_batch_end(self, *args: Any) -> None:
        """Remember where training's random numbers stand, before a validation draws its own."""
        if self.trainer.enable_validation:
            self._after_batch = RNG.now()

    def on_validation_start(self) -> None:
        """Keep training's random numbers for when validation ends."""
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self._kept = self._after_batch

    def on_validation_end(self) -> None:
        """Go back to them."""
        if self._kept is not None:
            self._kept.restore()
            self._kept = None

    def _stop(self, reason: StopTraining) -> None:
        """End training; on several ranks by the error itself, as the others wait."""
        if self.trainer.world_size > 1:
            raise reason
        rank_zero_warn(f"training ends: {reason}")
        self.trainer.should_stop = True

    def _initialise(self, batch: Any) -> None:
        with in_eval_mode(self.loss), torch.no_grad():
            self(batch)
        self._initialised = True

    def _log_terms(self, stage: str, batch: Any) -> None:
        size = size_of(batch)
        for name, value in logged(self.elbo).items():
            shown = name == "elbo"
            self.log(f"{stage}_{name}", value, prog_bar=shown, sync_dist=True, batch_size=size)
