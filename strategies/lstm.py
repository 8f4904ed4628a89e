"""The autoregressive controller of NASNet and ENAS."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from math import log

import numpy as np

from nas.choices import Decision, Genotype

from .policies import Array, Credit, Policy, Tokens, Vocabulary

SCALE = 0.1
"""Initial weights are uniform in this range on both sides of 0, as ENAS has them."""


class Lstm(Policy):
    """Autoregressive: an LSTM reads the options taken so far (NASNet, Zoph et al. 2018; ENAS, Pham et al. 2018).

    Its input is the sum of three embeddings: of the last option taken, of the decision to take, and of the preference.
    Logits are `constant * tanh(z / constant)`, where z is linear in the LSTM's state and, past the LSTM, in the
    preference: without the LSTM this is `Logits`, so what the options are worth by themselves is learnt as fast.

    Args:
        units: of the LSTM, and of the embeddings.
        constant: bound of the logits, so that no option dies out.
        seed: of the initial weights.
    """

    def __init__(
        self, vocabulary: Vocabulary, objectives: int, *, units: int = 64, constant: float = 2.5, seed: int = 0
    ) -> None:
        rng, t, r = np.random.default_rng(seed), len(vocabulary), len(vocabulary.sizes)
        shapes = {"option": (t + 1, units), "decision": (r, units), "preference": (objectives, units),
                  "input": (units, 4 * units), "state": (units, 4 * units), "output": (t, units)}  # fmt: skip
        parameters: dict[str, Array] = {name: rng.uniform(-SCALE, SCALE, shape) for name, shape in shapes.items()}
        parameters |= {"bias": np.zeros(4 * units), "logits": np.zeros((objectives, t))}
        super().__init__(vocabulary, {name: p.astype(np.float32) for name, p in parameters.items()})
        self.constant = constant
        slots = vocabulary.first[:, None] + np.arange(vocabulary.sizes.max())
        self._real = np.arange(vocabulary.sizes.max()) < vocabulary.sizes[:, None]
        self._options = np.where(self._real, slots, vocabulary.first[:, None])  # of each row, filled up

    def draw(self, preference: Array, temperature: float, rng: np.random.Generator) -> tuple[Genotype, float]:
        p, words, c = self.parameters, self.vocabulary, self.constant
        units, preference = len(p["state"]), preference.astype(p["state"].dtype)
        fixed = preference @ p["preference"] @ p["input"] + p["bias"]
        skip = preference @ p["logits"]
        hidden = cell = np.zeros(units, preference.dtype)
        last, total = len(words), 0.0

        def decide(decision: Decision) -> int:
            nonlocal hidden, cell, last, total
            key = decision.path, decision.labels
            span = words.spans.get(key)
            if span is None:
                total -= log(len(decision))
                return int(rng.random() * len(decision))
            x = (p["option"][last] + p["decision"][words.rows[key]]) @ p["input"] + fixed
            gates = x + hidden @ p["state"]
            i, f, o = _sigmoid(gates[: 3 * units]).reshape(3, units)
            cell = f * cell + i * np.tanh(gates[3 * units :])
            hidden = o * np.tanh(cell)
            z = p["output"][span[0] : span[1]] @ hidden + skip[span[0] : span[1]]
            logits = c * np.tanh(z / c) / temperature
            logs = logits - logits.max()
            logs -= np.log(np.exp(logs).sum())
            index = bisect_right(np.cumsum(np.exp(logs)).tolist(), rng.random(), 0, len(decision) - 1)
            total += float(logs[index])
            last = span[0] + index
            return index

        return words.space.walk(decide), total

    def gradient(
        self, tokens: Tokens, preferences: Array, credit: Credit, entropy: float = 0.0
    ) -> tuple[Mapping[str, Array], Array, Array]:
        p, words, c = self.parameters, self.vocabulary, self.constant
        preferences = preferences.astype(p["input"].dtype)
        batch = len(tokens)
        there = tokens >= 0
        rows = words.row[tokens]
        last = np.concatenate([np.full((batch, 1), len(words)), tokens[:, :-1]], axis=1)
        x = p["option"][last] + p["decision"][rows] + (preferences @ p["preference"])[:, None]
        states, memory = _forward(x @ p["input"] + p["bias"], p["state"])

        options, real = self._options[rows], self._real[rows]
        heads = p["output"][options]
        skip = np.take_along_axis(preferences @ p["logits"], options.reshape(batch, -1), 1).reshape(options.shape)
        bounded = np.tanh(((heads @ states[..., None])[..., 0] + skip) / c)
        logs = np.where(real, c * bounded, -np.inf)
        logs -= logs.max(-1, keepdims=True)
        logs -= np.log(np.exp(logs).sum(-1, keepdims=True))
        logs = np.where(real, logs, 0)
        probabilities = np.where(real, np.exp(logs), 0)
        disorder = -(probabilities * logs).sum(-1) * there
        chosen = (options == tokens[..., None]) & real & there[..., None]
        found = (logs * chosen).sum((1, 2))

        push = credit(found).astype(p["input"].dtype)[:, None, None] * (chosen - probabilities)
        push = push - entropy * probabilities * (logs + disorder[..., None])
        dz = push * there[..., None] * (1 - bounded**2)
        dstates = (dz[..., None, :] @ heads)[..., 0, :]
        dgates = _backward(dstates, p["state"], memory)
        dx = dgates @ p["input"].T
        dpreference = dx.sum(1)
        flat = dgates.reshape(-1, dgates.shape[-1])
        before = np.concatenate([np.zeros_like(states[:, :1]), states[:, :-1]], axis=1)
        grid = np.arange(batch)[:, None, None] * len(words) + options
        gradient = {
            "option": _gathered(last, dx, len(words) + 1),
            "decision": _gathered(rows, dx, len(words.sizes)),
            "preference": preferences.T @ dpreference,
            "input": x.reshape(-1, x.shape[-1]).T @ flat,
            "state": before.reshape(-1, before.shape[-1]).T @ flat,
            "bias": flat.sum(0),
            "output": _gathered(options, dz[..., None] * states[:, :, None], len(words)),
            "logits": preferences.T @ np.bincount(grid.ravel(), dz.ravel(), batch * len(words)).reshape(batch, -1),
        }
        return gradient, found, disorder.sum(1)


def _sigmoid(x: Array) -> Array:
    half: Array = 0.5 + 0.5 * np.tanh(0.5 * x)
    return half


def _forward(inputs: Array, weights: Array) -> tuple[Array, list[tuple[Array, ...]]]:
    """States (batch, length, units) of an LSTM, and what its gradient needs; gates are input, forget, output, new."""
    batch, length, _ = inputs.shape
    units = len(weights)
    hidden: Array = np.zeros((batch, units), inputs.dtype)
    cell = hidden
    states: Array = np.empty((batch, length, units), inputs.dtype)
    memory: list[tuple[Array, ...]] = []
    for step in range(length):
        gates = inputs[:, step] + hidden @ weights
        gates[:, : 3 * units] = _sigmoid(gates[:, : 3 * units])
        new = np.tanh(gates[:, 3 * units :])
        gates[:, 3 * units :] = new
        earlier, cell = cell, gates[:, units : 2 * units] * cell + gates[:, :units] * new
        squashed = np.tanh(cell)
        hidden = states[:, step] = gates[:, 2 * units : 3 * units] * squashed
        memory.append((gates, earlier, squashed))
    return states, memory


def _backward(dstates: Array, weights: Array, memory: list[tuple[Array, ...]]) -> Array:
    """Gradient with respect to the gates before their activation, from that of the states."""
    batch, length, units = dstates.shape
    dgates = np.empty((batch, length, 4 * units), dstates.dtype)
    dhidden = dcell = np.zeros((batch, units), dstates.dtype)
    for step in reversed(range(length)):
        gates, earlier, squashed = memory[step]
        i, f, o, new = (gates[:, k * units : (k + 1) * units] for k in range(4))
        dhidden = dhidden + dstates[:, step]
        dcell = dcell + dhidden * o * (1 - squashed**2)
        d = dgates[:, step]
        d[:, :units] = dcell * new * i * (1 - i)
        d[:, units : 2 * units] = dcell * earlier * f * (1 - f)
        d[:, 2 * units : 3 * units] = dhidden * squashed * o * (1 - o)
        d[:, 3 * units :] = dcell * i * (1 - new**2)
        dcell = dcell * f
        dhidden = d @ weights.T
    return dgates


def _gathered(index: Tokens, values: Array, size: int) -> Array:
    """Sum of the values (..., units) with the same index: (size, units)."""
    flat, rows = index.ravel(), values.reshape(-1, values.shape[-1])
    order = np.argsort(flat, kind="stable")
    where, starts = np.unique(flat[order], return_index=True)
    out = np.zeros((size, rows.shape[1]), rows.dtype)
    out[where] = np.add.reduceat(rows[order], starts, axis=0)
    return out
