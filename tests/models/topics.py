"""Topic model: proportions for each document, a topic for each word; subsampled documents."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from .program import How, Program, guide_infer, model_infer, reference_of, wave

DOCUMENTS, WORDS, TOPICS, VOCABULARY, SUBSAMPLE = 3, 3, 2, 4, 2


def build(how: How = "sampled", reparameterised: bool = True) -> Program:
    """The words' topics are sampled, enumerated by the guide, or marginalised by the model."""

    def model(words):
        vocabulary = wave(TOPICS, VOCABULARY).softmax(-1)
        vocabulary = pyro.param("vocabulary", vocabulary, constraints.simplex)
        with pyro.plate("documents", DOCUMENTS, SUBSAMPLE, dim=-1) as index:
            proportions = pyro.sample("proportions", dist.Dirichlet(torch.tensor([1.5, 2.5])))
            with pyro.plate("words", WORDS, dim=-2):
                topic = dist.Categorical(proportions)
                topic = pyro.sample("topic", topic, infer=model_infer(how))
                word = dist.Categorical(vocabulary[topic])
                pyro.sample("word", word, obs=words[:, index])

    def guide(words):
        concentration = wave(DOCUMENTS, TOPICS, scale=0.8, shift=2.0)
        concentration = pyro.param("concentration", concentration, constraints.positive)
        logits = pyro.param("logits", wave(WORDS, DOCUMENTS, TOPICS))
        with pyro.plate("documents", DOCUMENTS, SUBSAMPLE, dim=-1) as index:
            proportions = dist.Dirichlet(concentration[index])
            pyro.sample("proportions", proportions.has_rsample_(reparameterised))
            if how == "model":
                return
            with pyro.plate("words", WORDS, dim=-2):
                topic = dist.Categorical(logits=logits[:, index])
                pyro.sample("topic", topic, infer=guide_infer(how))

    words = torch.arange(WORDS * DOCUMENTS).reshape(WORDS, DOCUMENTS) * 3 % VOCABULARY
    return Program(model, guide, (words,), reference_of(how), plates=2)
