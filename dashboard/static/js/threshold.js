// The threshold's slider: moves the confusion matrix, a ring on the curves, the groups and every link to faces. Its value
// stands in the address, so that a reload or a link shows the same.
import { replaceRegion } from "./app.js";
import { json } from "./json.js";

let show = () => {};

export function showThreshold() {
  show();
}

// The step of the slider where `cost` is lowest.
function best(scores, cost) {
  const costs = scores.male.map((_, step) => cost(step));
  return costs.indexOf(Math.min(...costs));
}

function withThreshold(link, value) {
  const url = new URL(link.href);
  if (value === 0.5) url.searchParams.delete("threshold");
  else url.searchParams.set("threshold", value);
  link.href = url.pathname + url.search + url.hash;
}

// Groups are counted by the server, once the slider rests.
let resting = 0;
function refreshGroups() {
  clearTimeout(resting);
  resting = setTimeout(async () => {
    const asked = location.href;
    const answer = await fetch(asked, { headers: { Accept: "text/html" } });
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    const [old, newer] = [document.getElementById("groups"), fresh.getElementById("groups")];
    if (old && newer && asked === location.href) replaceRegion(old, newer);
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
    document.getElementById("threshold-words").textContent =
      `Accuracy ${(100 * accuracy).toFixed(1)} %, precision ${(100 * precision).toFixed(1)} %, ` +
      `recall ${(100 * recall).toFixed(1)} %, false positive rate ${(100 * falsePositive).toFixed(1)} %; marked on both curves.`;
    document.querySelector("[data-chart=roc]").mark?.(falsePositive, recall);
    document.querySelector("[data-chart=precision_recall]").mark?.(recall, precision);
  };
  const move = () => {
    const url = new URL(location.href);
    if (Number(slider.value) === 0.5) url.searchParams.delete("threshold");
    else url.searchParams.set("threshold", slider.value);
    history.replaceState(null, "", url);
    show();
    refreshGroups();
  };
  slider.addEventListener("input", move);
  const wrong = (step) => scores.male[step] + total.female - scores.female[step];
  const difference = (step) => Math.abs(scores.male[step] / Math.max(1, total.male) - 1 + scores.female[step] / Math.max(1, total.female));
  const choices = { accuracy: () => best(scores, wrong), equal: () => best(scores, difference), reset: () => steps / 2 };
  for (const button of document.querySelectorAll("[data-threshold]")) {
    button.addEventListener("click", () => {
      slider.value = choices[button.dataset.threshold]() / steps;
      move();
    });
  }
  show();
}
