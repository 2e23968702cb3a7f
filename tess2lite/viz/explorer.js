((root, data) => {
  // Controls come from here: where scripts do not run, nothing dead is shown. JupyterLab would take the arrow keys.
  const ours = 'data-lm-suppress-shortcuts="true"', last = data.labels.length - 1;
  root.querySelector("[data-static]").remove();
  root.querySelector("output").insertAdjacentHTML("beforebegin", `<div data-bar>
    <button type="button" ${ours}>Play</button>
    <input type="range" min="0" max="${last}" value="${last}" data-first="${data.first}" aria-label="diffusion step" ${ours}>
  </div>`);
  root.querySelector("[data-text]").insertAdjacentHTML("afterend", `<div data-below>
    <figure>
      <div data-map>
        <canvas role="img" aria-label="Map of confidence: a column for each step, a row for each written token, light is sure"></canvas>
        <div data-cursor></div><div data-row></div>
      </div>
      <figcaption>rows: tokens, columns: steps, light: sure. Click to go there.</figcaption>
      <svg viewBox="0 0 300 80" preserveAspectRatio="none" role="img" aria-label="Curves over the steps"></svg>
      <figcaption>over the steps, each to its own scale: — signal left ᾱ, - - mean entropy, ··· reward</figcaption>
    </figure>
    <div>
      <div data-which></div><table aria-label="likeliest tokens"><tbody data-top></tbody></table>
      <div data-push></div><div data-flips></div><ul data-history></ul>
    </div>
  </div>
  <p data-hint>Shade and underline say how unsure the model is of its first choice: dashed below 80 %, dotted below 40 %.
    <span data-differs hidden>A bar above: another token than in the first run.</span>
    <span data-pushed hidden>▴: guidance changed the likeliest token in this step.</span>
    Point at a token, or walk with the arrow keys.</p>`);
  const find = name => root.querySelector(`[data-${name}]`);
  const range = root.querySelector("input"), button = root.querySelector("button"), label = root.querySelector("output");
  const bytes = text => Uint8Array.from(atob(text), char => char.charCodeAt(0));
  const { written, pieces } = data, steps = data.labels.length, M = written.length;
  const wide = text => new (pieces.length < 2 ** 16 ? Uint16Array : Uint32Array)(bytes(text).buffer);
  const tokens = wide(data.tokens), counts = bytes(data.counts), topIds = wide(data.top), topP = bytes(data.p);
  const differs = bytes(data.differs), unguided = wide(data.unguided), push = new Int16Array(bytes(data.push).buffer);
  const starts = new Uint32Array(counts.length);
  for (let i = 1; i < counts.length; i++) starts[i] = starts[i - 1] + counts[i - 1];
  const best = (step, m) => topIds[starts[step * M + m]];
  const sure = (step, m) => topP[starts[step * M + m]] / 255;
  const turned = (step, m) => push.length > 0 && unguided[step * M + m] !== best(step, m);
  const sign = char => ({ "\n": "⏎", "\t": "⇥" })[char] ?? `U+${char.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
  const visible = text => text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, sign) || "∅";
  const inText = text => text === "" || /^[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]+$/u.test(text) ? visible(text) + (text.includes("\n") ? "\n" : "") : text;
  const percent = p => p > 0.995 && p < 1 ? ">99 %" : p < 0.005 ? "<1 %" : `${Math.round(100 * p)} %`;
  const make = (tag, text, attributes = {}) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    Object.entries(attributes).forEach(([name, value]) => element.setAttribute(name, value));
    return element;
  };

  // The text: one span a token, written ones can be picked.
  const text = find("text");
  text.textContent = "";
  const order = new Map(written.map((position, m) => [position, m])), spans = [];
  text.setAttribute("role", "listbox");
  text.setAttribute("aria-label", "tokens");
  data.known.forEach((known, position) => {
    const m = order.get(position);
    const span = make("span", m === undefined ? known : "");
    if (m !== undefined) {
      span.setAttribute("role", "option");
      span.setAttribute("tabindex", m ? "-1" : "0");
      span.setAttribute("data-lm-suppress-shortcuts", "true");
      span.onmouseenter = span.onfocus = () => pick(m);
      span.onclick = () => span.focus();
      span.onkeydown = event => {
        const go = { ArrowRight: m + 1, ArrowLeft: m - 1, Home: 0, End: M - 1 }[event.key];
        if (go === undefined || !spans[go]) return;
        event.preventDefault();
        spans[go].focus();
      };
      spans[m] = span;
    }
    text.append(span);
  });

  // The map: a column a step, a row a written token. Light is sure; luminance rises all the way.
  const STOPS = [[0, 32, 77], [65, 77, 107], [124, 123, 120], [188, 175, 111], [255, 234, 70]];
  const colour = p => {
    const at = p * 4, i = Math.min(3, Math.floor(at));
    return STOPS[i].map((from, c) => Math.round(from + (at - i) * (STOPS[i + 1][c] - from)));
  };
  const canvas = root.querySelector("canvas");
  canvas.width = steps;
  canvas.height = M;
  const pen = canvas.getContext("2d"), image = pen.createImageData(steps, M);
  for (let step = 0; step < steps; step++)
    for (let m = 0; m < M; m++) image.data.set([...colour(sure(step, m)), 255], 4 * (m * steps + step));
  pen.putImageData(image, 0, 0);
  const under = event => {
    const box = canvas.getBoundingClientRect();
    const part = (at, from, size, count) => Math.max(0, Math.min(count - 1, Math.floor((at - from) / size * count)));
    return [part(event.clientX, box.left, box.width, steps), part(event.clientY, box.top, box.height, M)];
  };
  canvas.onmousemove = event => pick(under(event)[1]);
  canvas.onclick = event => { stop(); range.value = under(event)[0]; show(); };

  // Curves over the steps.
  const svg = root.querySelector("svg"), SVG = "http://www.w3.org/2000/svg";
  const draw = (tag, attributes) => {
    const element = document.createElementNS(SVG, tag);
    Object.entries(attributes).forEach(([name, value]) => element.setAttribute(name, value));
    svg.append(element);
    return element;
  };
  const x = step => 5 + 290 * (steps > 1 ? step / (steps - 1) : 0.5);
  data.curves.forEach((values, i) => {
    const top = Math.max(...values), bottom = Math.min(0, ...values), y = v => 75 - 70 * (v - bottom) / (top - bottom || 1);
    draw("polyline", { points: values.map((v, step) => `${x(step)},${y(v)}`).join(" "), fill: "none",
      stroke: "currentColor", "stroke-width": 1.2, "stroke-dasharray": ["", "6 4", "1 4"][i], "vector-effect": "non-scaling-stroke" });
  });
  const marker = draw("line", { y1: 2, y2: 78, stroke: "var(--t2-mark)", "stroke-width": 2, "vector-effect": "non-scaling-stroke" });

  // What is shown now.
  let picked = 0, timer = null;
  const show = () => {
    const step = +range.value;
    let changed = 0;
    for (let m = 0; m < M; m++) {
      const p = sure(step, m), id = tokens[step * M + m], span = spans[m];
      if (step && id !== tokens[(step - 1) * M + m]) changed++;
      span.textContent = inText(pieces[id]);
      span.setAttribute("aria-label", visible(pieces[id]) + (turned(step, m) ? ", changed by guidance" : ""));
      span.style.background = `color-mix(in srgb, var(--t2-doubt) ${Math.round(60 * (1 - p))}%, transparent)`;
      span.className = (p < 0.4 ? "guess" : p < 0.8 ? "doubt" : "") + (m === picked ? " picked" : "") +
        (differs[step * M + m] ? " differs" : "") + (turned(step, m) ? " pushed" : "");
      span.setAttribute("aria-selected", m === picked);
    }
    label.textContent = `${data.labels[step]}${step ? ` · ${changed} token${changed === 1 ? "" : "s"} changed` : ""}`;
    find("cursor").style.left = `${100 * step / steps}%`;
    find("cursor").style.width = `${100 / steps}%`;
    marker.setAttribute("x1", x(step));
    marker.setAttribute("x2", x(step));
    range.setAttribute("aria-valuetext", label.textContent);
    range.dispatchEvent(new Event("t2step"));
    detail(step);
  };
  const detail = step => {
    const cell = step * M + picked, table = find("top"), history = find("history");
    table.replaceChildren(...Array.from({ length: counts[cell] }, (_, i) => {
      const row = make("tr"), p = topP[starts[cell] + i] / 255, bar = make("td");
      bar.append(make("meter", undefined, { min: 0, max: 1, value: p, "aria-label": "probability" }));
      row.append(make("td", visible(pieces[topIds[starts[cell] + i]])), bar, make("td", percent(p)));
      return row;
    }));
    find("which").textContent = `position ${written[picked]}, shown: “${visible(pieces[tokens[cell]])}”`;
    const nats = push[cell] / 100, gained = `${nats < 0 ? "−" : "+"}${Math.abs(nats).toFixed(2)} nats`;
    find("push").textContent = !push.length ? "" : turned(step, picked)
      ? `guidance changed “${visible(pieces[unguided[cell]])}” to “${visible(pieces[best(step, picked)])}”, ${gained}`
      : `guidance gave “${visible(pieces[best(step, picked)])}” ${gained}`;
    const runs = [];
    for (let s = 0; s < steps; s++) {
      const id = best(s, picked);
      if (runs.length && runs.at(-1).id === id) runs.at(-1).to = s;
      else runs.push({ id, from: s, to: s });
    }
    history.replaceChildren(...runs.slice(-8).map(run => make("li",
      `${run.from + 1}${run.to > run.from ? `–${run.to + 1}` : ""}: ${visible(pieces[run.id])}`)));
    find("flips").textContent = runs.length > 8 ? `likeliest at steps … (the last 8 of ${runs.length})` : "likeliest at steps …";
  };
  const pick = m => {
    spans[picked].setAttribute("tabindex", "-1");
    spans[picked].classList.remove("picked");
    spans[picked].setAttribute("aria-selected", "false");
    picked = m;
    spans[m].setAttribute("tabindex", "0");
    spans[m].classList.add("picked");
    spans[m].setAttribute("aria-selected", "true");
    find("row").style.top = `${100 * m / M}%`;
    find("row").style.height = `${100 / M}%`;
    detail(+range.value);
  };
  const stop = () => { clearInterval(timer); timer = null; button.textContent = "Play"; label.setAttribute("aria-live", "polite"); };
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  button.onclick = () => {
    if (timer) return stop();
    if (+range.value >= steps - 1) range.value = 0;
    show();
    label.setAttribute("aria-live", "off");
    button.textContent = "Pause";
    timer = setInterval(() => {
      if (+range.value >= steps - 1) return stop();
      range.value = +range.value + 1;
      show();
    }, calm ? 1000 : Math.max(40, Math.min(150, 8000 / steps)));
  };
  range.oninput = () => { stop(); show(); };
  range.addEventListener("t2show", () => { stop(); show(); });  // another run, shown beside this one, has moved
  root.querySelector("[data-differs]").hidden = !differs.some(Boolean);
  root.querySelector("[data-pushed]").hidden = !push.some(Boolean);
  pick(0);
  show();
})
