// The worker: holds the model and the runs, answers the page.
//
// in   load   { config, tensors, weights: ArrayBuffer of float16 }
//      run    { run, ids, mask, times, topP, temperature, seed, pins }    a run from noise, with a number
//      branch { run, parent, from, pins }                                 another run's past, other pins from a step
//      why    { run, step, position, token }                              what that token owes to each position
//      forget { except }                                                  all runs but one
//      stop   {}
// out  ready {} · step { run, step } · end { run, isWhole, secondsPerStep } · failed { sentence }
//      asked { done, all } · because { run, step, position, weights } · unanswered {}

import { logprobOf } from "./attribution.js";
import { Denoiser } from "./denoiser.js";
import { Sampler } from "./sampler.js";
import { makeSimdBackend } from "./simd.js";

const WATCHABLE = 70; // milliseconds that a step is seen at least

const state = { denoiser: null, samplers: new Map(), turn: 0 };

const pause = (milliseconds = 0) => new Promise((resolve) => setTimeout(resolve, milliseconds));

// Makes the steps of a run, one message each. Between steps the worker listens: a later request ends this one.
async function makeSteps(run, sampler, from) {
  const turn = ++state.turn;
  let computing = 0; // milliseconds
  let rest = 0;
  let index = from;
  for (; index < sampler.times.length; index++) {
    await pause(rest);
    if (turn !== state.turn) break;
    const start = performance.now();
    const step = sampler.step(index);
    postMessage({ type: "step", run, step });
    const taken = performance.now() - start;
    computing += taken;
    rest = Math.max(0, WATCHABLE - taken);
  }
  const secondsPerStep = computing / 1000 / Math.max(1, index - from);
  postMessage({ type: "end", run, isWhole: index === sampler.times.length, secondsPerStep });
}

// Hides one position after the other; the difference in log-probability is what the token owes to it, in nats.
async function explain({ run, step, position, token }) {
  const turn = ++state.turn;
  const sampler = state.samplers.get(run);
  const logprob = logprobOf(sampler, step, position, token, null);
  const weights = [];
  for (const occluded of sampler.ids.keys()) {
    await pause();
    if (turn !== state.turn) {
      postMessage({ type: "unanswered" });
      return;
    }
    weights.push(logprob - logprobOf(sampler, step, position, token, occluded));
    postMessage({ type: "asked", done: occluded + 1, all: sampler.ids.length });
  }
  postMessage({ type: "because", run, step, position, weights });
}

const answers = {
  load({ config, tensors, weights }) {
    state.denoiser = new Denoiser(config, tensors, new Uint16Array(weights), makeSimdBackend() ?? undefined);
    postMessage({ type: "ready" });
  },
  run({ run, ...settings }) {
    state.samplers.set(run, new Sampler(state.denoiser, settings));
    return makeSteps(run, state.samplers.get(run), 0);
  },
  branch({ run, parent, from, pins }) {
    state.samplers.set(run, state.samplers.get(parent).branch(from, pins));
    return makeSteps(run, state.samplers.get(run), from);
  },
  why: explain,
  forget({ except }) {
    for (const run of state.samplers.keys()) {
      if (run !== except) state.samplers.delete(run);
    }
  },
  stop() {
    state.turn++;
  },
};

self.onmessage = async ({ data: { type, ...request } }) => {
  try {
    await answers[type](request);
  } catch (error) {
    postMessage({ type: "failed", sentence: `The model stopped working (${error.message}); reload the page.` });
  }
};
