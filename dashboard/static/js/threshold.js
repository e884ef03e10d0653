// The threshold's slider: moves the confusion matrix, and a ring on the curves.
import { json } from "./json.js";

let show = () => {};

export function showThreshold() {
  show();
}

export async function followThreshold() {
  const slider = document.getElementById("threshold");
  if (!slider || slider.dataset.ready) return;
  slider.dataset.ready = "yes";
  const scores = await json(slider.dataset.scores);
  const above = (counts, bin) => counts.slice(bin).reduce((sum, n) => sum + n, 0);
  const total = { male: above(scores.male, 0), female: above(scores.female, 0) };
  show = () => {
    const bin = Math.round(slider.value * scores.bins);
    const cells = {
      "male-female": above(scores.male, bin), "female-female": above(scores.female, bin),
    };
    cells["male-male"] = total.male - cells["male-female"];
    cells["female-male"] = total.female - cells["female-female"];
    const all = total.male + total.female;
    for (const [cell, n] of Object.entries(cells)) {
      const link = document.querySelector(`[data-cell="${cell}"]`);
      link.querySelector("strong").textContent = n.toLocaleString();
      link.querySelector("span").textContent = `${((100 * n) / all).toFixed(1)} %`;
    }
    const named = cells["female-female"] + cells["male-female"];
    const precision = named ? cells["female-female"] / named : 1; // nobody named is nobody named wrongly
    const recall = cells["female-female"] / Math.max(1, total.female);
    const falsely = cells["male-female"] / Math.max(1, total.male);
    const right = (cells["male-male"] + cells["female-female"]) / all;
    document.getElementById("threshold-value").textContent = Number(slider.value).toFixed(2);
    document.getElementById("threshold-words").textContent =
      `${(100 * right).toFixed(1)} % right; precision ${precision.toFixed(3)}, recall ${recall.toFixed(3)}, ` +
      `false positives ${(100 * falsely).toFixed(1)} %. The ring on both curves is here.`;
    document.querySelector("[data-chart=roc]").mark?.(falsely, recall);
    document.querySelector("[data-chart=precision_recall]").mark?.(recall, precision);
  };
  slider.addEventListener("input", show);
  show();
}
