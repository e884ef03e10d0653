// The threshold's slider: moves the confusion matrix, a ring on the curves, every figure and every link to faces. Its value
// stands in the address, so that a reload or a link shows the same.
import { replaceRegion } from "./app.js";
import { json } from "./json.js";

let show = () => {};

export function showThreshold() {
  show();
}

// The decision threshold in force.
export function readThreshold() {
  return Number(document.getElementById("threshold")?.value ?? 0.5);
}

function withThreshold(link, value) {
  const url = new URL(link.href);
  if (value === 0.5) url.searchParams.delete("threshold");
  else url.searchParams.set("threshold", value);
  link.href = url.pathname + url.search + url.hash;
}

// What is counted by the server follows once the slider rests.
let resting = 0;
function refreshCounted() {
  clearTimeout(resting);
  resting = setTimeout(async () => {
    const asked = location.href;
    const answer = await fetch(asked, { headers: { Accept: "text/html" } });
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (asked !== location.href) return;
    for (const old of document.querySelectorAll("[data-follows-threshold]")) {
      const newer = fresh.getElementById(old.id);
      if (newer) replaceRegion(old, newer);
    }
  }, 300);
}

export async function followThreshold() {
  const slider = document.getElementById("threshold");
  if (!slider || slider.dataset.ready) return;
  slider.dataset.ready = "yes";
  // By label, how many faces have a probability of at least 0, 0.005, … 1.
  const scores = await json(slider.dataset.scores);
  const steps = scores.male.length - 1;
  const total = { male: scores.male[0], female: scores.female[0] };
  const all = total.male + total.female;
  show = () => {
    const value = Number(slider.value);
    const step = Math.round(value * steps);
    const cells = { "male-female": scores.male[step], "female-female": scores.female[step] };
    cells["male-male"] = total.male - cells["male-female"];
    cells["female-male"] = total.female - cells["female-female"];
    for (const [cell, n] of Object.entries(cells)) {
      const link = document.querySelector(`[data-cell="${cell}"]`);
      link.querySelector("strong").textContent = n.toLocaleString();
      link.querySelector("span").textContent = `${((100 * n) / all).toFixed(1)} %`;
      withThreshold(link, value);
    }
    const predicted = cells["female-female"] + cells["male-female"];
    const precision = predicted ? cells["female-female"] / predicted : 1; // without predictions none is wrong
    const recall = cells["female-female"] / Math.max(1, total.female);
    const falsePositive = cells["male-female"] / Math.max(1, total.male);
    const accuracy = (cells["male-male"] + cells["female-female"]) / all;
    document.getElementById("threshold-value").textContent = value.toFixed(3);
    const curves = document.querySelector("[data-chart=roc]") ? "; marked on both curves" : "";
    document.getElementById("threshold-words").textContent =
      `Accuracy ${(100 * accuracy).toFixed(1)} %, precision ${(100 * precision).toFixed(1)} %, ` +
      `recall ${(100 * recall).toFixed(1)} %, false positive rate ${(100 * falsePositive).toFixed(1)} %${curves}.`;
    document.querySelector("[data-chart=roc]")?.mark?.(falsePositive, recall);
    document.querySelector("[data-chart=precision_recall]")?.mark?.(recall, precision);
  };
  const move = () => {
    const url = new URL(location.href);
    if (Number(slider.value) === 0.5) url.searchParams.delete("threshold");
    else url.searchParams.set("threshold", slider.value);
    history.replaceState(null, "", url);
    show();
    refreshCounted();
  };
  slider.addEventListener("input", move);
  for (const button of document.querySelectorAll("[data-threshold]")) {
    button.addEventListener("click", (event) => {
      event.preventDefault();
      slider.value = button.dataset.threshold;
      move();
    });
  }
  show();
}

followThreshold();
