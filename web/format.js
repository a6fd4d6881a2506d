// Numbers as people read them. Pure functions.

/** "0.42 s/step", "3.1 s/step"; empty while nothing is known. */
export function pace(seconds) {
  if (!Number.isFinite(seconds) || seconds <= 0) return "";
  if (seconds < 1) return `${seconds.toFixed(2)} s/step`;
  return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s/step`;
}

/** "45 s", "12 min", "3 h 05 min", "2 d 4 h"; empty while nothing is known. */
export function duration(seconds) {
  if (!Number.isFinite(seconds) || seconds < 0) return "";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${String(minutes % 60).padStart(2, "0")} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** Three significant digits: "0.0431", "12.3". */
export function loss(value) {
  return Number.isFinite(value) ? String(Number(value.toPrecision(3))) : "";
}

/** "12,000" in the reader's own way. */
export function count(value) {
  return Number(value ?? 0).toLocaleString();
}

/**
 * Exponential average without a start at zero, over any spacing of steps: a value's weight halves every `halfLife` steps.
 * `points` is [{step, value}] in order of step; gives the smoothed values.
 */
export function smoothed(points, halfLife) {
  let sum = 0;
  let weight = 0;
  let last = points.length ? points[0].step : 0;
  return points.map(({ step, value }) => {
    const keep = 0.5 ** (Math.max(step - last, 1) / halfLife);
    last = step;
    sum = keep * sum + (1 - keep) * value;
    weight = keep * weight + (1 - keep);
    return sum / weight;
  });
}

/** The range most values lie in, so that one outlier does not flatten the curve: [low, high]. */
export function usualRange(values) {
  const sorted = values.filter(Number.isFinite).sort((a, b) => a - b);
  if (!sorted.length) return [0, 1];
  const at = (share) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
  const [low, high] = [at(0.01), at(0.98)];
  const room = (high - low || Math.abs(high) || 1) * 0.12;
  return [low - room, high + room];
}

/** At most `most` points: of each group its lowest and highest value, so that spikes stay visible. */
export function thinned(points, most) {
  if (points.length <= most) return points;
  const kept = [];
  const size = Math.ceil((2 * points.length) / most);
  for (let start = 0; start < points.length; start += size) {
    const group = points.slice(start, start + size);
    const low = group.reduce((a, b) => (b.value < a.value ? b : a));
    const high = group.reduce((a, b) => (b.value > a.value ? b : a));
    kept.push(...(low.step <= high.step ? [low, high] : [high, low]).slice(0, low === high ? 1 : 2));
  }
  return kept;
}
