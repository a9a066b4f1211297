"""All that a stepper, its loss, its optimisers and its parameters carry from step to step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro.optim import PyroLRScheduler
from torch import Tensor, nn

from ..elbo.baselines import averages
from ..elbo.tracers import ParamCapture
from .constraints import decode, encode
from .run import loss_of

__all__ = ["StepperState", "modules_of", "parameters_seen"]

State = dict[str, Any]


def parameters_seen(run: Callable[[], Any]) -> dict[str, Tensor]:
    """The unconstrained parameters that a call meets, by name."""
    with ParamCapture() as captured:
        run()
    return captured.parameters


def modules_of(stepper: Any) -> dict[str, nn.Module]:
    """Model and guide, where they are modules or methods of one."""
    found: dict[str, nn.Module] = {}
    for name in ("model", "guide"):
        program = getattr(stepper, name, None)
        owner = getattr(program, "__self__", program)
        if isinstance(owner, nn.Module) and not any(owner is one for one in found.values()):
            found[name] = owner
    return found


class StepperState:
    """Reads a stepper's state as plain data, and puts it back.

    Args:
        stepper: Pyro's ``SVI``, or anything with ``optim`` (or ``optims``, by name), ``loss`` and
            ``evaluate_loss``.
        modules: Modules whose buffers belong to the state, by name.

    Raises:
        TypeError: The stepper has no optimiser of Pyro's kind.
    """

    def __init__(self, stepper: Any, modules: Mapping[str, nn.Module]) -> None:
        self._stepper = stepper
        self._modules = {**modules_of(stepper), **modules}
        self._loss = loss_of(stepper)
        self._optims = _optims(stepper)

    def read(self) -> State:
        """Everything, in tensors and plain containers only; to be written before the next step.

        Raises:
            ValueError: A parameter belongs to no store (module-local parameters), or has a
                constraint that is not torch's or Pyro's.
        """
        optims = {name: optim.get_state() for name, optim in self._optims.items()}
        for name, optim in self._optims.items():
            optims[name] |= optim._state_waiting_to_be_consumed
        names = {name for optim in optims.values() for name in optim}
        if None in names:
            raise ValueError(
                "a parameter of the optimiser is not in Pyro's parameter store, so that a "
                "checkpoint cannot name it; train without pyro.settings module_local_params"
            )
        store = pyro.get_param_store().get_state()
        known = sorted((names | averages().keys()) & store["params"].keys())
        return {
            "params": {name: store["params"][name].detach() for name in known},
            "constraints": {name: encode(store["constraints"][name]) for name in known},
            "optims": optims,
            "updates": {name: _updates(optim) for name, optim in self._optims.items()},
            "modules": {name: dict(m.state_dict()) for name, m in self._modules.items()},
            "loss": _state_of(self._loss),
            "stepper": _state_of(self._stepper),
            "is_training": {name: module.training for name, module in self._modules.items()},
        }

    def check(self, state: State, seen: Mapping[str, Tensor]) -> None:
        """Refuse the state of another program, before anything is changed.

        Args:
            state: What :meth:`read` gave.
            seen: The parameters that the program has now.

        Raises:
            ValueError: Parameters, modules or optimisers differ in name or shape.
        """
        new = sorted(seen.keys() - state["params"].keys())
        if new:
            raise ValueError(
                f"the program has parameters {new} that the checkpoint lacks (it has "
                f"{sorted(state['params'])}); it is one of another model or guide"
            )
        for name, parameter in seen.items():
            _check_like(f"parameter {name!r}", state["params"][name], parameter)
        _check_names("optimisers", state["optims"], self._optims)
        for name, optim in self._optims.items():
            was, now = state.get("updates", {}).get(name), _updates(optim)  # old files have none
            if was not in (None, now):
                raise ValueError(
                    f"the optimiser {name!r} of the checkpoint is {was}, here it is {now}, which "
                    "cannot go on from its averages; give the same one"
                )
        _check_names("stop rules", state["stepper"], _state_of(self._stepper))
        _check_names("modules", state["modules"], self._modules, "Checkpoint(modules={name: ...})")
        for name, module in self._modules.items():
            saved, own = state["modules"][name], module.state_dict()
            _check_names(f"entries of module {name!r}", saved, own)
            for key, value in own.items():
                if isinstance(value, Tensor):
                    _check_like(f"{key!r} of module {name!r}", saved[key], value)

    @torch.no_grad()
    def write(self, state: State, seen: Mapping[str, Tensor]) -> None:
        """Put a state back that :meth:`check` let pass."""
        unseen = {name: v for name, v in state["params"].items() if name not in seen}
        pyro.get_param_store().set_state(
            {
                "params": {name: value.clone().requires_grad_() for name, value in unseen.items()},
                "constraints": {name: decode(state["constraints"][name]) for name in unseen},
            }
        )
        for name, parameter in seen.items():
            parameter.copy_(state["params"][name])
        for name, module in self._modules.items():
            module.load_state_dict(state["modules"][name])
            module.train(state["is_training"][name])
        for name, optim in self._optims.items():
            optim.optim_objs.clear()
            optim.grad_clip.clear()
            optim._state_waiting_to_be_consumed = dict(state["optims"][name])
            if isinstance(optim, PyroLRScheduler):
                _make_schedulers(optim)
        if state["loss"]:
            self._loss.load_state_dict(state["loss"])
        if state["stepper"]:
            self._stepper.load_state_dict(state["stepper"])


def _state_of(thing: Any) -> State:
    return thing.state_dict() if hasattr(thing, "state_dict") else {}


def _make_schedulers(optim: Any) -> None:
    """Have every parameter's rate go on, that of one which the next steps do not see too."""
    store = pyro.get_param_store()
    waiting = optim._state_waiting_to_be_consumed
    for name in [name for name in waiting if name in store]:
        parameter, state = store._params[name], waiting.pop(name)
        scheduler = optim.optim_objs[parameter] = optim._get_optim(parameter)
        optim.grad_clip[parameter] = optim._get_grad_clip(parameter)
        scheduler.load_state_dict(state["scheduler"])
        scheduler.optimizer.load_state_dict(state["optimizer"])


def _updates(optim: Any) -> str:
    """How an optimiser moves parameters, by name."""
    return str(getattr(optim.pt_optim_constructor, "__name__", "unknown"))


def _optims(stepper: Any) -> dict[str, Any]:
    optims = getattr(stepper, "optims", None) or {"optim": getattr(stepper, "optim", None)}
    for name, optim in optims.items():
        if not isinstance(optim, pyro.optim.PyroOptim):
            raise TypeError(
                f"{type(stepper).__name__} has no Pyro optimiser {name!r} whose state a checkpoint "
                f"could hold; got {optim!r}"
            )
    return dict(optims)


def _check_names(
    what: str, saved: Mapping[str, Any], own: Mapping[str, Any], how: str = ""
) -> None:
    if saved.keys() != own.keys():
        remedy = f"; give the same ones, {how}" if how else "; it is one of another program"
        raise ValueError(
            f"the checkpoint has the {what} {sorted(saved)}, here are {sorted(own)}{remedy}"
        )


def _check_like(what: str, saved: Tensor, own: Tensor) -> None:
    if saved.shape != own.shape or saved.dtype != own.dtype:
        raise ValueError(
            f"{what} is {tuple(saved.shape)}, {saved.dtype} in the checkpoint and "
            f"{tuple(own.shape)}, {own.dtype} here; it is one of another model, guide or data"
        )
