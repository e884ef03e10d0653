// Buttons beside a plot that save it as a picture, PNG or SVG, and its figures as CSV.
//
// Bokeh's own save tool asks for a file's name in a dialog of the browser's and knows only the format that it draws in;
// its export to the other one fails. So a drawing is what plots give, and the picture is made of that.

const SCALE = 2; // sharp in print

export function saveFile(name, blob) {
  const address = URL.createObjectURL(blob);
  Object.assign(document.createElement("a"), { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

function cell(value) {
  const text = Number.isNaN(value) ? "" : String(value ?? "");
  return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function csv(table) {
  const names = Object.keys(table);
  const lines = [names.join(","), ...table[names[0]].map((_, i) => names.map((key) => cell(table[key][i])).join(","))];
  return new Blob([`${lines.join("\n")}\n`], { type: "text/csv" });
}

async function rasterised(svg) {
  const address = URL.createObjectURL(svg);
  try {
    const image = new Image();
    image.src = address;
    await image.decode();
    const canvas = document.createElement("canvas");
    canvas.width = SCALE * image.naturalWidth;
    canvas.height = SCALE * image.naturalHeight;
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    return await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  } finally {
    URL.revokeObjectURL(address);
  }
}

// Puts the buttons behind the title of the card in which the plot is.
//
// `drawing` gives the plot as a Blob of SVG; `columns` its figures, as arrays of one length by name.
export function addSaving(place, name, drawing, columns) {
  const card = place.closest(".card");
  const title = card.querySelector("h2");
  const button = (format, words, make) => {
    const element = document.createElement("button");
    element.type = "button";
    element.className = "link-button";
    element.textContent = format;
    element.dataset.save = format.toLowerCase();
    element.setAttribute("aria-label", `${format}: save ${words} of “${title.textContent}”`);
    element.title = `Save ${words}`;
    element.addEventListener("click", async () => saveFile(`${name}.${format.toLowerCase()}`, await make()));
    return element;
  };
  let box = card.querySelector(".saving");
  if (!box) {
    box = document.createElement("span");
    box.className = "saving";
    const head = document.createElement("div");
    head.className = "chart-head";
    title.replaceWith(head);
    head.append(title, box);
  }
  box.replaceChildren(
    button("PNG", "a picture", async () => rasterised(await drawing())),
    button("SVG", "a drawing", drawing),
    button("CSV", "the figures", () => csv(columns())),
  );
}
