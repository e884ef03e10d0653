// The occlusion map of a face: red where covering it lowers the confidence of the prediction.
import { post, root } from "./app.js";

export function askMap(query, image) {
  return post(`${root}/api/v1/explanations?${query}`, { body: image, headers: { "Content-Type": "image/png" } });
}

// Paints a map over a face, and returns the words that explain it.
export function paint(canvas, map) {
  const most = Math.max(0.02, ...map.drop.flat());
  canvas.width = map.grid;
  canvas.height = map.grid;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(map.grid, map.grid);
  map.drop.flat().forEach((drop, i) => {
    const part = Math.max(0, drop) / most;
    pixels.data.set([255, Math.round(190 - 150 * part), 20, Math.round(200 * part ** 1.2)], 4 * i);
  });
  context.putImageData(pixels, 0, 0);
  canvas.hidden = false;
  const points = (100 * Math.max(0, ...map.drop.flat())).toFixed(0);
  return `Red: covering this area lowers confidence by up to ${points} points (occlusion map).`;
}
