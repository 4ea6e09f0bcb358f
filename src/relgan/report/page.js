"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const made = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

// The legend hides and shows a variant everywhere; pointing at it dims the others.
const legend = document.querySelector(".legend");
for (const button of all("button", legend)) {
  const own = `[data-variant="${button.dataset.toggles}"]`;
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", shown);
    for (const part of all(own)) part.style.display = shown ? "" : "none";
  });
  const dim = (on) => all(`[data-variant]:not(${own})`).forEach((part) => part.classList.toggle("dim", on));
  button.addEventListener("pointerenter", () => dim(true));
  button.addEventListener("pointerleave", () => dim(false));
}
// What else sticks to the top sticks below it.
new ResizeObserver(() => document.documentElement.style.setProperty("--bar", `${legend.offsetHeight}px`)).observe(legend);

// Samples: one slider and one choice of seed for all pictures.
const slider = document.querySelector("#stage");
slider.addEventListener("input", () => {
  slider.setAttribute("aria-valuetext", all(".marks span")[slider.value].textContent);
  for (const stage of all(".stage")) stage.hidden = !stage.dataset.stages.split(" ").includes(slider.value);
});
for (const choice of all("[name=seed]")) {
  choice.addEventListener("change", () => {
    for (const card of all(".card[data-variant]")) {
      const seeds = all(".stages", card);
      const shown = seeds.find((each) => each.dataset.seed === choice.value) ?? seeds[0];
      for (const each of seeds) each.hidden = each !== shown;
    }
  });
}

// A click enlarges a picture, or a chart with its read-out: the chart itself moves into the dialog and back.
const dialog = document.querySelector("dialog");
const readout = document.querySelector("#readout");
for (const stage of all(".stage")) {
  stage.addEventListener("click", () => {
    const shown = stage.querySelector("img"), image = shown.cloneNode();
    const factor = Math.min(.9 * innerWidth, .86 * innerHeight) / shown.naturalWidth;
    image.classList.toggle("sharp", factor >= 1);
    image.removeAttribute("height");
    // Enlarged by a whole factor, all its pixels are equally wide.
    image.width = shown.naturalWidth * (factor >= 1 ? Math.floor(factor) : factor);
    dialog.replaceChildren(image, image.alt);
    dialog.showModal();
  });
}
for (const button of all(".enlarge")) {
  button.addEventListener("click", () => {
    if (dialog.open) return dialog.close();
    const figure = button.closest("figure"), place = document.createComment("");
    figure.replaceWith(place);
    dialog.replaceChildren(figure, readout);
    button.textContent = "Close";
    dialog.showModal();
    dialog.addEventListener("close", () => {
      button.textContent = "Enlarge";
      place.replaceWith(figure);
      document.body.append(readout);
      readout.hidden = true;
      button.focus({ preventScroll: true });
    }, { once: true });
  });
}
dialog.addEventListener("click", (event) => {
  if (event.target === dialog || event.target.matches("dialog > img")) dialog.close();
});

// Tables to paste.
for (const button of all(".copy")) {
  button.addEventListener("click", async () => {
    const text = button.nextElementSibling, name = button.textContent;
    try {
      await navigator.clipboard.writeText(text.value);
    } catch {  // refused, or too old
      text.hidden = false;
      text.select();
      document.execCommand("copy");
      text.hidden = true;
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = name; }, 1500);
  });
}

// A chart as a file: the colours of the moment written into it, its variants named below.
const DRAWN = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linecap", "stroke-linejoin", "opacity",
  "font-size", "font-family", "font-weight", "text-anchor", "vector-effect", "display"];

function asFile(svg) {
  const copy = svg.cloneNode(true), originals = all("*", svg), { width, height } = svg.viewBox.baseVal;
  all("*", copy).forEach((element, i) => {
    const style = getComputedStyle(originals[i]);
    for (const name of DRAWN) element.style.setProperty(name, style.getPropertyValue(name));
  });
  const named = all(".line", svg).filter((line) => line.checkVisibility());
  const text = getComputedStyle(svg.querySelector("text")), paper = getComputedStyle(document.body).backgroundColor;
  const rows = named.map((line, i) => {
    const y = height + 14 + 18 * i, style = getComputedStyle(line);
    const key = svg.ownerDocument.createElementNS(svg.namespaceURI, "g");
    key.innerHTML = `<path d="M10 ${y}h24" style="fill:none;stroke-width:2"/><text x="42" y="${y + 4}" style="font-size:12px"/>`;
    key.firstChild.style.stroke = style.stroke;
    key.firstChild.style.strokeDasharray = style.strokeDasharray;
    Object.assign(key.lastChild.style, { fill: text.fill, fontFamily: text.fontFamily });
    key.lastChild.textContent = line.dataset.label;
    return key;
  });
  const tall = height + 18 * rows.length + (rows.length ? 10 : 0);
  copy.append(...rows);
  copy.setAttribute("xmlns", svg.namespaceURI);
  copy.setAttribute("viewBox", `0 0 ${width} ${tall}`);
  copy.setAttribute("width", 2 * width);
  copy.setAttribute("height", 2 * tall);
  copy.style.background = paper;
  return new Blob([new XMLSerializer().serializeToString(copy)], { type: "image/svg+xml" });
}

