// Colours of a map, those of the report's picture (flowcache_core/report/figure.py): Okabe-Ito hues of clearly different
// lightness, so that it reads with colour-blind eyes and in grey. Light and dark differ in what lies behind the cells.
export const CELLS = {
  "=": "#999999", // given clean
  w: "#56B4E9", // warm-up
  "#": "#0072B2", // computed
  "!": "#003A5C", // computed by force
  ".": "#F5C77E", // reused
  x: "#A50026", // not finite
};
const DARK = { ...CELLS, "!": "#9BD0F5", " ": "#3A3A3A", ink: "#DDDDDD", soft: "#8A8A8A", now: "#FFFFFF", budget: "#FF8A3D" };
const LIGHT = { ...CELLS, " ": "#E4E4E4", ink: "#222222", soft: "#6B6B6B", now: "#111111", budget: "#C34A00" };

// Lightness 0 to 1 of a CSS colour as the browser reports it, "rgb(r, g, b)".
function lightness(colour) {
  const [red, green, blue] = (colour.match(/[\d.]+/g) ?? [0, 0, 0]).map(Number);
  return (0.299 * red + 0.587 * green + 0.114 * blue) / 255;
}

// The theme is whatever text the frontend writes on this element: light text means a dark theme.
export function themeOf(element) {
  return lightness(getComputedStyle(element).color) > 0.5 ? DARK : LIGHT;
}
