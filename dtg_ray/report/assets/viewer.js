/* Slice viewers. The box of voxels is in C order; its axes run to the right, forward and up. */

/* ColorBrewer's RdBu from blue to red, which colour-blind people tell apart. */
const COLOURS = [
  [5, 48, 97], [33, 102, 172], [67, 147, 195], [146, 197, 222], [209, 229, 240], [247, 247, 247],
  [253, 219, 199], [244, 165, 130], [214, 96, 77], [178, 24, 43], [103, 0, 31],
];
const NO_VALUE = -128;
const BRAIN = 226;
const OUTLINE = 120;
const DARKEST = 70;
const PIXELS_PER_MM = 3;
/* For each plane the axes that run to the right of the picture, up, and through it. */
const PLANES = { coronal: [0, 2, 1], sagittal: [1, 2, 0], axial: [0, 1, 2] };

function bytesOf(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

/* The colour of a value as a share of the scale, from -1 to 1. */
function colourOf(share) {
  const place = ((Math.min(Math.max(share, -1), 1) + 1) / 2) * (COLOURS.length - 1);
  const below = Math.min(Math.floor(place), COLOURS.length - 2);
  return COLOURS[below].map((low, channel) => Math.round(low + (COLOURS[below + 1][channel] - low) * (place - below)));
}

function readable(value, digits) {
  return value.toFixed(digits).replace(/^-(0(\.0*)?)$/, "$1").replace("-", "−");
}

/* Where each voxel of the box stands among those of the mask; -1 outside. */
function placesOf(data) {
  const bits = bytesOf(data.mask);
  const places = new Int32Array(data.shape[0] * data.shape[1] * data.shape[2]);
  let inside = 0;
  for (let voxel = 0; voxel < places.length; voxel++) {
    places[voxel] = (bits[voxel >> 3] >> (7 - (voxel & 7))) & 1 ? inside++ : -1;
  }
  return places;
}

/* What all panes of a viewer share. */
function readMaps(data) {
  const maps = data.maps.map(() => null);
  const [, rows, columns] = data.shape;
  return {
    ...data,
    places: placesOf(data),
    grey: data.background === null ? null : bytesOf(data.background),
    palette: Array.from({ length: 256 }, (_, code) => colourOf(((code - 128) * data.step) / data.limit)),
    strides: [rows * columns, columns, 1],
    digits: Math.max(0, Math.min(6, -Math.floor(Math.log10(data.step)))), // no more than the steps allow
    codes: (number) => (maps[number] ??= new Int8Array(bytesOf(data.maps[number]).buffer)),
  };
}

function voxelAt(shared, point) {
  return shared.places[point.reduce((sum, index, axis) => sum + index * shared.strides[axis], 0)];
}

/* The pixels of one slice, a pixel per voxel, the highest row first. */
function paint(shared, codes, plane, point, threshold) {
  const [across, up, through] = PLANES[plane];
  const [width, height] = [shared.shape[across], shared.shape[up]];
  const image = new ImageData(width, height);
  const inside = (column, row) =>
    column >= 0 && row >= 0 && column < width && row < height
      ? shared.places[point[through] * shared.strides[through] + column * shared.strides[across] + row * shared.strides[up]]
      : -1;
  const borders = (column, row) =>
    inside(column - 1, row) >= 0 || inside(column + 1, row) >= 0 || inside(column, row - 1) >= 0 || inside(column, row + 1) >= 0;
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const place = inside(column, row);
      if (place < 0 && !borders(column, row)) continue;
      const colour = place < 0 ? [OUTLINE, OUTLINE, OUTLINE] : voxelColour(shared, codes, place, threshold);
      image.data.set([...colour, 255], ((height - 1 - row) * width + column) * 4);
    }
  }
  return image;
}

function voxelColour(shared, codes, place, threshold) {
  const code = codes[place];
  if (code !== NO_VALUE && Math.abs(code) * shared.step >= threshold) return shared.palette[code + 128];
  const grey = shared.grey === null ? BRAIN : DARKEST + (shared.grey[place] / 255) * (255 - DARKEST);
  return [grey, grey, grey];
}

function drawSlice(shared, canvas, plane, codes, state) {
  const [across, up] = PLANES[plane];
  const image = paint(shared, codes, plane, state.point, state.threshold);
  const scratch = document.createElement("canvas");
  [scratch.width, scratch.height] = [image.width, image.height];
  scratch.getContext("2d").putImageData(image, 0, 0);
  canvas.width = Math.round(image.width * shared.spacing[across] * PIXELS_PER_MM);
  canvas.height = Math.round(image.height * shared.spacing[up] * PIXELS_PER_MM);
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false; // a voxel is what was measured
  context.drawImage(scratch, 0, 0, canvas.width, canvas.height);
  drawCross(
    context,
    ((state.point[across] + 0.5) / image.width) * canvas.width,
    (1 - (state.point[up] + 0.5) / image.height) * canvas.height,
  );
}

/* Dark lines on light ones, to be seen on any colour; the middle stays free. */
function drawCross(context, x, y) {
  const { width, height } = context.canvas;
  const gap = 4 * PIXELS_PER_MM;
  const lines = [[0, y, x - gap, y], [x + gap, y, width, y], [x, 0, x, y - gap], [x, y + gap, x, height]];
  for (const [colour, thickness] of [["rgb(255 255 255 / 70%)", 5], ["rgb(20 20 20 / 80%)", 2]]) {
    context.strokeStyle = colour;
    context.lineWidth = thickness;
    context.beginPath();
    for (const [x0, y0, x1, y1] of lines) {
      context.moveTo(x0, y0);
      context.lineTo(x1, y1);
    }
    context.stroke();
  }
}