for (const button of all(".svg")) {
  button.addEventListener("click", () => {
    const svg = button.closest("figure").querySelector("svg.chart");
    const name = svg.getAttribute("aria-label").replace(/[^\p{L}\p{N}]+/gu, "_");
    const link = made("a", { href: URL.createObjectURL(asFile(svg)), download: `${name}.svg` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}

// Charts with axes: a cursor and the values under it, by pointer or arrow keys; dragging zooms, and so do + and −.
const numbers = (text) => (text.match(/-?[\d.]+(e[+-]?\d+)?/g) ?? []).map(Number);
const short = (value) => String(Number(value.toPrecision(3)));

class Chart {
  constructor(svg) {
    this.svg = svg;
    this.plot = svg.querySelector(".plot");
    const [x, y, width, height] = numbers(this.plot.getAttribute("viewBox"));
    this.whole = { x, y, width, height };
    this.shown = this.whole;
    const axes = numbers(svg.dataset.axes);
    this.axes = { x: axes.slice(0, 3), y: axes.slice(3) };
    this.texts = all("text:not(.name)", svg).map((text) => ({ text, whole: text.textContent }));
    svg.addEventListener("pointermove", (event) => this.moved(event));
    svg.addEventListener("pointerdown", (event) => this.grabbed(event));
    svg.addEventListener("pointerup", (event) => this.released(event));
    svg.addEventListener("pointercancel", () => this.choose(null));
    svg.addEventListener("pointerleave", () => this.hide());
    svg.addEventListener("blur", () => this.hide());
    svg.addEventListener("dblclick", () => this.zoom(this.whole));
    svg.addEventListener("keydown", (event) => this.pressed(event));
  }

  /** Every line with its points: where they are in the unzoomed chart, and what they say. */
  get lines() {
    return this.read ??= all(".line", this.svg).map((path) => {
      const flat = numbers(path.getAttribute("d"));
      const words = ({ x, y, low, high }) => [x, y, low, high].map((texts) => texts?.split(" "));
      const [x, y, low, high] = words(path.dataset);
      const points = x.map((value, i) => ({
        px: flat[2 * i], py: flat[2 * i + 1], x: value, y: y[i], band: low && `${low[i]} to ${high[i]}`,
      }));
      return { path, points };
    });
  }

  get seen() {
    return this.lines.filter(({ path }) => path.style.display !== "none");
  }

  /** From the pointer to the unzoomed chart. */
  at(event) {
    const box = this.svg.getBoundingClientRect(), { width, height } = this.svg.viewBox.baseVal;
    const inside = [(event.clientX - box.left) / box.width * width, (event.clientY - box.top) / box.height * height];
    return {
      px: this.shown.x + (inside[0] - this.whole.x) / this.whole.width * this.shown.width,
      py: this.shown.y + (inside[1] - this.whole.y) / this.whole.height * this.shown.height,
    };
  }

  outside(px) {
    return this.whole.x + (px - this.shown.x) / this.shown.width * this.whole.width;
  }

  moved(event) {
    if (this.from === undefined) return this.show(this.at(event));
    this.choose([this.from, this.at(event).px]);
  }

  grabbed(event) {
    if (event.pointerType === "touch" || event.button) return;  // a finger scrolls the page
    this.from = this.at(event).px;
    this.svg.setPointerCapture(event.pointerId);
  }

  released(event) {
    if (this.from === undefined) return;
    const ends = [this.from, this.at(event).px].sort((a, b) => a - b);
    this.choose(null);
    if (ends[1] - ends[0] > this.shown.width / 50) this.zoomTo(...ends);
  }

  choose(ends) {
    if (!ends) this.from = undefined;
    const [left, right] = (ends ?? [0, 0]).map((px) => this.outside(px)).sort((a, b) => a - b);
    const area = this.svg.querySelector(".chosen");
    area.setAttribute("x", left);
    area.setAttribute("width", ends ? right - left : 0);
  }

  /** Show from left to right, and as much of the height as the lines and bands need there. */
  zoomTo(left, right) {
    const { x, y, width, height } = this.whole;
    left = Math.max(left, x);
    right = Math.min(right, x + width);
    const bands = all(".band", this.svg).filter((path) => path.style.display !== "none").flatMap((path) => {
      const flat = numbers(path.getAttribute("d"));
      return flat.flatMap((px, i) => (i % 2 ? [] : [{ px, py: flat[i + 1] }]));
    });
    const heights = [...this.seen.flatMap(({ points }) => points), ...bands]
      .filter(({ px }) => px >= left && px <= right).map(({ py }) => py);
    if (!heights.length) return;
    const margin = Math.max((Math.max(...heights) - Math.min(...heights)) * 0.06, 1);
    const top = Math.max(Math.min(...heights) - margin, y), bottom = Math.min(Math.max(...heights) + margin, y + height);
    this.zoom({ x: left, y: top, width: right - left, height: bottom - top });
  }

  /** The ticks stay where they are and say what is there now. */
  zoom(part) {
    this.shown = part;
    this.plot.setAttribute("viewBox", `${part.x} ${part.y} ${part.width} ${part.height}`);
    for (const { text, whole } of this.texts) text.textContent = part === this.whole ? whole : this.tick(text);
    this.hide();
  }

  tick(text) {
    const place = (name) => Number(text.getAttribute(name));
    const value = (share, [low, high, log]) => short(log ? low * (high / low) ** share : low + share * (high - low));
    const { x, y, width, height } = this.whole, part = this.shown;
    if (text.classList.contains("x")) {
      const px = part.x + (place("x") - x) / width * part.width;
      return value((px - x) / width, this.axes.x);
    }
    const py = part.y + (place("y") - y) / height * part.height;
    return value((y + height - py) / height, this.axes.y);
  }

  pressed(event) {
    if (event.key === "Escape" && !readout.hidden) {
      event.preventDefault();  // the dialog stays
      return this.hide();
    }
    const factor = { "+": 0.5, "=": 0.5, "-": 2 }[event.key];
    if (factor) {
      const middle = this.cursor?.px ?? this.shown.x + this.shown.width / 2, half = this.shown.width * factor / 2;
      if (2 * half < this.whole.width) return this.zoomTo(middle - half, middle + half);
    }
    if (factor || event.key === "0") return this.zoom(this.whole);
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const points = this.seen[0]?.points.filter(({ px }) => px >= this.shown.x && px <= this.shown.x + this.shown.width);
    if (!way || !points?.length) return;
    event.preventDefault();
    const next = points.findIndex(({ x }) => x === this.cursor?.x), start = way > 0 ? 0 : points.length - 1;
    this.show(points[next < 0 ? start : Math.min(Math.max(next + way, 0), points.length - 1)]);
  }

  show({ px, py }) {
    const pulls = this.svg.classList.contains("against");
    const distance = (point) => Math.abs(point.px - px) + (pulls ? Math.abs(point.py - py) : 0);
    const nearest = (points) => points.reduce((best, point) => (distance(point) < distance(best) ? point : best));
    let found = this.seen.map(({ path, points }) => ({ path, point: nearest(points) }));
    if (!found.length) return;
    found.sort((a, b) => distance(a.point) - distance(b.point));
    const at = this.cursor = found[0].point;
    found = pulls ? found.slice(0, 1)
      : found.filter(({ point }) => Math.abs(point.px - at.px) < this.shown.width / 30)
        .sort((a, b) => Math.abs(a.point.py - py) - Math.abs(b.point.py - py)).slice(0, 10)
        .sort((a, b) => a.point.py - b.point.py);
    this.svg.querySelector(".cursor").setAttribute("d", `M${this.outside(at.px)} ${this.whole.y}v${this.whole.height}`);
    const step = Math.round(at.x).toLocaleString("en");
    const head = pulls ? `real ${short(Number(at.x))}, generated ${at.y}` : `${this.svg.dataset.y} at ${step} updates`;
    readout.replaceChildren(made("p", { textContent: head }), ...found.map(({ path, point }) => made("div", {},
      made("span", { className: "swatch " + path.getAttribute("class").replace(/line|pair|dot|dim/g, "") }),
      path.dataset.label,
      made("b", { textContent: pulls ? "" : point.y }),
      made("small", { textContent: pulls ? "" : point.band ?? "" }))));
    readout.hidden = false;
    this.place(this.outside(at.px));
  }

  /** The read-out beside the cursor, on the side where it has room. */
  place(px) {
    const box = this.svg.getBoundingClientRect(), left = box.left + px / this.svg.viewBox.baseVal.width * box.width;
    const side = left + 16 + readout.offsetWidth < innerWidth ? left + 12 : left - 12 - readout.offsetWidth;
    readout.style.left = `${Math.max(4, side)}px`;
    readout.style.top = `${Math.max(4, Math.min(box.top + 8, innerHeight - readout.offsetHeight - 4))}px`;
  }

  hide() {
    readout.hidden = true;
    this.cursor = undefined;
    this.svg.querySelector(".cursor").setAttribute("d", "");
  }
}

for (const svg of all("svg.chart[data-axes]")) new Chart(svg);
addEventListener("scroll", () => { readout.hidden = true; }, { passive: true });
