"""Random small programs from a seed, inside the rules under which enumeration is defined.

What is outside a plate never depends on what is inside of it. A site drawn from a normal
distribution without its reparameterisation is integrated by a quadrature that is exact for
polynomials, so nothing discrete depends on it.
"""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import torch
from forced_draws import num_outcomes
from programs import DIMS, LOOP, SIDES, VALUES, Program, Site

SEEN = [(2, [0, 1]), (2, [0, 1]), (3, [2, 0]), (2, [1])]
MOST = {"latent": (1, 3), "observed": (0, 2), "factor": (0, 1), "auxiliary": (0, 1)}


def random_program(seed: int, most_outcomes: int) -> Program:
    """The first program of a seed whose draws have at most so many outcomes."""
    for attempt in itertools.count():
        rng = random.Random(f"{seed} {attempt}")
        torch.manual_seed(rng.randrange(2**31))
        program = _Generator(rng).program()
        if _num_joint_values(program) > 512:
            continue
        outcomes = num_outcomes(program)
        if outcomes**2 > most_outcomes:
            program.options.pop("num_particles", None)
            program.options.pop("vectorize_particles", None)
        if outcomes <= most_outcomes:
            return program
    raise AssertionError


def _num_joint_values(program: Program) -> int:
    sizes = {"guide": 1, "model": 1}
    for site in program.sites.values():
        entries = math.prod(len(program.indices[plate]) for plate in site.plates)
        if site.has_value:
            values = VALUES.get(site.kind, 3 if site.how == "draw" else 1 + program.two_point)
            sizes["model" if site.role == "summed" else "guide"] *= values**entries
    return math.prod(sizes.values())


