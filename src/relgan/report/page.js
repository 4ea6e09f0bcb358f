"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// The legend hides and shows a variant in every chart and among the samples.
for (const button of all(".legend button")) {
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", shown);
    for (const part of all(`[data-variant="${button.dataset.toggles}"]`)) part.style.display = shown ? "" : "none";
  });
}

// Samples: one slider for all pictures; a click enlarges.
const slider = document.querySelector("#stage");
slider?.addEventListener("input", () => {
  slider.setAttribute("aria-valuetext", all(".marks span")[slider.value].textContent);
  for (const stage of all(".stage")) stage.hidden = !stage.dataset.stages.split(" ").includes(slider.value);
});
const dialog = document.querySelector("dialog");
for (const stage of all(".stage")) {
  stage.addEventListener("click", () => {
    const image = stage.querySelector("img");
    dialog.replaceChildren(image.cloneNode(), image.alt);
    dialog.showModal();
  });
}
dialog.addEventListener("click", () => dialog.close());

// Charts: a vertical cursor and the values under it, by pointer or by arrow keys.
const readout = document.querySelector("#readout");
const numbers = (text) => (text.match(/-?[\d.]+(e[+-]?\d+)?/g) ?? []).map(Number);

function read(svg) {
  return svg.lines ??= all(".line", svg).map((path) => {
    const flat = numbers(path.getAttribute("d"));
    const x = path.dataset.x.split(" "), y = path.dataset.y.split(" ");
    return { path, points: x.map((value, i) => ({ px: flat[2 * i], py: flat[2 * i + 1], x: value, y: y[i] })) };
  });
}

function nearest(points, distance) {
  return points.reduce((best, point) => (distance(point) < distance(best) ? point : best));
}

function show(svg, px, py) {
  const pulls = svg.classList.contains("against");
  const distance = (point) => Math.abs(point.px - px) + (pulls ? Math.abs(point.py - py) : 0);
  let found = read(svg).filter(({ path }) => path.style.display !== "none")
    .map(({ path, points }) => ({ path, point: nearest(points, distance) }));
  if (!found.length) return;
  found.sort((a, b) => distance(a.point) - distance(b.point));
  const at = found[0].point;
  found = pulls ? found.slice(0, 1)
    : found.filter(({ point }) => Math.abs(point.px - at.px) < 12)
      .sort((a, b) => Math.abs(a.point.py - py) - Math.abs(b.point.py - py)).slice(0, 10)
      .sort((a, b) => a.point.py - b.point.py);
  svg.querySelector(".cursor").setAttribute("d", `M${at.px} 10V212`);
  const head = document.createElement("div");
  const step = Math.round(at.x).toLocaleString("en");
  head.textContent = pulls ? `real ${Number(Number(at.x).toPrecision(4))}, generated ${at.y}` : `${svg.dataset.y} at ${step} updates`;
  readout.replaceChildren(head, ...found.map(({ path, point }) => {
    const row = document.createElement("div"), swatch = document.createElement("span"), value = document.createElement("b");
    swatch.className = "swatch " + path.getAttribute("class").replace(/line|pair|dot/g, "");
    value.textContent = pulls ? "" : point.y;
    row.append(swatch, path.dataset.label, value);
    return row;
  }));
  readout.hidden = false;
  const box = svg.getBoundingClientRect(), left = box.left + at.px / 420 * box.width;
  const side = left + 16 + readout.offsetWidth < innerWidth ? left + 12 : left - 12 - readout.offsetWidth;
  readout.style.left = `${Math.max(4, side) + scrollX}px`;
  readout.style.top = `${box.top + scrollY + 8}px`;
  svg.at = at;
}

function hide(svg) {
  readout.hidden = true;
  svg.querySelector(".cursor").setAttribute("d", "");
}

for (const svg of all("svg.chart")) {
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    show(svg, (event.clientX - box.left) / box.width * 420, (event.clientY - box.top) / box.height * 250);
  });
  svg.addEventListener("pointerleave", () => hide(svg));
  svg.addEventListener("blur", () => hide(svg));
  svg.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide(svg);
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const points = read(svg)[0]?.points;
    if (!way || !points) return;
    event.preventDefault();
    svg.index = Math.min(Math.max((svg.index ?? (way > 0 ? -1 : points.length)) + way, 0), points.length - 1);
    show(svg, points[svg.index].px, points[svg.index].py);
  });
}
