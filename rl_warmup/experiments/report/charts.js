// Draws the curves of the page's data as SVG. Knows: data.sections; must not know: where numbers come from.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const AXES = { updates: "updates", train_seconds: "seconds of training", train_tokens: "tokens", train_flops: "FLOPs" };
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "12 4", "4 4", "1 4", "9 3 2 3 2 3"];

function make(name, attributes = {}, ...children) {
  const node = name.startsWith("svg:") ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

// "-12.3", "1.2k", "3.4M": short numbers for axes
function short(value) {
  const size = Math.abs(value);
  for (const [unit, letter] of [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (size >= unit) return `${sign(value)}${+(size / unit).toPrecision(3)}${letter}`;
  }
  return `${sign(value)}${+size.toPrecision(3)}`;
}
const sign = (value) => (value < 0 ? "−" : "");

function ticks(low, high, count) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= raw * 0.999);
  const out = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-6; tick += step) out.push(+tick.toPrecision(12));
  return out;
}

// marks differ in shape as well as in colour
function mark(shape, x, y, r) {
  const d = [
    `M${x - r},${y}a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0`,
    `M${x - r},${y - r}h${2 * r}v${2 * r}h${-2 * r}z`,
    `M${x},${y - r * 1.3}L${x + r * 1.3},${y}L${x},${y + r * 1.3}L${x - r * 1.3},${y}z`,
    `M${x},${y - r * 1.2}L${x + r * 1.2},${y + r}H${x - r * 1.2}z`,
    `M${x},${y + r * 1.2}L${x + r * 1.2},${y - r}H${x - r * 1.2}z`,
  ][shape % 5];
  return make("svg:path", { d, class: "mark" });
}

function plot(chart, axis, section, budget) {
  const arms = section.arms;
  const curves = chart.curves.filter((curve) => curve.xs[axis] && curve.mean.length);
  const phases = curves.filter((curve) => section.phases[curve.arm]?.[axis] !== undefined);
  const width = 380, height = 236, left = 48, right = 14, top = 12 + 4 * phases.length, bottom = 40;
  const all = (pick) => curves.flatMap(pick);
  const xs = all((curve) => curve.xs[axis]), ys = all((curve) => [...curve.low, ...curve.high]);
  const x1 = Math.max(...xs, budget ?? 0), x0 = 0;
  let y0 = Math.min(...ys), y1 = Math.max(...ys);
  if (y0 > 0 && y0 < 0.5 * y1) y0 = 0;
  if (y1 - y0 < 1e-9 * Math.max(1, Math.abs(y1))) { y0 -= 0.5; y1 += 0.5; }
  y1 += (y1 - y0) * 0.04;
  if (y0 !== 0) y0 -= (y1 - y0) * 0.04;
  const px = (x) => left + ((x - x0) / (x1 - x0 || 1)) * (width - left - right);
  const py = (y) => height - bottom - ((y - y0) / (y1 - y0)) * (height - top - bottom);
  const last = curves.map((curve) => `${curve.arm} ${short(curve.mean.at(-1))}`).join(", ");
  const svg = make("svg:svg", {
    viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `${chart.title} over ${AXES[axis]}; last values: ${last}`,
  });
  for (const tick of ticks(y0, y1, 4)) {
    svg.append(make("svg:line", { x1: left, x2: width - right, y1: py(tick), y2: py(tick), class: "grid" }));
    svg.append(make("svg:text", { x: left - 6, y: py(tick) + 4, "text-anchor": "end" }, short(tick)));
  }
  for (const tick of ticks(x0, x1, 4)) {
    svg.append(make("svg:text", { x: px(tick), y: height - bottom + 17, "text-anchor": "middle" }, short(tick)));
  }
  svg.append(make("svg:text", { x: (left + width - right) / 2, y: height - 5, "text-anchor": "middle" }, AXES[axis]));
  if (budget) svg.append(make("svg:line", { x1: px(budget), x2: px(budget), y1: top, y2: height - bottom, class: "budget" }));
  phases.forEach((curve, row) => {
    const end = px(Math.min(x1, section.phases[curve.arm][axis])), y = 6 + 4 * row;
    svg.append(make("svg:g", { class: `c${arms.indexOf(curve.arm) % 8}` },
      make("svg:rect", { x: left, y, width: end - left, height: 3, class: "phase" }),
      make("svg:line", { x1: end, x2: end, y1: y, y2: height - bottom, class: "phase-end" })));
  });
  for (const curve of curves) svg.append(line(curve, axis, arms.indexOf(curve.arm), px, py));
  const rule = make("svg:line", { y1: top, y2: height - bottom, class: "rule" });
  svg.append(rule);
  const box = make("div", { class: "plot" }, svg);
  hover(box, svg, rule, curves, axis, { px, width, left, right, x1 });
  return box;
}