function drawBar(shared, canvas, threshold) {
  [canvas.width, canvas.height] = [512, 1];
  const context = canvas.getContext("2d");
  for (let column = 0; column < canvas.width; column++) {
    const share = (column + 0.5) / (canvas.width / 2) - 1;
    const hidden = Math.abs(share) * shared.limit < threshold;
    context.fillStyle = `rgb(${hidden ? [BRAIN, BRAIN, BRAIN] : colourOf(share)})`;
    context.fillRect(column, 0, 1, 1);
  }
}

function valueText(shared, codes, point) {
  const place = voxelAt(shared, point);
  if (place < 0) return "outside";
  return codes[place] === NO_VALUE ? "no value" : readable(codes[place] * shared.step, shared.digits);
}

/* The voxel with the largest size of a value. */
function peakOf(shared, codes) {
  let best = 0;
  codes.forEach((code, place) => {
    if (code !== NO_VALUE && (codes[best] === NO_VALUE || Math.abs(code) > Math.abs(codes[best]))) best = place;
  });
  const voxel = shared.places.indexOf(best);
  return shared.strides.map((stride, axis) => Math.floor(voxel / stride) % shared.shape[axis]);
}

function startPane(shared, element, state, refresh) {
  const choice = element.querySelector("[data-map]");
  const slices = Array.from(element.querySelectorAll("[data-plane]"), (slice) => ({
    plane: slice.dataset.plane,
    canvas: slice.querySelector("canvas"),
  }));
  const extent = shared.shape.map((count, axis) => count * shared.spacing[axis]);
  const grid = element.querySelector(".slices");
  grid.style.gridTemplateColumns = `minmax(0, ${extent[0]}fr) minmax(0, ${extent[1]}fr)`;
  for (const { plane, canvas } of slices) followPointer(shared, canvas, plane, state, refresh);
  choice.addEventListener("change", refresh);
  const codes = () => shared.codes(Number(choice.value));
  element.querySelector("[data-peak]").addEventListener("click", () => {
    state.point = peakOf(shared, codes());
    refresh();
  });
  return {
    codes,
    describe: () => `${shared.names[Number(choice.value)]} ${valueText(shared, codes(), state.point)}`,
    draw() {
      for (const { plane, canvas } of slices) drawSlice(shared, canvas, plane, codes(), state);
      element.querySelector("[data-value]").textContent = valueText(shared, codes(), state.point);
    },
  };
}

function followPointer(shared, canvas, plane, state, refresh) {
  const [across, up] = PLANES[plane];
  const clamp = (index, axis) => Math.min(Math.max(Math.floor(index), 0), shared.shape[axis] - 1);
  const move = (event) => {
    const frame = canvas.getBoundingClientRect();
    state.point[across] = clamp(((event.clientX - frame.left) / frame.width) * shared.shape[across], across);
    state.point[up] = clamp((1 - (event.clientY - frame.top) / frame.height) * shared.shape[up], up);
    refresh();
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    move(event);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (canvas.hasPointerCapture(event.pointerId)) move(event);
  });
}

function startViewer(figure) {
  const shared = readMaps(JSON.parse(document.getElementById(figure.dataset.viewer).textContent));
  const state = { point: shared.shape.map((count) => count >> 1), threshold: 0 };
  const axes = Array.from(figure.querySelectorAll("[data-axis]"));
  const threshold = figure.querySelector("[data-threshold]");
  const panes = Array.from(figure.querySelectorAll(".pane"), (pane) => startPane(shared, pane, state, refresh));
  const millimetres = (axis) => shared.origin[axis] + state.point[axis] * shared.spacing[axis];

  function refresh() {
    state.threshold = (Number(threshold.value) / 100) * shared.limit;
    axes.forEach((slider, axis) => {
      slider.value = String(millimetres(axis));
      slider.nextElementSibling.textContent = `${readable(millimetres(axis), shared.spacing[axis] % 1 ? 1 : 0)} mm`;
    });
    threshold.nextElementSibling.textContent = `${readable(state.threshold, shared.digits)} ${shared.unit}`;
    threshold.setAttribute("aria-valuetext", threshold.nextElementSibling.textContent);
    const where = axes.map((slider, axis) => `${"xyz"[axis]} ${slider.nextElementSibling.textContent}`.replace(" mm", ""));
    figure.querySelector("[data-readout]").textContent =
      `${where.join(", ")} mm: ${panes.map((pane) => pane.describe()).join("; ")} (${shared.unit})`;
    panes.forEach((pane) => pane.draw());
    drawBar(shared, figure.querySelector("[data-bar]"), state.threshold);
  }

  axes.forEach((slider, axis) => {
    slider.addEventListener("input", () => {
      state.point[axis] = Math.round((Number(slider.value) - shared.origin[axis]) / shared.spacing[axis]);
      refresh();
    });
  });
  threshold.addEventListener("input", refresh);
  for (const end of figure.querySelectorAll("[data-limit]")) {
    end.textContent = `${readable(Number(end.dataset.limit) * shared.limit, shared.digits)} ${shared.unit}`;
  }
  refresh();
}
