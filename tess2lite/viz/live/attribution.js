// Why this token: each position in turn is read as one of which nothing is known (occlusion), as `t2.attribute` does.

// The mean embedding: what stands for the uniform prediction.
function meanEmbedding(denoiser) {
  const { memory, offsets, config } = denoiser;
  const mean = new Float32Array(config.hidden_size);
  const matrix = offsets["model.embed_tokens.weight"];
  for (let v = 0; v < config.vocab_size; v++) {
    for (let i = 0; i < mean.length; i++) mean[i] += memory[matrix + v * mean.length + i] / config.vocab_size;
  }
  return mean;
}

// log p(token) at a position at one step of a run; `occluded` is the position that is hidden from the model, or null.
export function logprobOf(sampler, index, position, token, occluded) {
  const { denoiser } = sampler;
  const { memory, offsets, config } = denoiser;
  sampler.writeInputs(index);
  if (occluded !== null) denoiser.writeSoft(occluded, meanEmbedding(denoiser), 0, sampler.times[index]);
  denoiser.forward(sampler.ids.length);
  denoiser.logits([position]);
  const logits = memory.subarray(offsets.logits, offsets.logits + config.vocab_size);
  const top = logits.reduce((most, logit) => Math.max(most, logit), -Infinity);
  const total = logits.reduce((sum, logit) => sum + Math.exp(logit - top), 0);
  return logits[token] - top - Math.log(total);
}