function line(curve, axis, index, px, py) {
  const points = curve.xs[axis].map((x, i) => `${px(x).toFixed(1)},${py(curve.mean[i]).toFixed(1)}`);
  const edge = (values) => curve.xs[axis].map((x, i) => `${px(x).toFixed(1)},${py(values[i]).toFixed(1)}`);
  const group = make("svg:g", { class: `c${index % 8}` });
  if (curve.seeds > 1) group.append(make("svg:polygon", { points: [...edge(curve.high), ...edge(curve.low).reverse()].join(" "), class: "band" }));
  group.append(make("svg:polyline", { points: points.join(" "), class: "line", "stroke-dasharray": DASHES[index % 8] }));
  const count = points.length;
  curve.xs[axis].forEach((x, i) => {
    if (count <= 12 || i === count - 1) group.append(mark(index, px(x), py(curve.mean[i]), i === count - 1 ? 5 : 2.6));
  });
  return group;
}

// a rule under the pointer, and every arm's last value up to there
function hover(box, svg, rule, curves, axis, scale) {
  const tip = make("div", { class: "tip", hidden: "" });
  box.append(tip);
  svg.addEventListener("pointermove", (event) => {
    const shown = svg.getBoundingClientRect();
    const x = ((event.clientX - shown.left) / shown.width) * scale.width;
    const share = Math.min(1, Math.max(0, (x - scale.left) / (scale.width - scale.left - scale.right)));
    const at = share * scale.x1;
    const lines = [make("div", { class: "soft" }, `${short(at)} ${AXES[axis]}`)];
    for (const curve of curves) {
      const index = curve.xs[axis].findLastIndex((value) => value <= at * 1.0001);
      if (index < 0) continue;
      const range = curve.seeds > 1 ? ` (${short(curve.low[index])} to ${short(curve.high[index])})` : "";
      lines.push(make("div", {}, make("b", {}, curve.arm), ` ${short(curve.mean[index])}${range}`));
    }
    tip.replaceChildren(...lines);
    tip.hidden = false;
    const pixel = scale.px(at);
    rule.setAttribute("x1", pixel);
    rule.setAttribute("x2", pixel);
    rule.style.visibility = "visible";
    const spot = (pixel / scale.width) * shown.width;
    tip.style.left = share < 0.5 ? `${spot + 10}px` : "auto";
    tip.style.right = share < 0.5 ? "auto" : `${shown.width - spot + 10}px`;
  });
  svg.addEventListener("pointerleave", () => { tip.hidden = true; rule.style.visibility = "hidden"; });
}

// the same numbers for who cannot see the picture, or wants to copy them
function numbers(chart, axis) {
  const details = make("details", {}, make("summary", {}, "numbers"));
  details.addEventListener("toggle", () => {
    if (details.children.length > 1) return;
    const head = ["arm", AXES[axis], "mean", "lowest", "highest"].map((name) => make("th", { scope: "col" }, name));
    const body = make("tbody");
    for (const curve of chart.curves.filter((one) => one.xs[axis])) {
      curve.xs[axis].forEach((x, i) => {
        const cells = [short(x), ...[curve.mean, curve.low, curve.high].map((values) => String(+values[i].toPrecision(5)))];
        body.append(make("tr", {}, make("th", { scope: "row", class: "text" }, curve.arm), ...cells.map((cell) => make("td", {}, cell))));
      });
    }
    details.append(make("div", { class: "wide" }, make("table", {}, make("thead", {}, make("tr", {}, ...head)), body)));
  });
  return details;
}

function panel(chart, axis, section, budget) {
  const unit = chart.unit ? ` ${chart.unit}` : "";
  const caption = make("figcaption", {}, `${chart.title}`, make("small", {}, unit ? ` (${unit.trim()})` : ""));
  return make("figure", {}, caption, plot(chart, axis, section, budget), numbers(chart, axis));
}

function legend(arms, shown) {
  const items = arms.map((arm, index) => {
    if (!shown.has(arm)) return null;
    const key = make("svg:svg", { viewBox: "0 0 34 12", class: `c${index % 8} plot`, "aria-hidden": "true" },
      make("svg:line", { x1: 0, x2: 34, y1: 6, y2: 6, class: "line", "stroke-dasharray": DASHES[index % 8] }), mark(index, 17, 6, 4));
    return make("li", {}, key, arm);
  });
  return make("ul", { class: "legend", "aria-label": "arms" }, ...items);
}

function draw(section, place) {
  const arms = section.arms;
  const shown = new Set([...section.quality, ...section.training].flatMap((chart) => chart.curves.map((curve) => curve.arm)));
  const grid = make("div", { class: "charts" });
  if (place.dataset.kind !== "compute") {
    for (const chart of section[place.dataset.kind]) grid.append(panel(chart, "updates", section, null));
    place.append(legend(arms, shown), grid);
    return;
  }
  const show = (chart) => grid.replaceChildren(...Object.keys(AXES)
    .filter((axis) => chart.curves.some((curve) => curve.xs[axis]))
    .map((axis) => panel({ ...chart, title: `${chart.title} over ${AXES[axis]}` }, axis, section, section.budget[axis])));
  const choice = make("select", { onchange: () => show(section.quality[choice.value]) },
    ...section.quality.map((chart, index) => make("option", { value: index }, chart.title)));
  if (section.quality.length > 1) place.append(make("div", { class: "tools one" }, make("label", {}, "Quantity", choice)));
  place.append(legend(arms, shown), grid);
  show(section.quality[0]);
}

for (const place of document.querySelectorAll("[data-section]")) draw(data.sections[place.dataset.section], place);
