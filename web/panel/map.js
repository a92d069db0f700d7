// Draws the chunk x step map of a run: a row for a chunk, a column for a step, a frame around the step that runs now.
// A step computed in part is filled from below as far as it was computed, above it the colour of reuse.
const HIGHEST = 144; // of a map, in CSS pixels; beyond, rows are as low as they may be
const HIGHEST_CELL = 12;
const LOWEST_CELL = 2;
const GUTTER = 22;

// Height in CSS pixels that a map of so many chunks takes.
export function heightFor(chunks) {
  return Math.round(chunks * cellHeight(chunks));
}

function cellHeight(chunks) {
  return Math.max(LOWEST_CELL, Math.min(HIGHEST_CELL, HIGHEST / chunks));
}

export function draw(canvas, run, theme) {
  const width = canvas.clientWidth;
  const height = heightFor(run.rows.length);
  if (!width || !run.rows.length) return;
  const scale = Math.max(2, window.devicePixelRatio || 1); // nodes are zoomed into
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  pen.clearRect(0, 0, width, height);
  const cell = { width: (width - GUTTER) / run.steps, height: height / run.rows.length };
  const gap = { x: cell.width > 3 ? 1 : 0, y: cell.height > 3 ? 1 : 0 };
  const box = (row, step) => [
    GUTTER + step * cell.width,
    row * cell.height,
    Math.max(0.5, cell.width - gap.x),
    Math.max(0.5, cell.height - gap.y),
  ];
  run.rows.forEach((letters, row) => {
    for (let step = 0; step < letters.length; step++) {
      pen.fillStyle = theme[letters[step]] ?? theme[" "];
      pen.fillRect(...box(row, step));
    }
  });
  for (const [row, step, share] of run.shares) {
    const [x, y, w, h] = box(row, step);
    pen.fillStyle = theme["."];
    pen.fillRect(x, y, w, h * (1 - share));
  }
  if (run.now) {
    const [x, y, w, h] = box(...run.now);
    pen.strokeStyle = theme.now;
    pen.lineWidth = 1.5;
    pen.strokeRect(x - 0.5, y - 0.5, Math.max(w, 2) + 1, Math.max(h, 2) + 1);
  }
  pen.strokeStyle = theme.soft;
  pen.lineWidth = 1;
  for (const first of run.windows) pen.strokeRect(GUTTER, first * cell.height - 0.5, width - GUTTER, 0);
  numbers(pen, run.rows.length, cell.height, theme);
}

// Chunk numbers beside the rows, as many as have room.
function numbers(pen, chunks, height, theme) {
  pen.fillStyle = theme.soft;
  pen.font = "9px sans-serif";
  pen.textAlign = "right";
  pen.textBaseline = "middle";
  const every = Math.max(1, Math.ceil(10 / height));
  for (let row = 0; row < chunks; row += every) pen.fillText(row, GUTTER - 4, (row + 0.5) * height);
}
