// Which times t/T a run visits, as tess2lite/schedule.py has it.

const TRAINING_TIMESTEPS = 5000; // T of the paper
const UNIFORM_SHARE = 0.1; // of informative times: no stretch of time is left out altogether

// Evenly spaced, from noise to text.
export function evenTimes(steps) {
  return Array.from({ length: steps }, (_, i) => (steps - 1 - i) / steps);
}

// Times whose density is proportional to how much the model's loss changes, apart from an even tenth.
// curve: { t, loss }, rising times and the denoiser's loss at each.
export function informativeTimes(curve, steps) {
  const end = 1 - 1 / TRAINING_TIMESTEPS;
  const times = [0, ...curve.t, end];
  const losses = [curve.loss[0], ...curve.loss, curve.loss.at(-1)];
  for (let i = 1; i < losses.length; i++) losses[i] = Math.max(losses[i], losses[i - 1]);
  const rise = losses.at(-1) - losses[0];
  const below = [0]; // share of steps below each time
  for (let i = 1; i < times.length; i++) {
    const change = (losses[i] - losses[i - 1]) / rise;
    const span = (times[i] - times[i - 1]) / end;
    below.push(below[i - 1] + (1 - UNIFORM_SHARE) * change + UNIFORM_SHARE * span);
  }
  const timeBelow = (share) => {
    let right = below.findIndex((each) => each >= share);
    right = Math.max(1, right < 0 ? below.length - 1 : right);
    const fraction = (share - below[right - 1]) / Math.max(below[right] - below[right - 1], 1e-12);
    return times[right - 1] + Math.min(1, Math.max(0, fraction)) * (times[right] - times[right - 1]);
  };
  return Array.from({ length: steps }, (_, i) => timeBelow(steps === 1 ? 1 : 1 - i / (steps - 1)));
}

// The times of a run of so many steps, as the model's config asks for.
export function timesOf(config, steps) {
  return config.timestep_spacing === "informative" ? informativeTimes(config.loss_curve, steps) : evenTimes(steps);
}