class _Generator:
    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.loop = rng.choice([None, None, None, "plate", "markov"])
        self.sums = rng.random() < 0.4
        self.integrates = not self.sums and self.loop != "markov" and rng.random() < 0.4
        self.outer_plate = rng.choice(["a", "b"])  # of the summed sites, whose plates are nested
        self.sites: dict[str, Site] = {}

    def program(self) -> Program:
        for role, (least, most) in MOST.items():
            self._add(role, self.rng.randint(least, most))
        self._add("summed", self.rng.randint(1, 2) if self.sums else 0)
        self._add("guide factor", int(self.rng.random() < 0.3))
        orders = {side: self._order(side) for side in ("guide", "model")}
        self.integrated = {
            n for n, site in self.sites.items() if not site.is_discrete and site.how == "draw"
        }
        for side, order in orders.items():
            self._choose_parents(side, order)
        for site in self.sites.values():
            self._choose_handlers(site)
        seen = {name: self._seen(name) for name in (LOOP, *DIMS)}
        sizes = {name: size for name, (size, _) in seen.items()}
        indices = {name: indices for name, (_, indices) in seen.items()}
        side_scales = {side: self.rng.choice([1.0, 1.0, 1.0, 2.0]) for side in orders}
        program = Program(self.sites, orders, sizes, indices, self.loop, side_scales)
        program.beta = self._beta(program)
        program.two_point = self.rng.random() < 0.7
        vectorised = {"num_particles": 2, "vectorize_particles": True}
        program.options = self.rng.choice([{}, {}, {"num_particles": 2}, vectorised])
        program.options |= self.rng.choice([{}, {"max_plate_nesting": 2}])
        self._fill(program)
        return program

    def _seen(self, name: str) -> tuple[int, list[int]]:
        if name == LOOP and self.loop == "markov":
            steps = self.rng.choice([2, 2, 3])
            return steps, list(range(steps))
        full = self.sums and self.rng.random() < 0.7
        return SEEN[0] if full else self.rng.choice(SEEN)

    def _add(self, role: str, number: int) -> None:
        for place in range(number):
            name = f"{role[0]}{place}" if role != "guide factor" else "g0"
            plates = {plate for plate in DIMS if self.rng.random() < 0.35}
            if role == "summed" and len(plates) == 1:
                plates = {self.outer_plate}
            if self.loop is not None and self.rng.random() < 0.5:
                plates.add(LOOP)
            kind = self._kind(role)
            self.sites[name] = Site(name, role, kind, self._how(role, kind), frozenset(plates))

    def _kind(self, role: str) -> str:
        if role in ("factor", "guide factor"):
            return "factor"
        continuous = {"summed": [], "observed": ["normal", "normal"]}
        return self.rng.choice([*continuous.get(role, ["normal", "lognormal"]), *VALUES])

    def _how(self, role: str, kind: str) -> str:
        if role not in ("latent", "auxiliary"):
            return "pathwise"
        if kind in VALUES:
            return self.rng.choice(["draw", "parallel", "sequential"])
        return "draw" if self.integrates and self.rng.random() < 0.6 else "pathwise"

    def _order(self, side: str) -> list[str]:
        names = [name for name, site in self.sites.items() if side in SIDES[site.role]]
        self.rng.shuffle(names)
        looped = [name for name in names if LOOP in self.sites[name].plates]
        others = [name for name in names if name not in looped]
        place = self.rng.randint(0, len(others))
        return others[:place] + looped + others[place:]

    def _choose_parents(self, side: str, order: list[str]) -> None:
        for place, name in enumerate(order):
            site = self.sites[name]
            before = [(parent, 0) for parent in order[:place]]
            if self.loop == "markov" and LOOP in site.plates:
                before += [(n, 1) for n in order if LOOP in self.sites[n].plates]
            site.parents[side] = [
                (parent, lag)
                for parent, lag in before
                if self._may_depend(site, parent) and self.rng.random() < 0.55
            ]
            if self.integrated.intersection(parent for parent, _ in site.parents[side]):
                self.integrated.add(name)
            if site.role == "guide factor":
                discrete = all(self.sites[parent].is_discrete for parent, _ in site.parents[side])
                site.how = "draw" if discrete and self.rng.random() < 0.5 else "pathwise"

    def _may_depend(self, site: Site, name: str) -> bool:
        parent = self.sites[name]
        if not parent.has_value or not parent.plates <= site.plates:
            return False
        return not (site.is_discrete and name in self.integrated)

    def _choose_handlers(self, site: Site) -> None:
        sides = SIDES[site.role]
        for handlers, value in ((site.masks, self._mask), (site.scales, self._scale)):
            chosen = self.rng.choice([(), (), (), ("model", "guide"), ("model",), ("guide",)])
            rare = handlers is site.scales and self.sums
            if not rare or self.rng.random() < 0.3:
                handlers.update(dict.fromkeys(set(chosen).intersection(sides), value()))

    def _mask(self) -> Any:
        return self.rng.choice(["entries", "entries", True, False])

    def _scale(self) -> Any:
        return self.rng.choice([0.5, 3.0] if self.sums else [0.5, 3.0, "entries"])

    def _beta(self, program: Program) -> Any:
        number = self.rng.choice([0.0, 0.5, 1.0, 1.0, 4.0])
        if self.rng.random() < 0.7:
            return number
        beta = {}
        for site in (self.sites[name] for name in program.orders["guide"]):
            joint = any(self.sites[n].role == "summed" for n, _ in site.parents.get("model", ()))
            for step in program.steps(site):
                weight = number if joint else self.rng.choice([0.0, 0.5, 1.0, 3.0])
                beta[site.called(step)] = weight
        return beta

    def _fill(self, program: Program) -> None:
        for site in self.sites.values():
            shape = program.shape(site)
            mask, scale = torch.rand(shape) < 0.6, 0.5 + torch.rand(shape)
            for handlers, entries in ((site.masks, mask), (site.scales, scale)):
                for side, value in handlers.items():
                    handlers[side] = entries if value == "entries" else value
            for side in SIDES[site.role]:
                self._parameters(program, side, site, shape)
            program.noise[site.name] = torch.randn(2, *shape)
            if site.role == "observed":
                values = VALUES.get(site.kind)
                data = torch.randn(shape) if values is None else torch.randint(values, shape)
                program.data[site.name] = data.double() if site.kind == "bernoulli" else data

    def _parameters(self, program: Program, side: str, site: Site, shape: Any) -> None:
        new = {"base": torch.randn(shape)}
        if site.kind in ("normal", "lognormal"):
            new["scale"] = 0.3 * torch.randn(())
        for parent, lag in site.parents[side]:
            values = VALUES.get(self.sites[parent].kind)
            new[f"{parent} {lag}"] = 0.6 * torch.randn(() if values is None else values)
        for what, value in new.items():
            program.parameters[f"{side} {site.name} {what}"] = value.requires_grad_()
