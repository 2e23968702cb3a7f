// A slider that moved takes the others to the same step of the run, as far as they have it, and stops their play.
root => {
  const all = [...root.querySelectorAll("input[type=range]")];
  let leading = null;
  all.forEach(one => one.addEventListener("t2step", () => {
    if (leading) return;
    leading = one;
    all.filter(other => other !== one).forEach(other => {
      const step = +one.value + +one.dataset.first - other.dataset.first;
      other.value = Math.max(0, Math.min(+other.max, step));
      other.dispatchEvent(new Event("t2show"));
    });
    leading = null;
  }));
}
